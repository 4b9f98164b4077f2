"""Which connector types exist: the built-in ones in one tuple, and those that were registered beside them."""

import re
from collections import Counter
from collections.abc import Iterable
from typing import Final

from patchbay_server.adapters.anthropic import ADAPTER as ANTHROPIC
from patchbay_server.adapters.azure_openai import ADAPTER as AZURE_OPENAI
from patchbay_server.adapters.bedrock import ADAPTER as BEDROCK
from patchbay_server.adapters.gemini import ADAPTER as GEMINI
from patchbay_server.adapters.openai_chat import OPENAI, OPENAI_COMPATIBLE
from patchbay_server.adapters.openrouter import ADAPTER as OPENROUTER
from patchbay_server.adapters.protocol import Adapter, CredentialField, FieldKind, TypeInfo
from patchbay_server.adapters.xai import ADAPTER as XAI
from patchbay_server.errors import PatchbayError, Reason

BUILT_IN: Final[tuple[Adapter, ...]] = (
    OPENAI,
    OPENAI_COMPATIBLE,
    ANTHROPIC,
    GEMINI,
    AZURE_OPENAI,
    BEDROCK,
    OPENROUTER,
    XAI,
)

_NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,62}")
"""A type's or field's name, fit for a proto field and a URL."""


class Registry:
    """The adapters of one process, by connector type.

    Raises:
        ValueError: two adapters of one type, or one that describes itself wrongly; the service must not start.
    """

    def __init__(self, adapters: Iterable[Adapter]) -> None:
        self._adapters: dict[str, Adapter] = {}
        for adapter in adapters:
            check_adapter(adapter)
            if adapter.info.type in self._adapters:
                raise ValueError(f"connector type {adapter.info.type!r} is registered twice")
            self._adapters[adapter.info.type] = adapter

    def get(self, type: str) -> Adapter:  # noqa: A002 -- the word of the contract
        """The adapter of a connector type.

        Raises:
            PatchbayError: INVALID_REQUEST naming the types that exist.
        """
        adapter = self._adapters.get(type)
        if adapter is None:
            known = ", ".join(sorted(self._adapters))
            raise PatchbayError(Reason.INVALID_REQUEST, f"there is no such connector type; there are {known}")
        return adapter

    @staticmethod
    def is_built_in(type: str) -> bool:  # noqa: A002 -- the word of the contract
        """Whether the gateway brings the type itself, rather than a plug-in."""
        return any(adapter.info.type == type for adapter in BUILT_IN)

    def types(self) -> tuple[TypeInfo, ...]:
        """What is known of each type, in the order of registration."""
        return tuple(adapter.info for adapter in self._adapters.values())


def check_adapter(adapter: object) -> Adapter:
    """`adapter`, if it is one and describes a type that a client can draw a form from.

    Raises:
        ValueError: what is wrong.
    """
    if not isinstance(adapter, Adapter):
        raise ValueError(f"{type(adapter).__name__} is not an adapter: it lacks a method of the protocol")  # noqa: TRY004
    info = adapter.info
    if not isinstance(info, TypeInfo) or not _NAME.fullmatch(info.type):
        raise ValueError(f"an adapter's info.type has to match {_NAME.pattern}")
    for name, count in Counter(field.name for field in info.fields).items():
        if count > 1:
            raise ValueError(f"connector type {info.type!r} has two fields named {name!r}")
    for field in info.fields:
        _check_field(info, field)
    return adapter


def _check_field(info: TypeInfo, field: CredentialField) -> None:
    where = f"field {field.name!r} of connector type {info.type!r}"
    if not _NAME.fullmatch(field.name):
        raise ValueError(f"{where}: a name has to match {_NAME.pattern}")
    if not field.label:
        raise ValueError(f"{where}: a label is needed")
    if (field.kind is FieldKind.CHOICE) != bool(field.choices):
        raise ValueError(f"{where}: choices belong to a CHOICE, and a CHOICE has some")
    if field.required and field.one_of:
        raise ValueError(f"{where}: a required field is in no group of alternatives")
    if field.length_max < 1:
        raise ValueError(f"{where}: length_max has to be positive")
    try:
        re.compile(field.pattern)
    except re.error as error:
        raise ValueError(f"{where}: the pattern is no regular expression") from error
