"""The ends of a call that nobody wished for: cancelled, out of time, stalled, drained, without a store."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, suppress

import pytest
from tests.support import answers, faults, make
from tests.support.bench import QUIET, Bench, assembled
from tests.support.clock import Clock
from tests.support.provider import Pause, Script, Silence
from tests.support.stopwatch import Stopwatch

from patchbay_server.core import record as record_module
from patchbay_server.errors import PatchbayError, Reason
from patchbay_server.types import CallState, ChatCompleted, ConnectorSettings, FallbackMode, PartCompleted, TextDelta
from patchbay_server.usage import UsageSource

RETRY = FallbackMode.RETRY_THEN_ORG_DEFAULT


async def failure(bench: Bench, **request: object) -> PatchbayError:
    with pytest.raises(PatchbayError) as caught:
        await bench.stream(**request)
    return caught.value


async def outcome(bench: Bench) -> tuple[CallState, Reason | None]:
    row = await bench.call()
    return row.state, row.closed.reason if row.closed else None


# --- cancelled ---


async def cancel_and_time(bench: Bench, call: asyncio.Task[object]) -> float:
    """Seconds from the cancel until the provider sees its connection closed."""
    watch = Stopwatch()
    call.cancel()
    await asyncio.wait_for(bench.provider.connections[0].closed.wait(), 10)
    with pytest.raises(asyncio.CancelledError):
        await call
    return watch.seconds


PHASES: dict[str, list[object]] = {
    "before the status": [],
    "before the first event": [answers.EVENT_STREAM],
    "before the first delta": [answers.EVENT_STREAM, answers.chunk({"role": "assistant"})],
    "between deltas": answers.openai_interrupted(),
    "before the terminal marker": answers.openai_stream()[:-1],
    "in an error's body": [*answers.error(500)[:1], b"{"],
}


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("streaming", [True, False])
async def test_a_cancel_closes_the_upstream_at_once_and_is_recorded_as_that(
    bench: Bench, phase: str, streaming: bool
) -> None:
    pause = Pause()
    bench.provider.answer([*PHASES[phase], pause])
    call = asyncio.ensure_future(bench.stream() if streaming else bench.chat())
    await pause.reached.wait()
    await asyncio.sleep(0.01)
    assert await cancel_and_time(bench, call) < 0.1
    assert await outcome(bench) == (CallState.CANCELLED, Reason.CANCELLED)


async def test_a_cancel_while_the_request_is_on_its_way_leaves_no_connection(bench: Bench) -> None:
    bench.provider.answer([Silence()])
    call = asyncio.ensure_future(bench.chat())
    await bench.provider.received()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert await outcome(bench) == (CallState.CANCELLED, Reason.CANCELLED)


async def test_a_cancelled_stream_is_charged_what_it_delivered(bench: Bench) -> None:
    bench.provider.answer(answers.openai_interrupted(Silence()))
    async with aclosing(bench.batches()) as seen:
        text = 0
        async for batch in seen:
            text += sum(len(event.text) for event in batch if isinstance(event, TextDelta))
            if text == len(answers.TEXT):
                break
    row = await bench.call()
    assert row.closed is not None
    assert row.closed.usage is not None
    assert row.closed.usage.source is UsageSource.ESTIMATED
    assert row.closed.usage.output_tokens == -(-len(answers.TEXT) // 4)


async def test_a_call_cancelled_before_it_was_accepted_is_charged_nothing(bench: Bench) -> None:
    bench.provider.answer([Silence()])
    call = asyncio.ensure_future(bench.chat())
    await bench.provider.received()
    call.cancel()
    with suppress(asyncio.CancelledError):
        await call
    row = await bench.call()
    assert row.closed is not None
    assert row.closed.usage is None


async def test_a_caller_that_leaves_before_the_end_has_cancelled(bench: Bench) -> None:
    bench.provider.answer(answers.openai_interrupted(Silence()))
    async with bench.gateway.stream(bench.caller, make.request()) as call, aclosing(call.events()) as batches:
        await anext(batches)
    assert await outcome(bench) == (CallState.CANCELLED, Reason.CANCELLED)


async def test_a_caller_that_never_looked_has_cancelled(bench: Bench) -> None:
    async with bench.gateway.stream(bench.caller, make.request()):
        pass
    assert await outcome(bench) == (CallState.CANCELLED, Reason.CANCELLED)


async def test_a_caller_whose_write_found_nobody_has_cancelled(bench: Bench) -> None:
    async def use() -> None:
        async with bench.gateway.stream(bench.caller, make.request()) as call, aclosing(call.events()) as batches:
            await anext(batches)
            raise PatchbayError(Reason.CANCELLED, "the caller has gone")

    bench.provider.answer(answers.openai_interrupted(Silence()))
    with pytest.raises(PatchbayError):
        await use()
    assert await outcome(bench) == (CallState.CANCELLED, Reason.CANCELLED)


async def test_a_generator_of_a_caller_that_is_closed_has_cancelled(bench: Bench) -> None:
    bench.provider.answer(answers.openai_interrupted(Silence()))
    seen = bench.batches()
    await anext(seen)
    await seen.aclose()
    assert await outcome(bench) == (CallState.CANCELLED, Reason.CANCELLED)


async def test_a_second_cancel_does_not_lose_the_record(bench: Bench) -> None:
    class Slow:
        async def __aenter__(self) -> None: ...

        async def __aexit__(self, *_: object) -> None:
            await asyncio.sleep(0.05)

    async def use() -> None:
        async with bench.gateway.stream(bench.caller, make.request()) as call, aclosing(call.events()) as batches:
            await anext(batches)
            await call._upstream.enter_async_context(Slow())
            await anext(batches)

    pause = Pause()
    bench.provider.answer(answers.openai_interrupted(pause))
    task = asyncio.ensure_future(use())
    await pause.reached.wait()
    await asyncio.sleep(0.02)
    task.cancel()
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await outcome(bench) == (CallState.CANCELLED, Reason.CANCELLED)


async def test_a_cancel_between_two_attempts_counts_the_first_one_s_tokens_once(bench: Bench) -> None:
    connector = await bench.add("capped", monthly_token_cap=10**6)
    cut = [*answers.openai_events(())[:1], answers.event({"error": {"code": 503, "message": "m"}})]
    bench.provider.answer([answers.EVENT_STREAM, *cut], name="capped")
    call = asyncio.ensure_future(bench.stream(connector="capped", fallback=RETRY))
    await bench.provider.received()
    await asyncio.sleep(0.05)  # the first attempt has failed, and the second one is waited for
    call.cancel()
    with suppress(asyncio.CancelledError):
        await call
    await bench.recorder.flush()
    stored = await bench.store.month_tokens([connector.uid], "2026-11")
    assert bench.meter._counts[connector.uid][1] == stored[connector.uid] > 0


# --- out of time ---


@pytest.mark.parametrize(
    "script", [[Silence()], [answers.EVENT_STREAM, Silence()], answers.openai_interrupted(Silence())]
)
async def test_a_deadline_that_passes_is_told_as_that_and_closes_the_upstream(bench: Bench, script: Script) -> None:
    bench.provider.answer(script)
    error = await failure(bench, timeout_s=0.1)
    assert error.reason is Reason.DEADLINE_EXCEEDED
    assert error.partial is not None
    assert await outcome(bench) == (CallState.FAILED, Reason.DEADLINE_EXCEEDED)


@pytest.mark.parametrize(("timeout_s", "call_s"), [(30.0, 29.95), (0.1, 0.09), (0.0, 0.0), (-1.0, 0.0), (900.0, 600.0)])
async def test_the_answer_to_a_deadline_leaves_before_the_caller_stops_waiting(
    bench: Bench, timeout_s: float, call_s: float
) -> None:
    async with bench.gateway.stream(bench.caller, make.request(), timeout_s) as call:
        assert call.admitted.call_s == pytest.approx(call_s)


async def test_a_deadline_that_is_over_already_is_told_as_that(bench: Bench) -> None:
    bench.provider.always_answer([Silence()])
    assert (await failure(bench, timeout_s=0.0)).reason is Reason.DEADLINE_EXCEEDED


async def test_a_cancel_by_a_caller_whose_deadline_has_passed_is_recorded_as_the_deadline(
    bench: Bench, clock: Clock
) -> None:
    bench.provider.answer([Silence()])
    call = asyncio.ensure_future(bench.chat(timeout_s=30.0))
    await bench.provider.received()
    clock.jump(30.0)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert await outcome(bench) == (CallState.FAILED, Reason.DEADLINE_EXCEEDED)


async def test_time_spent_on_admission_counts_against_the_deadline(bench: Bench, clock: Clock) -> None:
    gate = faults.hold(bench.store, "snapshot")
    bench.snapshots._by_owner.clear()
    bench.provider.answer([Silence()])
    call = asyncio.ensure_future(bench.chat(timeout_s=30.0))
    await gate.reached.wait()
    clock.jump(29.0)
    gate.open()
    await bench.provider.received()
    clock.jump(1.0)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert await outcome(bench) == (CallState.FAILED, Reason.DEADLINE_EXCEEDED)


async def test_the_longest_time_of_a_call_holds_without_a_deadline(bench: Bench) -> None:
    await bench.add("brief", settings=ConnectorSettings(call_timeout_s=0.05))
    bench.provider.answer([Silence()], name="brief")
    assert (await failure(bench, connector="brief")).reason is Reason.DEADLINE_EXCEEDED


# --- stalled ---


@pytest.fixture
async def hasty(clock: Clock) -> AsyncIterator[Bench]:
    """A bench that does not wait long for its provider."""
    limits = type(QUIET)(connect_s=1.0, first_byte_s=0.05, idle_s=0.05)
    async with assembled(clock=clock, limits=limits) as bench:
        await bench.add()
        yield bench


@pytest.mark.parametrize(
    "script", [[Silence()], [answers.EVENT_STREAM, Silence()], answers.openai_interrupted(Silence())]
)
async def test_a_silent_provider_is_told_as_that_and_not_as_a_cancel(hasty: Bench, script: Script) -> None:
    hasty.provider.answer(script)
    error = await failure(hasty)
    assert error.reason is Reason.UPSTREAM_TIMEOUT
    assert await outcome(hasty) == (CallState.FAILED, Reason.UPSTREAM_TIMEOUT)


async def test_a_silent_provider_is_replaced_before_output(hasty: Bench) -> None:
    await hasty.add("second")
    hasty.provider.answer([Silence()])
    hasty.provider.answer(answers.openai_stream(), name="second")
    answer = await hasty.streamed(connector="main", fallback=FallbackMode.OWNER_CHAIN)
    assert [attempt.reason for attempt in answer.route.attempts] == [Reason.UPSTREAM_TIMEOUT, None]


async def test_a_connector_s_own_limits_count_before_the_service_s(hasty: Bench) -> None:
    await hasty.add("patient", settings=ConnectorSettings(first_byte_timeout_s=2.0, idle_timeout_s=2.0))
    pause = Pause()
    hasty.provider.answer([pause, *answers.openai_stream()], name="patient")
    call = asyncio.ensure_future(hasty.streamed(connector="patient"))
    await pause.reached.wait()
    await asyncio.sleep(0.1)
    pause.open()
    await call


# --- drained ---


async def test_a_drain_refuses_new_calls_and_waits_for_those_that_run(bench: Bench) -> None:
    pause = Pause()
    bench.provider.answer([pause, *answers.openai_unary()])
    running = asyncio.ensure_future(bench.chat())
    await pause.reached.wait()
    draining = asyncio.ensure_future(bench.gateway.drain(5.0))
    await asyncio.sleep(0)
    error = await failure(bench)
    assert (error.reason, error.retry_after_s) == (Reason.DRAINING, 1.0)
    assert not draining.done()
    pause.open()
    await running
    await draining
    assert bench.gateway.draining


async def test_a_drain_without_calls_is_over_at_once(bench: Bench) -> None:
    await asyncio.wait_for(bench.gateway.drain(5.0), 0.1)


async def test_a_stream_that_outlasts_the_drain_ends_with_what_it_delivered(bench: Bench) -> None:
    pause = Pause()
    bench.provider.answer(answers.openai_interrupted(pause))
    call = asyncio.ensure_future(failure(bench))
    await pause.reached.wait()
    await asyncio.sleep(0.01)
    await bench.gateway.drain(0.01)
    error = await call
    assert error.reason is Reason.DRAINING
    assert error.partial is not None
    assert error.partial.usage.output_tokens == -(-len(answers.TEXT) // 4)
    assert await outcome(bench) == (CallState.FAILED, Reason.DRAINING)


async def test_a_call_that_was_being_admitted_when_the_drain_began_is_refused(bench: Bench) -> None:
    gate = faults.hold(bench.store, "snapshot")
    bench.snapshots._by_owner.clear()
    call = asyncio.ensure_future(failure(bench))
    await gate.reached.wait()
    await bench.gateway.drain(1.0)
    gate.open()
    assert (await call).reason is Reason.DRAINING
    assert bench.provider.requests == []


async def test_a_drain_does_not_trip_over_a_call_that_is_ending_anyway(bench: Bench) -> None:
    bench.provider.answer(answers.error(500))
    gate = faults.hold(bench.store, "write_records", before=True)
    call = asyncio.ensure_future(failure(bench))
    await gate.reached.wait()
    await bench.provider.received()
    await asyncio.sleep(0.05)  # the call has failed and waits for its record
    draining = asyncio.ensure_future(bench.gateway.drain(0.01))
    await asyncio.sleep(0.05)
    gate.open()
    await draining
    assert (await call).reason is Reason.UPSTREAM_UNAVAILABLE


@pytest.mark.parametrize("end", ["drain", "deadline"])
async def test_a_whole_answer_whose_record_is_being_written_is_given_whatever_passes_meanwhile(
    bench: Bench, end: str
) -> None:
    gate = faults.hold(bench.store, "write_records", before=True, only=faults.closes)
    bench.provider.answer(answers.openai_unary())
    call = asyncio.ensure_future(bench.chat(timeout_s=0.2 if end == "deadline" else None))
    await gate.reached.wait()
    if end == "deadline":
        await asyncio.sleep(0.25)
    else:
        draining = asyncio.ensure_future(bench.gateway.drain(0.01))
        await asyncio.sleep(0.05)
    gate.open()
    assert (await call).message.parts
    assert await outcome(bench) == (CallState.SUCCEEDED, None)
    if end == "drain":
        await draining


# --- without a store ---


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A recorder that gives up soon."""
    monkeypatch.setattr(record_module, "RETRY_WAITS_S", (0.001,))


