# ruff: noqa: S101 -- asserts say what our own code owes a store
"""The store on an SQL database, SQLite or PostgreSQL.

Each method hands one piece of work to `Database`, which runs it as one transaction in a thread. What is rarely changed
is changed in turns (see `heads.Turn`), so a check made in a transaction still holds when it writes. Lists continue
after a key, never at an offset.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any, Final

import msgspec
from sqlalchemy import Connection, Select, func, select, tuple_

from patchbay_server.errors import PatchbayError, Reason
from patchbay_server.store import audit_chain, calls, holds
from patchbay_server.store.backends import INSERTS
from patchbay_server.store.database import Database
from patchbay_server.store.heads import Turn, read_heads
from patchbay_server.store.migrations import current_revision
from patchbay_server.store.protocol import (
    ACTIVE_STATES,
    POINTED_STATES,
    AuditHead,
    AuditRow,
    Page,
    StoreInfo,
    address_of,
)
from patchbay_server.store.rows import (
    audit_row_of,
    connector_columns,
    connector_of,
    plain,
    policy_document,
    policy_of,
    preference_of,
    token_of,
)
from patchbay_server.store.tables import DamagedRow, audit_events, connectors, policies, preferences, tokens
from patchbay_server.types import (
    AuditEvent,
    CallRow,
    CapUse,
    CheckResult,
    Connector,
    ConnectorState,
    Hold,
    Policy,
    Preference,
    Record,
    Sealed,
    Snapshot,
    Token,
)

_NOT_SAVED: Final = ("uid", "owner", "id", "is_default", "last_used_at", "last_test_at", "last_test_result")
"""Columns that `save_connector` leaves alone: the address, and what other methods own."""

log = logging.getLogger(__name__)


class SqlStore:
    """A `Store`. Whoever opens it closes it."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._told_damaged: set[str] = set()

    @classmethod
    async def open(cls, url: str) -> "SqlStore":
        """The store in the database at `url`, created or brought up to date as need be.

        Args:
            url: `sqlite:///PATH` (a new file gets mode 0600, its directory must exist) or
            `postgresql://USER:PASSWORD@HOST/NAME`.

        Raises:
            DEPENDENCY_UNAVAILABLE when there is no such database, or a newer gateway has written it.
        """
        return cls(await Database.open(url))

    # --- life ---

    async def ping(self) -> None:
        await self.version()

    async def describe(self) -> StoreInfo:
        def work(tx: Connection) -> StoreInfo:
            counted = tx.execute(select(connectors.c.sealed_key_id, func.count()).group_by(connectors.c.sealed_key_id))
            return StoreInfo(
                kind=tx.dialect.name,
                schema_revision=current_revision(tx) or "",
                credentials={row.sealed_key_id: row[1] for row in counted},
            )

        return await self._database.read(work)

    async def close(self) -> None:
        await self._database.close()

    async def version(self) -> int:
        return (await self._database.read(read_heads)).version

    async def snapshot(self, owner: str) -> Snapshot:
        snapshot, damaged = await self._database.read(partial(_snapshot, owner=owner))
        self._tell_damaged(snapshot, damaged)
        return snapshot

    def _tell_damaged(self, snapshot: Snapshot, damaged: Mapping[str, str]) -> None:
        """Log each connector that was left out, once as long as it stays unreadable; `damaged` are uids with what is
        wrong.
        """
        shared = snapshot.organisation_default
        self._told_damaged.difference_update(connector.uid for connector in snapshot.connectors)
        self._told_damaged.difference_update([shared.uid] if shared else [])
        for uid, kind in damaged.items():
            if uid not in self._told_damaged:
                log.error(
                    "connector %s answers no calls: the database holds a %s of it that cannot be read; restore it from "
                    "a backup, or delete its row",
                    uid,
                    kind,
                )
        self._told_damaged.update(damaged)

    async def _change(
        self, change: Callable[[Connection], bool], audits: Sequence[AuditEvent] = (), *, in_snapshots: bool = True
    ) -> bool:
        """Make a change in its turn; where `change` answers that something changed, append `audits` and, if snapshots
        hold it, raise the version.
        """

        def work(tx: Connection) -> bool:
            turn = Turn(tx)
            changed = change(tx)
            if changed:
                turn.end(audits, raise_version=in_snapshots)
            return changed

        return await self._database.write(work)

    # --- connectors ---

    async def create_connector(self, connector: Connector, audit: AuditEvent) -> None:
        assert not connector.is_default, "a new connector is nobody's default yet"

        def change(tx: Connection) -> bool:
            tx.execute(connectors.insert().values(connector_columns(connector)))
            return True

        await self._change(change, [audit])

    async def find_connector(self, owner: str, connector_id: str) -> Connector | None:
        return await self._database.read(partial(_find_connector, owner=owner, connector_id=connector_id))

    async def list_connectors(self, owner: str | None, page: Page) -> Sequence[Connector]:
        after_owner, _, after_id = page.after.partition("/")

        def work(tx: Connection) -> list[Connector]:
            query = select(connectors).where(tuple_(connectors.c.owner, connectors.c.id) > (after_owner, after_id))
            if owner is not None:
                query = query.where(connectors.c.owner == owner)
            return [
                connector_of(row)
                for row in tx.execute(query.order_by(connectors.c.owner, connectors.c.id).limit(page.size))
            ]

        return await self._database.read(work)

    async def save_connector(self, connector: Connector, expected_version: int, audits: Sequence[AuditEvent]) -> None:
        assert connector.version == expected_version + 1, "a change raises the version by one"

        def change(tx: Connection) -> bool:
            stored = _connector_at(tx, connector.uid, expected_version)
            assert (connector.owner, connector.id) == (stored.owner, stored.id), "a connector keeps its address"
            if connector.state not in POINTED_STATES:
                _forget(tx, stored, connector.updated_at)
            columns = {name: value for name, value in connector_columns(connector).items() if name not in _NOT_SAVED}
            tx.execute(connectors.update().where(connectors.c.uid == connector.uid).values(columns))
            return True

        await self._change(change, audits)

    async def delete_connector(self, uid: str, expected_version: int | None, audit: AuditEvent) -> None:
        def change(tx: Connection) -> bool:
            _forget(tx, _connector_at(tx, uid, expected_version), audit.at)
            tx.execute(connectors.delete().where(connectors.c.uid == uid))
            return True

        await self._change(change, [audit])

    async def mark_auth_invalid(self, uid: str, sealed: Sealed, at: datetime, audit: AuditEvent) -> bool:
        def change(tx: Connection) -> bool:
            marked = tx.execute(
                connectors.update()
                .where(connectors.c.uid == uid, connectors.c.state == ConnectorState.ACTIVE)
                .where(connectors.c.sealed_blob == sealed.blob, connectors.c.sealed_key_id == sealed.key_id)
                .values(state=ConnectorState.AUTH_INVALID, updated_at=at, version=connectors.c.version + 1)
            )
            return marked.rowcount == 1

        return await self._change(change, [audit])

    async def record_test(self, uid: str, at: datetime, result: CheckResult) -> None:
        def work(tx: Connection) -> None:
            tx.execute(
                connectors.update()
                .where(connectors.c.uid == uid)
                .where((connectors.c.last_test_at <= at) | connectors.c.last_test_at.is_(None))
                .values(last_test_at=at, last_test_result=result)
            )

        await self._database.write(work)

    async def reseal_connector(self, uid: str, old: Sealed, new: Sealed) -> bool:
        def change(tx: Connection) -> bool:
            resealed = tx.execute(
                connectors.update()
                .where(connectors.c.uid == uid)
                .where(connectors.c.sealed_blob == old.blob, connectors.c.sealed_key_id == old.key_id)
                .values(sealed_blob=new.blob, sealed_key_id=new.key_id)
            )
            return resealed.rowcount == 1

        return await self._change(change)

    # --- default and preferences ---

    async def set_default(self, owner: str, uid: str | None, audit: AuditEvent) -> None:
        def change(tx: Connection) -> bool:
            if uid is not None:
                _require_own_active(tx, owner, uid)
            current = tx.scalar(select(connectors.c.uid).where(connectors.c.owner == owner, connectors.c.is_default))
            if current == uid:
                return False
            tx.execute(connectors.update().where(connectors.c.uid == current).values(is_default=False))
            tx.execute(connectors.update().where(connectors.c.uid == uid).values(is_default=True))
            return True

        await self._change(change, [audit])

    async def set_preference(self, owner: str, feature: str, uid: str, at: datetime, audit: AuditEvent) -> None:
        def change(tx: Connection) -> bool:
            _require_own_active(tx, owner, uid)
            insert = INSERTS[tx.dialect.name](preferences).values(
                owner=owner, feature=feature, connector_uid=uid, updated_at=at
            )
            tx.execute(
                insert.on_conflict_do_update(
                    index_elements=["owner", "feature"],
                    set_={"connector_uid": insert.excluded.connector_uid, "updated_at": insert.excluded.updated_at},
                )
            )
            return True

        await self._change(change, [audit])

    async def clear_preference(self, owner: str, feature: str, audit: AuditEvent) -> bool:
        def change(tx: Connection) -> bool:
            cleared = tx.execute(
                preferences.delete().where(preferences.c.owner == owner, preferences.c.feature == feature)
            )
            return cleared.rowcount == 1

        return await self._change(change, [audit])

    async def list_preferences(self, owner: str, page: Page) -> Sequence[Preference]:
        def work(tx: Connection) -> list[Preference]:
            rows = tx.execute(
                select(preferences, connectors.c.id)
                .join(connectors, connectors.c.uid == preferences.c.connector_uid)
                .where(preferences.c.owner == owner, preferences.c.feature > page.after)
                .order_by(preferences.c.feature)
                .limit(page.size)
            )
            return [preference_of(row) for row in rows]

        return await self._database.read(work)

    # --- policy ---

    async def policy(self) -> Policy:
        return await self._database.read(_policy)

    async def save_policy(self, policy: Policy, expected_version: int, audit: AuditEvent) -> None:
        assert policy.version == expected_version + 1, "a change raises the version by one"

        def change(tx: Connection) -> bool:
            stored = _policy(tx)
            if stored.version != expected_version:
                raise PatchbayError(
                    Reason.ETAG_MISMATCH, "the policy was changed meanwhile; read it again and repeat the change"
                )
            named = policy.organisation_default
            if named is not None and named != stored.organisation_default:
                _require_active(_find_connector(tx, *address_of(named)))
            _write_policy(tx, policy)
            return True

        await self._change(change, [audit])

    # --- tokens ---

    async def create_token(self, token: Token, audit: AuditEvent) -> None:
        def change(tx: Connection) -> bool:
            tx.execute(tokens.insert().values(plain(token)))
            return True

        await self._change(change, [audit], in_snapshots=False)

    async def find_token(self, token_id: str) -> Token | None:
        def work(tx: Connection) -> Token | None:
            row = tx.execute(select(tokens).where(tokens.c.id == token_id)).one_or_none()
            return None if row is None else token_of(row)

        return await self._database.read(work)

    async def list_tokens(self, page: Page) -> Sequence[Token]:
        def work(tx: Connection) -> list[Token]:
            rows = tx.execute(select(tokens).where(tokens.c.id > page.after).order_by(tokens.c.id).limit(page.size))
            return [token_of(row) for row in rows]

        return await self._database.read(work)

    async def count_tokens(self) -> int:
        return await self._database.read(lambda tx: tx.execute(select(func.count()).select_from(tokens)).scalar_one())

    async def revoke_token(self, token_id: str, at: datetime, audit: AuditEvent) -> bool:
        def change(tx: Connection) -> bool:
            revoked = tx.execute(
                tokens.update().where(tokens.c.id == token_id, tokens.c.revoked_at.is_(None)).values(revoked_at=at)
            )
            return revoked.rowcount == 1

        return await self._change(change, [audit], in_snapshots=False)

    async def touch_token(self, token_id: str, at: datetime) -> None:
        def work(tx: Connection) -> None:
            tx.execute(
                tokens.update()
                .where(tokens.c.id == token_id)
                .where((tokens.c.last_used_at < at) | tokens.c.last_used_at.is_(None))
                .values(last_used_at=at)
            )

        await self._database.write(work)

    # --- records ---

    async def write_records(self, records: Sequence[Record]) -> None:
        try:
            await self._database.write(partial(calls.write_records, records=records))
        except PatchbayError as error:
            if error.reason is not Reason.INTERNAL:
                raise
            # Perhaps it was written before, by a commit whose answer was lost.
            await self._database.write(partial(calls.write_records, records=records, perhaps_again=True))

    async def close_interrupted(self, process_id: str, at: datetime) -> int:
        return await self._database.write(partial(calls.close_interrupted, process_id=process_id, at=at))

    async def find_call(self, call_id: str) -> CallRow | None:
        return await self._database.read(partial(calls.find_call, call_id=call_id))

    async def list_calls(self, page: Page) -> Sequence[CallRow]:
        return await self._database.read(partial(calls.list_calls, page=page))

    async def purge_calls(self, now: datetime, rows_max: int) -> int:
        return await self._database.write(partial(calls.purge_calls, now=now, rows_max=rows_max))

    async def month_tokens(self, connector_uids: Sequence[str], month: str) -> dict[str, int]:
        return await self._database.read(partial(calls.month_tokens, connector_uids=connector_uids, month=month))

    # --- hard caps ---

    async def hold_tokens(self, hold: Hold, cap: int, month: str, now: datetime) -> bool:
        assert hold.tokens >= 0, "a hold takes nothing back"
        return await self._database.write(partial(holds.hold_tokens, hold=hold, cap=cap, month=month, now=now))

    async def cap_use(self, connector_uids: Sequence[str], month: str, now: datetime) -> dict[str, CapUse]:
        return await self._database.read(partial(holds.cap_use, connector_uids=connector_uids, month=month, now=now))

    # --- audit ---

    async def list_audit(self, page: Page) -> Sequence[AuditRow]:
        after = audit_chain.sequence_after(page)

        def work(tx: Connection) -> list[AuditRow]:
            rows = tx.execute(
                select(audit_events)
                .where(audit_events.c.sequence > after)
                .order_by(audit_events.c.sequence)
                .limit(page.size)
            )
            return [audit_row_of(row) for row in rows]

        return await self._database.read(work)

    async def audit_head(self) -> AuditHead:
        return (await self._database.read(read_heads)).audit


