"""The package that the list is made from names the same price for the same call, for every model that both know."""

import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, date, datetime, time
from decimal import ROUND_HALF_UP, Decimal
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support import make
from tests.support.needs import needs

from patchbay_server.market.prices import PriceList
from patchbay_server.usage import Usage

ROOT = Path(__file__).parents[2]
BUNDLED = PriceList.bundled()
NO_POLICY = make.policy()
PROVIDERS = {
    "anthropic": "anthropic",
    "azure_openai": "azure",
    "bedrock": "aws",
    "gemini": "google",
    "openai": "openai",
    "openrouter": "openrouter",
    "xai": "x-ai",
}
DAYS = [None, date(2026, 12, 24), date(2027, 2, 1)]
"""None is the day of the list; the others are after prices that the list announces."""


@pytest.fixture(autouse=True)
def _the_package_that_the_list_is_made_from() -> None:
    try:
        installed = version("genai-prices")
    except PackageNotFoundError:
        installed = None
    needs(
        installed == BUNDLED.head.version, f"genai-prices {BUNDLED.head.version}, which the list of prices is made from"
    )


def literals(match: Any) -> Iterator[str]:
    for value in vars(match).values():
        if isinstance(value, str) and not hasattr(match, "regex"):
            yield value
        elif isinstance(value, list):
            for clause in value:
                yield from literals(clause)


@cache
def known_names() -> tuple[tuple[str, str], ...]:
    """Pairs of connector type and a name, wherever the package has a price by text for a name that it itself holds."""
    from genai_prices import data  # noqa: PLC0415 -- loads for half a second, and may be absent

    found = []
    for connector_type, provider_id in PROVIDERS.items():
        provider = next(one for one in data.providers if one.id == provider_id)
        for model in provider.models:
            for name in {model.id, *literals(model.match)}:
                spellings = (
                    [name, f"us.{name}", f"{name}-v1:0", f"us.{name}-v1:0"] if connector_type == "bedrock" else [name]
                )
                found += [(connector_type, one) for one in spellings if provider.find_model(one) is not None]
    return tuple(sorted(set(found)))


def cost_by_the_package(connector_type: str, name: str, usage: Usage, on: date | None) -> Decimal:
    """In billionths of a dollar, not rounded."""
    import genai_prices  # noqa: PLC0415 -- as above

    day = on or BUNDLED.head.as_of
    calculated = genai_prices.calc_price(
        genai_prices.Usage(
            input_tokens=usage.input_tokens,
            cache_read_tokens=usage.cached_input_tokens or 0,
            cache_write_tokens=usage.cache_write_input_tokens or 0,
            output_tokens=usage.output_tokens,
        ),
        model_ref=name,
        provider_id=PROVIDERS[connector_type],
        genai_request_timestamp=datetime.combine(day, time(12), tzinfo=UTC),
    )
    return calculated.total_price * 1_000_000_000


def agree(connector_type: str, name: str, usage: Usage, on: date | None) -> bool:
    """Whether both name the same cost; False when the list does not know the model. A difference fails."""
    ours = BUNDLED.cost_usd_nanos(connector_type, name, usage, NO_POLICY, on=on)
    if ours is None:
        return False
    theirs = cost_by_the_package(connector_type, name, usage, on)
    # OpenRouter's prices of cache writes may be thirds of a cent; a rate is kept to a billionth.
    rounding = Decimal(usage.cache_write_input_tokens or 0) / 2_000_000 if connector_type == "openrouter" else 0
    if rounding:
        assert abs(ours - theirs) <= rounding + Decimal("0.5"), (connector_type, name)
    else:
        assert ours == theirs.quantize(Decimal(1), ROUND_HALF_UP), (connector_type, name)
    return True


def test_the_list_is_what_the_command_makes_of_the_installed_version() -> None:
    command = [sys.executable, str(ROOT / "gen" / "prices.py"), "--check"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("on", DAYS)
def test_every_name_that_both_know_costs_the_same(on: date | None) -> None:
    usage = Usage(input_tokens=7_001, cached_input_tokens=1_003, cache_write_input_tokens=501, output_tokens=2_003)
    agreed = [pair for pair in known_names() if agree(*pair, usage, on)]
    assert len(agreed) > 1_300


@st.composite
def usages(draw: st.DrawFn) -> Usage:
    around = st.one_of(st.integers(0, 2_000_000), st.sampled_from([0, 1, 100_000, 128_000, 200_000, 272_000, 272_001]))
    total = draw(around)
    cached = draw(st.integers(0, total))
    written = draw(st.integers(0, total - cached))
    return Usage(
        input_tokens=total,
        cached_input_tokens=cached,
        cache_write_input_tokens=written,
        output_tokens=draw(st.integers(0, 200_000)),
    )


@settings(max_examples=500)
@given(st.data())
def test_any_usage_costs_the_same(data: st.DataObject) -> None:
    pair = data.draw(st.sampled_from(known_names()))
    agree(*pair, data.draw(usages()), data.draw(st.sampled_from(DAYS)))
