"""A streamed answer: its events, its end, its early end."""

import asyncio
from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from tests.client.fake_gateway import TOKEN, Driver, FakeGateway, chunks, streams

from patchbay.v1 import admin_service_pb2 as admin_pb
from patchbay.v1 import content_pb2, usage_pb2
from patchbay.v1 import gateway_service_pb2 as pb
from patchbay_client import (
    AsyncPatchbayClient,
    Cancelled,
    FinishReason,
    PatchbayClient,
    PatchbayError,
    Text,
    ToolCall,
    TruncatedStream,
    Unavailable,
)
from patchbay_client.events import (
    Completed,
    PartCompleted,
    ReasoningDelta,
    Started,
    TextDelta,
    ToolCallDelta,
    ToolCallStarted,
    UsageUpdated,
)

STREAM = "GatewayService/Stream"

ROUTE = pb.Route(connector="owners/a/connectors/main", provider="openai", model="gpt-1")
STARTED = {"started": pb.ChatStarted(id="call-1", create_time=Timestamp(seconds=1_800_000_000), route=ROUTE)}
USAGE = usage_pb2.Usage(input_tokens=3, output_tokens=4, total_tokens=7, source=usage_pb2.USAGE_SOURCE_PROVIDER)
COMPLETED = {
    "completed": pb.ChatCompleted(
        finish_reason=pb.FINISH_REASON_STOP, provider_finish_reason="stop", usage=USAGE, route=ROUTE
    )
}


def text(index: int, fragment: str) -> dict[str, Any]:
    return {"text_delta": pb.TextDelta(part_index=index, text=fragment)}


def whole(index: int, part: content_pb2.ContentPart) -> dict[str, Any]:
    return {"part_completed": pb.PartCompleted(part_index=index, part=part)}


REASONING = content_pb2.ContentPart(reasoning=content_pb2.Reasoning(text="Hm.", provider_state=b"signed"))
HELLO = content_pb2.ContentPart(text="Hello world")
TOOL = content_pb2.ContentPart(tool_call=content_pb2.ToolCall(id="t1", name="map", arguments_json='{"x": 1}'))

ANSWER = chunks(
    STARTED,
    {"reasoning_delta": pb.ReasoningDelta(part_index=0, text="Hm.")},
    {"heartbeat": pb.Heartbeat()},
    {"tool_call_started": pb.ToolCallStarted(part_index=2, id="t1", name="map")},
    text(1, "Hello "),
    {"tool_call_delta": pb.ToolCallDelta(part_index=2, arguments_json='{"x":')},
    text(1, "world"),
    {},  # an event of a newer server
    {"tool_call_delta": pb.ToolCallDelta(part_index=2, arguments_json=" 1}")},
    whole(2, TOOL),
    whole(0, REASONING),
    whole(1, HELLO),
    {"usage_updated": pb.UsageUpdated(usage=USAGE)},
    COMPLETED,
)

UNARY = pb.ChatResponse(
    id="call-1",
    create_time=Timestamp(seconds=1_800_000_000),
    route=ROUTE,
    message=content_pb2.ChatMessage(role=content_pb2.ROLE_ASSISTANT, parts=[REASONING, HELLO, TOOL]),
    finish_reason=pb.FINISH_REASON_STOP,
    provider_finish_reason="stop",
    usage=USAGE,
)


async def test_a_stream_shows_every_event_and_adds_up_to_the_unary_answer(gateway: FakeGateway, driver: Driver) -> None:
    async def unary(_request: Any, _context: Any) -> pb.ChatResponse:
        return UNARY

    gateway.on(STREAM, streams(*ANSWER))
    gateway.on("GatewayService/Chat", unary)
    seen = await driver.read(lambda client: client.stream("Hi", coalescing="off", heartbeat_interval_s=5))
    assert seen.error is None
    assert [type(event) for event in seen.items] == [
        Started,
        ReasoningDelta,
        ToolCallStarted,
        TextDelta,
        ToolCallDelta,
        TextDelta,
        ToolCallDelta,
        PartCompleted,
        PartCompleted,
        PartCompleted,
        UsageUpdated,
        Completed,
    ]
    assert seen.items[7].part == ToolCall(id="t1", name="map", arguments_json='{"x": 1}')
    assert seen.stream.answer == await driver.call(lambda client: client.chat("Hi"))
    (request,) = gateway.requests[STREAM]
    assert request.stream_options.coalescing == pb.COALESCING_OFF
    assert request.stream_options.heartbeat_interval.seconds == 5


