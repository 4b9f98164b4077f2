"""Stream and Chat over a real connection: what is sent, when, and what every end looks like."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from tests.rpc.bench import Rpc, chat_request, check_sequence, failure_of, following, kinds, read, serving
from tests.support import answers
from tests.support.bench import assembled
from tests.support.faults import fail, hold
from tests.support.provider import Cut, Pause, Script, Silence

from patchbay.v1 import gateway_service_pb2 as pb
from patchbay.v1 import gateway_service_pb2_grpc, usage_pb2
from patchbay_server.errors import FieldViolation, PatchbayError, Reason
from patchbay_server.types import CallState


def at_once(script: Script) -> Script:
    """The same answer with its whole body in one write, so that it arrives in one read."""
    head, *body = script
    return [head, b"".join(piece for piece in body if isinstance(piece, bytes))]


def deltas(chunks: list[pb.ChatResponseChunk]) -> list[str]:
    return [chunk.text_delta.text for chunk in chunks if chunk.HasField("text_delta")]


async def ended(rpc: Rpc) -> None:
    """Wait until no call is running."""
    await asyncio.wait_for(rpc.core.gateway._idle.wait(), 10)


# --- answers ----------------------------------------------------------------------------------------------------------


async def test_a_stream_opens_once_and_completes_once(rpc: Rpc) -> None:
    rpc.core.provider.answer(answers.openai_stream())
    chunks = await read(rpc.stream())
    check_sequence(chunks)
    assert kinds(chunks)[0] == "started"
    assert kinds(chunks)[-1] == "completed"
    assert kinds(chunks).count("started") == kinds(chunks).count("completed") == 1
    assert "".join(deltas(chunks)) == answers.TEXT
    assert chunks[0].started.route.connector == "owners/acme/connectors/main"
    completed = chunks[-1].completed
    assert completed.finish_reason == pb.FINISH_REASON_STOP
    assert completed.usage == usage_pb2.Usage(
        input_tokens=11, output_tokens=4, total_tokens=15, source=usage_pb2.USAGE_SOURCE_PROVIDER
    )
    assert completed.route.model == "small-2026"


async def test_the_answer_of_chat_is_that_of_stream(rpc: Rpc) -> None:
    rpc.core.provider.answer(answers.openai_unary(), answers.openai_stream())
    answer = await rpc.chat()
    options = pb.StreamOptions(include_final_response=True)
    streamed = (await read(rpc.stream(chat_request(stream_options=options))))[-1].completed.response
    for name in ("message", "usage", "finish_reason", "provider_finish_reason"):
        assert getattr(streamed, name) == getattr(answer, name)
    assert answer.message.parts[0].text == answers.TEXT
    assert answer.route.upstream_mode == pb.UPSTREAM_MODE_UNARY
    assert streamed.route.upstream_mode == pb.UPSTREAM_MODE_STREAMING


async def test_deltas_that_arrive_together_are_joined_unless_the_caller_wants_each(rpc: Rpc) -> None:
    rpc.core.provider.always_answer(at_once(answers.openai_stream()))
    assert deltas(await read(rpc.stream())) == [answers.TEXT]
    off = pb.StreamOptions(coalescing=pb.COALESCING_OFF)
    assert deltas(await read(rpc.stream(chat_request(stream_options=off)))) == list(answers.WORDS)


async def test_the_first_delta_is_not_held_back(rpc: Rpc) -> None:
    more = Pause()
    head, opening, first, *rest = answers.openai_stream()
    rpc.core.provider.answer([head, opening, first, more, *rest])
    call = rpc.stream()
    assert (await following(call)).HasField("started")
    assert (await following(call)).text_delta.text == answers.WORDS[0]
    more.open()
    await read(call)


async def test_a_long_delta_arrives_whole_in_pieces(rpc: Rpc) -> None:
    said = "€𝄞" * 100_000
    rpc.core.provider.answer(answers.openai_stream([said]))
    chunks = await read(rpc.stream())
    check_sequence(chunks)
    assert "".join(deltas(chunks)) == said
    assert len(deltas(chunks)) > 1
    assert max(len(piece.encode()) for piece in deltas(chunks)) <= 256 * 1024


async def test_a_part_that_no_message_can_hold_ends_the_stream_with_a_status(rpc: Rpc) -> None:
    piece = answers.chunk({"content": "x" * 4_000_000})
    rpc.core.provider.answer([answers.EVENT_STREAM, *[piece] * 9, *answers.openai_events([])])
    failure = await failure_of(read(rpc.stream()))
    assert failure.reason == "UPSTREAM_MALFORMED_RESPONSE"
    assert "32 MiB" in str(failure.message)


async def test_an_sqlite_database_serves_as_well(tmp_path: Path) -> None:
    async with assembled(sqlite=tmp_path / "patchbay.db") as core, serving(core) as rpc:
        await core.add()
        core.provider.answer(answers.openai_unary(), answers.openai_stream())
        answer = await rpc.chat()
        assert answer.message.parts[0].text == "".join(deltas(await read(rpc.stream())))
        assert [row.state for row in await core.calls()] == [CallState.SUCCEEDED] * 2


async def test_an_answer_too_long_to_be_repeated_is_no_success(rpc: Rpc, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("patchbay_server.rpc.convert.answers.MESSAGE_BYTES_MAX", 1_000)
    rpc.core.provider.always_answer(answers.openai_stream(["x" * 900]))
    assert kinds(await read(rpc.stream()))[-1] == "completed"
    repeated = chat_request(stream_options=pb.StreamOptions(include_final_response=True))
    assert (await failure_of(read(rpc.stream(repeated)))).reason == "UPSTREAM_MALFORMED_RESPONSE"


# --- headers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["stream", "chat_as_stream"])
async def test_the_header_comes_as_soon_as_the_call_is_admitted(rpc: Rpc, method: str) -> None:
    rpc.core.provider.answer([Silence()])
    call = getattr(rpc, method)()
    header = dict(await asyncio.wait_for(call.initial_metadata(), 10))
    row = await rpc.core.call()
    assert header["patchbay-call-id"] == row.opened.call_id
    assert row.state is CallState.OPEN
    call.cancel()
    await ended(rpc)


@pytest.mark.parametrize("method", ["stream", "chat_as_stream"])
async def test_the_header_waits_for_the_record(rpc: Rpc, method: str) -> None:
    gate = hold(rpc.core.store, "write_records", before=True)
    rpc.core.provider.answer(answers.openai_stream() if method == "stream" else answers.openai_unary())
    call = getattr(rpc, method)()
    header = asyncio.ensure_future(call.initial_metadata())
    await rpc.core.provider.received()
    await gate.reached.wait()
    assert not (await asyncio.wait({header}, timeout=0.1))[0], "the header came before the record was durable"
    gate.open()
    assert "patchbay-call-id" in dict(await header)
    await read(call)


async def test_a_unary_answer_brings_its_call_id_in_the_header(rpc: Rpc) -> None:
    rpc.core.provider.answer(answers.openai_unary())
    call = rpc.chat()
    answer = await call
    assert dict(await call.initial_metadata())["patchbay-call-id"] == answer.id


async def test_a_call_that_fails_as_it_is_recorded_still_brings_its_call_id(rpc: Rpc) -> None:
    """The store is busy with another call, so that this one's beginning and end become durable together."""
    gate = hold(rpc.core.store, "write_records", before=True)
    rpc.core.provider.answer([Silence()], answers.error(400))
    other = rpc.stream()
    await rpc.core.provider.received(1)
    await gate.reached.wait()
    call = asyncio.ensure_future(failure_of(rpc.chat()))
    await rpc.core.provider.received(2)
    await asyncio.sleep(0.1)
    gate.open()
    assert "patchbay-call-id" in (await call).headers
    other.cancel()
    await ended(rpc)


