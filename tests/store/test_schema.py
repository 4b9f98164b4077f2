"""What the database itself enforces, how its tables come about, and what is said of rows that nobody of ours wrote."""

import asyncio
import re
import sqlite3
from collections.abc import AsyncIterator, Sequence
from contextlib import closing
from importlib import resources
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, create_engine, text

from patchbay_server.errors import PatchbayError, Reason, UpstreamFailure
from patchbay_server.store import migrations
from patchbay_server.store.backends import backend_for
from patchbay_server.store.database import Database
from patchbay_server.store.protocol import AuditRow
from patchbay_server.store.sql import SqlStore
from patchbay_server.store.tables import METADATA
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
    call_closed,
)
from patchbay_server.types import (
    AttemptClosed,
    AttemptOpened,
    CallClosed,
    CallOpened,
    CallState,
    CapMode,
    CapUse,
    ConnectorState,
    RoutingOutcome,
)
from patchbay_server.usage import Usage


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    opened = await Database.open(database_url)
    yield opened
    await opened.close()


@pytest.fixture
async def store(database: Database) -> SqlStore:
    """A store with two owners' connectors, of which one is a default and preferred, a call and an audit trail."""
    filled = SqlStore(database)
    await filled.create_connector(a_connector("uid-1"), an_event())
    await filled.create_connector(a_connector("uid-2"), an_event())
    await filled.create_connector(a_connector("uid-3", owner="bob", state=ConnectorState.DISABLED), an_event())
    await filled.set_default("alice", "uid-1", an_event())
    await filled.set_preference("alice", "chat", "uid-1", NOW, an_event())
    await filled.create_token(a_token(), an_event())
    await filled.write_records(a_whole_call())
    await filled.hold_tokens(a_hold(), 100, MONTH, NOW)
    return filled


async def execute(database: Database, statement: str) -> None:
    await database.write(lambda tx: tx.execute(text(statement)))


# --- rules ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE connectors SET monthly_token_cap = -1 WHERE uid = 'uid-1'",
        "UPDATE connectors SET is_default = true WHERE uid = 'uid-2'",
        "UPDATE connectors SET is_default = true WHERE uid = 'uid-3'",
        "UPDATE connectors SET state = 'revoked' WHERE uid = 'uid-1'",
        "UPDATE connectors SET owner = 'alice', id = 'uid-1' WHERE uid = 'uid-3'",
        "UPDATE connectors SET owner = 'alice', display_name = 'The uid-1' WHERE uid = 'uid-3'",
        "UPDATE preferences SET connector_uid = 'uid-3'",
        "INSERT INTO preferences (owner, feature, connector_uid, updated_at) VALUES ('bob', 'chat', 'uid-1', 0)",
        "INSERT INTO preferences (owner, feature, connector_uid, updated_at) VALUES ('alice', 'chat', 'uid-2', 0)",
        "INSERT INTO heads (id, version, audit_sequence, audit_hash) SELECT 2, 1, 0, audit_hash FROM heads",
        "INSERT INTO policies (id, document, version) VALUES (2, '{}', 1)",
        "UPDATE months SET tokens = -1",
        "UPDATE months SET tokens = 2305843009213693953",
        "UPDATE connectors SET cap_mode = NULL WHERE uid = 'uid-1'",
        "UPDATE holds SET tokens = -1",
        "UPDATE holds SET tokens = 1000000000000001",
        "INSERT INTO holds (call_id, number, connector_uid, tokens, expires_at) VALUES ('call-1', 1, 'uid-1', 1, 0)",
        "UPDATE attempts SET call_id = 'call-9'",
        "UPDATE audit_events SET actor = 'nobody' WHERE sequence = 2",
        "DELETE FROM audit_events WHERE sequence = 5",
        "DELETE FROM audit_events",
    ],
)
async def test_the_database_refuses(store: SqlStore, database: Database, statement: str) -> None:
    trail = await store.list_audit(ALL)
    with pytest.raises(PatchbayError):
        await execute(database, statement)
    assert await store.list_audit(ALL) == trail


async def test_a_row_of_the_trail_cannot_be_replaced(tmp_path: Path) -> None:
    store = await SqlStore.open(f"sqlite:///{tmp_path}/patchbay.db")
    await store.create_token(a_token(), an_event())
    with (
        closing(sqlite3.connect(tmp_path / "patchbay.db")) as other,
        pytest.raises(sqlite3.IntegrityError, match="append-only"),
    ):
        other.execute("INSERT OR REPLACE INTO audit_events SELECT * FROM audit_events")
    await store.close()


async def test_preferences_and_attempts_go_with_what_they_belong_to(store: SqlStore, database: Database) -> None:
    await execute(database, "UPDATE connectors SET is_default = false")
    await execute(database, "DELETE FROM connectors WHERE uid = 'uid-1'")
    await execute(database, "DELETE FROM calls")
    counts = [
        await database.read(lambda tx, table=table: tx.execute(text(f"SELECT count(*) FROM {table}")).scalar_one())  # type: ignore[misc]
        for table in ("preferences", "attempts", "months")
    ]
    assert counts == [0, 0, 1]


