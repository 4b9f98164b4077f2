"""The record of every call: written in groups, each call's exactly once."""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence

import pytest
from tests.support import faults, make
from tests.support.clock import START, Clock

from patchbay_server.core import record as record_module
from patchbay_server.core.choose import Candidate
from patchbay_server.core.record import CallRecord, Recorder
from patchbay_server.errors import PatchbayError, Reason, UpstreamFailure
from patchbay_server.store.memory import MemoryStore
from patchbay_server.store.protocol import Page
from patchbay_server.types import (
    AuditEvent,
    AuditType,
    CallOpened,
    CallState,
    FinishReason,
    Record,
    ResolvedBy,
)
from patchbay_server.usage import Usage

CANDIDATE = Candidate(connector=make.connector(), model="small", resolved_by=ResolvedBy.LAST_USED)
OTHER = Candidate(connector=make.connector("other"), model="large", resolved_by=ResolvedBy.FALLBACK)
USAGE = Usage(input_tokens=3, output_tokens=4, total_tokens=7)


def opened(call_id: str = "call-1") -> CallOpened:
    return CallOpened(
        call_id=call_id,
        process_id="p",
        caller="caller-1",
        owner=make.OWNER,
        feature="",
        requested_model="",
        streaming=True,
        labels={},
        request_id="",
        started_at=START,
    )


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
async def recorder(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Recorder]:
    """A recorder that runs and does not wait long between its tries."""
    monkeypatch.setattr(record_module, "RETRY_WAITS_S", (0.001, 0.001))
    recorder = Recorder(store)
    run = asyncio.create_task(recorder.run())
    yield recorder
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run


def begin(recorder: Recorder, clock: Clock, call_id: str = "call-1") -> CallRecord:
    return CallRecord(recorder, clock, opened(call_id))


# --- writing in groups ---


async def test_what_waits_while_one_group_is_written_shares_the_next_commit(
    store: MemoryStore, recorder: Recorder
) -> None:
    written = faults.count(store, "write_records")
    gate = faults.hold(store, "write_records")
    first = recorder.write(opened("call-0"))
    await gate.reached.wait()
    rest = [recorder.write(opened(f"call-{number}")) for number in range(1, 50)]
    assert not first.done()
    gate.open()
    await asyncio.gather(first, *rest)
    assert [len(records) for (records,) in written] == [1, 49]


async def test_a_group_is_bounded(store: MemoryStore, recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record_module, "GROUP_MAX", 10)
    written = faults.count(store, "write_records")
    await asyncio.gather(*[recorder.write(opened(f"call-{number}")) for number in range(25)])
    assert [len(records) for (records,) in written] == [10, 10, 5]


async def test_what_is_durable_is_in_the_store(store: MemoryStore, recorder: Recorder) -> None:
    await recorder.write(opened())
    assert await store.find_call("call-1")


async def test_a_store_that_fails_for_a_moment_is_tried_again(store: MemoryStore, recorder: Recorder) -> None:
    faults.fail(store, "write_records", times=2)
    await recorder.write(opened())
    assert await store.find_call("call-1")


async def test_a_store_that_stays_down_is_given_up_and_told_to_everybody_who_waits(
    store: MemoryStore, recorder: Recorder, clock: Clock
) -> None:
    store.available = False
    call = begin(recorder, clock)
    closed = call.close(CallState.SUCCEEDED)
    for waiting in (call.durable, closed):
        with pytest.raises(PatchbayError) as caught:
            await waiting
        assert caught.value.reason is Reason.DEPENDENCY_UNAVAILABLE
    assert recorder.calls_without_record == 1


async def test_those_who_wait_get_errors_of_their_own(store: MemoryStore, recorder: Recorder) -> None:
    store.available = False
    results = await asyncio.gather(recorder.write(opened("a")), recorder.write(opened("b")), return_exceptions=True)
    assert results[0] is not results[1]