async def test_a_refused_call_has_no_call_id_and_may_be_repeated(rpc: Rpc) -> None:
    failure = await failure_of(rpc.chat(chat_request(connector="nobody")))
    assert failure.reason == "CONNECTOR_NOT_FOUND"
    assert "patchbay-call-id" not in failure.headers
    assert "grpc-retry-pushback-ms" not in failure.trailers


@pytest.mark.parametrize("method", ["stream", "chat"])
async def test_a_call_that_cannot_be_recorded_is_a_failure(
    rpc: Rpc, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("patchbay_server.core.record.RETRY_WAITS_S", ())
    fail(rpc.core.store, "write_records")
    rpc.core.records_lost = 1
    rpc.core.provider.answer(answers.openai_stream() if method == "stream" else answers.openai_unary())
    call = getattr(rpc, method)()
    failure = await failure_of(call if method == "chat" else read(call))
    assert failure.reason == "DEPENDENCY_UNAVAILABLE"
    assert failure.trailers["grpc-retry-pushback-ms"] == "-1"
    assert "PartialResult" not in failure.details


# --- failures ---------------------------------------------------------------------------------------------------------


async def test_a_failure_after_output_says_what_was_sent(rpc: Rpc) -> None:
    rpc.core.provider.answer(answers.openai_interrupted(Cut()))
    got: list[pb.ChatResponseChunk] = []
    failure = await failure_of(read(rpc.stream(), got))
    assert failure.reason == "UPSTREAM_STREAM_BROKEN"
    partial = failure.details["PartialResult"]
    row = await rpc.core.call()
    assert partial.call_id == got[0].started.id == row.opened.call_id == failure.headers["patchbay-call-id"]
    assert partial.last_sequence == got[-1].sequence > 1
    assert partial.usage.source == usage_pb2.USAGE_SOURCE_ESTIMATED
    assert failure.trailers["grpc-retry-pushback-ms"] == "-1"
    assert failure.details["UpstreamFailure"].connector == "owners/acme/connectors/main"
    assert row.state is CallState.FAILED


@pytest.mark.parametrize("method", ["stream", "chat"])
async def test_a_providers_refusal_is_a_status_without_its_words(rpc: Rpc, method: str) -> None:
    rpc.core.provider.answer(answers.error(429, "rate_limit_exceeded", headers={"retry-after": "7"}))
    call = getattr(rpc, method)()
    failure = await failure_of(call if method == "chat" else read(call))
    assert failure.reason == "UPSTREAM_RATE_LIMITED"
    assert failure.details["RetryInfo"].retry_delay.seconds == 7
    assert failure.details["UpstreamFailure"].http_status == 429
    assert failure.trailers["grpc-retry-pushback-ms"] == "-1"
    assert "PartialResult" not in failure.details
    assert "what the provider said" not in str(failure.status)


async def test_every_faulty_field_is_named(rpc: Rpc) -> None:
    request = chat_request(feature="No Feature", config=pb.GenerationConfig(temperature=9.0))
    failure = await failure_of(read(rpc.stream(request)))
    assert failure.reason == "INVALID_REQUEST"
    assert failure.fields == ["feature", "config.temperature"]


async def test_a_status_at_its_longest_still_arrives(rpc: Rpc) -> None:
    long = "€" * 9_000
    violations = [FieldViolation(long, long)] * 20
    fail(
        rpc.core.gateway,
        "_plan",
        error=lambda: PatchbayError(
            Reason.INVALID_REQUEST, "𝄞" * 9_000, violations=violations, retry_after_s=1.0, quota=long
        ),
    )
    failure = await failure_of(rpc.chat())
    assert failure.reason == "INVALID_REQUEST"
    assert set(failure.details) == {"ErrorInfo", "RetryInfo", "QuotaFailure", "BadRequest"}


@pytest.mark.parametrize("method", ["stream", "chat"])
async def test_a_fault_of_ours_tells_the_caller_nothing_but_where_to_look(
    rpc: Rpc, method: str, caplog: pytest.LogCaptureFixture
) -> None:
    fail(rpc.core.snapshots, "get", error=lambda: RuntimeError("the inner workings"))
    call = getattr(rpc, method)()
    failure = await failure_of(call if method == "chat" else read(call))
    assert failure.reason == "INTERNAL"
    assert "inner workings" not in str(failure.status)
    fault_id = next(word for word in str(failure.message).split() if len(word) == 16)
    [record] = [record for record in caplog.records if fault_id in record.getMessage()]
    assert record.exc_info is not None
    assert "the inner workings" in caplog.text


async def test_the_callers_deadline_is_answered_before_it_passes(rpc: Rpc, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("patchbay_server.core.gateway.DEADLINE_MARGIN_S", 0.3)  # of which a busy machine may take some
    rpc.core.provider.answer(answers.openai_interrupted(Silence()))
    failure = await failure_of(read(rpc.stream(timeout=3.0)))
    assert failure.reason == "DEADLINE_EXCEEDED"
    assert failure.details["PartialResult"].last_sequence > 1


async def test_a_limit_that_passes_while_the_end_is_on_its_way_does_not_spoil_it(rpc: Rpc) -> None:
    """The caller's window takes the deltas and the part, but not the last chunk, until he reads again."""
    rpc.core.provider.answer(at_once(answers.openai_stream(["x" * 60_000])))
    options = pb.StreamOptions(include_final_response=True)
    async with narrow_channel(rpc) as narrow:
        call = narrow.Stream(chat_request(stream_options=options), metadata=rpc.owner_token)
        chunks = [await following(call)]
        [running] = rpc.core.gateway._running
        async with asyncio.timeout(10):
            while not running.settled:  # noqa: ASYNC110 -- sets no event
                await asyncio.sleep(0.01)
        await rpc.core.recorder.flush()
        await asyncio.sleep(0.1)
        assert rpc.core.gateway.running == 1, "the last chunk was taken at once"
        running.cut(PatchbayError(Reason.DEADLINE_EXCEEDED, "the longest time that a call may take has passed"))
        await ended(rpc)
        assert kinds(await read(call, chunks))[-1] == "completed"


@asynccontextmanager
async def narrow_channel(rpc: Rpc) -> AsyncIterator[Any]:
    """A stub whose flow-control window stays at 64 KiB."""
    options = (("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 65_536))
    async with grpc.aio.insecure_channel(rpc.server.address, options=options) as channel:
        yield gateway_service_pb2_grpc.GatewayServiceStub(channel)


# --- cancelling -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["stream", "chat"])
async def test_a_cancel_before_any_output_closes_the_provider(rpc: Rpc, method: str) -> None:
    rpc.core.provider.answer([Silence()])
    call = getattr(rpc, method)()
    await rpc.core.provider.received()
    call.cancel()
    await asyncio.wait_for(rpc.core.provider.connections[0].closed.wait(), 10)
    await ended(rpc)
    assert (await rpc.core.call()).state is CallState.CANCELLED


async def test_a_cancel_before_the_record_leaves_the_record_alone(rpc: Rpc) -> None:
    gate = hold(rpc.core.store, "write_records", before=True)
    rpc.core.provider.answer([Silence()])
    call = rpc.stream()
    await rpc.core.provider.received()
    await gate.reached.wait()
    [running] = rpc.core.gateway._running
    call.cancel()
    await ended(rpc)
    await asyncio.sleep(0.02)
    assert not running.durable.cancelled()
    gate.open()
    assert (await rpc.core.call()).state is CallState.CANCELLED


async def test_a_cancel_between_deltas_closes_the_provider(rpc: Rpc) -> None:
    rpc.core.provider.answer(answers.openai_interrupted(Silence()))
    call = rpc.stream()
    await following(call)
    call.cancel()
    await asyncio.wait_for(rpc.core.provider.connections[0].closed.wait(), 10)
    await ended(rpc)
    row = await rpc.core.call()
    assert row.state is CallState.CANCELLED
    assert row.closed is not None
    assert row.closed.usage is not None


async def test_a_cancel_while_a_write_is_blocked_closes_the_provider(rpc: Rpc) -> None:
    piece = answers.chunk({"content": "x" * 100_000})
    rpc.core.provider.answer([answers.EVENT_STREAM, *[piece] * 400])
    call = rpc.stream()
    await following(call)
    await asyncio.sleep(0.2)
    call.cancel()
    await asyncio.wait_for(rpc.core.provider.connections[0].closed.wait(), 10)
    await ended(rpc)
    assert (await rpc.core.call()).state is CallState.CANCELLED


async def test_a_lost_connection_is_a_cancel(rpc: Rpc) -> None:
    rpc.core.provider.answer(answers.openai_interrupted(Silence()))
    call = rpc.stream()
    await following(call)
    await rpc.channel.close()
    await asyncio.wait_for(rpc.core.provider.connections[0].closed.wait(), 10)
    await ended(rpc)
    assert (await rpc.core.call()).state is CallState.CANCELLED


# --- silences and slow callers ----------------------------------------------------------------------------------------


@pytest.fixture
def fast_heartbeats(monkeypatch: pytest.MonkeyPatch) -> pb.StreamOptions:
    """Stream options with a heartbeat interval below what the contract allows."""
    monkeypatch.setattr("patchbay_server.rpc.convert.requests._HEARTBEAT_S_RANGE", (0.01, 300.0))
    options = pb.StreamOptions()
    options.heartbeat_interval.FromMilliseconds(30)
    return options


async def test_a_silence_is_broken_by_heartbeats_that_keep_the_count(
    rpc: Rpc, fast_heartbeats: pb.StreamOptions
) -> None:
    more = Pause()
    head, opening, first, *rest = answers.openai_stream()
    rpc.core.provider.answer([head, opening, first, more, *rest])
    chunks: list[pb.ChatResponseChunk] = []
    async for chunk in rpc.stream(chat_request(stream_options=fast_heartbeats)):
        chunks.append(chunk)
        if kinds(chunks).count("heartbeat") == 2:
            more.open()
    assert kinds(chunks)[:4] == ["started", "text_delta", "heartbeat", "heartbeat"]
    assert kinds(chunks)[-1] == "completed"
    assert "".join(deltas(chunks)) == answers.TEXT
    check_sequence(chunks)


async def test_no_heartbeat_comes_before_the_stream_has_started(rpc: Rpc, fast_heartbeats: pb.StreamOptions) -> None:
    more = Pause()
    rpc.core.provider.answer([more, *answers.openai_stream()])
    call = rpc.stream(chat_request(stream_options=fast_heartbeats))
    await call.initial_metadata()
    await asyncio.sleep(0.15)
    more.open()
    assert kinds(await read(call))[0] == "started"


async def test_without_heartbeats_a_silence_stays_silent(rpc: Rpc, fast_heartbeats: pb.StreamOptions) -> None:
    more = Pause()
    head, opening, first, *rest = answers.openai_stream()
    rpc.core.provider.answer([head, opening, first, more, *rest])
    fast_heartbeats.heartbeat_interval.FromMilliseconds(0)
    call = rpc.stream(chat_request(stream_options=fast_heartbeats))
    await call.initial_metadata()
    await asyncio.sleep(0.15)
    more.open()
    assert "heartbeat" not in kinds(await read(call))


async def test_a_slow_caller_slows_the_provider(rpc: Rpc) -> None:
    piece = answers.chunk({"content": "x" * 20_000})
    rpc.core.provider.answer([answers.EVENT_STREAM, *[piece] * 3_000, *answers.openai_events([])])
    async with narrow_channel(rpc) as narrow:
        call = narrow.Stream(chat_request(), metadata=rpc.owner_token)
        await following(call)
        taken = [-1, chars_taken(rpc)]
        while taken[-1] != taken[-2]:  # until nothing moves any more
            await asyncio.sleep(0.1)
            taken.append(chars_taken(rpc))
        assert taken[-1] < 2_000_000, "60 MB were taken from the provider for a caller that takes nothing"
        call.cancel()
        await ended(rpc)


def chars_taken(rpc: Rpc) -> int:
    """Characters that the one running call has taken from its provider."""
    [call] = rpc.core.gateway._running
    assert call._try is not None
    return call._try._weight


async def test_no_heartbeat_is_squeezed_into_a_write(rpc: Rpc, fast_heartbeats: pb.StreamOptions) -> None:
    rpc.core.provider.answer(answers.openai_stream(["x" * 20_000] * 20))
    async with narrow_channel(rpc) as narrow:
        call = narrow.Stream(chat_request(stream_options=fast_heartbeats), metadata=rpc.owner_token)
        chunks = [await following(call)]
        await asyncio.sleep(0.2)
        check_sequence(await read(call, chunks))
        assert kinds(chunks)[-1] == "completed"
        assert "".join(deltas(chunks)) == "x" * 400_000


async def test_a_call_cut_while_its_caller_is_slow_ends_with_its_status(rpc: Rpc) -> None:
    piece = answers.chunk({"content": "x" * 100_000})
    rpc.core.provider.answer([answers.EVENT_STREAM, *[piece] * 400])
    call = rpc.stream()
    got = [await following(call)]
    await asyncio.sleep(0.2)
    [running] = rpc.core.gateway._running
    running.cut(PatchbayError(Reason.DRAINING, "leaving"))
    await asyncio.wait_for(rpc.core.provider.connections[0].closed.wait(), 10)
    failure = await failure_of(read(call, got))
    assert failure.reason == "DRAINING"
    check_sequence(got)
    assert failure.details["PartialResult"].last_sequence == got[-1].sequence
