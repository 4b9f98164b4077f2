"""A store that fails at its n-th operation, statement or commit, for every n, once and again from then on."""

import shutil
import sqlite3
import threading
from collections.abc import Awaitable, Callable
from itertools import cycle
from pathlib import Path
from typing import Any, Final

import pytest
from tests.faults.sweep import CASES, OPERATIONS, Case, Run, run
from tests.support.bench import Bench

from patchbay_server.core import call as call_module
from patchbay_server.core import record as record_module
from patchbay_server.errors import PatchbayError, Reason
from patchbay_server.store.memory import MemoryStore
from patchbay_server.store.sql import SqlStore
from patchbay_server.types import CallState


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A recorder that gives up soon, and hard caps that are asked for more in the middle of short answers."""
    monkeypatch.setattr(record_module, "RETRY_WAITS_S", (0.001, 0.001))
    monkeypatch.setattr(call_module, "OUTPUT_TOKENS_STEP", 2)


class Nth:
    """Says of each thing whether it is to fail. Threads may ask."""

    def __init__(self, nth: int, *, from_then_on: bool) -> None:
        self._nth = nth
        self._from_then_on = from_then_on
        self._count = 0
        self._lock = threading.Lock()
        self.armed = False
        self.reached = False

    def fails(self) -> bool:
        if not self.armed:
            return False
        with self._lock:
            self._count += 1
            due = self._count == self._nth or (self._from_then_on and self._count > self._nth)
            self.reached = self.reached or due
            return due


async def _check(this: Run, nth: Nth) -> bool:
    """Make the call while the store fails, and look at what is left when the store is back; whether it has failed."""
    nth.armed = True
    await this.make()
    await this.bench.recorder.flush()
    nth.armed = False
    row = await this.check()
    if this.answer is None:
        assert nth.reached
        assert this.reason in {
            Reason.DEPENDENCY_UNAVAILABLE,
            Reason.ALL_CANDIDATES_FAILED,
            Reason.UPSTREAM_UNAVAILABLE,
            Reason.UPSTREAM_RATE_LIMITED,
        }
        if this.case.attempts == 1:
            assert this.reason is Reason.DEPENDENCY_UNAVAILABLE, "the store's fault is told as what it is"
    elif not nth.reached:
        assert len(this.asked) == this.case.attempts
    if row is not None and row.state is CallState.SUCCEEDED and not this.bench.records_lost:
        assert this.answer is not None
    return nth.reached


# --- operations -------------------------------------------------------------------------------------------------------


def _broken(store: MemoryStore | SqlStore, nth: Nth, *, done: bool) -> None:
    """Let operations fail; with `done` they are done and only their answers are lost."""
    for name in OPERATIONS:
        setattr(store, name, _failing(getattr(store, name), nth, done=done))


def _failing(real: Callable[..., Awaitable[Any]], nth: Nth, *, done: bool) -> Callable[..., Awaitable[Any]]:
    async def failing(*args: Any, **named: Any) -> Any:
        if not nth.fails():
            return await real(*args, **named)
        if done:
            await real(*args, **named)
        raise PatchbayError(Reason.DEPENDENCY_UNAVAILABLE, "the store is broken by a test")

    return failing


@pytest.mark.parametrize("from_then_on", [False, True], ids=["once", "from then on"])
@pytest.mark.parametrize("done", [False, True], ids=["refused", "answer lost"])
@pytest.mark.parametrize("streaming", [False, True], ids=["chat", "stream"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
async def test_a_call_whose_store_fails_at_any_operation_ends_once(
    case: Case, streaming: bool, done: bool, from_then_on: bool
) -> None:
    nth = 0
    failed = True
    while failed:
        nth += 1
        async with run(case, streaming=streaming) as this:
            failing = Nth(nth, from_then_on=from_then_on)
            _broken(this.bench.store, failing, done=done)
            failed = await _check(this, failing)
    assert nth > 2


# --- statements -------------------------------------------------------------------------------------------------------


def _break_statements(bench: Bench, nth: Nth, *, commits: bool) -> None:
    """Let statements of the SQLite file fail as the driver lets them; with `commits`, let only the answers to commits
    get lost.
    """
    assert isinstance(bench.store, SqlStore)
    database = bench.store._database
    for dialect in (database._writer.dialect, database._reader.dialect):
        names = ("do_commit",) if commits else ("do_execute", "do_executemany", "do_commit")
        for name in names:
            setattr(dialect, name, _failing_statement(getattr(dialect, name), nth, done=commits))


def _failing_statement(real: Callable[..., Any], nth: Nth, *, done: bool) -> Callable[..., Any]:
    def failing(*args: Any, **named: Any) -> Any:
        if not nth.fails():
            return real(*args, **named)
        if done:
            real(*args, **named)
        raise sqlite3.OperationalError("disk I/O error")

    return failing


async def _sweep_statements(case: Case, folder: Path, *, streaming: bool, commits: bool, from_then_on: bool) -> None:
    empty = folder / "empty.db"
    await (await SqlStore.open(f"sqlite:///{empty}")).close()
    nth = 0
    failed = True
    while failed:
        nth += 1
        file = Path(shutil.copy(empty, folder / f"{nth}.db"))
        async with run(case, streaming=streaming, sqlite=file) as this:
            failing = Nth(nth, from_then_on=from_then_on)
            _break_statements(this.bench, failing, commits=commits)
            failed = await _check(this, failing)
    assert nth > 2


EVERY: Final = {
    f"{case.name}-{'stream' if streaming else 'chat'}-{'answer lost' if commits else 'refused'}-"
    f"{'from then on' if from_then_on else 'once'}": (case, streaming, commits, from_then_on)
    for case, streaming in zip(CASES.values(), cycle((False, True)), strict=False)
    for commits in (False, True)
    for from_then_on in (False, True)
}
"""Chat and Stream in turn: to the database they are the same."""
FEW: Final = {
    "org default-stream-answer lost-once",
    "org default-stream-answer lost-from then on",
    "hard cap-stream-refused-once",
    "alone-chat-refused-from then on",
}
"""Sweeps that are short and reach every kind of statement."""


async def _sweep(name: str, folder: Path) -> None:
    case, streaming, commits, from_then_on = EVERY[name]
    await _sweep_statements(case, folder, streaming=streaming, commits=commits, from_then_on=from_then_on)


@pytest.mark.parametrize("name", sorted(FEW))
async def test_a_call_whose_database_fails_at_any_statement_ends_once(name: str, tmp_path: Path) -> None:
    await _sweep(name, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(EVERY.keys() - FEW))
async def test_any_call_whose_database_fails_at_any_statement_ends_once(name: str, tmp_path: Path) -> None:
    await _sweep(name, tmp_path)
