"""A caller that goes away, at any moment of its call: the provider is let go at once, and the call is recorded once."""

import asyncio
import contextlib
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from tests.e2e.gateway import Client, GatewayHere, GatewayProcess, asking, read
from tests.support import answers
from tests.support.provider import Provider, Script, Silence
from tests.support.stopwatch import Stopwatch

from patchbay.v1 import connector_service_pb2

CLOSED_S_MAX = 0.1
"""From the cancel until the provider sees its connection closed."""
AT_ONCE = 30
HALF_AN_EVENT = answers.chunk({"content": answers.WORDS[0]})[:40]

PHASES: dict[str, Script] = {
    "before the provider's headers": [Silence()],
    "before the first byte": [answers.EVENT_STREAM, Silence()],
    "within the first event": [answers.EVENT_STREAM, HALF_AN_EVENT, Silence()],
    "between deltas": answers.openai_interrupted(Silence()),
    "within a delta": answers.openai_interrupted(HALF_AN_EVENT, Silence()),
    "before the terminal marker": [*answers.openai_stream()[:-1], Silence()],
}
UNARY_PHASES: dict[str, Script] = {
    "before the provider's headers": [Silence()],
    "before the first byte": [answers.openai_unary()[0], Silence()],
    "within the body": [answers.openai_unary()[0], b'{"id": "chatcmpl-1", "choi', Silence()],
}


class Flood:
    """An answer without end, as fast as it is read."""

    def __init__(self) -> None:
        self.sent = 0

    def __iter__(self) -> Iterator[Any]:
        yield answers.EVENT_STREAM
        yield answers.chunk({"role": "assistant", "content": ""})
        piece = answers.chunk({"content": "x" * 4000})
        while True:
            self.sent += len(piece)
            yield piece


@contextlib.asynccontextmanager
async def lets_go_in_time(gateway: GatewayHere) -> AsyncIterator[None]:
    """Around a cancel: the provider's connection is closed in time, and nothing is left of the call but its record."""
    connection = gateway.provider.connections[-1]
    assert connection.abandoned
    watch = Stopwatch()
    yield
    async with asyncio.timeout(10):
        await connection.closed.wait()
    assert watch.seconds < CLOSED_S_MAX
    await gateway.check_nothing_is_left()


async def only_record(gateway: GatewayHere, call: Any) -> tuple[str, str]:
    """State and reason of the one record there is, which is the call's."""
    call_id = dict(await call.initial_metadata())["patchbay-call-id"]
    [row] = gateway.records.query("SELECT call_id, state, reason FROM calls")
    assert row["call_id"] == call_id
    return row["state"], row["reason"]


@pytest.mark.parametrize("phase", PHASES)
async def test_a_cancelled_stream_lets_the_provider_go_at_once(here: GatewayHere, phase: str) -> None:
    here.provider.answer(PHASES[phase])
    call = here.client.stream()
    await call.initial_metadata()
    await here.provider.received()
    if "delta" in phase or "marker" in phase:
        while not (await call.read()).HasField("text_delta"):
            pass
    else:
        await asyncio.sleep(0.05)
    async with lets_go_in_time(here):
        call.cancel()
    assert await only_record(here, call) == ("cancelled", "CANCELLED")


@pytest.mark.parametrize("phase", UNARY_PHASES)
async def test_a_cancelled_chat_lets_the_provider_go_at_once(here: GatewayHere, phase: str) -> None:
    here.provider.answer(UNARY_PHASES[phase])
    call = here.client.chat()
    await call.initial_metadata()
    await here.provider.received()
    await asyncio.sleep(0.05)
    async with lets_go_in_time(here):
        call.cancel()
    assert await only_record(here, call) == ("cancelled", "CANCELLED")


async def test_a_cancel_reaches_a_write_that_waits_for_a_caller_who_does_not_read(here: GatewayHere) -> None:
    flood = Flood()
    here.provider.always_answer(flood)  # type: ignore[arg-type]  # a script that is made as it is followed
    call = here.client.stream()
    await call.initial_metadata()
    await still(flood)
    async with lets_go_in_time(here):
        call.cancel()
    assert await only_record(here, call) == ("cancelled", "CANCELLED")


async def still(flood: Flood) -> None:
    """Wait until the provider can send no more, because nobody reads."""
    sent = -1
    async with asyncio.timeout(10):
        while sent != flood.sent or not sent:
            sent = flood.sent
            await asyncio.sleep(0.1)


async def test_a_stream_that_flows_is_cancelled_in_full_flow(here: GatewayHere) -> None:
    here.provider.always_answer(Flood())  # type: ignore[arg-type]
    call = here.client.stream()
    for _ in range(50):
        await call.read()
    async with lets_go_in_time(here):
        call.cancel()
    assert await only_record(here, call) == ("cancelled", "CANCELLED")