async def test_text_comes_piece_by_piece_while_the_stream_runs(gateway: FakeGateway, driver: Driver) -> None:
    go_on = asyncio.Event()

    async def halting(_request: Any, context: Any) -> None:
        for chunk in ANSWER[:5]:
            await context.write(chunk)
        await go_on.wait()
        for chunk in ANSWER[5:]:
            await context.write(chunk)

    gateway.on(STREAM, halting)
    if driver.blocking:
        pieces = driver.client.stream("Hi").text()
        assert await asyncio.to_thread(next, pieces) == "Hello "
        go_on.set()
        assert await asyncio.to_thread(list, pieces) == ["world"]
    else:
        pieces = driver.client.stream("Hi").text()
        assert await anext(pieces) == "Hello "
        go_on.set()
        assert [piece async for piece in pieces] == ["world"]


async def test_collect_gives_the_whole_answer(gateway: FakeGateway, driver: Driver) -> None:
    gateway.on(STREAM, streams(*ANSWER))
    got = await driver.call(lambda client: client.stream("Hi").collect())
    assert (got.text, got.finish_reason) == ("Hello world", FinishReason.STOP)


async def test_parts_that_were_never_completed_are_what_their_deltas_say(gateway: FakeGateway, driver: Driver) -> None:
    deltas = [chunk for chunk in ANSWER if chunk.WhichOneof("event") != "part_completed"]
    for number, chunk in enumerate(
        renumbered := [pb.ChatResponseChunk.FromString(c.SerializeToString()) for c in deltas]
    ):
        chunk.sequence = number + 1
    gateway.on(STREAM, streams(*renumbered))
    got = await driver.call(lambda client: client.stream("Hi").collect())
    assert (got.reasoning, got.text) == ("Hm.", "Hello world")
    assert got.tool_calls[0].arguments == {"x": 1}


async def test_the_final_response_of_the_gateway_wins_where_it_was_asked_for(
    gateway: FakeGateway, driver: Driver
) -> None:
    completed = pb.ChatCompleted(finish_reason=pb.FINISH_REASON_STOP, response=UNARY)
    gateway.on(STREAM, streams(*chunks(STARTED, text(0, "x"), {"completed": completed})))
    request = pb.ChatRequest(stream_options=pb.StreamOptions(include_final_response=True))
    got = await driver.call(lambda client: client.stream(request).collect())
    assert got.raw == UNARY
    assert gateway.requests[STREAM][0] == request


@pytest.mark.parametrize("sent", range(len(ANSWER)))
async def test_a_stream_that_ends_well_without_completed_is_truncated(
    gateway: FakeGateway, driver: Driver, sent: int
) -> None:
    gateway.on(STREAM, streams(*ANSWER[:sent]))
    seen = await driver.read(lambda client: client.stream("Hi"))
    assert isinstance(seen.error, TruncatedStream)
    assert isinstance(seen.error, Unavailable)
    assert seen.error.reason == "STREAM_TRUNCATED"
    assert seen.error.call_id == ("call-1" if sent else "")
    with pytest.raises(RuntimeError, match="not whole"):
        _ = seen.stream.answer


async def test_what_came_before_a_failure_stays_readable(gateway: FakeGateway, driver: Driver) -> None:
    async def breaks(_request: Any, context: Any) -> None:
        for chunk in ANSWER[:7]:
            await context.write(chunk)
        await context.abort(grpc.StatusCode.UNAVAILABLE, "the provider's connection broke")

    gateway.on(STREAM, breaks)
    seen = await driver.read(lambda client: client.stream("Hi"))
    assert isinstance(seen.error, Unavailable)
    assert not isinstance(seen.error, TruncatedStream)
    assert seen.stream.received_text == "Hello world"
    assert [event.text for event in seen.items if isinstance(event, TextDelta)] == ["Hello ", "world"]


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        ([ANSWER[0], ANSWER[2]], "chunk 3 came after chunk 1"),
        ([*ANSWER, pb.ChatResponseChunk(sequence=15, heartbeat=pb.Heartbeat())], "after the last one"),
    ],
)
async def test_a_stream_that_breaks_the_contract_is_an_error(
    gateway: FakeGateway, driver: Driver, sent: list[pb.ChatResponseChunk], said: str
) -> None:
    gateway.on(STREAM, streams(*sent))
    seen = await driver.read(lambda client: client.stream("Hi"))
    assert seen.error is not None
    assert (seen.error.reason, seen.error.code) == ("STREAM_MALFORMED", grpc.StatusCode.INTERNAL)
    assert said in seen.error.message


