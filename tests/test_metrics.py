"""What Prometheus is told, scraped over a real socket."""

import asyncio
import socket
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.rpc.bench import service_of
from tests.support import answers, make
from tests.support.bench import PLANTED, Bench, assembled
from tests.support.clock import Clock
from tests.support.provider import Pause

from patchbay_server import app
from patchbay_server.config import ConfigError, Settings
from patchbay_server.core.breaker import COOL_DOWN_S, FAILURES_MAX
from patchbay_server.errors import PatchbayError, Reason
from patchbay_server.metrics import serving_metrics
from patchbay_server.types import FallbackMode

Samples = dict[tuple[str, tuple[str, ...]], float]
"""By name and the labels' values, the last name first: state before reason, model before connector."""


@pytest.fixture
async def bench(clock: Clock) -> AsyncIterator[Bench]:
    async with assembled(clock=clock) as bench:
        await bench.add()
        yield bench


@pytest.fixture
def clock() -> Clock:
    return Clock()


def read(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        return str(answer.read().decode())


async def scraped(bench: Bench) -> Samples:
    async with serving_metrics(service_of(bench), "127.0.0.1:0") as port:
        text = await asyncio.to_thread(read, port)
    assert PLANTED not in text
    return {
        (sample.name, tuple(value for _, value in sorted(sample.labels.items(), reverse=True))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def test_calls_are_counted_by_how_they_end(bench: Bench) -> None:
    bench.provider.answer(answers.openai_unary(), answers.error(503))
    await bench.chat()
    with pytest.raises(PatchbayError):
        await bench.chat()
    seen = await scraped(bench)
    assert seen["patchbay_calls_ended_total", ("succeeded", "")] == 1
    assert seen["patchbay_calls_ended_total", ("failed", "UPSTREAM_UNAVAILABLE")] == 1
    assert seen["patchbay_calls_without_record_total", ()] == 0
    assert seen["patchbay_unpriced_attempts_total", ()] == 1


async def test_calls_that_run_are_told(bench: Bench) -> None:
    pause = Pause()
    bench.provider.answer([pause, *answers.openai_unary()])
    call = asyncio.create_task(bench.chat())
    await pause.reached.wait()
    seen = await scraped(bench)
    assert (seen["patchbay_calls_running", ()], seen["patchbay_calls_queued", ()]) == (1, 0)
    pause.open()
    await call


async def test_fallbacks_and_breakers_are_told(bench: Bench, clock: Clock) -> None:
    await bench.add("other")
    bench.provider.always_answer(answers.error(503))
    bench.provider.always_answer(answers.openai_unary(), name="other")
    for _ in range(FAILURES_MAX + 1):
        await bench.chat(connector="main", fallback=FallbackMode.OWNER_CHAIN)
    seen = await scraped(bench)
    assert seen["patchbay_fallbacks_total", ("provider_unavailable",)] == FAILURES_MAX
    assert seen["patchbay_fallbacks_total", ("breaker_open",)] == 1
    breaker = ("patchbay_breaker_open", ("small", make.connector("main").name))
    assert seen[breaker] == 1.0
    clock.jump(COOL_DOWN_S)
    assert (await scraped(bench))[breaker] == 0.5


async def test_a_gateway_tells_its_numbers_where_it_is_told_to(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = Settings(
        listen="127.0.0.1:0", data_dir=tmp_path / "data", drain_grace_s=0.0, metrics_listen=f"127.0.0.1:{port}"
    )
    async with app.serving(settings):
        assert "patchbay_calls_running 0.0" in await asyncio.to_thread(read, port)
        taken = Settings(
            listen="127.0.0.1:0", data_dir=tmp_path / "x", drain_grace_s=0.0, metrics_listen=f"127.0.0.1:{port}"
        )
        with pytest.raises(ConfigError, match="metrics_listen"):
            async with app.serving(taken):
                pytest.fail("it started")
    with pytest.raises(OSError, match="refused"):
        await asyncio.to_thread(read, port)


async def test_a_reason_of_the_gateway_is_all_that_a_label_can_hold(bench: Bench) -> None:
    bench.provider.answer(answers.error(400, "a-code-of-the-provider"))
    with pytest.raises(PatchbayError):
        await bench.chat()
    labels = {label for _, values in await scraped(bench) for label in values}
    assert labels <= {"failed", *(reason.value for reason in Reason), ""}
