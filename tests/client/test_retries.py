"""What is repeated when the gateway is unavailable, and what never is."""

import asyncio
from typing import Any

import grpc
import pytest
from tests.client.fake_gateway import TOKEN, Driver, FakeGateway, Handler, aborts, methods

from patchbay.v1 import connector_service_pb2 as connector_pb
from patchbay.v1 import gateway_service_pb2 as pb
from patchbay_client import AsyncPatchbayClient, Unavailable
from patchbay_client.channel import service_config

CHAT = "GatewayService/Chat"
STREAM = "GatewayService/Stream"

ADMITTED = (("patchbay-call-id", "call-1"),)
NO_RETRY = (("grpc-retry-pushback-ms", "-1"),)


def fails_first(times: int, then: Any) -> Handler:
    left = [times]

    async def answer(_request: Any, context: Any) -> Any:
        if left[0]:
            left[0] -= 1
            await context.abort(grpc.StatusCode.UNAVAILABLE, "draining")
        return then

    return answer


async def test_reads_are_repeated_until_the_gateway_answers(gateway: FakeGateway, driver: Driver) -> None:
    found = connector_pb.GetConnectorResponse(connector=connector_pb.Connector(name="owners/a/connectors/c"))
    gateway.on("ConnectorService/GetConnector", fails_first(2, found))
    got = await driver.call(lambda client: client.connectors.get("owners/a/connectors/c"))
    assert got.id == "c"
    assert len(gateway.requests["ConnectorService/GetConnector"]) == 3


async def test_writes_are_never_repeated(gateway: FakeGateway, driver: Driver) -> None:
    gateway.on("ConnectorService/DeleteConnector", aborts(grpc.StatusCode.UNAVAILABLE))
    with pytest.raises(Unavailable):
        await driver.call(lambda client: client.connectors.delete("owners/a/connectors/c"))
    assert len(gateway.requests["ConnectorService/DeleteConnector"]) == 1


async def test_a_chat_that_was_not_admitted_is_repeated_as_the_same_request(
    gateway: FakeGateway, driver: Driver
) -> None:
    gateway.on(CHAT, fails_first(1, pb.ChatResponse(id="call-1")))
    got = await driver.call(lambda client: client.chat("Hi"))
    assert got.id == "call-1"
    first, second = gateway.requests[CHAT]
    assert first == second
    assert first.request_id


@pytest.mark.parametrize("method", [CHAT, STREAM])
async def test_an_admitted_call_is_not_repeated(gateway: FakeGateway, driver: Driver, method: str) -> None:
    # As the gateway does it. Headers alone would not do: gRPC repeats when they arrive in one read with the failure.
    gateway.on(method, aborts(grpc.StatusCode.UNAVAILABLE, headers=ADMITTED, trailing_metadata=NO_RETRY))
    error = await _error_of(driver, method)
    assert isinstance(error, Unavailable)
    assert len(gateway.requests[method]) == 1


async def test_a_stream_of_which_something_was_read_is_not_repeated(gateway: FakeGateway, port: int) -> None:
    was_read = asyncio.Event()

    async def broken(_request: Any, context: Any) -> None:
        await context.write(pb.ChatResponseChunk(sequence=1, started=pb.ChatStarted(id="call-1")))
        await was_read.wait()
        await context.abort(grpc.StatusCode.UNAVAILABLE, "the process is going down")

    gateway.on(STREAM, broken)
    async with AsyncPatchbayClient(f"127.0.0.1:{port}", TOKEN) as client, client.stream("Hi") as stream:
        await anext(stream)
        was_read.set()
        with pytest.raises(Unavailable):
            await anext(stream)
    assert len(gateway.requests[STREAM]) == 1


@pytest.mark.parametrize("method", [CHAT, STREAM])
async def test_the_gateway_can_forbid_a_repetition(gateway: FakeGateway, driver: Driver, method: str) -> None:
    gateway.on(method, aborts(grpc.StatusCode.UNAVAILABLE, trailing_metadata=NO_RETRY))
    error = await _error_of(driver, method)
    assert isinstance(error, Unavailable)
    assert len(gateway.requests[method]) == 1


async def test_only_unavailable_is_repeated(gateway: FakeGateway, driver: Driver) -> None:
    gateway.on(CHAT, aborts(grpc.StatusCode.RESOURCE_EXHAUSTED))
    await _error_of(driver, CHAT)
    assert len(gateway.requests[CHAT]) == 1


def test_what_may_be_repeated_follows_from_the_contract() -> None:
    (config,) = service_config()["methodConfig"]
    named = {f"{name['service']}.{name['method']}" for name in config["name"]}
    reads = {each.full_name for each in methods() if each.GetOptions().idempotency_level == 1}
    assert named == reads | {"patchbay.v1.GatewayService.Chat", "patchbay.v1.GatewayService.Stream"}
    assert "patchbay.v1.AdminService.ListCalls" in reads
    assert "patchbay.v1.ConnectorService.TestConnector" not in reads


async def _error_of(driver: Driver, method: str) -> Any:
    if method == STREAM:
        return (await driver.read(lambda client: client.stream("Hi"))).error
    with pytest.raises(Exception) as caught:  # noqa: PT011 - the caller looks at it
        await driver.call(lambda client: client.chat("Hi"))
    return caught.value