@pytest.mark.usefixtures("impatient")
async def test_an_answer_whose_opening_record_is_lost_is_not_given(bench: Bench) -> None:
    faults.fail(bench.store, "write_records", only=faults.opens)
    bench.provider.answer(answers.openai_stream())
    seen: list[object] = []
    with pytest.raises(PatchbayError) as caught:  # noqa: PT012
        async for batch in bench.batches():
            seen += batch
    assert (caught.value.reason, seen) == (Reason.DEPENDENCY_UNAVAILABLE, [])
    bench.records_lost = 1


@pytest.mark.usefixtures("impatient")
async def test_an_answer_whose_closing_record_is_lost_has_no_end(bench: Bench) -> None:
    faults.fail(bench.store, "write_records", only=faults.closes)
    bench.provider.answer(answers.openai_stream())
    seen: list[object] = []
    with pytest.raises(PatchbayError) as caught:  # noqa: PT012
        async for batch in bench.batches():
            seen += batch
    assert caught.value.reason is Reason.DEPENDENCY_UNAVAILABLE
    assert any(isinstance(event, PartCompleted) for event in seen)
    assert not any(isinstance(event, ChatCompleted) for event in seen)
    bench.records_lost = 1


@pytest.mark.usefixtures("impatient")
async def test_a_failure_whose_record_is_lost_is_still_told_as_what_it_is(bench: Bench) -> None:
    faults.fail(bench.store, "write_records", only=faults.closes)
    bench.provider.answer(answers.error(500))
    assert (await failure(bench)).reason is Reason.UPSTREAM_UNAVAILABLE
    bench.records_lost = 1


async def test_a_store_that_fails_for_a_moment_costs_nobody_anything(bench: Bench) -> None:
    faults.fail(bench.store, "write_records", times=1)
    bench.provider.answer(answers.openai_stream())
    await bench.streamed()
    assert await outcome(bench) == (CallState.SUCCEEDED, None)


async def test_a_call_is_answered_from_memory_while_only_reading_fails(bench: Bench) -> None:
    bench.provider.always_answer(answers.openai_stream())
    await bench.streamed()
    faults.fail(bench.store, "snapshot")
    await bench.streamed()
