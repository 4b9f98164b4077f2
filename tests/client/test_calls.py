"""What goes over the wire when a client calls, and what comes back."""

import asyncio
import json
import signal
import sys
from decimal import Decimal
from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from tests.client.fake_gateway import TOKEN, Driver, FakeGateway
from tests.support.process import started

from patchbay.v1 import connector_service_pb2 as connector_pb
from patchbay.v1 import content_pb2, usage_pb2
from patchbay.v1 import gateway_service_pb2 as pb
from patchbay_client import (
    AsyncPatchbayClient,
    DeadlineExceeded,
    FinishReason,
    PatchbayClient,
    Text,
    ToolCall,
    ToolResult,
    user,
)

CHAT = "GatewayService/Chat"

INTERRUPTED = """
import sys
from patchbay_client import PatchbayClient
client = PatchbayClient("127.0.0.1:{port}", "t")
try:
    {ask}
except KeyboardInterrupt:
    sys.stdin.read()
    sys.exit(7)
"""


def answer() -> pb.ChatResponse:
    return pb.ChatResponse(
        id="call-1",
        create_time=Timestamp(seconds=1_800_000_000),
        route=pb.Route(
            connector="owners/a/connectors/main",
            provider="anthropic",
            model="claude-1",
            resolved_by=pb.RESOLVED_BY_OWNER_DEFAULT,
            attempts=[pb.Attempt(connector="owners/a/connectors/main", model="claude-1")],
        ),
        message=content_pb2.ChatMessage(
            role=content_pb2.ROLE_ASSISTANT,
            parts=[
                content_pb2.ContentPart(
                    reasoning=content_pb2.Reasoning(text="France?", provider_state=b"\x00signature\xff")
                ),
                content_pb2.ContentPart(text="Pa"),
                content_pb2.ContentPart(text="ris"),
                content_pb2.ContentPart(
                    tool_call=content_pb2.ToolCall(id="t1", name="map", arguments_json='{"city": "Paris"}')
                ),
            ],
        ),
        finish_reason=pb.FINISH_REASON_TOOL_CALLS,
        usage=usage_pb2.Usage(
            input_tokens=10,
            output_tokens=5,
            total_tokens=15,
            source=usage_pb2.USAGE_SOURCE_PROVIDER,
            reasoning_tokens=0,
            cost_usd_nanos=1_500_000,
        ),
    )


async def answering(_request: Any, _context: Any) -> pb.ChatResponse:
    return answer()


async def test_an_answer_shows_text_tools_usage_and_route(gateway: FakeGateway, driver: Driver) -> None:
    gateway.on(CHAT, answering)
    got = await driver.call(lambda client: client.chat("What is the capital of France?"))
    assert got.text == "Paris"
    assert got.reasoning == "France?"
    assert got.refusal is None
    assert [(call.name, call.arguments) for call in got.tool_calls] == [("map", {"city": "Paris"})]
    assert got.finish_reason is FinishReason.TOOL_CALLS
    assert (got.usage.input_tokens, got.usage.total_tokens, got.usage.reasoning_tokens) == (10, 15, 0)
    assert got.usage.cached_input_tokens is None
    assert got.usage.cost_usd == Decimal("0.0015")
    assert (got.route.provider, got.route.model, got.route.resolved_by) == ("anthropic", "claude-1", "OWNER_DEFAULT")
    assert got.create_time.isoformat() == "2027-01-15T08:00:00+00:00"
    assert got.raw == answer()
    assert "text='Paris'" in repr(got)


async def test_a_prompt_is_one_turn_of_the_user_and_carries_the_token(gateway: FakeGateway, driver: Driver) -> None:
    await driver.call(lambda client: client.chat("Hello", owner="acme", feature="greeting"))
    (request,) = gateway.requests[CHAT]
    assert request.messages == [
        content_pb2.ChatMessage(role=content_pb2.ROLE_USER, parts=[content_pb2.ContentPart(text="Hello")])
    ]
    assert (request.owner, request.feature) == ("owners/acme", "greeting")
    assert gateway.metadata[CHAT][0]["authorization"] == f"Bearer {TOKEN}"


async def test_an_answer_goes_back_byte_for_byte_with_the_results_of_its_tools(
    gateway: FakeGateway, driver: Driver
) -> None:
    gateway.on(CHAT, answering)
    first = await driver.call(lambda client: client.chat("Where?"))
    turns = [user("Where?"), first, ToolResult("t1", "48.8 N")]
    await driver.call(lambda client: client.chat(turns))
    sent = gateway.requests[CHAT][1].messages
    assert sent[1] == answer().message
    assert sent[2].role == content_pb2.ROLE_TOOL
    assert sent[2].parts[0].tool_result.tool_call_id == "t1"


