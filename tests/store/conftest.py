"""The stores that the suite runs over.

`PATCHBAY_TEST_PG`, the URL of a PostgreSQL server on which databases may be created, adds PostgreSQL to them.
"""

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from uuid import uuid4

import pytest
from sqlalchemy import create_engine, make_url, text

from patchbay_server.store.memory import MemoryStore
from patchbay_server.store.protocol import Store
from patchbay_server.store.sql import SqlStore

pytest.register_assert_rewrite("patchbay_server.testing.store_suite")

POSTGRES = os.environ.get("PATCHBAY_TEST_PG", "")
SQL_STORES = ["sqlite", "postgresql"] if POSTGRES else ["sqlite"]


@pytest.fixture(params=SQL_STORES)
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of a database that is empty or, as a file, not there yet."""
    with _database(request.param, tmp_path) as url:
        yield url


@pytest.fixture(params=["memory", *SQL_STORES])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    if request.param == "memory":
        yield MemoryStore()
        return
    with _database(request.param, tmp_path) as url:
        opened = await SqlStore.open(url)
        yield opened
        await opened.close()


def _database(kind: str, directory: Path) -> AbstractContextManager[str]:
    return nullcontext(f"sqlite:///{directory}/patchbay.db") if kind == "sqlite" else _postgres_database()


@contextmanager
def _postgres_database() -> Iterator[str]:
    server = make_url(POSTGRES).set(drivername="postgresql+psycopg")
    name = f"patchbay_{uuid4().hex}"
    engine = create_engine(server, isolation_level="AUTOCOMMIT")
    try:
        with engine.connect() as connection:
            connection.execute(text(f"CREATE DATABASE {name}"))
        yield server.set(drivername="postgresql", database=name).render_as_string(hide_password=False)
        with engine.connect() as connection:
            connection.execute(text(f"DROP DATABASE {name}"))  # fails where a store left a connection open
    finally:
        engine.dispose()