async def forever(_request: Any, context: Any) -> None:
    for chunk in ANSWER[:5]:
        await context.write(chunk)
    await asyncio.sleep(60)


async def test_leaving_the_context_early_cancels_the_call(gateway: FakeGateway, driver: Driver) -> None:
    gateway.on(STREAM, forever)

    def first_event(client: PatchbayClient) -> None:
        with client.stream("Hi") as stream:
            for _ in stream:
                break

    if driver.blocking:
        await asyncio.to_thread(first_event, driver.client)
    else:
        async with driver.client.stream("Hi") as stream:
            async for _ in stream:
                break
    await asyncio.wait_for(gateway.cancelled.wait(), 20)


async def test_cancelling_the_task_that_reads_cancels_the_call(gateway: FakeGateway, port: int) -> None:
    gateway.on(STREAM, forever)
    reading = asyncio.Event()

    async def read(client: AsyncPatchbayClient) -> None:
        async with client.stream("Hi") as stream:
            async for _ in stream.text():
                reading.set()

    async with AsyncPatchbayClient(f"127.0.0.1:{port}", TOKEN) as client:
        task = asyncio.create_task(read(client))
        await reading.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(gateway.cancelled.wait(), 20)


async def test_a_stream_closed_while_it_is_read_is_an_error_and_not_a_cancelled_task(
    gateway: FakeGateway, driver: Driver
) -> None:
    sent = asyncio.Event()

    async def silent(_request: Any, context: Any) -> None:
        await context.write(ANSWER[0])
        sent.set()
        await asyncio.sleep(60)

    gateway.on(STREAM, silent)
    stream = driver.client.stream("Hi")
    if driver.blocking:
        reader = asyncio.create_task(asyncio.to_thread(stream.collect))
    else:
        reader = asyncio.create_task(stream.collect())
    await sent.wait()
    stream.close()
    with pytest.raises(Cancelled) as caught:
        await reader
    assert caught.value.code is grpc.StatusCode.CANCELLED


async def test_a_status_cancelled_by_the_gateway_is_an_error_and_not_a_cancelled_task(
    gateway: FakeGateway, driver: Driver
) -> None:
    async def cancelling(_request: Any, context: Any) -> None:
        await context.write(ANSWER[0])
        await context.abort(grpc.StatusCode.CANCELLED, "cancelled elsewhere")

    gateway.on(STREAM, cancelling)
    seen = await driver.read(lambda client: client.stream("Hi"))
    assert isinstance(seen.error, Cancelled)


async def test_nothing_is_sent_before_a_stream_is_read(gateway: FakeGateway, driver: Driver) -> None:
    driver.client.stream("Hi")
    await asyncio.sleep(0.05)
    assert gateway.requests[STREAM] == []


async def test_messages_that_came_before_a_quick_end_are_all_delivered(gateway: FakeGateway, driver: Driver) -> None:
    gateway.on(STREAM, streams(*ANSWER))
    stream = driver.client.stream("Hi")
    if driver.blocking:
        await asyncio.to_thread(next, stream)
    else:
        await anext(stream)
    await asyncio.sleep(0.1)  # by now the whole answer and its status are here
    answer = await driver.call(lambda _: stream.collect())
    assert answer.parts[1] == Text("Hello world")


async def test_exports_come_in_pieces(gateway: FakeGateway, driver: Driver) -> None:
    pieces = [admin_pb.ExportCallsResponse(data=b"id,owner\r\n"), admin_pb.ExportCallsResponse(data=b"1,a\r\n")]
    gateway.on("AdminService/ExportCalls", streams(*pieces))
    seen = await driver.read(lambda client: client.admin.export_calls(filter='owner = "owners/a"'))
    assert seen.items == [b"id,owner\r\n", b"1,a\r\n"]
    assert gateway.time_left["AdminService/ExportCalls"] == [None]


async def test_an_error_names_the_call_by_the_header_of_its_admission(gateway: FakeGateway, driver: Driver) -> None:
    async def admitted_then_failed(_request: Any, context: Any) -> None:
        await context.send_initial_metadata((("patchbay-call-id", "call-9"),))
        await context.abort(grpc.StatusCode.INTERNAL, "no")

    gateway.on(STREAM, admitted_then_failed)
    seen = await driver.read(lambda client: client.stream("Hi"))
    assert isinstance(seen.error, PatchbayError)
    assert seen.error.call_id == "call-9"
