"""A caller that reads slowly slows its provider down; the server holds no more than a bounded part of the answer."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from tests.e2e.gateway import Client, GatewayProcess
from tests.e2e.test_cancelling import Flood, still
from tests.support.provider import Provider

from patchbay.v1 import connector_service_pb2

MIB = 1024 * 1024
AT_ONCE = 20
READ_AHEAD_MAX = 16 * MIB
"""Bytes of one answer that may be under way, almost all of them in the kernel's socket buffers, which grow by need."""
NARROW = (
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", 65_536),
)
"""A caller's options with which his window stays as small as it is at first."""
HELD_MAX = 8 * MIB
"""Memory that one answer may cost the server while nobody reads: what the caller's window has let through, once as the
text that becomes the whole answer, and grpc's part of it."""


@pytest.fixture
async def flood() -> Flood:
    return Flood()


@pytest.fixture
async def provider(flood: Flood) -> AsyncIterator[Provider]:
    async with Provider() as provider:
        provider.always_answer(flood)  # type: ignore[arg-type]  # a script that is made as it is followed
        yield provider


@pytest.fixture
async def gateway(tmp_path: Path, provider: Provider) -> AsyncIterator[GatewayProcess]:
    async with GatewayProcess(tmp_path / "data", drain_grace_s="0") as gateway:
        async with gateway.client() as client:
            await client.allow(connector_service_pb2.PRIVATE_HTTP_LOOPBACK)
            await client.add_connector(provider.url() + "/v1")
        yield gateway


async def begun(gateway: GatewayProcess, client: Client) -> Any:
    call = client.stream(timeout=120.0)
    assert (await call.read()).HasField("started")
    return call


async def test_callers_who_do_not_read_stop_their_providers_and_cost_little(
    gateway: GatewayProcess, flood: Flood
) -> None:
    before = gateway.resident_bytes
    async with gateway.client() as client:
        calls = [await begun(gateway, client) for _ in range(AT_ONCE)]
        await still(flood)
        assert flood.sent < AT_ONCE * READ_AHEAD_MAX
        grown = gateway.resident_bytes - before
        assert grown < AT_ONCE * HELD_MAX
        for call in calls:
            call.cancel()
        assert not (await client.idle()).calls_without_record


async def test_an_answer_costs_no_more_than_the_callers_window_lets_through(
    gateway: GatewayProcess, flood: Flood
) -> None:
    before = gateway.resident_bytes
    async with grpc.aio.insecure_channel(gateway.address, options=NARROW) as channel:
        client = Client(channel, gateway.token)
        calls = [await begun(gateway, client) for _ in range(AT_ONCE)]
        await still(flood)
        assert gateway.resident_bytes - before < AT_ONCE * MIB
        for call in calls:
            call.cancel()
        await client.idle()


async def paced(gateway: GatewayProcess, flood: Flood, reads: int, interval_s: float) -> tuple[int, int]:
    """What the provider sent and the caller got while it read one chunk in each interval, once buffers were full."""
    async with gateway.client() as client:
        call = await begun(gateway, client)
        await still(flood)
        sent, got = flood.sent, 0
        for _ in range(reads):
            chunk = await call.read()
            got += len(chunk.text_delta.text)
            await asyncio.sleep(interval_s)
        call.cancel()
        await client.idle()
    return flood.sent - sent, got


async def test_a_provider_is_read_as_fast_as_the_caller_reads(gateway: GatewayProcess, flood: Flood) -> None:
    sent, got = await paced(gateway, flood, reads=20, interval_s=0.05)
    assert sent < got + READ_AHEAD_MAX


@pytest.mark.slow
async def test_a_caller_of_one_chunk_a_second_holds_the_provider_to_that(gateway: GatewayProcess, flood: Flood) -> None:
    before = gateway.resident_bytes
    sent, got = await paced(gateway, flood, reads=30, interval_s=1.0)
    assert sent < got + READ_AHEAD_MAX
    assert gateway.resident_bytes - before < 2 * HELD_MAX