def test_no_table_of_calls_or_audit_has_room_for_what_was_said() -> None:
    """Each column is a field of a record, which are counts and names."""
    usage = {*Usage.__struct_fields__, "usage_source"} - {"source"}
    call = {*CallOpened.__struct_fields__, *CallClosed.__struct_fields__, *usage} - {"usage", "routing"}
    failure = {f"failure_{field}" for field in UpstreamFailure.__struct_fields__}
    attempt = {*AttemptOpened.__struct_fields__, *AttemptClosed.__struct_fields__, *usage, *failure} - {
        "usage",
        "failure",
    }
    call |= {f"routing_{field}" for field in RoutingOutcome.__struct_fields__}
    columns = {name: set(METADATA.tables[name].c.keys()) for name in ("calls", "attempts", "audit_events")}
    assert columns == {"calls": call, "attempts": attempt, "audit_events": set(AuditRow.__struct_fields__)}


async def test_the_version_of_the_policy_that_counts_is_the_column(store: SqlStore, database: Database) -> None:
    await execute(database, "UPDATE policies SET version = 9")
    assert (await store.policy()).version == 9


# --- migrations -----------------------------------------------------------------------------------------------------


async def test_the_migrated_tables_are_the_tables_of_the_code(database: Database) -> None:
    def differences(tx: Connection) -> list[object]:
        context = MigrationContext.configure(tx, opts={"compare_type": True, "compare_server_default": True})
        return list(compare_metadata(context, METADATA))

    assert await database.read(differences) == []


async def test_the_migrated_tables_are_those_of_the_code_to_the_letter_on_sqlite(tmp_path: Path) -> None:
    await (await Database.open(f"sqlite:///{tmp_path}/migrated.db")).close()
    engine = create_engine(f"sqlite:///{tmp_path}/created.db")
    METADATA.create_all(engine)
    engine.dispose()
    assert _schema(tmp_path / "migrated.db") == _schema(tmp_path / "created.db")


def _schema(file: Path) -> dict[str, str]:
    with closing(sqlite3.connect(file)) as connection:
        rows = connection.execute(
            "SELECT name, sql FROM sqlite_master WHERE type IN ('table', 'index') AND sql IS NOT NULL"
        )
        return {name: re.sub(r"\s+", " ", sql) for name, sql in rows if name != "alembic_version"}


OF_THE_FIRST_RELEASE = (
    "INSERT INTO connectors VALUES ('uid-1', 'alice', 'main', 'openai', 'Main', :blob, 'k1', NULL, 'active', true, "
    "'{}', '{\"team\":\"search\"}', 500, NULL, NULL, NULL, 0, 0, 0, 3)",
    "INSERT INTO preferences VALUES ('alice', 'chat', 'uid-1', 0)",
    "INSERT INTO calls (call_id, process_id, caller, owner, feature, requested_model, streaming, labels, request_id, "
    "started_at, state) VALUES ('call-1', 'p', 'token-1', 'alice', 'chat', 'gpt', true, '{}', '', 0, 'open')",
    "INSERT INTO attempts (call_id, number, connector_uid, provider, model, started_at, state) "
    "VALUES ('call-1', 1, 'uid-1', 'openai', 'gpt', 0, 'open')",
    "INSERT INTO months VALUES ('uid-1', '2026-11', 15), ('uid-2', '2026-11', 2305843009213693952)",
)


async def test_a_database_of_the_first_release_is_brought_up_to_date_with_all_that_it_holds(database_url: str) -> None:
    await _make_as_of(database_url, "0001", OF_THE_FIRST_RELEASE)
    store = await SqlStore.open(database_url)
    (connector,) = await store.list_connectors(None, ALL)
    assert (connector.uid, connector.is_default, connector.monthly_token_cap) == ("uid-1", True, 500)
    assert (connector.cap_mode, connector.sealed.blob) == (CapMode.SOFT, b"sealed")
    assert [preference.feature for preference in await store.list_preferences("alice", ALL)] == ["chat"]
    row = await store.find_call("call-1")
    assert row is not None
    assert (row.opened.routing, row.state, len(row.attempts)) == (None, CallState.OPEN, 1)
    assert await store.month_tokens(["uid-1", "uid-2"], MONTH) == {"uid-1": 15, "uid-2": 2**61}

    assert await store.hold_tokens(a_hold(tokens=485), 500, MONTH, NOW)
    assert not await store.hold_tokens(a_hold("call-2", tokens=1), 500, MONTH, NOW)
    await store.write_records([attempt_closed(), call_closed()])
    assert await store.cap_use(["uid-1"], MONTH, NOW) == {"uid-1": CapUse(tokens=30)}
    await store.close()


