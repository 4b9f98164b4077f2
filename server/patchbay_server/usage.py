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
