"""The server process dies in the middle of calls. What callers were told before stays true after the next start."""

import asyncio
import random
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import grpc.aio
import pytest
from tests.e2e.gateway import Client, GatewayProcess, Records, until
from tests.support import answers
from tests.support.provider import Provider, Script, Silence, Step, Wait

from patchbay.v1 import connector_service_pb2

AT_ONCE = 200


def dripping(events: Sequence[bytes], wait_s: float) -> list[Step]:
    """The same events with a wait before each."""
    return [step for event in events for step in (Wait(wait_s), event)]


ENDLESS: dict[str, Script] = {
    "silent": [Silence()],
    "headed": [answers.EVENT_STREAM, Silence()],
    "talking": answers.openai_interrupted(Silence()),
}
"""Calls that are never answered to the end, by connector."""
ENDING: dict[str, Script] = {
    "dripping": [answers.EVENT_STREAM, *dripping(answers.openai_events([str(n) for n in range(30)]), 0.01)],
    "late": [Wait(0.3), *answers.openai_stream()],
    "quick": answers.openai_stream(),
    "whole": [Wait(0.05), *answers.openai_unary()],
}
UNARY = {"whole"}
"""Connectors that are called by Chat."""


@dataclass
class Told:
    """What the caller of one call has been told."""

    connector: str
    call_id: str = ""
    completed: bool = False


async def caller(client: Client, connector: str, told: list[Told], going: asyncio.Event) -> None:
    """Makes one call after the other until the server is gone."""
    with suppress(grpc.aio.AioRpcError):
        while not going.is_set():
            this = Told(connector)
            told.append(this)
            call = (client.chat if connector in UNARY else client.stream)(connector)
            this.call_id = dict(await call.initial_metadata()).get("patchbay-call-id", "")
            while (message := await call.read()) is not grpc.aio.EOF:
                this.completed = connector in UNARY or message.HasField("completed")


async def admitted(told: Sequence[Told]) -> bool:
    return any(call.call_id for call in told)


async def killed_among_calls(gateway: GatewayProcess, after_s: float) -> list[Told]:
    """Start the server, have `AT_ONCE` callers call it, and kill it `after_s` one was admitted; what they heard."""
    told: list[Told] = []
    gone = asyncio.Event()
    connectors = [*ENDLESS, *ENDING]
    async with gateway, gateway.client() as client:
        callers = [caller(client, connectors[n % len(connectors)], told, gone) for n in range(AT_ONCE)]
        calling = asyncio.gather(*callers)
        await until(lambda: admitted(told))
        await asyncio.sleep(after_s)
        gone.set()
        await gateway.kill()
        await calling
    return told


def check_records(records: Records, told: Sequence[Told]) -> None:
    states = records.states()
    for call in told:
        if call.completed:
            assert states.get(call.call_id) == "succeeded", f"{call} was completed"
        elif call.call_id:
            allowed = {"interrupted"} if call.connector in ENDLESS else {"interrupted", "succeeded"}
            assert states.get(call.call_id) in allowed, f"{call} was admitted"
    records.check_closed()
    check_months(records)


def check_months(records: Records) -> None:
    """What connectors are said to have used is what their attempts have used."""
    used = records.query(
        "SELECT connector_uid, sum(input_tokens + output_tokens) AS tokens FROM attempts GROUP BY 1 HAVING tokens > 0"
    )
    counted = records.query("SELECT connector_uid, sum(tokens) AS tokens FROM months GROUP BY 1 HAVING tokens > 0")
    assert {tuple(row) for row in used} == {tuple(row) for row in counted}


async def kill_again_and_again(tmp_path: Path, times: int, seed: int) -> None:
    chance = random.Random(seed)
    gateway = GatewayProcess(tmp_path / "data", log_level="info", drain_grace_s="0")
    async with Provider() as provider:
        async with gateway, gateway.client() as client:
            await client.allow(connector_service_pb2.PRIVATE_HTTP_LOOPBACK)
            for name, script in (ENDLESS | ENDING).items():
                provider.always_answer(script, name=name)
                await client.add_connector(provider.url(name) + "/v1", name)
            assert await gateway.stop() == 0
        told: list[Told] = []
        for _ in range(times):
            told += await killed_among_calls(gateway, chance.uniform(0.0, 1.0))
            open_rows = gateway.records.query("SELECT count(*) FROM calls WHERE state = 'open'")[0][0]
            assert open_rows, "nothing was running when it was killed"
            async with gateway:
                check_records(gateway.records, told)
                assert await gateway.stop() == 0
            assert "recorded as interrupted" in gateway.log
    assert sum(bool(call.call_id) for call in told) >= 10 * times, "too few calls were admitted to prove anything"
    assert any(call.completed for call in told)


async def test_a_killed_server_has_lost_no_call_that_it_admitted(tmp_path: Path) -> None:
    await kill_again_and_again(tmp_path, times=2, seed=11)


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_a_server_killed_at_any_of_thirty_moments_has_lost_no_call(tmp_path: Path) -> None:
    await kill_again_and_again(tmp_path, times=30, seed=30)
