"""The records of calls and attempts, and the months that they add up to: the store's hot path.

Every function is work within one transaction. A group of records is written kind by kind, one statement for each kind
however many records it has; that is the same as record by record because a call's records come in the order of the
kinds, which is checked.
"""

from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, Final, assert_never

from sqlalchemy import BigInteger, Connection, Double, bindparam, case, cast, exists, func, literal, select, type_coerce
from sqlalchemy.sql.elements import ColumnElement

from patchbay_server.errors import PatchbayError, Reason
from patchbay_server.store import holds
from patchbay_server.store.backends import INSERTS, Upsert, parts
from patchbay_server.store.bounds import MONTH_MAX, storable
from patchbay_server.store.heads import Turn
from patchbay_server.store.moments import microseconds
from patchbay_server.store.ordering import check_order
from patchbay_server.store.protocol import RETENTION_DAYS, Page, retention_message
from patchbay_server.store.rows import (
    attempt_of,
    call_columns,
    call_of,
    failure_columns,
    plain,
    policy_of,
    usage_columns,
)
from patchbay_server.store.tables import (
    OPEN_ATTEMPT,
    OPEN_CALL,
    attempts,
    audit_events,
    calls,
    connectors,
    months,
    policies,
)
from patchbay_server.types import (
    AttemptClosed,
    AttemptOpened,
    Audited,
    AuditEvent,
    CallClosed,
    CallOpened,
    CallRow,
    CallState,
    ConnectorUsed,
    Record,
    month_of,
)

# --- writing ----------------------------------------------------------------------------------------------------------


def write_records(tx: Connection, records: Sequence[Record], *, perhaps_again: bool = False) -> None:
    """Write a group.

    Args:
        perhaps_again: look for what of the group was written before, and leave it out. That costs a look at each
            opening record, so it is for a group that was refused without.

    Raises:
        INTERNAL for a record that opens what was opened before or belongs to what was never opened.
    """
    group = _Group(records)
    turn = Turn(tx) if group.events else None
    if perhaps_again:
        _leave_out_written(tx, group)
    if group.calls_opened:
        tx.execute(calls.insert(), [call_columns(record) | {"state": CallState.OPEN} for record in group.calls_opened])
    if group.attempts_opened:
        tx.execute(attempts.insert(), [plain(record) | {"state": CallState.OPEN} for record in group.attempts_opened])
    if group.attempts_closed:
        _close_attempts(tx, group.attempts_closed)
    if group.calls_closed:
        _close_calls(tx, group.calls_closed)
    if group.used_at:
        tx.execute(_USE_CONNECTOR, [{"key": uid, "at": at} for uid, at in sorted(group.used_at.items())])
    ended = {record.call_id for record in group.calls_closed}
    holds.settle(tx, {(a.call_id, a.number) for a in group.attempts_closed if a.call_id not in ended})
    holds.settle_calls(tx, ended)
    if turn:
        turn.end(group.events, raise_version=False)


class _Group:
    """A group's records by kind."""

    def __init__(self, records: Sequence[Record]) -> None:
        self.calls_opened: list[CallOpened] = []
        self.attempts_opened: list[AttemptOpened] = []
        self.attempts_closed: list[AttemptClosed] = []
        self.calls_closed: list[CallClosed] = []
        self.used_at: dict[str, datetime] = {}
        self.events: list[AuditEvent] = []
        fitting = [storable(record) for record in records]
        check_order(fitting)
        for record in fitting:
            self._add(record)

    def _add(self, record: Record) -> None:
        match record:
            case CallOpened():
                self.calls_opened.append(record)
            case AttemptOpened():
                self.attempts_opened.append(record)
            case AttemptClosed():
                self.attempts_closed.append(record)
            case CallClosed():
                self.calls_closed.append(record)
            case ConnectorUsed():
                self.used_at[record.connector_uid] = max(record.at, self.used_at.get(record.connector_uid, record.at))
            case Audited():
                self.events.append(record.event)
            case _:
                assert_never(record)


def _leave_out_written(tx: Connection, group: _Group) -> None:
    """Take out of the group the opening records that are stored just so and, where there are any, the audit events that
    are in the trail: they were written together. What is stored otherwise stays, for the primary key to refuse.
    """
    calls_opened = [record for record in group.calls_opened if not _is_stored(tx, record)]
    attempts_opened = [record for record in group.attempts_opened if not _is_stored(tx, record)]
    left_out = len(calls_opened) < len(group.calls_opened) or len(attempts_opened) < len(group.attempts_opened)
    group.calls_opened, group.attempts_opened = calls_opened, attempts_opened
    if left_out:
        group.events = [event for event in group.events if not _is_in_trail(tx, storable(event))]


