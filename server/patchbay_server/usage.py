"""Token counts of one call in the one normal form that every provider's counts are turned into."""

from enum import StrEnum

import msgspec


class UsageSource(StrEnum):
    """Where counts come from."""

    PROVIDER = "provider"
    """The provider reported them at the end of the answer."""
    PARTIAL = "partial"
    """The provider reported them so far; the answer was broken off before the final report."""
    ESTIMATED = "estimated"
    """The provider reported nothing that could be used; the gateway estimated from the bytes it saw."""


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens of one call.

    `input_tokens` are all prompt tokens, cached and cache-written ones included; `output_tokens` are all generated
    tokens, reasoning included. The optional counts are parts of those two; None means that the provider did not say.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    total_tokens: int = 0
    cached_input_tokens: int | None = None
    cache_write_input_tokens: int | None = None
    reasoning_tokens: int | None = None
    cost_usd_nanos: int | None = None
    """Cost in billionths of a US dollar; None when the price is unknown, never zero for that reason."""
    source: UsageSource = UsageSource.PROVIDER


_SOURCES = (UsageSource.PROVIDER, UsageSource.PARTIAL, UsageSource.ESTIMATED)
"""From the surest to the least sure."""


def total(one: Usage | None, other: Usage | None) -> Usage | None:
    """Two usages together; None where there is neither.

    Parts that one of them does not tell count as none of it; a cost that one of them lacks is unknown for both. The sum
    is as sure as its less sure half.
    """
    if one is None or other is None:
        return one or other
    costs = (one.cost_usd_nanos, other.cost_usd_nanos)
    return Usage(
        input_tokens=one.input_tokens + other.input_tokens,
        output_tokens=one.output_tokens + other.output_tokens,
        total_tokens=one.total_tokens + other.total_tokens,
        cached_input_tokens=_sum(one.cached_input_tokens, other.cached_input_tokens),
        cache_write_input_tokens=_sum(one.cache_write_input_tokens, other.cache_write_input_tokens),
        reasoning_tokens=_sum(one.reasoning_tokens, other.reasoning_tokens),
        cost_usd_nanos=None if None in costs else _sum(*costs),
        source=max(one.source, other.source, key=_SOURCES.index),
    )


def _sum(one: int | None, other: int | None) -> int | None:
    return None if one is None and other is None else (one or 0) + (other or 0)
