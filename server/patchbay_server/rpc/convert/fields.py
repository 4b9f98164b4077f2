"""Single fields: the faults found in them, resource names, times, enums."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import Final, Generic, Protocol, TypeVar

from google.protobuf.descriptor import EnumDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from patchbay_server.errors import FieldViolation, PatchbayError, Reason
from patchbay_server.types import RESOURCE_ID

FAULTS_MAX: Final = 20
"""Faults that are told; more are counted."""
_NANOS: Final = 1_000_000_000
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_TIMESTAMP_SECONDS: Final = range(-62_135_596_800, 253_402_300_800)
"""The years 1 to 9999, which are all that a Timestamp may say."""
_DURATION_SECONDS_MAX: Final = 315_576_000_000
_CONNECTOR_NAME: Final = re.compile(
    rf"owners/(?P<owner>{RESOURCE_ID.pattern})/connectors/(?P<id>{RESOURCE_ID.pattern})"
)

E = TypeVar("E", bound=Enum)
V_co = TypeVar("V_co", bound=int, covariant=True)


class Faults:
    """The fields of one request that are wrong, gathered so that a caller hears of all of them at once."""

    def __init__(self) -> None:
        self._told: list[FieldViolation] = []
        self._count = 0

    def add(self, field: str, description: str) -> None:
        self._count += 1
        if self._count <= FAULTS_MAX:
            self._told.append(FieldViolation(field, description))

    def check(self) -> None:
        """Raises: PatchbayError: INVALID_REQUEST when there are any."""
        if not self._told:
            return
        first = self._told[0]
        more = f" (and {self._count - 1} more)" if self._count > 1 else ""
        raise PatchbayError(Reason.INVALID_REQUEST, f"{first.field}: {first.description}{more}", violations=self._told)


# --- resource names ---------------------------------------------------------------------------------------------------


def owner_id(name: str, field: str, faults: Faults) -> str:
    """The id in `owners/{owner}`, or the bare id; "" when the field is unset."""
    if not name:
        return ""
    owner = name.removeprefix("owners/")
    if not RESOURCE_ID.fullmatch(owner):
        faults.add(field, "must be owners/{owner}, with an id of 1 to 63 of a-z, 0-9 and -, starting with a letter")
        return ""
    return owner


def connector_name(name: str, field: str, faults: Faults) -> tuple[str, str]:
    """Owner and id in `owners/{owner}/connectors/{connector}`."""
    match = _CONNECTOR_NAME.fullmatch(name)
    if match is None:
        faults.add(field, "must be owners/{owner}/connectors/{connector}")
        return "", ""
    return match["owner"], match["id"]


# --- times ------------------------------------------------------------------------------------------------------------


def duration(seconds: float) -> Duration:
    """`seconds`, which are not negative, as a Duration."""
    nanos = round(seconds * _NANOS)
    return Duration(seconds=nanos // _NANOS, nanos=nanos % _NANOS)


def seconds(value: Duration, field: str, faults: Faults) -> float | None:
    """A Duration in seconds; None, and a fault, for one that breaks the rules of Durations."""
    mixed = value.seconds * value.nanos < 0
    if mixed or abs(value.nanos) >= _NANOS or abs(value.seconds) > _DURATION_SECONDS_MAX:
        faults.add(field, "must be a valid Duration: nanos within a second and of the same sign as seconds")
        return None
    return value.seconds + value.nanos / _NANOS


def timestamp(moment: datetime) -> Timestamp:
    since = moment - _EPOCH
    return Timestamp(seconds=since.days * 86_400 + since.seconds, nanos=since.microseconds * 1_000)


def maybe_timestamp(moment: datetime | None) -> Timestamp | None:
    return None if moment is None else timestamp(moment)


def moment(value: Timestamp, field: str, faults: Faults) -> datetime | None:
    """A Timestamp as an aware UTC moment, to the microsecond; None, and a fault, for one that is not valid."""
    if value.seconds not in _TIMESTAMP_SECONDS or not 0 <= value.nanos < _NANOS:
        faults.add(field, "must be a valid Timestamp, within the years 1 to 9999")
        return None
    return _EPOCH + timedelta(seconds=value.seconds, microseconds=value.nanos // 1_000)


# --- enums ------------------------------------------------------------------------------------------------------------


class WireEnum(Protocol[V_co]):
    """What generated code makes of an enum."""

    @property
    def DESCRIPTOR(self) -> EnumDescriptor: ...  # noqa: N802 -- the name in generated code

    def Value(self, name: str) -> V_co: ...  # noqa: N802 -- the name in generated code


class EnumTable(Generic[E, V_co]):
    """One enum of ours beside its counterpart on the wire; members correspond by name.

    Every member of ours has a value on the wire, else making the table fails.
    """

    def __init__(self, wire: WireEnum[V_co], ours: type[E]) -> None:
        prefix = wire.DESCRIPTOR.values[0].name.removesuffix("UNSPECIFIED")
        self.to_wire: Mapping[E, V_co] = {member: wire.Value(prefix + member.name) for member in ours}
        self._ours: Mapping[int, E] = {number: member for member, number in self.to_wire.items()}
        self._choices = ", ".join(prefix + member.name for member in ours)

    def given(self, number: int, field: str, faults: Faults) -> E | None:
        """The member, or None for "not set"; a value of a later contract is a fault."""
        return self.required(number, field, faults) if number else None

    def required(self, number: int, field: str, faults: Faults) -> E | None:
        """The member; None, and a fault, where it is not set or not known."""
        member = self._ours.get(number)
        if member is None:
            faults.add(field, f"must be one of {self._choices}")
        return member
