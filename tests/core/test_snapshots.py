"""What resolving needs, held in memory and no older than it may be."""

import asyncio

import pytest
from tests.support import faults
from tests.support.bench import Bench
from tests.support.clock import START

from patchbay_server.core import snapshots as snapshots_module
from patchbay_server.core.snapshots import Snapshots
from patchbay_server.errors import PatchbayError, Reason


async def test_a_snapshot_is_read_once_as_long_as_nothing_changes(bench: Bench) -> None:
    asked = faults.count(bench.store, "snapshot")
    first = await bench.snapshots.get("acme")
    assert await bench.snapshots.get("acme") is first
    assert len(asked) <= 1


async def test_this_process_sees_its_own_changes_at_once(bench: Bench) -> None:
    assert len((await bench.snapshots.get("acme")).connectors) == 1
    await bench.add("second")
    assert len((await bench.snapshots.get("acme")).connectors) == 2


async def test_another_process_s_changes_are_seen_with_the_next_look_at_the_version(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshots_module, "POLL_S", 0.01)
    other = Snapshots(bench.store)
    assert len((await other.get("acme")).connectors) == 1
    watching = asyncio.create_task(other.watch())
    looks = faults.hold(bench.store, "version")
    looks.open()
    await bench.add("second")
    async with asyncio.timeout(1):
        await looks.reached.wait()
        while len((await other.get("acme")).connectors) < 2:  # noqa: ASYNC110 -- until it was looked at once more
            await asyncio.sleep(0.005)
    watching.cancel()


async def test_using_a_connector_does_not_age_a_snapshot(bench: Bench) -> None:
    held = await bench.snapshots.get("acme")
    bench.snapshots.used("uid-acme-main", START)
    await bench.snapshots.refresh()
    assert await bench.snapshots.get("acme") is held
    assert bench.snapshots.recent == {"uid-acme-main": START}


async def test_while_the_store_is_down_what_is_held_goes_on_serving(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(snapshots_module, "POLL_S", 0.001)
    held = await bench.snapshots.get("acme")
    failed = faults.fail(bench.store, "version")
    watching = asyncio.create_task(bench.snapshots.watch())
    async with asyncio.timeout(1):
        while len(failed) < 3:  # noqa: ASYNC110 -- until it was tried a few times
            await asyncio.sleep(0.001)
    assert await bench.snapshots.get("acme") is held
    assert caplog.text.count("serving from memory") == 1
    watching.cancel()


async def test_an_owner_who_is_not_held_cannot_be_served_without_a_store(bench: Bench) -> None:
    faults.fail(bench.store, "snapshot")
    with pytest.raises(PatchbayError) as caught:
        await bench.snapshots.get("stranger")
    assert caught.value.reason is Reason.DEPENDENCY_UNAVAILABLE


async def test_a_slow_read_does_not_bring_back_what_a_faster_one_replaced(bench: Bench) -> None:
    bench.snapshots._by_owner.clear()
    gate = faults.hold(bench.store, "snapshot")
    slow = asyncio.create_task(bench.snapshots.get("acme"))
    await gate.reached.wait()
    del bench.store.snapshot  # only the first read is held
    await bench.add("second")
    assert len((await bench.snapshots.get("acme")).connectors) == 2
    gate.open()
    await slow
    assert len((await bench.snapshots.get("acme")).connectors) == 2


async def test_what_is_held_is_bounded(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots_module, "OWNERS_MAX", 2)
    monkeypatch.setattr(snapshots_module, "RECENT_MAX", 2)
    for name in ("a", "b", "c"):
        await bench.snapshots.get(name)
        bench.snapshots.used(name, START)
    assert list(bench.snapshots._by_owner) == ["b", "c"]
    assert list(bench.snapshots.recent) == ["b", "c"]
