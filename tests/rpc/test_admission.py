"""A full gateway, as its callers and those who watch over it see it."""

import asyncio
from typing import Any

import pytest
from grpc_health.v1 import health_pb2
from tests.rpc.bench import failure_of, read, serving
from tests.support import answers
from tests.support.bench import assembled
from tests.support.provider import Pause

from patchbay.v1 import admin_service_pb2 as admin_pb
from patchbay.v1 import connector_service_pb2 as connector_pb
from patchbay_server.core.admission import Room
from patchbay_server.core.gateway import CallLimits


@pytest.mark.parametrize("method", ["stream", "chat"])
async def test_a_full_gateway_refuses_calls_with_a_time_to_come_back_and_nothing_else(method: str) -> None:
    room = Room(calls_max=1, owner_calls_max=1, queue_max=0)
    async with assembled(calls=CallLimits(room=room)) as core, serving(core) as rpc:
        await core.add()
        pause = Pause()
        core.provider.answer([pause, *answers.openai_unary()])
        running = asyncio.ensure_future(rpc.chat())
        await pause.reached.wait()
        call = getattr(rpc, method)()
        failure = await failure_of(call if method == "chat" else read(call))
        assert failure.reason == "OVERLOADED"
        assert failure.details["RetryInfo"].retry_delay.ToSeconds() == 1
        assert "grpc-retry-pushback-ms" not in failure.trailers
        health = await rpc.health.Check(health_pb2.HealthCheckRequest(), timeout=10.0)
        assert health.status == health_pb2.HealthCheckResponse.SERVING
        core.provider.answer(answers.json_answer({"object": "list", "data": [{"id": "small", "object": "model"}]}))
        tested = await rpc.connectors.TestConnector(
            connector_pb.TestConnectorRequest(name="owners/acme/connectors/main"),
            metadata=rpc.owner_token,
            timeout=10.0,
        )
        assert tested.result == connector_pb.TEST_RESULT_OK
        status: Any = await rpc.admin.GetStatus(admin_pb.GetStatusRequest(), metadata=rpc.root_token, timeout=10.0)
        assert status.calls_open == 1
        pause.open()
        await running


async def test_a_call_that_finds_no_room_waits_for_its_turn() -> None:
    room = Room(calls_max=1, owner_calls_max=1, wait_s=30.0)
    async with assembled(calls=CallLimits(room=room)) as core, serving(core) as rpc:
        await core.add()
        pause = Pause()
        core.provider.answer([pause, *answers.openai_unary()], answers.openai_unary())
        first = asyncio.ensure_future(rpc.chat())
        await pause.reached.wait()
        second = asyncio.ensure_future(rpc.chat())
        status: Any = None
        while status is None or not status.calls_queued:
            status = await rpc.admin.GetStatus(admin_pb.GetStatusRequest(), metadata=rpc.root_token, timeout=10.0)
        assert (status.calls_open, status.calls_queued) == (1, 1)
        pause.open()
        await asyncio.gather(first, second)