# --- work shared by several methods, within one transaction ---


def _snapshot(tx: Connection, owner: str) -> tuple[Snapshot, dict[str, str]]:
    """The snapshot, and the uids of connectors that had to be left out of it with what is damaged of them: one row that
    cannot be read must not stop the calls that have no use for it.
    """
    policy = _policy(tx)
    damaged: dict[str, str] = {}
    own = select(connectors).where(connectors.c.owner == owner).order_by(connectors.c.id)
    shared_owner, shared_id = address_of(policy.organisation_default or "")
    shared = select(connectors).where(connectors.c.owner == shared_owner, connectors.c.id == shared_id)
    preferred = tx.execute(
        select(preferences.c.feature, preferences.c.connector_uid).where(preferences.c.owner == owner)
    )
    readable = _readable(tx, own, damaged)
    unreadable = (
        tx.scalars(own.with_only_columns(connectors.c.id).where(connectors.c.uid.in_(damaged))) if damaged else ()
    )
    snapshot = Snapshot(
        version=read_heads(tx).version,
        owner=owner,
        connectors=tuple(readable),
        unreadable=frozenset(unreadable),
        preferences={row.feature: row.connector_uid for row in preferred},
        organisation_default=next(iter(_readable(tx, shared, damaged)), None),
        policy=policy,
    )
    return snapshot, damaged


