"""A database that somebody else has damaged: what can be read is read, and what was repaired is read again."""

import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest
from tests.support.make import connector

from patchbay_server.errors import PatchbayError, Reason
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


async def test_a_row_that_could_not_be_read_holds_nobody_at_the_moment_that_it_was_seen(
    store: SqlStore, file: Path
) -> None:
    for id_ in ("a", "b", "c"):
        made = connector(id_)
        event = AuditEvent(type=AuditType.CREATED, at=made.created_at, actor="test", subject=made.name)
        await store.create_connector(made, event)
    change(file, "UPDATE connectors SET settings = '{' WHERE id = 'b'")
    kept: list[PatchbayError] = []
    for _ in range(10):
        with pytest.raises(PatchbayError) as damaged:
            await store.snapshot("acme")
        kept.append(damaged.value)
    assert {error.reason for error in kept} == {Reason.DEPENDENCY_UNAVAILABLE}
    change(file, "DELETE FROM connectors WHERE id = 'b'")
    for _ in range(10):
        assert [found.id for found in (await store.snapshot("acme")).connectors] == ["a", "c"]