async def test_unknown_finish_reasons_and_parts_of_a_newer_server_do_no_harm(
    gateway: FakeGateway, driver: Driver
) -> None:
    async def newer(_request: Any, _context: Any) -> pb.ChatResponse:
        response = pb.ChatResponse(finish_reason=77)  # type: ignore[arg-type]
        response.message.parts.add()  # a part of a kind that has no field here
        response.message.parts.add(text="fine")
        response.route.resolved_by = 99  # type: ignore[assignment]
        response.route.attempts.add(error_reason=999)  # type: ignore[arg-type]
        return response

    gateway.on(CHAT, newer)
    got = await driver.call(lambda client: client.chat("Hello"))
    assert got.finish_reason is FinishReason.OTHER
    assert got.parts == (Text("fine"),)
    assert got.route.resolved_by == "OTHER"
    assert got.route.attempts[0].error_reason == "OTHER"


async def test_the_timeout_of_a_call_is_its_deadline_at_the_gateway(gateway: FakeGateway, driver: Driver) -> None:
    await driver.call(lambda client: client.chat("Hello", timeout=12.0))
    await driver.call(lambda client: client.chat("Hello"))
    await driver.call(lambda client: client.admin.status())
    short, usual = gateway.time_left[CHAT]
    (management,) = gateway.time_left["AdminService/GetStatus"]
    # On the wire a deadline has few digits and is rounded up; on a busy machine some of it has passed on arrival.
    assert 5 < short <= 13.5
    assert 590 < usual <= 603
    assert 20 < management <= 31.5


async def test_a_call_that_takes_too_long_raises_deadline_exceeded(gateway: FakeGateway, driver: Driver) -> None:
    async def silent(_request: Any, _context: Any) -> None:
        await asyncio.sleep(30)

    gateway.on(CHAT, silent)
    with pytest.raises(DeadlineExceeded) as caught:
        await driver.call(lambda client: client.chat("Hello", timeout=0.1))
    assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert caught.value.reason == ""


async def test_cancelling_the_task_cancels_the_call_at_the_gateway(gateway: FakeGateway, port: int) -> None:
    reached = asyncio.Event()

    async def silent(_request: Any, _context: Any) -> None:
        reached.set()
        await asyncio.sleep(30)

    gateway.on(CHAT, silent)
    async with AsyncPatchbayClient(f"127.0.0.1:{port}", TOKEN) as client:
        task = asyncio.create_task(client.chat("Hello"))
        await reached.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(gateway.cancelled.wait(), 20)


@pytest.mark.parametrize("ask", ["client.chat('Hi')", "client.stream('Hi').collect()"])
async def test_ctrl_c_cancels_the_call_at_the_gateway(gateway: FakeGateway, port: int, ask: str) -> None:
    reached = asyncio.Event()

    async def silent(_request: Any, _context: Any) -> None:
        reached.set()
        await asyncio.sleep(30)

    gateway.on(CHAT, silent)
    gateway.on("GatewayService/Stream", silent)
    script = INTERRUPTED.format(port=port, ask=ask)
    async with started(sys.executable, "-c", script, stdin=asyncio.subprocess.PIPE) as process:
        await asyncio.wait_for(reached.wait(), 20)
        await asyncio.sleep(0.1)  # until the client, which has just sent its request, waits for the answer
        process.send_signal(signal.SIGINT)
        await asyncio.wait_for(gateway.cancelled.wait(), 20)
        assert process.returncode is None  # it is the call that was cancelled, not the process that was lost
        await asyncio.wait_for(process.communicate(b""), 20)
        assert process.returncode == 7


async def test_lists_fetch_page_after_page(gateway: FakeGateway, driver: Driver) -> None:
    async def page(request: Any, _context: Any) -> connector_pb.ListConnectorsResponse:
        number = int(request.page_token or "0")
        names = [f"owners/a/connectors/c{number}{half}" for half in "ab"]
        return connector_pb.ListConnectorsResponse(
            connectors=[connector_pb.Connector(name=name) for name in names],
            next_page_token=str(number + 1) if number < 2 else "",
        )

    gateway.on("ConnectorService/ListConnectors", page)
    got = await driver.call(lambda client: client.connectors.list("a", filter="state = ACTIVE", order_by="name"))
    assert [each.id for each in got] == ["c0a", "c0b", "c1a", "c1b", "c2a", "c2b"]
    requests = gateway.requests["ConnectorService/ListConnectors"]
    assert [each.page_token for each in requests] == ["", "1", "2"]
    assert {(each.parent, each.filter, each.order_by) for each in requests} == {("owners/a", "state = ACTIVE", "name")}


async def test_several_threads_share_one_blocking_client(gateway: FakeGateway, port: int) -> None:
    async def echo(request: Any, _context: Any) -> pb.ChatResponse:
        response = pb.ChatResponse()
        response.message.parts.add(text=request.messages[0].parts[0].text)
        return response

    gateway.on(CHAT, echo)
    with PatchbayClient(f"127.0.0.1:{port}", TOKEN) as client:
        answers = await asyncio.gather(*(asyncio.to_thread(client.chat, str(number)) for number in range(8)))
    assert [each.text for each in answers] == [str(number) for number in range(8)]


def test_tool_arguments_that_are_no_object_are_a_value_error() -> None:
    with pytest.raises(ValueError, match="not a JSON object"):
        _ = ToolCall(id="1", name="f", arguments_json="[1]").arguments
    with pytest.raises(json.JSONDecodeError):
        _ = ToolCall(id="1", name="f", arguments_json='{"a": ').arguments
