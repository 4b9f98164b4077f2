"""Transactions, threads and failures of the SQL store's database."""

import asyncio
import os
import sqlite3
import stat
import sys
import threading
import traceback
from collections.abc import AsyncIterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, event, text

from patchbay_server.errors import PatchbayError, Reason
from patchbay_server.store import backends, calls
from patchbay_server.store.database import Database
from patchbay_server.store.protocol import Page
from patchbay_server.store.sql import SqlStore
from patchbay_server.store.tables import tokens
from patchbay_server.testing.store_suite import (
    ALL,
    MONTH,
    NOW,
    a_connector,
    a_hold,
    a_token,
    a_whole_call,
    an_event,
    attempt_closed,
    attempt_opened,
    call_closed,
    call_opened,
)
from patchbay_server.types import CapUse, ConnectorUsed


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    opened = await Database.open(database_url)
    yield opened
    await opened.close()


@pytest.fixture
async def sqlite_database(tmp_path: Path) -> AsyncIterator[Database]:
    opened = await Database.open(f"sqlite:///{tmp_path}/patchbay.db")
    yield opened
    await opened.close()


class Gate:
    """Work that writes a token and then holds its transaction open until it is let through."""

    def __init__(self, name: str = "held") -> None:
        self._name = name
        self._begun = threading.Event()
        self._through = threading.Event()

    def work(self, tx: Connection) -> None:
        tx.execute(tokens.insert().values(_columns(self._name)))
        self._begun.set()
        assert self._through.wait(5)

    async def begun(self) -> None:
        await asyncio.to_thread(self._begun.wait, 5)

    def open(self) -> None:
        self._through.set()


def _columns(name: str) -> dict[str, object]:
    token = a_token(name)
    return {field: getattr(token, field) for field in token.__struct_fields__}


# --- cancelling -----------------------------------------------------------------------------------------------------


async def test_a_transaction_whose_caller_is_cancelled_is_finished_and_the_next_one_works(database: Database) -> None:
    store, gate = SqlStore(database), Gate()
    task = asyncio.create_task(database.write(gate.work))
    await gate.begun()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    gate.open()
    await store.create_token(a_token("next"), an_event())
    assert [token.id for token in await store.list_tokens(ALL)] == ["held", "next"]


async def test_a_write_that_is_cancelled_before_its_turn_leaves_nothing(sqlite_database: Database) -> None:
    store, gate = SqlStore(sqlite_database), Gate()
    held = asyncio.create_task(sqlite_database.write(gate.work))
    await gate.begun()
    queued = asyncio.create_task(store.create_token(a_token("queued"), an_event()))
    await asyncio.sleep(0)
    queued.cancel()
    with pytest.raises(asyncio.CancelledError):
        await queued
    gate.open()
    await held
    await store.create_token(a_token("next"), an_event())
    assert [token.id for token in await store.list_tokens(ALL)] == ["held", "next"]
    assert (await store.audit_head()).sequence == 1


async def test_closing_waits_for_the_transaction_that_runs(database_url: str) -> None:
    database, gate = await Database.open(database_url), Gate()
    held = asyncio.create_task(database.write(gate.work))
    await gate.begun()
    closing_task = asyncio.create_task(database.close())
    await asyncio.sleep(0.05)
    assert not closing_task.done()
    gate.open()
    await asyncio.gather(held, closing_task)
    store = await SqlStore.open(database_url)
    assert await store.count_tokens() == 1
    await store.close()


async def test_reading_does_not_wait_for_a_transaction_that_writes(database: Database) -> None:
    store, gate = SqlStore(database), Gate()
    held = asyncio.create_task(database.write(gate.work))
    await gate.begun()
    assert await asyncio.wait_for(store.count_tokens(), 2) == 0
    gate.open()
    await held
    assert await store.count_tokens() == 1


# --- failures -------------------------------------------------------------------------------------------------------


async def test_work_that_raises_is_undone(database: Database) -> None:
    def work(tx: Connection) -> None:
        tx.execute(tokens.insert().values(_columns("undone")))
        raise PatchbayError(Reason.ETAG_MISMATCH, "no")

    with pytest.raises(PatchbayError, match="no"):
        await database.write(work)
    assert await SqlStore(database).count_tokens() == 0


