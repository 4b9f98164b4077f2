"""What of a record fits every database: bounded text without characters that one of them refuses, counts that can be
added up.

Records carry a provider's words and numbers. Losing the record of a call over them would be worse than cutting them.
"""

import re
from typing import Any, Final, TypeVar

import msgspec

TEXT_MAX: Final = 512
"""Characters of one text."""
COUNT_MAX: Final = 10**15
"""Of one count; thousands of them can be added without leaving 64 bits."""
MONTH_MAX: Final = 2**61
"""Of the tokens of a month; it and a group's tokens still add up within 64 bits."""

_REFUSED: Final = re.compile("[\x00\ud800-\udfff]")  # NUL by PostgreSQL, lone surrogates by UTF-8

R = TypeVar("R", bound=msgspec.Struct)


def storable(record: R) -> R:
    """The record itself, or a copy in which text is cut and cleaned and counts are kept in bounds."""
    changes = {}
    for name in record.__struct_fields__:
        value = getattr(record, name)
        fitting = _fitting(value)
        if fitting is not value:
            changes[name] = fitting
    return msgspec.structs.replace(record, **changes) if changes else record


def _fitting(value: Any) -> Any:
    kind = type(value)
    if kind is str:
        return value if len(value) <= TEXT_MAX and value.isprintable() else _REFUSED.sub("\ufffd", value[:TEXT_MAX])
    if kind is int:
        return value if 0 <= value <= COUNT_MAX else min(max(value, 0), COUNT_MAX)
    if kind is dict:
        return {_fitting(key): _fitting(item) for key, item in value.items()} if value else value
    if kind is tuple:
        return tuple(_fitting(item) for item in value) if value else value
    if isinstance(value, msgspec.Struct):
        return storable(value)
    return value
