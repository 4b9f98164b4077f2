"""A disk that is full for a while: nothing is promised that cannot be kept, and nothing needs a restart afterwards."""

import asyncio
import resource
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
from tests.e2e.gateway import Client, GatewayProcess, read
from tests.rpc.bench import failure_of, kinds
from tests.support import answers
from tests.support.needs import needs
from tests.support.provider import Pause, Provider

from patchbay.v1 import connector_service_pb2


@asynccontextmanager
async def full_disk(gateway: GatewayProcess) -> AsyncIterator[None]:
    """No file of the server can grow any more."""
    inside = gateway.inside
    needs(hasattr(inside, "rlimit"), "limits of another process can be set on Linux only")
    before = inside.rlimit(resource.RLIMIT_FSIZE)
    inside.rlimit(resource.RLIMIT_FSIZE, (1, before[1]))
    try:
        yield
    finally:
        inside.rlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
async def provider() -> AsyncIterator[Provider]:
    async with Provider() as provider:
        yield provider


@pytest.fixture
async def gateway(tmp_path: Path, provider: Provider) -> AsyncIterator[GatewayProcess]:
    async with GatewayProcess(tmp_path / "data", drain_grace_s="0") as gateway:
        yield gateway


@pytest.fixture
async def client(gateway: GatewayProcess, provider: Provider) -> AsyncIterator[Client]:
    async with gateway.client() as client:
        await client.allow(connector_service_pb2.PRIVATE_HTTP_LOOPBACK)
        await client.add_connector(provider.url() + "/v1")
        yield client


async def test_calls_are_refused_while_the_disk_is_full_and_answered_afterwards(
    gateway: GatewayProcess, client: Client, provider: Provider
) -> None:
    provider.always_answer(answers.openai_stream())
    await read(client.stream())
    async with full_disk(gateway):
        calls = [client.stream() for _ in range(5)]
        failures = await asyncio.gather(*(failure_of(read(call)) for call in calls))
        for failure in failures:
            assert (failure.code, failure.reason) == (grpc.StatusCode.UNAVAILABLE, "DEPENDENCY_UNAVAILABLE")
            assert "patchbay-call-id" not in failure.headers, "a call was admitted without a record"
        made = failure_of(client.add_connector(provider.url() + "/v1", "other"))
        assert (await made).reason == "DEPENDENCY_UNAVAILABLE"
    assert kinds(await read(client.stream()))[-1] == "completed"
    await client.add_connector(provider.url() + "/v1", "other")
    assert await gateway.stop() == 0
    assert Counter(gateway.records.states().values())["succeeded"] == 2
    assert "Traceback" not in gateway.log


async def test_a_stream_in_flight_is_not_completed_without_its_record(
    gateway: GatewayProcess, client: Client, provider: Provider
) -> None:
    more = Pause()
    head, *events = answers.openai_stream()
    provider.answer([head, *events[:2], more, *events[2:]])
    stream = client.stream()
    chunks = [await stream.read(), await stream.read()]
    async with full_disk(gateway):
        more.open()
        failure = await failure_of(read(stream, chunks))
    assert failure.reason == "DEPENDENCY_UNAVAILABLE"
    assert failure.details["PartialResult"].call_id == chunks[0].started.id
    assert "completed" not in kinds(chunks)
    assert (await client.status()).calls_without_record == 1
    assert await gateway.stop() == 0
    async with gateway:
        assert gateway.records.states() == {chunks[0].started.id: "interrupted"}
        gateway.records.check_closed()
