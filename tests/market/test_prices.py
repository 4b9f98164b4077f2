"""What calls cost: the list's own semantics, overrides, tiers, announced changes and exact sums."""

from datetime import date
from decimal import Decimal
from importlib.resources import files

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support import make

from patchbay_server.market import prices
from patchbay_server.market.prices import ListHead, ListRow, ListTier, PriceList, Rates
from patchbay_server.types import Policy, Price
from patchbay_server.usage import Usage

DOLLAR = 1_000_000_000
NO_POLICY = make.policy()
BUNDLED = PriceList.bundled()
LIST = PriceList(
    ListHead(source="a test", version="1", as_of=date(2026, 11, 1)),
    [
        ListRow(
            provider="openai",
            names=("plain",),
            input=Decimal(2),
            output=Decimal(8),
            cached=Decimal("0.5"),
            cache_write=Decimal("2.5"),
        ),
        ListRow(provider="openai", names=("uncached",), input=Decimal(2), output=Decimal(8)),
        ListRow(
            provider="openai",
            names=("long",),
            input=Decimal(1),
            output=Decimal(4),
            cached=Decimal("0.1"),
            tiers=(
                ListTier(above=100, input=Decimal(2), cached=Decimal("0.2")),
                ListTier(above=1_000, input=Decimal(4), output=Decimal(6)),
            ),
        ),
        ListRow(provider="openai", names=("rising",), input=Decimal(1), output=Decimal(4)),
        ListRow(provider="openai", names=("rising",), start=date(2026, 12, 1), input=Decimal(2), output=Decimal(8)),
        ListRow(provider="azure_openai", names=("plain",), input=Decimal(3), output=Decimal(9)),
        ListRow(provider="openrouter", names=("maker/free:free",), input=Decimal(0), output=Decimal(0)),
        ListRow(provider="openai", names=("odd",), input=Decimal("0.0000005"), output=Decimal("0.0000005")),
    ],
)

tokens = st.integers(0, 3_000_000)


@st.composite
def usages(draw: st.DrawFn) -> Usage:
    cached, written, fresh, output = draw(tokens), draw(tokens), draw(tokens), draw(tokens)
    return Usage(
        input_tokens=cached + written + fresh,
        output_tokens=output,
        total_tokens=cached + written + fresh + output,
        cached_input_tokens=draw(st.sampled_from([cached, None])) if cached == 0 else cached,
        cache_write_input_tokens=draw(st.sampled_from([written, None])) if written == 0 else written,
        reasoning_tokens=draw(st.integers(0, output)),
    )


def overriding(**prices_by_key: Price) -> Policy:
    """A policy; `__` stands for the slash of a key, `any` for every provider."""
    keys = {key.replace("any__", "*__").replace("__", "/"): price for key, price in prices_by_key.items()}
    return make.policy(price_overrides=keys)


# --- rates ------------------------------------------------------------------------------------------------------------


def test_each_kind_has_its_own_rate() -> None:
    assert LIST.rates("openai", "plain", NO_POLICY) == Rates(
        input_usd_nanos=2 * DOLLAR,
        output_usd_nanos=8 * DOLLAR,
        cached_input_usd_nanos=DOLLAR // 2,
        cache_write_usd_nanos=DOLLAR * 5 // 2,
    )


def test_a_listed_model_without_cache_prices_is_billed_as_plain_input() -> None:
    rates = LIST.rates("openai", "uncached", NO_POLICY)
    assert rates is not None
    assert (rates.cached_input_usd_nanos, rates.cache_write_usd_nanos) == (2 * DOLLAR, 2 * DOLLAR)


@pytest.mark.parametrize("provider", ["openai_compatible", "a-plug-in", "anthropic"])
def test_a_model_of_a_provider_that_does_not_list_it_has_no_rates(provider: str) -> None:
    assert LIST.rates(provider, "plain", NO_POLICY) is None
    assert LIST.cost_usd_nanos(provider, "plain", Usage(input_tokens=1), NO_POLICY) is None


@pytest.mark.parametrize("model", ["", "unheard-of", "gpt-4o", "default"])
def test_a_self_hosted_model_costs_what_nobody_knows(model: str) -> None:
    assert BUNDLED.cost_usd_nanos("openai_compatible", model, Usage(input_tokens=7, output_tokens=7), NO_POLICY) is None


def test_azure_has_its_own_price_or_else_the_makers() -> None:
    own, makers = LIST.rates("azure_openai", "plain", NO_POLICY), LIST.rates("azure_openai", "uncached", NO_POLICY)
    assert own is not None
    assert own.input_usd_nanos == 3 * DOLLAR
    assert makers == LIST.rates("openai", "uncached", NO_POLICY)


