"""Token counts as providers report them: read without trust, because a usable stream must not fail over a count."""

from typing import Final

COUNT_MAX: Final = 2**53
"""What is larger is no token count; sums of counts stay far inside 64 bits."""


def count(value: object) -> int | None:
    """The count that a provider reported; None for null, text, a boolean, a fraction or a negative number."""
    if isinstance(value, bool):
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, int) and 0 <= value <= COUNT_MAX else None