def _readable(tx: Connection, query: Select[Any], damaged: dict[str, str]) -> list[Connector]:
    """The connectors that `query` selects, without those that cannot be read, which are added to `damaged`."""
    try:
        return _connectors(tx, query)
    except DamagedRow:
        found = []  # row by row from here on
    for uid in tx.scalars(query.with_only_columns(connectors.c.uid)).all():
        try:
            found += _connectors(tx, select(connectors).where(connectors.c.uid == uid))
        except DamagedRow as error:
            damaged[uid] = str(error)
    return found


def _connectors(tx: Connection, query: Select[Any]) -> list[Connector]:
    with tx.execute(query) as rows:  # closed also where a row cannot be read: an open result holds its moment
        return [connector_of(row) for row in rows]


def _find_connector(tx: Connection, owner: str, connector_id: str) -> Connector | None:
    row = tx.execute(
        select(connectors).where(connectors.c.owner == owner, connectors.c.id == connector_id)
    ).one_or_none()
    return None if row is None else connector_of(row)


def _connector_at(tx: Connection, uid: str, expected_version: int | None) -> Connector:
    """Raises: CONNECTOR_NOT_FOUND, ETAG_MISMATCH."""
    row = tx.execute(select(connectors).where(connectors.c.uid == uid)).one_or_none()
    if row is None:
        raise PatchbayError(Reason.CONNECTOR_NOT_FOUND, "there is no such connector")
    if expected_version is not None and row.version != expected_version:
        raise PatchbayError(
            Reason.ETAG_MISMATCH, "the connector was changed meanwhile; read it again and repeat the change"
        )
    return connector_of(row)