def test_an_azure_deployment_with_a_name_of_its_own_is_unknown() -> None:
    assert BUNDLED.rates("azure_openai", "team-chat", NO_POLICY) is None


# --- overrides --------------------------------------------------------------------------------------------------------


def test_an_override_wins_field_by_field() -> None:
    policy = overriding(openai__plain=Price(output_usd_nanos=5, cached_input_usd_nanos=0))
    assert LIST.rates("openai", "plain", policy) == Rates(
        input_usd_nanos=2 * DOLLAR,
        output_usd_nanos=5,
        cached_input_usd_nanos=0,
        cache_write_usd_nanos=DOLLAR * 5 // 2,
    )


def test_the_providers_override_goes_before_everyones_and_both_count() -> None:
    policy = overriding(
        any__plain=Price(input_usd_nanos=1, output_usd_nanos=2),
        openai__plain=Price(input_usd_nanos=3),
    )
    rates = LIST.rates("openai", "plain", policy)
    assert rates is not None
    assert (rates.input_usd_nanos, rates.output_usd_nanos) == (3, 2)
    assert LIST.rates("xai", "plain", policy) == Rates(
        input_usd_nanos=1, output_usd_nanos=2, cached_input_usd_nanos=None, cache_write_usd_nanos=None
    )


def test_an_override_of_a_model_holds_for_its_snapshots() -> None:
    rates = LIST.rates("openai", "plain-2026-01-31", overriding(openai__plain=Price(input_usd_nanos=7)))
    assert rates is not None
    assert rates.input_usd_nanos == 7


def test_an_override_holds_at_every_length() -> None:
    policy = overriding(openai__long=Price(input_usd_nanos=7))
    for input_tokens in (0, 101, 1_001):
        rates = LIST.rates("openai", "long", policy, input_tokens=input_tokens)
        assert rates is not None
        assert rates.input_usd_nanos == 7


def test_an_overridden_input_price_is_what_unlisted_cache_prices_fall_back_to() -> None:
    rates = LIST.rates("openai", "uncached", overriding(openai__uncached=Price(input_usd_nanos=7)))
    assert rates is not None
    assert rates.cached_input_usd_nanos == 7


def test_a_zero_override_is_free_of_charge() -> None:
    policy = overriding(openai_compatible__local=Price(input_usd_nanos=0, output_usd_nanos=0))
    assert LIST.cost_usd_nanos("openai_compatible", "local", Usage(input_tokens=9, output_tokens=9), policy) == 0


@pytest.mark.parametrize(
    ("usage", "known"),
    [
        (Usage(input_tokens=5), True),
        (Usage(input_tokens=5, cached_input_tokens=0), True),
        (Usage(input_tokens=5, output_tokens=1), False),
        (Usage(input_tokens=5, cached_input_tokens=1), False),
        (Usage(input_tokens=5, cache_write_input_tokens=1), False),
    ],
)
def test_a_cost_is_unknown_as_soon_as_a_rate_that_it_takes_is(usage: Usage, known: bool) -> None:
    policy = overriding(openai_compatible__local=Price(input_usd_nanos=DOLLAR))
    assert LIST.cost_usd_nanos("openai_compatible", "local", usage, policy) == (5_000 if known else None)


@given(usages())
def test_an_override_of_every_kind_leaves_nothing_of_the_list(usage: Usage) -> None:
    price = Price(
        input_usd_nanos=3_000_000,
        output_usd_nanos=5_000_000,
        cached_input_usd_nanos=1_000_000,
        cache_write_usd_nanos=4_000_000,
    )
    policy = make.policy(price_overrides={"*/plain": price})
    listed, unlisted = (LIST.cost_usd_nanos(p, "plain", usage, policy) for p in ("openai", "openai_compatible"))
    assert listed == unlisted is not None


# --- tiers and announced changes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("input_tokens", "rates"),
    [(0, (1, 4, 0.1)), (100, (1, 4, 0.1)), (101, (2, 4, 0.2)), (1_000, (2, 4, 0.2)), (1_001, (4, 6, 0.2))],
)
def test_a_tier_begins_above_its_threshold(input_tokens: int, rates: tuple[float, float, float]) -> None:
    found = LIST.rates("openai", "long", NO_POLICY, input_tokens=input_tokens)
    assert found is not None
    assert (found.input_usd_nanos, found.output_usd_nanos, found.cached_input_usd_nanos) == tuple(
        int(rate * DOLLAR) for rate in rates
    )


