"""Protobuf messages as frozen dataclasses, and words as protobuf enum numbers.

A result class says which fields it shows; how each is read follows from the message's descriptor: repeated fields
become tuples, maps dicts, `Timestamp` an aware datetime in UTC, `Duration` a timedelta, enums the class that the
annotation names, and a field that is not set None where the annotation allows it. The names are the contract's.
"""

import types
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from functools import cache, partial
from typing import Any, Generic, Self, TypeVar, Union, get_args, get_origin, get_type_hints

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

M_co = TypeVar("M_co", bound=Message, covariant=True)
V = TypeVar("V", bound="Value[Any]")


@dataclass(frozen=True, kw_only=True)
class Value(Generic[M_co]):
    """One result of Patchbay. Fields that are None or empty were not set; the contract says what that means.

    Attributes:
        raw: the protobuf message behind it, with every field that the contract has. Do not change it.
    """

    raw: M_co = field(repr=False, compare=False)


class Word(StrEnum):
    """An enum of the contract; the values are the contract's names without their prefix."""

    @classmethod
    def unknown(cls) -> Self:
        """What a number stands for that a newer server sends and this client does not know."""
        return cls["OTHER"]


def read(value_class: type[V], message: Message) -> V:
    """The message as a `value_class`, which must name fields of the message only."""
    shown: Any = value_class  # mypy does not see that a generic class is hashable
    plan = _plan(shown, message.DESCRIPTOR)
    return value_class(raw=message, **{name: get(message) for name, get in plan})


def read_enum(word_class: type[Word], enum: EnumDescriptor, number: int) -> Word:
    """The word for a number of `enum`; `word_class.unknown()` when either of them lacks it."""
    return word_class.__members__.get(enum_name(enum, number), None) or word_class.unknown()


def enum_name(enum: EnumDescriptor, number: int) -> str:
    """The name of a number without the prefix of its enum; empty for the zero value, "OTHER" for an unknown one."""
    if number == 0:
        return ""
    value = enum.values_by_number.get(number)
    return "OTHER" if value is None else value.name.removeprefix(_prefix(enum))


def enum_number(enum: EnumDescriptor, word: str) -> int:
    """The number of a word, which may be in either case.

    Raises:
        ValueError: there is no such word; the message names those that there are.
    """
    prefix = _prefix(enum)
    value = enum.values_by_name.get(prefix + word.upper())
    if value is None or value.number == 0:
        choices = ", ".join(each.name.removeprefix(prefix) for each in enum.values if each.number != 0)
        raise ValueError(f"{word!r} is not one of {choices}")
    return value.number


def to_datetime(time: Timestamp) -> datetime:
    return time.ToDatetime(tzinfo=UTC)


def to_timestamp(moment: datetime) -> Timestamp:
    """The moment for a request.

    Raises:
        ValueError: it has no time zone, so that it could mean another moment at the server.
    """
    if moment.tzinfo is None:
        raise ValueError(f"{moment!r} has no time zone; use an aware datetime such as datetime.now(UTC)")
    time = Timestamp()
    time.FromDatetime(moment)
    return time


def to_duration(length: timedelta | float) -> Duration:
    """The length for a request; numbers are seconds."""
    duration = Duration()
    duration.FromTimedelta(length if isinstance(length, timedelta) else timedelta(seconds=length))
    return duration


def _prefix(enum: EnumDescriptor) -> str:
    return str(enum.values_by_number[0].name).removesuffix("UNSPECIFIED")


Getter = Callable[[Any], Any]


@cache
def _plan(value_class: type[Value[Message]], descriptor: Descriptor) -> tuple[tuple[str, Getter], ...]:
    hints = get_type_hints(value_class)
    names = [each.name for each in fields(value_class) if each.name != "raw"]
    return tuple((name, _getter(descriptor.fields_by_name[name], hints[name])) for name in names)


def _getter(source: FieldDescriptor, hint: Any) -> Getter:
    name = source.name
    shown, optional = _without_none(hint)
    if source.message_type is not None and source.message_type.GetOptions().map_entry:
        return lambda message: dict(getattr(message, name))
    if source.is_repeated:
        item = _item(source, get_args(shown)[0])
        return lambda message: tuple(item(each) for each in getattr(message, name))
    item = _item(source, shown)
    if not optional:
        return lambda message: item(getattr(message, name))
    if source.has_presence:
        return lambda message: item(getattr(message, name)) if message.HasField(name) else None
    return lambda message: item(getattr(message, name)) if getattr(message, name) else None


def _item(source: FieldDescriptor, hint: Any) -> Getter:
    if source.enum_type is not None:
        if hint is str:
            return partial(enum_name, source.enum_type)
        return partial(read_enum, hint, source.enum_type)
    if hint is datetime:
        return to_datetime
    if hint is timedelta:
        return Duration.ToTimedelta
    if isinstance(hint, type) and issubclass(hint, Value):
        return partial(read, hint)
    return lambda value: value


def _without_none(hint: Any) -> tuple[Any, bool]:
    if get_origin(hint) not in (Union, types.UnionType):
        return hint, False
    (shown,) = (each for each in get_args(hint) if each is not types.NoneType)
    return shown, True
