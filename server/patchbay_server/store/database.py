"""Transactions of an SQL database for coroutines: threads, migration at opening, and what a failure means.

Work is a plain function of a `Connection`. It runs in a thread, in one transaction that is committed when the function
returns and undone when it raises. Work that writes is queued behind other work that writes. A caller that is cancelled
stops waiting: work that has begun is finished by its thread, work that has not is dropped, and the connection is in
order either way.
"""

import asyncio
import traceback
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from types import MappingProxyType
from typing import Final, TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from patchbay_server.errors import PatchbayError, Reason
from patchbay_server.store.backends import READERS, Backend, backend_for
from patchbay_server.store.migrations import migrate
from patchbay_server.store.tables import DamagedRow

T = TypeVar("T")

TAKEN: Final[Mapping[str, tuple[str, str]]] = MappingProxyType(
    {
        "uq_connectors_owner_id": ("connector_id", "the owner has a connector of this id; choose another id"),
        "uq_connectors_owner_display_name": (
            "connector.display_name",
            "the owner has a connector of this display name; choose another name",
        ),
        "pk_tokens": ("token_id", "there is a token of this id; choose another id"),
    }
)
"""Constraint -> the request's field that ran into it, and what to do about it."""

_CAUSES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "SQLITE_FULL": "the disk is full",
        "SQLITE_READONLY": "the database is read-only",
        "SQLITE_BUSY": "another process holds the database",
        "SQLITE_CANTOPEN": "the database file cannot be opened",
        "SQLITE_NOTADB": "the file is not a database",
        "SQLITE_CORRUPT": "the database file is damaged; restore it from a backup",
    }
)


class Database:
    """An open database. Whoever opens it closes it."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._writer, self._reader = backend.engines()
        self._writers = ThreadPoolExecutor(backend.writers, thread_name_prefix="patchbay-store-write")
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="patchbay-store-read")

    @classmethod
    async def open(cls, url: str) -> "Database":
        """Connect, create what is missing and bring the tables up to date.

        Raises:
            DEPENDENCY_UNAVAILABLE when that cannot be done, or a newer gateway has written the database.
        """
        database = cls(backend_for(url))
        try:
            await database._in_thread(database._writers, database._prepare)
        except BaseException:  # a cancelled opening leaves nothing open either
            await database.close()
            raise
        return database

    async def read(self, work: Callable[[Connection], T]) -> T:
        """What `work` answers in a transaction that sees one moment of the database and cannot write."""
        return await self._in_thread(self._readers, lambda: self._transact(self._reader, work))

    async def write(self, work: Callable[[Connection], T]) -> T:
        """What `work` answers; durable on return."""
        return await self._in_thread(self._writers, lambda: self._transact(self._writer, work))

    async def close(self) -> None:
        """Finish all work that was taken and disconnect. Work that comes later is DEPENDENCY_UNAVAILABLE."""
        await asyncio.to_thread(self._shut_down)

    async def _in_thread(self, threads: ThreadPoolExecutor, work: Callable[[], T]) -> T:
        try:
            future = threads.submit(work)
        except RuntimeError:
            raise PatchbayError(Reason.DEPENDENCY_UNAVAILABLE, "the store is closed") from None
        return await asyncio.wrap_future(future)

    def _transact(self, engine: Engine, work: Callable[[Connection], T]) -> T:
        try:
            with engine.begin() as tx:
                return work(tx)
        except (SQLAlchemyError, DamagedRow, OverflowError, UnicodeError) as error:
            # A result that was left in the middle holds its connection at the moment that it saw, and lives as long as
            # the variables of these frames.
            traceback.clear_frames(error.__traceback__)
            failure = self._failure(error).with_traceback(error.__traceback__)
        raise failure  # out here: where it happened stays, the driver's exception with its statement is not its context

    def _prepare(self) -> None:
        self._backend.prepare()
        self._transact(self._writer, self._migrate)

    def _migrate(self, tx: Connection) -> None:
        self._backend.exclude_others(tx)
        migrate(tx)

    def _shut_down(self) -> None:
        for threads in (self._writers, self._readers):
            threads.shutdown(wait=True)
        for engine in (self._writer, self._reader):
            engine.dispose()

    def _failure(self, error: Exception) -> PatchbayError:
        if isinstance(error, DamagedRow):
            message = f"the database holds a {error} that cannot be read; restore it from a backup"
            return PatchbayError(Reason.DEPENDENCY_UNAVAILABLE, message)
        code = self._backend.code(error) if isinstance(error, DBAPIError) else ""
        if isinstance(error, IntegrityError) and (taken := TAKEN.get(self._backend.violated(error))):
            field, message = taken
            return PatchbayError(Reason.ALREADY_EXISTS, message, field=field)
        if isinstance(error, DBAPIError | PoolTimeout) and not isinstance(error, IntegrityError | DataError):
            return PatchbayError(Reason.DEPENDENCY_UNAVAILABLE, _unavailable(code))
        # The gateway checks what it writes: values that the database refuses are a mistake of ours.
        return PatchbayError(Reason.INTERNAL, f"the database refused a value ({code or type(error).__name__})")


def _unavailable(code: str) -> str:
    cause = _CAUSES.get("_".join(code.split("_")[:2]), "the database does not answer")
    return f"the store is not available: {cause}" + (f" ({code})" if code else "")
