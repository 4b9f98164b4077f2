"""Monthly caps: what a connector has used, and what that means for the next call."""

import asyncio

import pytest
from tests.support import answers, faults, make
from tests.support.bench import Bench
from tests.support.clock import Clock
from tests.support.provider import Pause

from patchbay_server.core import meter as meter_module
from patchbay_server.errors import PatchbayError, Reason
from patchbay_server.types import Connector, month_of


@pytest.fixture
async def capped(bench: Bench) -> Connector:
    """A connector that one answer of 15 tokens brings to its cap."""
    connector = await bench.add("capped", monthly_token_cap=15)
    bench.provider.always_answer(answers.openai_unary(), name="capped")
    return connector


async def refusal(bench: Bench, **request: object) -> PatchbayError:
    with pytest.raises(PatchbayError) as caught:
        await bench.chat(**request)
    return caught.value


async def test_a_call_that_was_admitted_may_pass_the_cap_and_the_next_is_refused(
    bench: Bench, capped: Connector
) -> None:
    await bench.chat(connector="capped")
    error = await refusal(bench, connector="capped")
    assert (error.reason, error.quota) == (Reason.CAP_REACHED, f"{capped.name}:monthly_tokens")
    assert "15 tokens" in error.message
    assert len(bench.provider.requests) == 1


async def test_a_cap_of_zero_lets_nothing_through(bench: Bench) -> None:
    await bench.add("shut", monthly_token_cap=0)
    assert (await refusal(bench, connector="shut")).reason is Reason.CAP_REACHED


async def test_the_organisation_s_connector_is_not_named_to_those_who_only_use_it(bench: Bench) -> None:
    shared = await bench.add("hush", owner="platform", monthly_token_cap=0)
    await bench.policy(organisation_default=shared.name)
    bench.caller = make.caller("newcomer")
    error = await refusal(bench)
    assert error.reason is Reason.CAP_REACHED
    assert "hush" not in f"{error.message} {error.quota}"
    assert "platform" not in f"{error.message} {error.quota}"


async def test_months_are_counted_apart_and_end_in_utc(bench: Bench, capped: Connector, clock: Clock) -> None:
    await bench.chat(connector="capped")
    assert month_of(clock.now()) == "2026-11"
    clock.jump((make.at("2026-11-30T23:59:59+00:00") - clock.now()).total_seconds())
    assert (await refusal(bench, connector="capped")).reason is Reason.CAP_REACHED
    clock.jump(1)
    await bench.chat(connector="capped")


async def test_what_other_processes_used_is_seen_after_a_bounded_time(
    bench: Bench, capped: Connector, clock: Clock
) -> None:
    await bench.meter.check_cap(capped, "acme")
    other = type(bench.meter)(bench.store, clock)
    bench.provider.answer(answers.openai_unary(), name="capped")
    await bench.chat(connector="capped")  # counted by the store and by this process's meter
    bench.meter._counts[capped.uid] = (clock.monotonic(), 0)  # as if another process had made the call
    await bench.meter.check_cap(capped, "acme")
    clock.jump(meter_module.AGE_MAX_S)
    for meter in (bench.meter, other):
        with pytest.raises(PatchbayError):
            await meter.check_cap(capped, "acme")


async def test_a_busy_connector_costs_one_query_in_a_while(bench: Bench, clock: Clock) -> None:
    connector = await bench.add("wide", monthly_token_cap=10**9)
    asked = faults.count(bench.store, "month_tokens")
    for _ in range(10):
        await bench.meter.check_cap(connector, "acme")
        bench.meter.add(connector.uid, 5)
    assert len(asked) == 1
    assert bench.meter._counts[connector.uid][1] == 50


async def test_connectors_without_a_cap_cost_no_query_and_no_memory(bench: Bench) -> None:
    asked = faults.count(bench.store, "month_tokens")
    bench.provider.answer(answers.openai_unary())
    await bench.chat()
    assert asked == []
    assert bench.meter._counts == {}


async def test_a_cap_that_cannot_be_known_is_not_passed(bench: Bench, capped: Connector) -> None:
    faults.fail(bench.store, "month_tokens")
    assert (await refusal(bench, connector="capped")).reason is Reason.DEPENDENCY_UNAVAILABLE


async def test_what_is_held_is_bounded(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meter_module, "CONNECTORS_MAX", 2)
    for name in "abcdef":
        await bench.meter.check_cap(make.connector(name, monthly_token_cap=1), "acme")
    assert len(bench.meter._counts) <= 3


async def test_tokens_counted_while_the_store_is_read_are_not_lost(bench: Bench, clock: Clock) -> None:
    await bench.add("soft", monthly_token_cap=30)
    pause = Pause()
    bench.provider.answer([pause, *answers.openai_stream()], answers.openai_stream(), name="soft")
    first = asyncio.create_task(bench.stream(connector="soft"))
    await pause.reached.wait()
    clock.jump(meter_module.AGE_MAX_S + 1)
    gate = faults.hold(bench.store, "month_tokens")
    second = asyncio.create_task(bench.stream(connector="soft"))
    await gate.reached.wait()
    pause.open()
    await first
    gate.open()
    await second
    assert (await refusal(bench, connector="soft")).reason is Reason.CAP_REACHED