def test_a_tier_holds_for_the_whole_call_and_cached_tokens_count_towards_it() -> None:
    usage = Usage(input_tokens=101, cached_input_tokens=100, output_tokens=10)
    assert LIST.cost_usd_nanos("openai", "long", usage, NO_POLICY) == 1 * 2_000 + 100 * 200 + 10 * 4_000


@pytest.mark.parametrize(
    ("on", "dollars"), [(None, 1), (date(2026, 11, 30), 1), (date(2026, 12, 1), 2), (date(2030, 1, 1), 2)]
)
def test_an_announced_price_holds_from_its_day(on: date | None, dollars: int) -> None:
    assert LIST.cost_usd_nanos("openai", "rising", Usage(input_tokens=1_000_000), NO_POLICY, on=on) == dollars * DOLLAR


# --- sums -------------------------------------------------------------------------------------------------------------


@given(usages(), st.sampled_from(["plain", "uncached", "long"]))
def test_a_cost_is_the_sum_of_its_parts(usage: Usage, model: str) -> None:
    rates = LIST.rates("openai", model, NO_POLICY, input_tokens=usage.input_tokens)
    assert rates is not None
    cached, written = usage.cached_input_tokens or 0, usage.cache_write_input_tokens or 0
    parts = [
        (usage.input_tokens - cached - written, rates.input_usd_nanos),
        (cached, rates.cached_input_usd_nanos),
        (written, rates.cache_write_usd_nanos),
        (usage.output_tokens, rates.output_usd_nanos),
    ]
    exact = sum(Decimal(count) * Decimal(rate or 0) / 1_000_000 for count, rate in parts)
    assert LIST.cost_usd_nanos("openai", model, usage, NO_POLICY) == exact


@given(usages(), st.sampled_from(["plain", "uncached", "long", "odd"]), tokens, tokens)
def test_more_tokens_never_cost_less(usage: Usage, model: str, more_input: int, more_output: int) -> None:
    more = msgspec.structs.replace(
        usage, input_tokens=usage.input_tokens + more_input, output_tokens=usage.output_tokens + more_output
    )
    less_cost, more_cost = (LIST.cost_usd_nanos("openai", model, one, NO_POLICY) for one in (usage, more))
    assert less_cost is not None
    assert more_cost is not None
    assert less_cost <= more_cost


@given(usages())
def test_reasoning_is_paid_as_output_once(usage: Usage) -> None:
    silent = msgspec.structs.replace(usage, reasoning_tokens=None)
    assert LIST.cost_usd_nanos("openai", "plain", usage, NO_POLICY) == LIST.cost_usd_nanos(
        "openai", "plain", silent, NO_POLICY
    )