async def test_the_recorder_goes_on_after_an_outage(store: MemoryStore, recorder: Recorder) -> None:
    store.available = False
    with pytest.raises(PatchbayError):
        await recorder.write(opened("lost"))
    store.available = True
    await recorder.write(opened("kept"))
    assert await store.find_call("kept")
    assert recorder.calls_without_record == 0, "the lost one is still to be closed"


def holds(call_id: str) -> object:
    def is_there(records: Sequence[Record]) -> bool:
        return any(getattr(record, "call_id", "") == call_id for record in records)

    return is_there


@pytest.mark.parametrize("error", [lambda: PatchbayError(Reason.INTERNAL, "poison"), lambda: TypeError("poison")])
@pytest.mark.parametrize("position", [0, 13, 39])
async def test_a_batch_that_cannot_be_written_takes_no_neighbour_down_with_it(
    store: MemoryStore, recorder: Recorder, position: int, error: object
) -> None:
    tried = faults.fail(store, "write_records", only=holds(f"call-{position}"), error=error)
    waiting = [recorder.write(opened(f"call-{number}")) for number in range(40)]
    results = await asyncio.gather(*waiting, return_exceptions=True)
    lost = [number for number, result in enumerate(results) if result is not None]
    assert lost == [position]
    assert isinstance(results[position], PatchbayError)
    assert results[position].reason is Reason.INTERNAL
    assert [bool(await store.find_call(f"call-{number}")) for number in range(40)].count(True) == 39
    assert len(tried) < 10, "found by halving"