def _is_stored(tx: Connection, record: CallOpened | AttemptOpened) -> bool:
    if isinstance(record, CallOpened):
        call = tx.execute(select(calls).where(calls.c.call_id == record.call_id)).one_or_none()
        return call is not None and call_of(call).opened == record
    attempt = tx.execute(
        select(attempts).where(attempts.c.call_id == record.call_id, attempts.c.number == record.number)
    ).one_or_none()
    return attempt is not None and attempt_of(attempt).opened == record


def _is_in_trail(tx: Connection, event: AuditEvent) -> bool:
    same = (audit_events.c[field] == value for field, value in plain(event).items())
    return tx.scalar(select(audit_events.c.sequence).where(*same).limit(1)) is not None


_FIND_ATTEMPTS: Final = select(attempts.c.call_id, attempts.c.number, attempts.c.connector_uid, attempts.c.state).where(
    attempts.c.call_id.in_(bindparam("keys", expanding=True))
)
_CLOSE_ATTEMPT: Final = attempts.update().where(
    attempts.c.call_id == bindparam("key"), attempts.c.number == bindparam("key_number"), OPEN_ATTEMPT
)
_FIND_CALLS: Final = select(calls.c.call_id).where(calls.c.call_id.in_(bindparam("keys", expanding=True)))
_CLOSE_CALL: Final = calls.update().where(calls.c.call_id == bindparam("key"), OPEN_CALL)
_USE_CONNECTOR: Final = (
    connectors.update()
    .where(connectors.c.uid == bindparam("key"))
    .where((connectors.c.last_used_at < bindparam("at")) | connectors.c.last_used_at.is_(None))
    .values(last_used_at=bindparam("at"))
)


def _adding_tokens(insert: Upsert) -> Upsert:
    total = months.c.tokens + insert.excluded.tokens
    return insert.on_conflict_do_update(
        index_elements=["connector_uid", "month"], set_={"tokens": case((total > MONTH_MAX, MONTH_MAX), else_=total)}
    )


_ADD_TOKENS: Final = {name: _adding_tokens(insert_into(months)) for name, insert_into in INSERTS.items()}


def _close_attempts(tx: Connection, records: Sequence[AttemptClosed]) -> None:
    found: dict[tuple[str, int], Any] = {
        (row.call_id, row.number): row
        for keys in parts(sorted({record.call_id for record in records}))
        for row in tx.execute(_FIND_ATTEMPTS, {"keys": keys})
    }
    closing: list[dict[str, Any]] = []
    spent: Counter[tuple[str, str]] = Counter()
    for record in records:
        key = (record.call_id, record.number)
        if key not in found:
            raise PatchbayError(
                Reason.INTERNAL, f"attempt {record.number} of call {record.call_id} closes but was never opened"
            )
        attempt = found[key]
        if attempt is None or attempt.state is not CallState.OPEN:
            continue
        found[key] = None
        closing.append(_attempt_closing(record))
        if record.usage:
            spent[attempt.connector_uid, month_of(record.ended_at)] += (
                record.usage.input_tokens + record.usage.output_tokens
            )
    if closing:
        tx.execute(_CLOSE_ATTEMPT, closing)
    _add_tokens(tx, spent)


def _attempt_closing(record: AttemptClosed) -> dict[str, Any]:
    columns = plain(record)
    del columns["failure"], columns["usage"]
    columns["key"] = columns.pop("call_id")
    columns["key_number"] = columns.pop("number")
    return columns | failure_columns(record.failure) | usage_columns(record.usage)


def _close_calls(tx: Connection, records: Sequence[CallClosed]) -> None:
    """The first close stands: the update finds open rows only, also within one group."""
    wanted = {record.call_id for record in records}
    for keys in parts(sorted(wanted)):
        wanted.difference_update(tx.scalars(_FIND_CALLS, {"keys": keys}))
    if wanted:
        raise PatchbayError(Reason.INTERNAL, f"call {min(wanted)} closes but was never opened")
    tx.execute(_CLOSE_CALL, [_call_closing(record) for record in records])