@pytest.mark.parametrize(
    ("input_tokens", "nanos"), [(0, 0), (999, 0), (1_000, 1), (1_999, 1), (2_000, 1), (2_999, 1), (3_000, 2)]
)
def test_half_a_nano_is_rounded_up_once_for_the_whole_call(input_tokens: int, nanos: int) -> None:
    assert LIST.cost_usd_nanos("openai", "odd", Usage(input_tokens=input_tokens), NO_POLICY) == nanos
    halves = Usage(input_tokens=input_tokens // 2, output_tokens=input_tokens - input_tokens // 2)
    assert LIST.cost_usd_nanos("openai", "odd", halves, NO_POLICY) == nanos


@pytest.mark.parametrize("reported", [0, 1, 123_456_789])
def test_what_the_provider_reports_wins(reported: int) -> None:
    usage = Usage(input_tokens=1_000_000, output_tokens=1_000_000, cost_usd_nanos=reported)
    policy = overriding(openai__plain=Price(input_usd_nanos=1))
    for provider, model in (("openai", "plain"), ("openai_compatible", "unheard-of")):
        assert LIST.cost_usd_nanos(provider, model, usage, policy) == reported


def test_parts_larger_than_the_whole_are_paid_as_parts() -> None:
    usage = Usage(input_tokens=10, cached_input_tokens=1_000_000)
    assert LIST.cost_usd_nanos("openai", "plain", usage, NO_POLICY) == DOLLAR // 2


# --- the list that ships ----------------------------------------------------------------------------------------------


def test_the_list_says_where_it_comes_from_and_is_small() -> None:
    content = files(prices.__package__).joinpath("prices.jsonl").read_bytes()
    head = msgspec.json.decode(content.split(b"\n", 1)[0])
    assert list(head) == ["source", "version", "as_of"]
    assert (head["source"], head["as_of"]) == ("genai-prices", BUNDLED.head.as_of.isoformat())
    assert len(content) < 200_000


def listed_rows() -> list[ListRow]:
    content = files(prices.__package__).joinpath("prices.jsonl").read_bytes()
    return [msgspec.json.decode(line, type=ListRow) for line in content.splitlines()[1:]]


def test_every_price_is_a_whole_number_of_billionths_and_every_tier_dearer_and_in_order() -> None:
    for row in listed_rows():
        steps = [row, *row.tiers]
        assert [tier.above for tier in row.tiers] == sorted({tier.above for tier in row.tiers})
        for kind in ("input", "output", "cached", "cache_write"):
            values = [value for step in steps if (value := getattr(step, kind)) is not None]
            assert values == sorted(values)
            assert all(value >= 0 and value * DOLLAR == int(value * DOLLAR) for value in values)


def test_every_listed_name_is_found_by_itself_and_stands_once() -> None:
    seen: set[tuple[str, str, date | None]] = set()
    for row in listed_rows():
        for name in row.names:
            assert name == name.lower()
            assert (row.provider, name, row.start) not in seen
            seen.add((row.provider, name, row.start))
            found = BUNDLED.rates(row.provider, name, NO_POLICY, on=row.start)
            assert found is not None
            assert found.output_usd_nanos == row.output * DOLLAR
    assert len(seen) > 900


def test_only_models_that_say_so_are_free_at_openrouter_and_none_elsewhere() -> None:
    free = {(row.provider, name) for row in listed_rows() if row.output == 0 for name in row.names}
    assert all(provider == "openrouter" for provider, _ in free)
    assert [name for _, name in free if not name.endswith(":free")] == []


@pytest.mark.parametrize(
    ("provider", "model", "dollars"),
    [
        ("openai", "gpt-5.1-2025-11-13", (1.25, 10)),
        ("openai", "gpt-4o-2024-05-13", (5, 15)),
        ("openai", "gpt-4o-2024-11-20", (2.5, 10)),
        ("azure_openai", "gpt-4o", (2.5, 10)),
        ("azure_openai", "gpt-35-turbo", (0.5, 1.5)),
        ("anthropic", "claude-haiku-4-5-20251001", (1, 5)),
        ("bedrock", "us.anthropic.claude-haiku-4-5-20251001-v1:0", (1.1, 5.5)),
        ("bedrock", "global.anthropic.claude-haiku-4-5-20251001-v1:0", (1, 5)),
        ("bedrock", "anthropic.claude-3-5-sonnet-20241022-v2:0", (3, 15)),
        ("bedrock", "arn:aws:bedrock:eu-west-1:1:inference-profile/eu.amazon.nova-pro-v1:0", (0.8, 3.2)),
        ("bedrock", "meta.llama3-3-70b-instruct-v1:0", (0.72, 0.72)),
        ("gemini", "models/gemini-2.5-flash", (0.3, 2.5)),
        ("gemini", "gemini-2.5-flash-preview-05-20", (0.15, 0.6)),
        ("gemini", "gemini-2.5-flash-preview-09-2025", (0.3, 2.5)),
        ("xai", "grok-4", (3, 15)),
        ("openrouter", "openai/gpt-5.2:nitro", (1.75, 14)),
        ("openrouter", "meta-llama/llama-3.3-70b-instruct:free", (0, 0)),
    ],
)
def test_a_real_name_finds_its_published_price(provider: str, model: str, dollars: tuple[float, float]) -> None:
    rates = BUNDLED.rates(provider, model, NO_POLICY)
    assert rates is not None
    assert (rates.input_usd_nanos, rates.output_usd_nanos) == tuple(round(one * DOLLAR) for one in dollars)


@pytest.mark.parametrize(
    ("provider", "model"),
    [
        ("openai", "gpt-realtime"),
        ("openai", "text-embedding-3-small"),
        ("openai", "gpt-4o-audio-preview"),
        ("openai", "gpt-5.9"),
        ("gemini", "gemini-2.5-flash-image"),
        ("openrouter", "openai/gpt-5.2:thinking"),
        ("openrouter", "openai/gpt-5.2:batch"),
        ("bedrock", "arn:aws:bedrock:us-east-1:1:application-inference-profile/abc"),
        ("xai", "openai/gpt-4o"),
    ],
)
def test_a_name_that_is_not_listed_is_unknown(provider: str, model: str) -> None:
    assert BUNDLED.rates(provider, model, NO_POLICY) is None


def test_nothing_is_read_at_import() -> None:
    assert not [name for name, value in vars(prices).items() if isinstance(value, PriceList)]
