"""What differs between the databases behind the store: connecting, locking, upserts, and what their errors mean.

The only place with SQL, settings or error codes of one database. Both backends give two engines, one that writes and
one that cannot.
"""

import os
import re
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Protocol, TypeVar

from sqlalchemy import URL, Connection, Engine, Table, create_engine, event, make_url, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.schema import PrimaryKeyConstraint, UniqueConstraint

from patchbay_server.errors import PatchbayError, Reason
from patchbay_server.store.tables import METADATA

LOCK_WAIT_S: Final = 5.0
"""How long a transaction waits for another process's."""
STATEMENT_S_MAX: Final = 30.0
"""How long PostgreSQL may take for one statement."""
JOURNAL_BYTES_MAX: Final = 64 * 1024 * 1024
"""What SQLite's write-ahead log is cut back to after a burst."""
READERS: Final = 4
"""Transactions that read at once."""

PARAMETERS_MAX: Final = 500
"""Values in one IN list; a longer list is asked for in parts."""

T = TypeVar("T")

Upsert = sqlite.Insert | postgresql.Insert
INSERTS: Final[Mapping[str, Callable[[Table], Upsert]]] = MappingProxyType(
    {"sqlite": sqlite.insert, "postgresql": postgresql.insert}
)
"""INSERT with ON CONFLICT by a connection's `dialect.name`: the databases spell it alike, SQLAlchemy keeps it apart."""


def parts(values: Sequence[T]) -> Iterator[Sequence[T]]:
    """The values in lists that one statement can hold."""
    for start in range(0, len(values), PARAMETERS_MAX):
        yield values[start : start + PARAMETERS_MAX]


class Backend(Protocol):
    """One database. `writers` is how many transactions of this process may write at once."""

    writers: int

    def engines(self) -> tuple[Engine, Engine]:
        """The engine that writes and the one that only reads; neither has connected yet."""
        ...

    def prepare(self) -> None:
        """What comes before the first connection: the file and who may read it.

        Raises:
            DEPENDENCY_UNAVAILABLE.
        """
        ...

    def exclude_others(self, tx: Connection) -> None:
        """Keep other processes from migrating until the transaction ends."""
        ...

    def code(self, error: DBAPIError) -> str:
        """The database's own code of an error, or "" when the driver gives none."""
        ...

    def violated(self, error: DBAPIError) -> str:
        """The name of the constraint that a write ran into, or "" when it is not one of ours."""
        ...


def backend_for(url: str) -> Backend:
    """The backend for `sqlite:///PATH` or `postgresql://...`.

    Raises:
        DEPENDENCY_UNAVAILABLE for any other URL, which the message does not repeat, because it may hold a password, and
        for PostgreSQL when its driver is not installed.
    """
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):  # the latter for a port that is no number
        parsed = URL.create("")
    match parsed.get_backend_name():
        case "sqlite" if parsed.database and parsed.database != ":memory:":
            return SqliteBackend(Path(parsed.database))
        case "postgresql" if find_spec("psycopg"):
            return PostgresBackend(parsed)
        case "postgresql":
            message = "PostgreSQL needs its driver: pip install 'psycopg[binary]'"
        case _:
            message = "the database URL must be sqlite:///PATH or postgresql://USER@HOST/NAME"
    raise PatchbayError(Reason.DEPENDENCY_UNAVAILABLE, message)