async def test_nobody_has_to_wait_for_a_record(
    store: MemoryStore, recorder: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    store.available = False
    recorder.write(opened())
    await recorder.flush()
    assert "could not write" in caplog.text


async def test_a_record_is_written_though_nobody_waits_for_it_any_more(store: MemoryStore, recorder: Recorder) -> None:
    recorder.write(opened()).cancel()
    await recorder.flush()
    assert await store.find_call("call-1")


async def test_flush_waits_for_what_is_being_written(store: MemoryStore, recorder: Recorder) -> None:
    gate = faults.hold(store, "write_records")
    recorder.write(opened())
    flushing = asyncio.create_task(recorder.flush())
    await gate.reached.wait()
    assert not flushing.done()
    gate.open()
    await flushing
    await recorder.flush()


async def test_a_recorder_that_stops_leaves_nobody_waiting(store: MemoryStore) -> None:
    recorder = Recorder(store)
    run = asyncio.create_task(recorder.run())
    gate = faults.hold(store, "write_records", before=True)
    writing = recorder.write(opened("a"))
    await gate.reached.wait()
    queued = recorder.write(opened("b"))
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    for waiting in (writing, queued, recorder.write(opened("c"))):
        with pytest.raises(PatchbayError) as caught:
            await asyncio.wait_for(waiting, 0.2)
        assert caught.value.reason is Reason.DEPENDENCY_UNAVAILABLE
    await asyncio.wait_for(recorder.flush(), 0.2)


async def test_the_queue_says_when_it_is_full(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record_module, "WAITING_MAX", 2)
    recorder = Recorder(store)
    recorder.write(opened("a"))
    assert not recorder.full
    recorder.write(opened("b"))
    assert recorder.full


# --- one call's record ---


async def test_a_call_leaves_one_closed_record_with_its_attempts(
    store: MemoryStore, recorder: Recorder, clock: Clock
) -> None:
    call = begin(recorder, clock)
    clock.jump(1)
    call.open_attempt(CANDIDATE, None)
    clock.jump(2)
    call.close_attempt(CallState.FAILED, Reason.UPSTREAM_RATE_LIMITED, UpstreamFailure(http_status=429), None)
    clock.jump(3)
    call.open_attempt(OTHER, None)
    clock.jump(4)
    call.note_output()
    clock.jump(5)
    call.note_output()
    await call.close(CallState.SUCCEEDED, usage=USAGE, finish_reason=FinishReason.STOP)
    row = await store.find_call("call-1")
    assert row is not None
    assert row.closed is not None
    assert (row.state, row.closed.attempts, row.closed.usage) == (CallState.SUCCEEDED, 2, USAGE)
    assert (row.closed.connector_uid, row.closed.model) == (OTHER.connector.uid, "large")
    assert (row.closed.latency_s, row.closed.first_output_s) == (15.0, 10.0)
    first, second = row.attempts
    assert first.closed is not None
    assert second.closed is not None
    assert (first.state, first.closed.reason, first.closed.latency_s) == (
        CallState.FAILED,
        Reason.UPSTREAM_RATE_LIMITED,
        2.0,
    )
    assert (first.closed.first_output_s, first.closed.failure.http_status) == (None, 429)
    assert (second.state, second.closed.first_output_s, second.closed.latency_s) == (CallState.SUCCEEDED, 4.0, 9.0)


async def test_closing_a_call_closes_its_open_attempt_in_the_same_transaction(
    store: MemoryStore, recorder: Recorder, clock: Clock
) -> None:
    call = begin(recorder, clock)
    call.open_attempt(CANDIDATE, None)
    await call.durable
    written = faults.count(store, "write_records")
    await call.close(CallState.FAILED, Reason.UPSTREAM_TIMEOUT, usage=USAGE)
    ((records,),) = written
    assert len(records) == 2
    row = await store.find_call("call-1")
    assert row is not None
    assert [attempt.state for attempt in row.attempts] == [CallState.FAILED]
    assert await store.month_tokens([CANDIDATE.connector.uid], "2026-11") == {CANDIDATE.connector.uid: 7}


async def test_a_call_that_never_tried_anybody_is_recorded_all_the_same(
    store: MemoryStore, recorder: Recorder, clock: Clock
) -> None:
    await begin(recorder, clock).close(CallState.CANCELLED, Reason.CANCELLED)
    row = await store.find_call("call-1")
    assert row is not None
    assert row.closed is not None
    assert (row.closed.connector_uid, row.closed.resolved_by, row.attempts) == ("", None, ())


async def test_a_fallback_s_audit_event_is_written_with_its_attempt(
    store: MemoryStore, recorder: Recorder, clock: Clock
) -> None:
    call = begin(recorder, clock)
    event = AuditEvent(type=AuditType.FALLBACK_TRIGGERED, at=START, actor="caller-1", subject="owners/acme")
    call.open_attempt(OTHER, event)
    await recorder.flush()
    assert [row.type for row in await store.list_audit(Page(size=10))] == [AuditType.FALLBACK_TRIGGERED]


async def test_each_step_of_a_call_happens_once(recorder: Recorder, clock: Clock) -> None:
    call = begin(recorder, clock)
    with pytest.raises(AssertionError):
        call.close_attempt(CallState.FAILED, None, UpstreamFailure(), None)
    call.open_attempt(CANDIDATE, None)
    with pytest.raises(AssertionError):
        call.open_attempt(CANDIDATE, None)
    call.close_attempt(CallState.FAILED, None, UpstreamFailure(), None)
    with pytest.raises(AssertionError):
        call.close_attempt(CallState.FAILED, None, UpstreamFailure(), None)
    call.close(CallState.FAILED)
    assert call.closed
    with pytest.raises(AssertionError):
        call.close(CallState.FAILED)
    with pytest.raises(AssertionError):
        call.open_attempt(CANDIDATE, None)


async def test_only_lost_closes_count_as_calls_without_record(
    store: MemoryStore, recorder: Recorder, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    store.available = False
    call = begin(recorder, clock)
    call.open_attempt(CANDIDATE, None)
    await recorder.flush()
    assert recorder.calls_without_record == 0
    call.close(CallState.CANCELLED)
    await recorder.flush()
    assert recorder.calls_without_record == 1
