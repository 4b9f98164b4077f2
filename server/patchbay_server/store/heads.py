"""The one row that every change goes through: the store's version and the end of the audit trail."""

from collections.abc import Sequence
from typing import Any

import msgspec
from sqlalchemy import Connection, Row, select

from patchbay_server.store import audit_chain
from patchbay_server.store.bounds import storable
from patchbay_server.store.protocol import AuditHead
from patchbay_server.store.rows import plain
from patchbay_server.store.tables import DamagedRow, audit_events, heads
from patchbay_server.types import AuditEvent


class Heads(msgspec.Struct, frozen=True, kw_only=True):
    version: int
    audit: AuditHead


def read_heads(tx: Connection) -> Heads:
    return _heads_of(tx.execute(select(heads)).one_or_none())


def _heads_of(row: Row[Any] | None) -> Heads:
    if row is None:
        raise DamagedRow("version")
    return Heads(version=row.version, audit=AuditHead(sequence=row.audit_sequence, hash=row.audit_hash))


class Turn:
    """The right to change what is rarely changed, held until the transaction ends.

    Connectors, preferences, policy, tokens and the audit trail are changed in turns, whichever process changes them:
    each change sees all before it, so that checks made within it hold, and audit events follow one another. Taken
    before any other row is locked, because then no two transactions can wait for each other. SQLite lets only one
    transaction write at all; elsewhere the row is locked.
    """

    def __init__(self, tx: Connection) -> None:
        self._tx = tx
        self._heads = _heads_of(tx.execute(select(heads).with_for_update()).one_or_none())

    def end(self, audits: Sequence[AuditEvent], *, raise_version: bool) -> None:
        """Append `audits` to the trail and, if snapshots hold what changed, raise the version; comes last."""
        head = self._heads.audit
        rows = []
        for event in audits:
            row = audit_chain.follow(head, storable(event))
            head = audit_chain.head_of(row)
            rows.append(plain(row))
        if rows:
            self._tx.execute(audit_events.insert(), rows)
        version = self._heads.version + raise_version
        self._tx.execute(heads.update().values(version=version, audit_sequence=head.sequence, audit_hash=head.hash))