class SqliteBackend:
    """A file in WAL mode, synchronous=FULL: a commit is on the disk when it returns. One transaction writes at a time,
    others read beside it.
    """

    writers = 1

    def __init__(self, path: Path) -> None:
        self._path = path

    def engines(self) -> tuple[Engine, Engine]:
        writer = self._engine(size=self.writers, begin="BEGIN IMMEDIATE")
        event.listen(writer, "connect", _enter_wal)
        reader = self._engine(size=READERS, begin="BEGIN")
        event.listen(reader, "connect", _refuse_writes)
        return writer, reader

    def _engine(self, *, size: int, begin: str) -> Engine:
        url = URL.create("sqlite", database=str(self._path))
        engine = create_engine(
            url, pool_size=size, max_overflow=0, hide_parameters=True, connect_args={"timeout": LOCK_WAIT_S}
        )
        event.listen(engine, "connect", _configure)
        event.listen(engine, "begin", lambda connection: connection.exec_driver_sql(begin))
        return engine

    def prepare(self) -> None:
        try:
            file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            # Opened here and closed again, it would lose the locks that this process's other connections hold on it.
            return
        except OSError as error:
            message = f"the database file {self._path} cannot be created: {error.strerror}"
        else:
            os.close(file)
            return
        raise PatchbayError(Reason.DEPENDENCY_UNAVAILABLE, message)

    def exclude_others(self, tx: Connection) -> None:
        """BEGIN IMMEDIATE did."""

    def code(self, error: DBAPIError) -> str:
        return getattr(error.orig, "sqlite_errorname", "")

    def violated(self, error: DBAPIError) -> str:
        found = re.fullmatch(r"UNIQUE constraint failed: (.+)", str(error.orig))
        return _UNIQUE_BY_COLUMNS.get(found[1], "") if found else ""


class PostgresBackend:
    """A server that several processes share. A transaction that reads sees one moment throughout."""

    writers = 4

    def __init__(self, url: URL) -> None:
        self._url = url.set(drivername="postgresql+psycopg")

    def engines(self) -> tuple[Engine, Engine]:
        return self._engine(size=self.writers), self._engine(
            size=READERS, execution_options={"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
        )

    def _engine(self, *, size: int, execution_options: dict[str, Any] | None = None) -> Engine:
        limits = f"-c lock_timeout={LOCK_WAIT_S}s -c statement_timeout={STATEMENT_S_MAX}s -c synchronous_commit=on"
        return create_engine(
            self._url,
            pool_size=size,
            max_overflow=0,
            pool_pre_ping=True,
            hide_parameters=True,
            execution_options=execution_options or {},
            connect_args={"connect_timeout": int(LOCK_WAIT_S), "options": limits},
        )

    def prepare(self) -> None:
        """Nothing: the server is there or the first transaction says so."""

    def exclude_others(self, tx: Connection) -> None:
        tx.execute(text("SELECT pg_advisory_xact_lock(7281394001)"))

    def code(self, error: DBAPIError) -> str:
        return getattr(error.orig, "sqlstate", None) or ""

    def violated(self, error: DBAPIError) -> str:
        return getattr(getattr(error.orig, "diag", None), "constraint_name", None) or ""


def _configure(connection: sqlite3.Connection, _: object) -> None:
    connection.isolation_level = None  # the driver would begin transactions by itself, late and deferred
    for pragma in (
        "synchronous=FULL",
        "foreign_keys=ON",
        "trusted_schema=OFF",
        f"journal_size_limit={JOURNAL_BYTES_MAX}",
    ):
        connection.execute(f"PRAGMA {pragma}")


def _refuse_writes(connection: sqlite3.Connection, _: object) -> None:
    connection.execute("PRAGMA query_only=ON")


def _enter_wal(connection: sqlite3.Connection, _: object) -> None:
    """Two processes that change a new file's journal together would deadlock, so SQLite refuses one of them without
    letting it wait.
    """
    give_up_at = time.monotonic() + LOCK_WAIT_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > give_up_at:
                raise
            time.sleep(0.02)
        else:
            return


def _unique_by_columns() -> dict[str, str]:
    """SQLite names the columns of a violated constraint, not the constraint."""
    return {
        ", ".join(f"{table.name}.{column.name}" for column in constraint.columns): str(constraint.name)
        for table in METADATA.tables.values()
        for constraint in table.constraints
        if isinstance(constraint, PrimaryKeyConstraint | UniqueConstraint)
    }


_UNIQUE_BY_COLUMNS: Final = _unique_by_columns()
