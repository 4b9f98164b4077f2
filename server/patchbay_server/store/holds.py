"""What running attempts hold of connectors' hard caps.

Every function is work within one transaction. Rows are locked in one order, so that no two transactions wait for each
other: calls, attempts and months first, then connectors, then holds.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Final

from sqlalchemy import BigInteger, Connection, bindparam, func, literal_column, select, tuple_, union_all
from sqlalchemy.sql.elements import ColumnElement

from patchbay_server.store.backends import INSERTS, parts
from patchbay_server.store.bounds import storable
from patchbay_server.store.rows import plain
from patchbay_server.store.tables import calls, connectors, holds, months
from patchbay_server.types import CallState, CapUse, Hold

_SETTLE: Final = holds.delete().where(holds.c.call_id == bindparam("key"), holds.c.number == bindparam("key_number"))
_SETTLE_CALL: Final = holds.delete().where(holds.c.call_id == bindparam("key"))


def hold_tokens(tx: Connection, hold: Hold, cap: int, month: str, now: datetime) -> bool:
    hold = storable(hold)
    # Holds of one connector are granted one after the other, in whatever process. SQLite lets only one transaction
    # write at all. A connector that was deleted has no row to lock, and no cap to keep.
    tx.execute(select(connectors.c.uid).where(connectors.c.uid == hold.connector_uid).with_for_update(key_share=True))
    _remove_expired(tx, now)
    # One statement, that is, one moment: an attempt that settles meanwhile is seen held or used, and never as neither.
    used = select(months.c.tokens).where(months.c.connector_uid == hold.connector_uid, months.c.month == month)
    held = (
        select(func.sum(holds.c.tokens))
        .where(holds.c.connector_uid == hold.connector_uid, holds.c.expires_at > now)
        .where((holds.c.call_id != hold.call_id) | (holds.c.number != hold.number))
    )
    taken = tx.execute(select(used.scalar_subquery(), held.scalar_subquery())).one()
    if int(taken[0] or 0) + int(taken[1] or 0) + hold.tokens > cap:
        return False
    insert = INSERTS[tx.dialect.name](holds).values(plain(hold))
    changed = {name: insert.excluded[name] for name in ("connector_uid", "tokens", "expires_at")}
    tx.execute(insert.on_conflict_do_update(index_elements=["call_id", "number"], set_=changed))
    return True


def _remove_expired(tx: Connection, now: datetime) -> None:
    """Those that another transaction removes at this moment are left to it."""
    expired = select(holds.c.call_id, holds.c.number).where(holds.c.expires_at <= now).with_for_update(skip_locked=True)
    tx.execute(holds.delete().where(tuple_(holds.c.call_id, holds.c.number).in_(expired)))


def settle(tx: Connection, attempts: Iterable[tuple[str, int]]) -> None:
    """Remove the holds of attempts, each a call's id and a number, whether they have one or not."""
    keys = [{"key": call_id, "key_number": number} for call_id, number in sorted(attempts)]
    if keys:
        tx.execute(_SETTLE, keys)


def settle_calls(tx: Connection, call_ids: Iterable[str]) -> None:
    """Remove every hold of these calls, also of attempts that never opened."""
    keys = [{"key": call_id} for call_id in sorted(call_ids)]
    if keys:
        tx.execute(_SETTLE_CALL, keys)


def settle_interrupted(tx: Connection, process_id: str) -> None:
    """Remove the holds of the calls of other processes than `process_id` that were interrupted."""
    interrupted = (
        select(calls.c.call_id)
        .where(calls.c.call_id == holds.c.call_id)
        .where(calls.c.process_id != process_id, calls.c.state == CallState.INTERRUPTED)
    )
    tx.execute(holds.delete().where(interrupted.exists()))


def cap_use(tx: Connection, connector_uids: Sequence[str], month: str, now: datetime) -> dict[str, CapUse]:
    found = {uid: CapUse() for uid in connector_uids}
    for uids in parts(connector_uids):
        nothing: ColumnElement[int] = literal_column("0", BigInteger)
        taken = union_all(
            select(months.c.connector_uid, months.c.tokens, nothing.label("held")).where(
                months.c.month == month, months.c.connector_uid.in_(uids)
            ),
            select(holds.c.connector_uid, nothing, holds.c.tokens).where(
                holds.c.expires_at > now, holds.c.connector_uid.in_(uids)
            ),
        ).subquery()
        rows = tx.execute(
            select(taken.c.connector_uid, func.sum(taken.c.tokens), func.sum(taken.c.held)).group_by(
                taken.c.connector_uid
            )
        )
        found.update((uid, CapUse(tokens=int(tokens), held=int(held))) for uid, tokens, held in rows)
    return found