async def test_no_driver_exception_and_no_statement_leaves(database: Database) -> None:
    for statement in ("SELECT secret FROM nowhere", "this is not SQL"):
        with pytest.raises(PatchbayError) as caught:
            await database.write(lambda tx, sql=statement: tx.execute(text(sql)))  # type: ignore[misc]
        error = caught.value
        assert error.reason is Reason.DEPENDENCY_UNAVAILABLE
        assert error.__cause__ is None
        assert error.__context__ is None
        assert statement not in "".join(traceback.format_exception(error))


async def test_a_reading_transaction_cannot_write(database: Database) -> None:
    with pytest.raises(PatchbayError) as caught:
        await database.read(lambda tx: tx.execute(tokens.insert().values(_columns("t"))))
    assert caught.value.reason is Reason.DEPENDENCY_UNAVAILABLE


async def test_what_breaks_a_rule_of_the_database_is_our_error(database: Database) -> None:
    store = SqlStore(database)
    with pytest.raises(PatchbayError) as caught:
        await store.create_connector(a_connector(monthly_token_cap=-1), an_event())
    assert caught.value.reason is Reason.INTERNAL
    assert await store.list_connectors(None, ALL) == []


async def test_a_number_that_no_database_holds_is_our_error(database: Database) -> None:
    with pytest.raises(PatchbayError) as caught:
        await SqlStore(database).create_connector(a_connector(monthly_token_cap=2**70), an_event())
    assert caught.value.reason is Reason.INTERNAL


async def test_a_full_disk_is_unavailable_and_the_store_works_again_when_there_is_space(
    sqlite_database: Database,
) -> None:
    store = SqlStore(sqlite_database)
    await store.create_connector(a_connector(), an_event())
    pages = await sqlite_database.write(lambda tx: tx.exec_driver_sql("PRAGMA page_count").scalar_one())
    await sqlite_database.write(lambda tx: tx.exec_driver_sql(f"PRAGMA max_page_count={pages}").scalar_one())
    group = [record for i in range(200) for record in a_whole_call(f"call-{i:03}")]
    for _ in range(2):
        with pytest.raises(PatchbayError, match="the disk is full") as caught:
            await store.write_records(group)
        assert caught.value.reason is Reason.DEPENDENCY_UNAVAILABLE
    assert await store.list_calls(Page(size=1)) == []
    assert await store.month_tokens(["uid-1"], "2026-11") == {}

    await sqlite_database.write(lambda tx: tx.exec_driver_sql("PRAGMA max_page_count=1000000").scalar_one())
    await store.write_records(group)
    assert await store.month_tokens(["uid-1"], "2026-11") == {"uid-1": 200 * 15}


async def test_a_read_only_database_is_unavailable_for_writing_only(sqlite_database: Database) -> None:
    store = SqlStore(sqlite_database)
    await sqlite_database.write(lambda tx: tx.exec_driver_sql("PRAGMA query_only=ON"))
    with pytest.raises(PatchbayError, match="read-only") as caught:
        await store.create_connector(a_connector(), an_event())
    assert caught.value.reason is Reason.DEPENDENCY_UNAVAILABLE
    assert await store.list_connectors(None, ALL) == []