def _require_own_active(tx: Connection, owner: str, uid: str) -> None:
    row = tx.execute(select(connectors).where(connectors.c.owner == owner, connectors.c.uid == uid)).one_or_none()
    _require_active(None if row is None else connector_of(row))


def _require_active(connector: Connector | None) -> None:
    if connector is None:
        raise PatchbayError(Reason.CONNECTOR_NOT_FOUND, "there is no such connector")
    if connector.state not in ACTIVE_STATES:
        raise PatchbayError(
            Reason.CONNECTOR_INACTIVE, f"the connector is {connector.state.value}; only an active one can be chosen"
        )


def _forget(tx: Connection, connector: Connector, at: datetime) -> None:
    """Clear every place that points to the connector."""
    tx.execute(connectors.update().where(connectors.c.uid == connector.uid).values(is_default=False))
    tx.execute(preferences.delete().where(preferences.c.connector_uid == connector.uid))
    policy = _policy(tx)
    if policy.organisation_default == connector.name:
        _write_policy(
            tx, msgspec.structs.replace(policy, organisation_default=None, updated_at=at, version=policy.version + 1)
        )


def _policy(tx: Connection) -> Policy:
    return policy_of(tx.execute(select(policies)).one_or_none())


def _write_policy(tx: Connection, policy: Policy) -> None:
    tx.execute(policies.update().values(document=policy_document(policy), version=policy.version))
