"""A real engine with real weights behind the gateway: what a first user gets."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import psutil
import pytest
from tests.e2e.gateway import GatewayHere, asking, gateway_here, read, until
from tests.rpc.bench import check_sequence
from tests.support.needs import needs

from patchbay.v1 import gateway_service_pb2 as pb
from patchbay.v1 import usage_pb2
from patchbay_server import local
from patchbay_server.local import LocalModel, LocalModelError

QUESTION = "What is the capital of France?"


@pytest.fixture(scope="module")
def model() -> Iterator[LocalModel]:
    try:
        local.check_installed()
    except LocalModelError as error:
        needs(False, str(error))
    with local.start() as running:
        yield running


@pytest.fixture
async def here(tmp_path: Path, model: LocalModel) -> AsyncIterator[GatewayHere]:
    async with gateway_here(tmp_path / "data") as gateway:
        await gateway.client.add_connector(model.base_url, "local")
        yield gateway


def question(tokens: int = 12) -> pb.ChatRequest:
    config = pb.GenerationConfig(max_output_tokens=tokens, temperature=0.0, seed=1)
    return asking("local", QUESTION, model=local.MODEL, config=config)


async def test_the_model_answers_in_one_piece_and_as_it_speaks(here: GatewayHere) -> None:
    [answer] = await read(here.client.chat(request=question()))
    assert answer.message.parts[0].text.strip()
    chunks = await read(here.client.stream(request=question()))
    check_sequence(chunks)
    pieces = [chunk.text_delta.text for chunk in chunks if chunk.HasField("text_delta")]
    [said] = [chunk.part_completed.part.text for chunk in chunks if chunk.HasField("part_completed")]
    assert len(pieces) > 3
    assert "".join(pieces) == said
    completed = chunks[-1].completed
    assert completed.route.upstream_mode == pb.UPSTREAM_MODE_STREAMING
    for usage in (answer.usage, completed.usage):
        assert usage.source == usage_pb2.USAGE_SOURCE_PROVIDER
        assert 0 < usage.output_tokens <= 12
        assert usage.total_tokens == usage.input_tokens + usage.output_tokens
    assert completed.usage.input_tokens == answer.usage.input_tokens
    rows = here.records.query("SELECT state, output_tokens FROM calls ORDER BY call_id")
    used = (answer.usage.output_tokens, completed.usage.output_tokens)
    assert [tuple(row) for row in rows] == [("succeeded", tokens) for tokens in used]


async def test_a_cancel_stops_the_model_s_work(here: GatewayHere) -> None:
    [engine] = [
        child for child in psutil.Process().children(recursive=True) if "patchbay_server.local" in child.cmdline()
    ]
    endless = question(tokens=2_000)
    endless.provider_options_json = '{"ignore_eos": true}'
    call = here.client.stream(request=endless)
    while not (await call.read()).HasField("text_delta"):
        pass
    await until(lambda: works(engine), 10)
    call.cancel()

    async def rests() -> bool:
        return not await works(engine)

    await until(rests, 10)
    await here.check_nothing_is_left()
    [row] = here.records.query("SELECT * FROM calls")
    assert row["state"] == "cancelled"
    assert row["output_tokens"] > 0


async def works(process: psutil.Process) -> bool:
    """Whether the process computes."""
    before = sum(process.cpu_times()[:2])
    await asyncio.sleep(0.2)
    return sum(process.cpu_times()[:2]) - before > 0.05
