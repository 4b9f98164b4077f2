"""What a call costs: a list of prices that ships with the package, a policy's overrides, and exact arithmetic.

Amounts are whole billionths of a US dollar, rates are those per million tokens. Reads no clock, opens no connection and
guesses nothing: what is not known is None, never zero.
"""

from collections.abc import Iterable, Mapping
from datetime import date
from decimal import Decimal
from importlib.resources import files
from typing import Final, Self

import msgspec

from patchbay_server.market.names import forms, policy_keys
from patchbay_server.types import Policy, Price
from patchbay_server.usage import Usage

_FILE: Final = "prices.jsonl"
_NANOS: Final = 1_000_000_000
_MILLION: Final = 1_000_000

_SOLD_AS: Final[Mapping[str, tuple[str, ...]]] = {"azure_openai": ("azure_openai", "openai", "anthropic", "xai")}
"""Whose prices hold for a provider, the nearest first, where not its own alone: Azure sells models of others at the
makers' prices and is listed apart only where it differs.
"""


class Rates(msgspec.Struct, frozen=True, kw_only=True):
    """US dollars in billionths per million tokens, by kind; None when unknown, 0 when free of charge."""

    input_usd_nanos: int | None
    output_usd_nanos: int | None
    cached_input_usd_nanos: int | None
    cache_write_usd_nanos: int | None


class ListHead(msgspec.Struct, frozen=True, kw_only=True):
    """The first line of the list: where its prices come from, and the day on which they held."""

    source: str
    version: str
    as_of: date


class ListTier(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Prices of calls with more than `above` input tokens, for the whole call. None leaves the price below the tier."""

    above: int
    input: Decimal | None = None
    output: Decimal | None = None
    cached: Decimal | None = None
    cache_write: Decimal | None = None


class ListRow(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line of the list: what a model costs, in US dollars per million tokens.

    `names` are in lower case and without what `names.forms` cuts. `start` is the first day of a price that is announced
    and does not hold yet on the list's day. `cached` or `cache_write` None: the provider has no such price and bills
    these tokens as any other input. `tiers` are in ascending order.
    """

    provider: str
    names: tuple[str, ...]
    start: date | None = None
    input: Decimal
    output: Decimal
    cached: Decimal | None = None
    cache_write: Decimal | None = None
    tiers: tuple[ListTier, ...] = ()


class _Period(msgspec.Struct, frozen=True):
    """What a model costs from a day on: by least number of input tokens, in ascending order, the first 0."""

    start: date
    steps: tuple[tuple[int, Price], ...]


class PriceList:
    """Prices by provider and model. Immutable; looking up does no I/O."""

    def __init__(self, head: ListHead, rows: Iterable[ListRow]) -> None:
        self.head = head
        self._periods: dict[tuple[str, str], tuple[_Period, ...]] = {}
        for row in rows:
            period = _Period(row.start or date.min, _steps(row))
            for name in row.names:
                known = self._periods.get((row.provider, name), ())
                self._periods[row.provider, name] = tuple(sorted((*known, period), key=lambda one: one.start))

    @classmethod
    def bundled(cls) -> Self:
        """The list that ships with the package; read anew at each call."""
        head, *rows = files(__package__).joinpath(_FILE).read_bytes().splitlines()
        decoder = msgspec.json.Decoder(ListRow)
        return cls(msgspec.json.decode(head, type=ListHead), map(decoder.decode, rows))

    def rates(
        self, provider: str, model: str, policy: Policy, *, input_tokens: int = 0, on: date | None = None
    ) -> Rates | None:
        """What a call of that many input tokens costs per million tokens of each kind, or None when nothing is known.

        A price that the policy overrides wins, field by field, at every number of input tokens. A listed model without
        a price for cached input or cache writes is billed its input price for them, and the answer says so; for a model
        that only the policy knows, they stay unknown.

        Args:
            provider: the connector's type; one that the list does not know, such as a plug-in's, is not an error.
            model: as the caller wrote it or the provider answered it.
            input_tokens: all of the call, cached ones included; tiers hold for the whole call.
            on: the day of the call, for prices that change on an announced day; None is the day of the list.
        """
        listed = self._listed(provider, model, input_tokens, on or self.head.as_of)
        overrides = [
            policy.price_overrides[key] for key in policy_keys(provider, model) if key in policy.price_overrides
        ]
        if listed is None and not overrides:
            return None
        prices = overrides if listed is None else [*overrides, listed]
        input_rate = _first(price.input_usd_nanos for price in prices)
        unlisted_part = None if listed is None else input_rate
        cached = _first(price.cached_input_usd_nanos for price in prices)
        cache_write = _first(price.cache_write_usd_nanos for price in prices)
        return Rates(
            input_usd_nanos=input_rate,
            output_usd_nanos=_first(price.output_usd_nanos for price in prices),
            cached_input_usd_nanos=unlisted_part if cached is None else cached,
            cache_write_usd_nanos=unlisted_part if cache_write is None else cache_write,
        )

    def cost_usd_nanos(
        self, provider: str, model: str, usage: Usage, policy: Policy, *, on: date | None = None
    ) -> int | None:
        """What one attempt cost, rounded half up to a billionth of a dollar, or None when a rate it takes is unknown.

        What the provider itself reported wins. Reasoning is billed as the output it is part of. Arguments as `rates`.
        """
        if usage.cost_usd_nanos is not None:
            return usage.cost_usd_nanos
        rates = self.rates(provider, model, policy, input_tokens=usage.input_tokens, on=on)
        if rates is None:
            return None
        cached = usage.cached_input_tokens or 0
        cache_write = usage.cache_write_input_tokens or 0
        bill = (
            # Parts that add up to more than the whole are a provider's mistake; the rest of the input is then nothing.
            (max(usage.input_tokens - cached - cache_write, 0), rates.input_usd_nanos),
            (cached, rates.cached_input_usd_nanos),
            (cache_write, rates.cache_write_usd_nanos),
            (usage.output_tokens, rates.output_usd_nanos),
        )
        total = 0
        for tokens, rate in bill:
            if tokens == 0:
                continue
            if rate is None:
                return None
            total += tokens * rate
        return (total + _MILLION // 2) // _MILLION

    def _listed(self, provider: str, model: str, input_tokens: int, on: date) -> Price | None:
        for form in forms(provider, model):
            for seller in _SOLD_AS.get(provider, (provider,)):
                for period in reversed(self._periods.get((seller, form), ())):
                    if period.start <= on:
                        return next(price for least, price in reversed(period.steps) if least <= input_tokens)
        return None


def _steps(row: ListRow) -> tuple[tuple[int, Price], ...]:
    price = Price(
        input_usd_nanos=_nanos(row.input),
        output_usd_nanos=_nanos(row.output),
        cached_input_usd_nanos=_nanos(row.cached),
        cache_write_usd_nanos=_nanos(row.cache_write),
    )
    steps = [(0, price)]
    for tier in row.tiers:
        price = Price(
            input_usd_nanos=_first((_nanos(tier.input), price.input_usd_nanos)),
            output_usd_nanos=_first((_nanos(tier.output), price.output_usd_nanos)),
            cached_input_usd_nanos=_first((_nanos(tier.cached), price.cached_input_usd_nanos)),
            cache_write_usd_nanos=_first((_nanos(tier.cache_write), price.cache_write_usd_nanos)),
        )
        steps.append((tier.above + 1, price))
    return tuple(steps)


def _nanos(dollars: Decimal | None) -> int | None:
    return None if dollars is None else int(dollars * _NANOS)


def _first(values: Iterable[int | None]) -> int | None:
    return next((value for value in values if value is not None), None)
