"""The token counts of the OpenAI family in the normal form."""

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from patchbay_server.adapters.counts import COUNT_MAX, count
from patchbay_server.usage import Usage


class Cost(msgspec.Struct, frozen=True, kw_only=True):
    """How a usage object says what the call cost.

    Args:
        field: the member that holds the amount.
        nanos: billionths of a US dollar that make one unit of it.
        partial_if: a member that says, when true, that the amount is not all that the call cost.
    """

    field: str
    nanos: float
    partial_if: str = ""

    def usd_nanos(self, reported: Mapping[str, Any]) -> int | None:
        """The cost in billionths of a US dollar; None when it is not said."""
        amount = reported.get(self.field)
        if isinstance(amount, bool) or not isinstance(amount, int | float) or reported.get(self.partial_if) is True:
            return None
        nanos = amount * self.nanos
        return round(nanos) if 0 <= nanos <= COUNT_MAX else None


class UsageSoFar:
    """Folds usage objects into running totals: each count that can be read replaces the one before it.

    Args:
        reasoning_outside: whether reasoning is known to be counted beside the output; else only the total tells.
        cost: where the provider says what the call cost; None when it does not.

    Source: `CompletionUsage` of openai 3.52.0; xAI reports reasoning beside `completion_tokens` and inside
    `total_tokens` (litellm and genai-prices agree, read 2026-11-20).
    """

    def __init__(self, names: "Names", *, reasoning_outside: bool = False, cost: Cost | None = None) -> None:
        self._names = names
        self._reasoning_outside = reasoning_outside
        self._cost = cost
        self._cost_usd_nanos: int | None = None
        self._counts: dict[str, int] = {}

    def take(self, reported: Any) -> Usage | None:
        """The totals after `reported`, or None when it holds nothing that could be read."""
        if not isinstance(reported, dict):
            return None
        read = {name: value for name, paths in self._names.items() if (value := _first(reported, paths)) is not None}
        if not read.keys() & {"input", "output", "total"}:
            return None
        self._counts |= read
        if self._cost is not None:
            self._cost_usd_nanos = self._cost.usd_nanos(reported)
        return self.usage

    @property
    def usage(self) -> Usage | None:
        """None while nothing was reported."""
        counts = self._counts
        if not counts:
            return None
        given, made, total, reasoning = (counts.get(name) for name in ("input", "output", "total", "reasoning"))
        given = max(0, total - made) if given is None and total is not None and made is not None else given or 0
        made = max(0, total - given) if made is None and total is not None else made or 0
        if reasoning and (total == given + made + reasoning or (self._reasoning_outside and total != given + made)):
            # The reasoning was left out of the output. A total without it says that it was not.
            made += reasoning
        return Usage(
            input_tokens=given,
            output_tokens=made,
            total_tokens=max(total or 0, given + made),
            cached_input_tokens=counts.get("cached"),
            cache_write_input_tokens=counts.get("cache_write"),
            reasoning_tokens=reasoning,
            cost_usd_nanos=self._cost_usd_nanos,
        )


Names = Mapping[str, tuple[tuple[str, ...], ...]]
"""Count -> where a usage object holds it: the first place that holds a count."""

CHAT: Final[Names] = {
    "input": (("prompt_tokens",),),
    "output": (("completion_tokens",),),
    "total": (("total_tokens",),),
    # Beside OpenAI's place those of DeepSeek and of Moonshot.
    "cached": (("prompt_tokens_details", "cached_tokens"), ("prompt_cache_hit_tokens",), ("cached_tokens",)),
    "cache_write": (("prompt_tokens_details", "cache_write_tokens"),),
    "reasoning": (("completion_tokens_details", "reasoning_tokens"),),
}
RESPONSES: Final[Names] = {
    "input": (("input_tokens",),),
    "output": (("output_tokens",),),
    "total": (("total_tokens",),),
    "cached": (("input_tokens_details", "cached_tokens"),),
    "cache_write": (("input_tokens_details", "cache_write_tokens"),),
    "reasoning": (("output_tokens_details", "reasoning_tokens"),),
}


def _first(reported: Any, paths: tuple[tuple[str, ...], ...]) -> int | None:
    return next((value for path in paths if (value := count(_at(reported, path))) is not None), None)


def _at(value: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        if not isinstance(value, dict):
            return None
        value = value.get(name)
    return value
