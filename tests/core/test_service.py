"""What a running gateway tells of itself."""

import asyncio

import pytest
from tests.support import faults, make
from tests.support.bench import Bench
from tests.support.clock import START

from patchbay_server.core import service as service_module
from patchbay_server.core.service import Facts, Service
from patchbay_server.errors import PatchbayError, Reason
from patchbay_server.types import Scope

ROOT = make.caller(None)


@pytest.fixture
def service(bench: Bench) -> Service:
    return Service(
        facts=Facts(version="0", process_id="bench", started_at=START, key_ids=("key-2", "key-1"), plugins=()),
        clock=bench.clock,
        store=bench.store,
        access=bench.access,
        recorder=bench.recorder,
        snapshots=bench.snapshots,
        gateway=bench.gateway,
        connectors=bench.connectors,
        admin=bench.admin,
    )


async def test_the_state_is_for_administrators(service: Service) -> None:
    with pytest.raises(PatchbayError) as caught:
        await service.status(make.caller(scopes=frozenset({Scope.CHAT})))
    assert caught.value.reason is Reason.CALLER_NOT_AUTHORIZED


async def test_the_state_counts_credentials_that_are_not_sealed_under_the_first_key(service: Service) -> None:
    status = await service.status(ROOT)
    assert status.store is not None
    assert (status.stale_credentials, status.store_latency_s) == (1, 0.0)
    assert (status.draining, status.calls_open, status.calls_without_record) == (False, 0, 0)


async def test_the_state_is_told_while_the_store_is_down(service: Service, bench: Bench) -> None:
    bench.store.available = False
    status = await service.status(ROOT)
    assert (status.store, status.store_latency_s, status.stale_credentials) == (None, None, 0)


async def test_a_store_that_does_not_answer_is_not_waited_for(
    service: Service, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_module, "PING_TIMEOUT_S", 0.01)
    faults.hold(bench.store, "ping")
    async with asyncio.timeout(0.5):
        assert await service.store_latency_s() is None