async def _make_as_of(url: str, revision: str, statements: Sequence[str]) -> None:
    """A database as a gateway of an older revision has left it."""

    def work() -> None:
        with writer.begin() as tx:
            config = Config()
            config.set_main_option("script_location", "patchbay_server.store:migrations")
            config.set_main_option("path_separator", "os")
            config.attributes["connection"] = tx
            command.upgrade(config, revision)
            for statement in statements:
                tx.execute(text(statement), {"blob": b"sealed"} if ":blob" in statement else {})

    backend = backend_for(url)
    backend.prepare()
    writer, reader = backend.engines()
    try:
        await asyncio.to_thread(work)
    finally:
        writer.dispose()
        reader.dispose()


async def test_a_database_of_a_newer_gateway_is_refused_and_left_alone(database_url: str) -> None:
    database = await Database.open(database_url)
    await execute(database, "UPDATE alembic_version SET version_num = '9999'")
    await database.close()
    for _ in range(2):
        with pytest.raises(PatchbayError, match=r"newer gateway \(revision 9999\)") as caught:
            await SqlStore.open(database_url)
        assert caught.value.reason is Reason.DEPENDENCY_UNAVAILABLE


async def test_a_database_tells_its_kind_and_revision(store: SqlStore, database_url: str) -> None:
    told = await store.describe()
    assert database_url.startswith(told.kind)
    assert told.schema_revision == "0002"


def test_revisions_are_one_line_and_part_of_the_package() -> None:
    files = [
        entry for entry in resources.files(migrations).joinpath("versions").iterdir() if entry.name.endswith(".py")
    ]
    sources = [file.read_text() for file in files]
    revisions = [re.findall(r'^revision = "(\w+)"$', source, re.MULTILINE)[0] for source in sources]
    parents = [re.findall(r'^down_revision = (?:"(\w+)"|None)$', source, re.MULTILINE)[0] for source in sources]
    assert sorted(parents) == ["", *sorted(revisions)[:-1]]


# --- damaged rows ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("damage", "kind"),
    [
        ("UPDATE policies SET document = ''", "policy"),
        ('UPDATE policies SET document = \'{"updated_at": "2026-11-20T00:00:00"}\'', "policy"),
        ('UPDATE policies SET document = \'{"private_http": "secret"}\'', "policy"),
        ("DELETE FROM policies", "policy"),
        ("DELETE FROM heads", "version"),
    ],
)
async def test_a_damaged_row_is_unavailable_and_said_for_operators(
    store: SqlStore, database: Database, damage: str, kind: str
) -> None:
    await execute(database, damage)
    with pytest.raises(PatchbayError, match=f"the database holds a {kind} that cannot be read") as caught:
        await store.snapshot("alice")
    assert caught.value.reason is Reason.DEPENDENCY_UNAVAILABLE
    assert caught.value.__context__ is None
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("damage", "kind"),
    [
        ("state = 'sleeping', is_default = false", "ConnectorState"),
        ("cap_mode = 'secret'", "CapMode"),
        ("labels = '[1]'", "JSON"),
        ("labels = '{'", "JSON"),
        ('settings = \'{"idle_timeout_s": "secret"}\'', "JSON"),
        ("created_at = 9000000000000000000", "moment"),
    ],
)
async def test_a_damaged_connector_is_left_out_of_snapshots_and_unavailable_itself(
    store: SqlStore, database: Database, caplog: pytest.LogCaptureFixture, damage: str, kind: str
) -> None:
    await execute(database, f"UPDATE connectors SET {damage} WHERE uid = 'uid-1'")
    snapshot = await store.snapshot("alice")
    assert [connector.uid for connector in snapshot.connectors] == ["uid-2"]
    assert snapshot.preferences == {"chat": "uid-1"}
    (line,) = caplog.records
    assert line.levelname == "ERROR"
    assert f"connector uid-1 answers no calls: the database holds a {kind} of it" in line.getMessage()
    for read in (store.find_connector("alice", "uid-1"), store.list_connectors("alice", ALL)):
        with pytest.raises(PatchbayError, match=f"the database holds a {kind} that cannot be read") as caught:
            await read
        assert caught.value.reason is Reason.DEPENDENCY_UNAVAILABLE
        assert caught.value.__context__ is None
        assert "secret" not in str(caught.value) + caplog.text


async def test_a_damaged_policy_refuses_to_purge(store: SqlStore, database: Database) -> None:
    await execute(database, "UPDATE policies SET document = '{\"call_log_retention_days\": null}'")
    with pytest.raises(PatchbayError):
        await store.purge_calls(NOW, 100)
    assert len(await store.list_calls(ALL)) == 1


async def test_text_where_a_number_belongs_is_a_damaged_row(tmp_path: Path) -> None:
    """SQLite keeps any value in any column."""
    store = await SqlStore.open(f"sqlite:///{tmp_path}/patchbay.db")
    await store.create_token(a_token(), an_event())
    with closing(sqlite3.connect(tmp_path / "patchbay.db", isolation_level=None)) as other:
        other.execute("UPDATE tokens SET created_at = 'yesterday'")
    with pytest.raises(PatchbayError, match="moment"):
        await store.find_token("token-1")
    await store.close()