async def test_a_database_that_another_process_holds_is_unavailable_after_a_bounded_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends, "LOCK_WAIT_S", 0.1)
    store = await SqlStore.open(f"sqlite:///{tmp_path}/patchbay.db")
    with closing(sqlite3.connect(tmp_path / "patchbay.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        for write in (store.write_records(a_whole_call()), store.hold_tokens(a_hold(), 100, MONTH, NOW)):
            with pytest.raises(PatchbayError, match="another process") as caught:
                await write
            assert caught.value.reason is Reason.DEPENDENCY_UNAVAILABLE
        await store.ping()
        other.execute("ROLLBACK")
    assert await store.cap_use(["uid-1"], MONTH, NOW) == {"uid-1": CapUse()}
    await store.write_records(a_whole_call())
    await store.close()


async def test_opening_after_a_crash_does_not_read_the_whole_log(sqlite_database: Database) -> None:
    """Finding what a dead process left open takes the indexes of open rows."""
    plans: list[str] = []

    def work(tx: Connection) -> None:
        @event.listens_for(tx, "before_cursor_execute")
        def explain(_: object, cursor: Any, statement: str, parameters: Any, *__: object) -> None:
            if statement.startswith("UPDATE"):
                plans.extend(row[3] for row in cursor.execute(f"EXPLAIN QUERY PLAN {statement}", parameters))

        calls.close_interrupted(tx, "me", NOW)

    await sqlite_database.write(work)
    tables = [plan for plan in plans if plan.startswith("SCAN")]
    assert tables == ["SCAN attempts USING INDEX ix_attempts_open", "SCAN calls USING INDEX ix_calls_open"]


# --- opening --------------------------------------------------------------------------------------------------------


async def test_what_was_written_is_there_after_opening_again(database_url: str) -> None:
    store = await SqlStore.open(database_url)
    await store.create_connector(a_connector(), an_event())
    await store.write_records(a_whole_call())
    version = await store.version()
    await store.close()

    again = await SqlStore.open(database_url)
    assert await again.find_connector("alice", "uid-1") == a_connector()
    assert await again.version() == version
    assert await again.find_call("call-1") is not None
    await again.close()


async def test_the_files_of_a_new_database_are_private(sqlite_database: Database, tmp_path: Path) -> None:
    await SqlStore(sqlite_database).write_records(a_whole_call())
    private = dict.fromkeys(("patchbay.db", "patchbay.db-wal", "patchbay.db-shm"), 0o600)
    assert _modes(tmp_path) == private


def _modes(directory: Path) -> dict[str, int]:
    return {path.name: stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()}


async def test_every_commit_waits_for_the_disk_and_foreign_keys_hold(sqlite_database: Database) -> None:
    pragmas = {}
    for pragma in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout"):
        query = f"PRAGMA {pragma}"
        pragmas[pragma] = await sqlite_database.write(lambda tx, sql=query: tx.exec_driver_sql(sql).scalar_one())  # type: ignore[misc]
    assert pragmas == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 5000}


async def test_two_stores_on_one_database_see_each_other_and_take_turns(database_url: str) -> None:
    one, two = await asyncio.gather(SqlStore.open(database_url), SqlStore.open(database_url))
    await one.create_connector(a_connector("uid-1"), an_event())
    await two.create_connector(a_connector("uid-2"), an_event())
    before = await one.version()
    assert await two.version() == before
    sets = [store.set_default("alice", uid, an_event()) for uid in ("uid-1", "uid-2") for store in (one, two) * 5]
    groups = [store.write_records(a_whole_call(f"call-{i}{n}")) for n, store in enumerate((one, two)) for i in range(9)]
    await asyncio.gather(*sets, *groups)
    assert sum(connector.is_default for connector in await two.list_connectors("alice", ALL)) == 1
    assert await one.month_tokens(["uid-1"], "2026-11") == {"uid-1": 18 * 15}
    assert await one.version() == await two.version() > before
    await asyncio.gather(one.close(), two.close())


async def test_two_stores_on_one_database_grant_no_token_of_a_cap_twice(database_url: str) -> None:
    one, two = await asyncio.gather(SqlStore.open(database_url), SqlStore.open(database_url))
    await one.create_connector(a_connector("uid-1"), an_event())
    holds = [
        store.hold_tokens(a_hold(f"call-{i}{n}"), 105, MONTH, NOW)
        for n, store in enumerate((one, two))
        for i in range(50)
    ]
    assert (await asyncio.gather(*holds)).count(True) == 10
    assert await two.cap_use(["uid-1"], MONTH, NOW) == {"uid-1": CapUse(held=100)}
    await asyncio.gather(one.close(), two.close())


async def test_stores_that_hold_change_settle_and_interrupt_together_do_not_wait_for_each_other(
    database_url: str,
) -> None:
    stores = await asyncio.gather(*(SqlStore.open(database_url) for _ in range(2)))
    uids = ["uid-1", "uid-2"]
    for uid in uids:
        await stores[0].create_connector(a_connector(uid), an_event())

    async def calls(lane: int, store: SqlStore) -> None:
        for i in range(10):
            call_id, uid = f"call-{lane}-{i}", uids[(lane + i) % 2]
            hold = a_hold(call_id, connector_uid=uid, expires_at=NOW + timedelta(seconds=i % 3))
            assert await store.hold_tokens(hold, 10**6, MONTH, NOW)
            await store.write_records([call_opened(call_id), attempt_opened(call_id, connector_uid=uid)])
            assert await store.hold_tokens(hold, 10**6, MONTH, NOW + timedelta(seconds=1))
            used = [ConnectorUsed(connector_uid=other, at=NOW) for other in uids]
            await store.write_records([attempt_closed(call_id), call_closed(call_id), *used])

    async def interrupt(store: SqlStore) -> None:
        for _ in range(10):
            await store.close_interrupted("process-2", NOW)

    await asyncio.gather(*(calls(lane, stores[lane % 2]) for lane in range(8)), *map(interrupt, stores))
    assert [use.held for use in (await stores[0].cap_use(uids, MONTH, NOW)).values()] == [0, 0]
    await asyncio.gather(*(store.close() for store in stores))


OPEN_TOGETHER = """
import asyncio, sys
from patchbay_server.store.sql import SqlStore
from patchbay_server.testing.store_suite import (
    ALL,
    MONTH,
    NOW,
    a_connector,
    a_hold,
    a_token,
    a_whole_call,
    an_event,
    attempt_closed,
    attempt_opened,
    call_closed,
    call_opened,
)
from patchbay_server.types import CapUse, ConnectorUsed

async def main():
    sys.stdin.readline()
    store = await SqlStore.open(sys.argv[1])
    await store.create_token(a_token(sys.argv[2]), an_event())
    await store.close()

asyncio.run(main())
"""


async def test_processes_that_open_a_new_database_together_all_succeed(database_url: str) -> None:
    children = [await _python(OPEN_TOGETHER, database_url, f"token-{i}") for i in range(2)]
    outputs = await asyncio.gather(*(child.communicate(b"go\n") for child in children))
    assert [child.returncode for child in children] == [0, 0], outputs
    store = await SqlStore.open(database_url)
    assert await store.count_tokens() == 2
    await store.close()


WRITE_FOREVER = """
import asyncio, sys
from patchbay_server.store.sql import SqlStore
from patchbay_server.testing.store_suite import (
    ALL,
    MONTH,
    NOW,
    a_connector,
    a_hold,
    a_token,
    a_whole_call,
    an_event,
    attempt_closed,
    attempt_opened,
    call_closed,
    call_opened,
)
from patchbay_server.types import CapUse, ConnectorUsed

async def main():
    store = await SqlStore.open(sys.argv[1])

    async def write(lane):
        for i in range(10**6):
            call_id = f"call-{lane}-{i:06}"
            await store.write_records([*a_whole_call(call_id), call_opened(call_id + "-open")])
            print(call_id, flush=True)

    await asyncio.gather(*map(write, range(4)))

asyncio.run(main())
"""


async def test_what_was_reported_written_survives_kill_9(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/patchbay.db"
    child = await _python(WRITE_FOREVER, url)
    assert child.stdout is not None
    reported = [await child.stdout.readline() for _ in range(100)]
    child.kill()
    rest, _ = await child.communicate()
    whole_lines = (b"".join(reported) + rest).decode().split("\n")[:-1]
    assert len(whole_lines) >= 100

    store = await SqlStore.open(url)
    open_calls = await store.close_interrupted("next process", call_opened().started_at)
    for call_id in whole_lines:
        row, interrupted = await store.find_call(call_id), await store.find_call(call_id + "-open")
        assert row is not None
        assert row.state.value == "succeeded"
        assert interrupted is not None
        assert interrupted.state.value == "interrupted"
    tokens_by_connector = await store.month_tokens(["uid-1"], "2026-11")
    assert tokens_by_connector == {
        "uid-1": open_calls * 15
    }  # each transaction is there whole: one open call, one counted
    await store.close()


async def _python(script: str, *arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        script,
        *arguments,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("sqlite://", "the database URL must be"),
        ("sqlite:///:memory:", "the database URL must be"),
        ("mysql://root:hunter2@host/db", "the database URL must be"),
        ("hunter2", "the database URL must be"),
        ("postgresql://root:hunter2@host:port/db", "the database URL must be"),
        ("postgresql://root:hunter2@host/db", "PostgreSQL needs its driver"),
        ("", "the database URL must be"),
        ("sqlite:////nowhere/at/all/patchbay.db", "cannot be created: No such file or directory"),
    ],
)
async def test_a_database_that_cannot_be_opened_is_unavailable_with_a_reason(
    url: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(PatchbayError, match=message) as caught:
        await SqlStore.open(url)
    assert caught.value.reason is Reason.DEPENDENCY_UNAVAILABLE
    assert "hunter2" not in str(caught.value)


async def test_a_file_that_is_no_database_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "letter.txt"
    file.write_bytes(b"Dear Sir or Madam, " * 100)
    with pytest.raises(PatchbayError, match="not a database"):
        await SqlStore.open(f"sqlite:///{file}")
    assert file.read_bytes() == b"Dear Sir or Madam, " * 100


async def test_cancelling_an_opening_leaves_no_thread_and_no_connection(database_url: str) -> None:
    task = asyncio.create_task(Database.open(database_url))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("patchbay-store")]
