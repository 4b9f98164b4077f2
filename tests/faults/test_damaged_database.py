"""A database that somebody else has damaged: what can be read is read, and what was repaired is read again."""

import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest
from tests.support.answers import openai_unary
from tests.support.bench import assembled
from tests.support.make import connector, policy

from patchbay_server.errors import PatchbayError, Reason
from patchbay_server.store.protocol import Page
from patchbay_server.store.sql import SqlStore
from patchbay_server.types import AuditEvent, AuditType


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "patchbay.db"


@pytest.fixture
async def store(file: Path) -> AsyncIterator[SqlStore]:
    store = await SqlStore.open(f"sqlite:///{file}")
    yield store
    await store.close()


def change(file: Path, statement: str) -> None:
    with closing(sqlite3.connect(file)) as database:
        database.execute(statement)
        database.commit()


async def add(store: SqlStore, *ids: str, owner: str = "acme") -> None:
    for id_ in ids:
        made = connector(id_, owner=owner)
        event = AuditEvent(type=AuditType.CREATED, at=made.created_at, actor="test", subject=made.name)
        await store.create_connector(made, event)


async def served(store: SqlStore, owner: str = "acme") -> list[str]:
    return [found.id for found in (await store.snapshot(owner)).connectors]


async def test_a_row_that_could_not_be_read_holds_nobody_at_the_moment_that_it_was_seen(
    store: SqlStore, file: Path
) -> None:
    await add(store, "a", "b", "c")
    change(file, "UPDATE connectors SET settings = '{' WHERE id = 'b'")
    kept: list[PatchbayError] = []
    for _ in range(10):
        with pytest.raises(PatchbayError) as damaged:
            await store.list_connectors("acme", Page(size=10))
        kept.append(damaged.value)
        assert await served(store) == ["a", "c"]
    assert {error.reason for error in kept} == {Reason.DEPENDENCY_UNAVAILABLE}
    change(file, "DELETE FROM connectors WHERE id = 'b'")
    await add(store, "d")
    for _ in range(10):
        assert [found.id for found in await store.list_connectors("acme", Page(size=10))] == ["a", "c", "d"]
        assert await served(store) == ["a", "c", "d"]


async def test_a_damaged_connector_is_told_once_until_it_was_repaired(
    store: SqlStore, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await add(store, "a", "b", "c")
    for lines in (1, 2):
        change(file, "UPDATE connectors SET settings = 'sk-secret' WHERE id IN ('a', 'b')")
        for _ in range(3):
            assert await served(store) == ["c"]
        assert len(caplog.records) == 2 * lines
        change(file, "UPDATE connectors SET settings = '{}'")
        assert await served(store) == ["a", "b", "c"]
    assert {line.args[0] for line in caplog.records if isinstance(line.args, tuple)} == {"uid-acme-a", "uid-acme-b"}
    assert "sk-secret" not in caplog.text


async def test_a_damaged_organisation_default_stops_the_calls_of_no_owner(
    store: SqlStore, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await add(store, "shared", owner="company")
    await add(store, "own")
    named = policy(organisation_default="owners/company/connectors/shared", version=2)
    event = AuditEvent(type=AuditType.POLICY_CHANGED, at=named.updated_at, actor="test", subject="policy")
    await store.save_policy(named, 1, event)
    change(file, "UPDATE connectors SET state = 'asleep' WHERE id = 'shared'")
    for owner, ids in {"acme": ["own"], "company": [], "nobody": []}.items():
        snapshot = await store.snapshot(owner)
        assert [found.id for found in snapshot.connectors] == ids
        assert snapshot.organisation_default is None
    assert [line.args[0] for line in caplog.records if isinstance(line.args, tuple)] == ["uid-company-shared"]


async def test_calls_go_on_beside_a_damaged_connector(tmp_path: Path) -> None:
    async with assembled(sqlite=tmp_path / "bench.db") as bench:
        await bench.add("good")
        await bench.add("damaged", is_default=True)
        change(tmp_path / "bench.db", "UPDATE connectors SET labels = '' WHERE id = 'damaged'")
        bench.provider.answer(openai_unary(), name="good")
        assert (await bench.chat()).route.connector == "owners/acme/connectors/good"
        with pytest.raises(PatchbayError) as unread:
            await bench.connectors.get(bench.caller, "acme", "damaged")
        assert unread.value.reason is Reason.DEPENDENCY_UNAVAILABLE
