"""What a call used and what it cost."""

from dataclasses import dataclass
from decimal import Decimal

from patchbay.v1 import usage_pb2
from patchbay_client.reading import Value, Word

NANOS_PER_USD = 1_000_000_000


class UsageSource(Word):
    """How far the counts can be trusted."""

    PROVIDER = "PROVIDER"
    PARTIAL = "PARTIAL"
    ESTIMATED = "ESTIMATED"
    OTHER = "OTHER"


@dataclass(frozen=True, kw_only=True)
class Usage(Value[usage_pb2.Usage]):
    """Tokens and cost. Cached and cache-write tokens are part of the input, reasoning tokens part of the output.

    None means that the provider did not report a count, or that the price is unknown; neither means zero.
    """

    input_tokens: int
    output_tokens: int
    total_tokens: int
    source: UsageSource | None
    cached_input_tokens: int | None
    cache_write_input_tokens: int | None
    reasoning_tokens: int | None
    cost_usd_nanos: int | None

    @property
    def cost_usd(self) -> Decimal | None:
        """The cost in US dollars, exactly; None when the price is unknown."""
        return None if self.cost_usd_nanos is None else Decimal(self.cost_usd_nanos) / NANOS_PER_USD