async def test_a_client_whose_connection_ends_is_a_cancel(here: GatewayHere) -> None:
    here.provider.answer(answers.openai_interrupted(Silence()))
    async with grpc.aio.insecure_channel(here.address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        client = Client(channel, here.token)
        call = client.stream()
        while not (await call.read()).HasField("text_delta"):
            pass
        async with lets_go_in_time(here):
            await channel.close()
    assert await only_record(here, call) == ("cancelled", "CANCELLED")


DOOMED = """
import sys, grpc
from patchbay.v1 import gateway_service_pb2 as pb, gateway_service_pb2_grpc
address, token, request = sys.argv[1], sys.argv[2], pb.ChatRequest.FromString(bytes.fromhex(sys.argv[3]))
stub = gateway_service_pb2_grpc.GatewayServiceStub(grpc.insecure_channel(address))
for chunk in stub.Stream(request, metadata=(("authorization", f"Bearer {token}"),)):
    print(chunk.WhichOneof("event"), flush=True)
"""


async def test_a_client_that_is_killed_is_a_cancel(here: GatewayHere) -> None:
    here.provider.answer(answers.openai_interrupted(Silence()))
    request = asking().SerializeToString().hex()
    client = await asyncio.create_subprocess_exec(
        sys.executable, "-c", DOOMED, here.address, here.token, request, stdout=subprocess.PIPE
    )
    assert client.stdout is not None
    while await client.stdout.readline() != b"text_delta\n":
        pass
    async with lets_go_in_time(here):
        client.send_signal(signal.SIGKILL)
        await client.wait()
    [state] = here.records.states().values()
    assert state == "cancelled"


async def test_whenever_a_call_is_cancelled_it_is_recorded_once_and_nothing_is_left(here: GatewayHere) -> None:
    """Cancels at moments that nobody chose: while the call is admitted, while a connection is made, at its end."""
    chance, loop = random.Random(7), asyncio.get_running_loop()
    here.provider.always_answer(answers.openai_stream())
    seen: dict[str, bool] = {}
    began = loop.time()
    await asyncio.gather(*(read(here.client.stream()) for _ in range(AT_ONCE)))
    takes_s = loop.time() - began

    async def cancelled_after(delay_s: float) -> None:
        call = here.client.stream()
        loop.call_later(delay_s, call.cancel)
        chunks: list[Any] = []
        # The stub has two words for a call that was cancelled here; the other one is for one that had not begun.
        with contextlib.suppress(asyncio.CancelledError, grpc.aio.AioRpcError):
            await read(call, chunks)
        assert await call.code() in {grpc.StatusCode.OK, grpc.StatusCode.CANCELLED}
        if chunks:
            seen[chunks[0].started.id] = chunks[-1].HasField("completed")

    for _ in range(10):
        await asyncio.gather(*(cancelled_after(chance.uniform(0, takes_s)) for _ in range(AT_ONCE)))
    await here.check_nothing_is_left()
    states = here.records.states()
    assert set(states.values()) <= {"cancelled", "succeeded"}
    assert Counter(states.values())["cancelled"] >= 20, "the moments were badly chosen"
    assert Counter(states.values())["succeeded"] >= AT_ONCE
    for call_id, completed in seen.items():
        assert states[call_id] == "succeeded" if completed else states[call_id] in {"cancelled", "succeeded"}
    assert not [connection for connection in here.provider.connections if connection.abandoned]


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_ten_thousand_cancels_leave_nothing_behind(tmp_path: Path) -> None:
    async with Provider() as provider, GatewayProcess(tmp_path / "data", log_level="info") as gateway:
        async with gateway.client() as client:
            await client.allow(connector_service_pb2.PRIVATE_HTTP_LOOPBACK)
            for name, script in (("headers", [Silence()]), ("delta", answers.openai_interrupted(Silence()))):
                provider.always_answer(script, name=name)
                await client.add_connector(provider.url(name) + "/v1", name)
            await cancels(client, 1_000)
            await client.idle()
            before = gateway.resident_bytes
            files = gateway.inside.num_fds()
            await cancels(client, 9_000)
            status = await client.idle()
            grown = gateway.resident_bytes - before
        assert status.calls_without_record == 0
        assert grown < 10 * 1024 * 1024, f"{grown} bytes more after 9,000 cancels"
        assert gateway.inside.num_fds() <= files + 50, "the store may have opened some more files, calls none"
        async with asyncio.timeout(5):
            for connection in provider.connections:
                await connection.closed.wait()
        assert await gateway.stop() == 0
        states = gateway.records.states()
    assert Counter(states.values()) == {"cancelled": 10_000}


async def cancels(client: Client, count: int, *, at_once: int = 50) -> None:
    """That many streams, each cancelled in the phase that its connector's provider stops in."""

    async def one(number: int) -> None:
        call = client.stream("headers" if number % 2 else "delta")
        await call.initial_metadata()
        if not number % 2:
            while not (await call.read()).HasField("text_delta"):
                pass
        call.cancel()

    for start in range(0, count, at_once):
        await asyncio.gather(*(one(number) for number in range(start, min(start + at_once, count))))