def _call_closing(record: CallClosed) -> dict[str, Any]:
    columns = plain(record)
    del columns["usage"]
    columns["key"] = columns.pop("call_id")
    return columns | usage_columns(record.usage)


def _add_tokens(tx: Connection, spent: Counter[tuple[str, str]]) -> None:
    rows = [
        {"connector_uid": uid, "month": month, "tokens": min(count, MONTH_MAX)}
        for (uid, month), count in sorted(spent.items())
    ]
    if not rows:
        return
    tx.execute(_ADD_TOKENS[tx.dialect.name], rows)


def close_interrupted(tx: Connection, process_id: str, at: datetime) -> int:
    Turn(tx)  # two processes that start together must not wait for each other's rows
    # Asked of each open attempt, of which there are few, not the other way round: a log has many calls.
    of_another = exists().where(calls.c.call_id == attempts.c.call_id, calls.c.process_id != process_id)
    tx.execute(
        attempts.update()
        .where(OPEN_ATTEMPT, of_another)
        .values(state=CallState.INTERRUPTED, latency_s=_seconds_until(at, attempts.c.started_at), ended_at=at)
    )
    made = select(func.count()).select_from(attempts).where(attempts.c.call_id == calls.c.call_id).scalar_subquery()
    closed = tx.execute(
        calls.update()
        .where(OPEN_CALL, calls.c.process_id != process_id)
        .values(
            state=CallState.INTERRUPTED,
            connector_uid=_of_last_attempt(attempts.c.connector_uid),
            provider=_of_last_attempt(attempts.c.provider),
            model=_of_last_attempt(attempts.c.model),
            attempts=made,
            latency_s=_seconds_until(at, calls.c.started_at),
            ended_at=at,
        )
    )
    holds.settle_interrupted(tx, process_id)
    return closed.rowcount


def _seconds_until(at: datetime, since: ColumnElement[datetime]) -> ColumnElement[float]:
    passed = literal(microseconds(at), BigInteger) - type_coerce(since, BigInteger)
    return case((passed > 0, cast(passed, Double) / 1_000_000.0), else_=0.0)


def _of_last_attempt(column: ColumnElement[str]) -> ColumnElement[str]:
    last = select(column).where(attempts.c.call_id == calls.c.call_id).order_by(attempts.c.number.desc()).limit(1)
    return func.coalesce(last.scalar_subquery(), "")


def purge_calls(tx: Connection, now: datetime, rows_max: int) -> int:
    """Raises: DEPENDENCY_UNAVAILABLE when the stored retention is out of bounds."""
    days = policy_of(tx.execute(select(policies)).one_or_none()).call_log_retention_days
    if days not in RETENTION_DAYS:
        raise PatchbayError(Reason.DEPENDENCY_UNAVAILABLE, retention_message(days))
    # Call ids sort by time of start: the oldest calls are the first of the key, found without a scan of the young ones.
    oldest = (
        select(calls.c.call_id, calls.c.started_at)
        .where(~OPEN_CALL)
        .order_by(calls.c.call_id)
        .limit(rows_max)
        .subquery()
    )
    expired = select(oldest.c.call_id).where(oldest.c.started_at < now - timedelta(days=days))
    return tx.execute(calls.delete().where(calls.c.call_id.in_(expired))).rowcount


# --- reading ----------------------------------------------------------------------------------------------------------


def find_call(tx: Connection, call_id: str) -> CallRow | None:
    row = tx.execute(select(calls).where(calls.c.call_id == call_id)).one_or_none()
    if row is None:
        return None
    return call_of(
        row, tx.execute(select(attempts).where(attempts.c.call_id == call_id).order_by(attempts.c.number)).all()
    )


def list_calls(tx: Connection, page: Page) -> list[CallRow]:
    rows = tx.execute(select(calls).where(calls.c.call_id > page.after).order_by(calls.c.call_id).limit(page.size))
    return [call_of(row) for row in rows]


def month_tokens(tx: Connection, connector_uids: Sequence[str], month: str) -> dict[str, int]:
    found: dict[str, int] = {}
    for uids in parts(connector_uids):
        rows = tx.execute(
            select(months.c.connector_uid, months.c.tokens).where(
                months.c.month == month, months.c.connector_uid.in_(uids)
            )
        )
        found.update((row.connector_uid, row.tokens) for row in rows)
    return found
