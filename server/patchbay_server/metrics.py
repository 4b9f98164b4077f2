"""The process's numbers for Prometheus, at `/metrics` of an address of their own. Off unless an address is set.

Asked in a thread of the metrics server's; every number is read in the event loop that owns it.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Final

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from patchbay_server.config import ConfigError
from patchbay_server.core.service import Service

READ_S_MAX: Final = 2.0
"""Longest time that a scrape waits for the event loop; a scrape that gets no numbers fails."""
BREAKERS_MAX: Final = 1_000
"""Breakers that are named one by one; more would be more than a monitoring system should keep apart."""


class GatewayMetrics(Collector):
    """The numbers of one gateway, read anew for each scrape."""

    def __init__(self, service: Service, loop: asyncio.AbstractEventLoop) -> None:
        self._service = service
        self._loop = loop

    def collect(self) -> Iterator[Metric]:
        yield from asyncio.run_coroutine_threadsafe(self._read(), self._loop).result(READ_S_MAX)

    def describe(self) -> Iterator[Metric]:
        """Nothing: names are known without asking, so that registering reads no number."""
        return iter(())

    async def _read(self) -> list[Metric]:
        gateway, recorder = self._service.gateway, self._service.recorder
        tally = gateway.tally
        ends = CounterMetricFamily("patchbay_calls_ended", "Calls that ended.", labels=["state", "reason"])
        for (state, reason), count in tally.ends.items():
            ends.add_metric([state.value, "" if reason is None else reason.value], count)
        fallbacks = CounterMetricFamily(
            "patchbay_fallbacks", "Attempts at another connector than the first.", labels=["trigger"]
        )
        for trigger, count in tally.fallbacks.items():
            fallbacks.add_metric([trigger], count)
        breakers = GaugeMetricFamily(
            "patchbay_breaker_open",
            "Circuit breakers that are not closed: 1 open, 0.5 half-open.",
            labels=["connector", "model"],
        )
        for breaker in gateway.breakers[:BREAKERS_MAX]:
            breakers.add_metric([breaker.connector, breaker.model], 0.5 if breaker.half_open else 1.0)
        return [
            GaugeMetricFamily("patchbay_calls_running", "Calls in flight.", value=gateway.running),
            GaugeMetricFamily("patchbay_calls_queued", "Calls that wait for a place.", value=gateway.queued),
            ends,
            CounterMetricFamily(
                "patchbay_calls_without_record",
                "Calls that ended without a record. Anything but 0 is a mistake in Patchbay.",
                value=recorder.calls_without_record,
            ),
            fallbacks,
            CounterMetricFamily(
                "patchbay_unpriced_attempts", "Attempts that used tokens of unknown price.", value=tally.unpriced
            ),
            breakers,
        ]


@asynccontextmanager
async def serving_metrics(service: Service, address: str) -> AsyncIterator[int]:
    """Answer scrapes at `address` until the context is left; the port, which matters where the address says 0.

    Raises:
        ConfigError: the address cannot be listened on.
    """
    host, _, port = address.rpartition(":")
    registry = CollectorRegistry()
    registry.register(GatewayMetrics(service, asyncio.get_running_loop()))
    try:
        server, thread = start_http_server(int(port), host.strip("[]"), registry)
    except OSError as error:
        raise ConfigError(f"metrics_listen: cannot listen on {address}: {error.strerror}") from None
    try:
        yield server.server_port
    finally:
        await asyncio.to_thread(server.shutdown)
        server.server_close()
        await asyncio.to_thread(thread.join)
