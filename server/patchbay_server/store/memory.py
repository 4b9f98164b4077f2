# ruff: noqa: S101 -- asserts say what our own code owes a store
"""The store in memory: nothing survives the process. For tests and for trying the gateway out.

It passes the suite that the SQL store passes. Each method lets other tasks run once and is then done in one step, as a
transaction would be.
"""

import asyncio
from collections import ChainMap, Counter
from collections.abc import Mapping, MutableMapping, Sequence
from datetime import datetime, timedelta
from typing import Any, TypeVar, assert_never

from msgspec.structs import replace

from patchbay_server.errors import PatchbayError, Reason, UpstreamFailure
from patchbay_server.store import audit_chain
from patchbay_server.store.bounds import MONTH_MAX, storable
from patchbay_server.store.moments import EPOCH
from patchbay_server.store.ordering import check_order
from patchbay_server.store.protocol import (
    ACTIVE_STATES,
    POINTED_STATES,
    RETENTION_DAYS,
    AuditHead,
    AuditRow,
    Page,
    StoreInfo,
    address_of,
    retention_message,
)
from patchbay_server.types import (
    AttemptClosed,
    AttemptOpened,
    AttemptRow,
    Audited,
    AuditEvent,
    CallClosed,
    CallOpened,
    CallRow,
    CallState,
    CapUse,
    CheckResult,
    Connector,
    ConnectorState,
    ConnectorUsed,
    Hold,
    Policy,
    Preference,
    Record,
    Sealed,
    Snapshot,
    Token,
    month_of,
)

K = TypeVar("K", str, tuple[str, str])
V = TypeVar("V")


class MemoryStore:
    """A `Store`.

    Setting `available` to False makes every method raise DEPENDENCY_UNAVAILABLE, as a store whose database is gone
    does.
    """

    def __init__(self) -> None:
        self.available = True
        self._version = 1
        self._connectors: dict[str, Connector] = {}
        self._preferences: dict[tuple[str, str], tuple[str, datetime]] = {}
        self._policy = Policy(updated_at=EPOCH)
        self._tokens: dict[str, Token] = {}
        self._audit: list[AuditRow] = []
        self._records = _Records()
        self._holds: dict[tuple[str, int], Hold] = {}
        self._closed = False

    # --- life ---

    async def ping(self) -> None:
        await self._turn()

    async def describe(self) -> StoreInfo:
        await self._turn()
        sealed = Counter(connector.sealed.key_id for connector in self._connectors.values())
        return StoreInfo(kind="memory", schema_revision="", credentials=sealed)

    async def close(self) -> None:
        self._closed = True

    async def version(self) -> int:
        await self._turn()
        return self._version

    async def snapshot(self, owner: str) -> Snapshot:
        await self._turn()
        named = self._policy.organisation_default
        return Snapshot(
            version=self._version,
            owner=owner,
            connectors=tuple(sorted(self._connectors_of(owner), key=lambda connector: connector.id)),
            preferences={feature: uid for (of, feature), (uid, _) in self._preferences.items() if of == owner},
            organisation_default=self._at(*address_of(named)) if named else None,
            policy=self._policy,
        )

    async def _turn(self) -> None:
        await asyncio.sleep(0)
        if self._closed:
            raise PatchbayError(Reason.DEPENDENCY_UNAVAILABLE, "the store is closed")
        if not self.available:
            raise PatchbayError(Reason.DEPENDENCY_UNAVAILABLE, "the store is not available")

    def _changed(self, audits: Sequence[AuditEvent]) -> None:
        self._version += 1
        self._append(audits)

    def _append(self, audits: Sequence[AuditEvent]) -> None:
        for event in audits:
            self._audit.append(audit_chain.follow(self._head(), storable(event)))

    def _head(self) -> AuditHead:
        return audit_chain.head_of(self._audit[-1]) if self._audit else audit_chain.EMPTY

    # --- connectors ---

    async def create_connector(self, connector: Connector, audit: AuditEvent) -> None:
        assert not connector.is_default, "a new connector is nobody's default yet"
        await self._turn()
        if self._at(connector.owner, connector.id):
            raise _taken("connector_id")
        self._require_free_name(connector)
        assert connector.uid not in self._connectors, "uids are never reused"
        self._connectors[connector.uid] = connector
        self._changed([audit])

    async def find_connector(self, owner: str, connector_id: str) -> Connector | None:
        await self._turn()
        return self._at(owner, connector_id)

    async def list_connectors(self, owner: str | None, page: Page) -> Sequence[Connector]:
        await self._turn()
        after_owner, _, after_id = page.after.partition("/")
        wanted = {
            (connector.owner, connector.id): connector
            for connector in self._connectors.values()
            if owner is None or connector.owner == owner
        }
        return _page(wanted, (after_owner, after_id), page.size)

    async def save_connector(self, connector: Connector, expected_version: int, audits: Sequence[AuditEvent]) -> None:
        assert connector.version == expected_version + 1, "a change raises the version by one"
        await self._turn()
        stored = self._connector_at(connector.uid, expected_version)
        assert (connector.owner, connector.id) == (stored.owner, stored.id), "a connector keeps its address"
        self._require_free_name(connector)
        if connector.state not in POINTED_STATES:
            self._forget(stored, connector.updated_at)
        stored = self._connectors[connector.uid]
        self._connectors[connector.uid] = replace(
            connector,
            is_default=stored.is_default,
            last_used_at=stored.last_used_at,
            last_test_at=stored.last_test_at,
            last_test_result=stored.last_test_result,
        )
        self._changed(audits)

    async def delete_connector(self, uid: str, expected_version: int | None, audit: AuditEvent) -> None:
        await self._turn()
        self._forget(self._connector_at(uid, expected_version), audit.at)
        del self._connectors[uid]
        self._changed([audit])

    async def mark_auth_invalid(self, uid: str, sealed: Sealed, at: datetime, audit: AuditEvent) -> bool:
        await self._turn()
        stored = self._connectors.get(uid)
        if stored is None or stored.state is not ConnectorState.ACTIVE or stored.sealed != sealed:
            return False
        marked = replace(stored, state=ConnectorState.AUTH_INVALID, updated_at=at, version=stored.version + 1)
        self._connectors[uid] = marked
        self._changed([audit])
        return True

    async def record_test(self, uid: str, at: datetime, result: CheckResult) -> None:
        await self._turn()
        stored = self._connectors.get(uid)
        if stored and (stored.last_test_at is None or stored.last_test_at <= at):
            self._connectors[uid] = replace(stored, last_test_at=at, last_test_result=result)

    async def reseal_connector(self, uid: str, old: Sealed, new: Sealed) -> bool:
        await self._turn()
        stored = self._connectors.get(uid)
        if stored is None or stored.sealed != old:
            return False
        self._connectors[uid] = replace(stored, sealed=new)
        self._changed([])
        return True

    def _connectors_of(self, owner: str) -> list[Connector]:
        return [connector for connector in self._connectors.values() if connector.owner == owner]

    def _at(self, owner: str, connector_id: str) -> Connector | None:
        return next((found for found in self._connectors_of(owner) if found.id == connector_id), None)

    def _connector_at(self, uid: str, expected_version: int | None) -> Connector:
        stored = self._connectors.get(uid)
        if stored is None:
            raise PatchbayError(Reason.CONNECTOR_NOT_FOUND, "there is no such connector")
        if expected_version is not None and stored.version != expected_version:
            raise PatchbayError(Reason.ETAG_MISMATCH, "the connector was changed meanwhile; read it again")
        return stored

    def _require_free_name(self, connector: Connector) -> None:
        for other in self._connectors_of(connector.owner):
            if other.display_name == connector.display_name and other.uid != connector.uid:
                raise _taken("connector.display_name")

    def _require_active(self, connector: Connector | None) -> None:
        if connector is None:
            raise PatchbayError(Reason.CONNECTOR_NOT_FOUND, "there is no such connector")
        if connector.state not in ACTIVE_STATES:
            raise PatchbayError(Reason.CONNECTOR_INACTIVE, f"the connector is {connector.state.value}")

    def _forget(self, connector: Connector, at: datetime) -> None:
        """Clear every place that points to the connector."""
        self._connectors[connector.uid] = replace(connector, is_default=False)
        self._preferences = {key: value for key, value in self._preferences.items() if value[0] != connector.uid}
        if self._policy.organisation_default == connector.name:
            self._policy = replace(
                self._policy, organisation_default=None, updated_at=at, version=self._policy.version + 1
            )

    # --- default and preferences ---

    async def set_default(self, owner: str, uid: str | None, audit: AuditEvent) -> None:
        await self._turn()
        if uid is not None:
            self._require_active(self._own(owner, uid))
        current = next((connector.uid for connector in self._connectors_of(owner) if connector.is_default), None)
        if current == uid:
            return
        for changed, is_default in ((current, False), (uid, True)):
            if changed is not None:
                self._connectors[changed] = replace(self._connectors[changed], is_default=is_default)
        self._changed([audit])

    async def set_preference(self, owner: str, feature: str, uid: str, at: datetime, audit: AuditEvent) -> None:
        await self._turn()
        self._require_active(self._own(owner, uid))
        self._preferences[owner, feature] = (uid, at)
        self._changed([audit])

    async def clear_preference(self, owner: str, feature: str, audit: AuditEvent) -> bool:
        await self._turn()
        if self._preferences.pop((owner, feature), None) is None:
            return False
        self._changed([audit])
        return True

    async def list_preferences(self, owner: str, page: Page) -> Sequence[Preference]:
        await self._turn()
        own = {
            feature: Preference(
                owner=owner,
                feature=feature,
                connector_uid=uid,
                connector=self._connectors[uid].name,
                updated_at=at,
            )
            for (of, feature), (uid, at) in self._preferences.items()
            if of == owner
        }
        return _page(own, page.after, page.size)

    def _own(self, owner: str, uid: str) -> Connector | None:
        connector = self._connectors.get(uid)
        return connector if connector and connector.owner == owner else None

    # --- policy ---

    async def policy(self) -> Policy:
        await self._turn()
        return self._policy

    async def save_policy(self, policy: Policy, expected_version: int, audit: AuditEvent) -> None:
        assert policy.version == expected_version + 1, "a change raises the version by one"
        await self._turn()
        if self._policy.version != expected_version:
            raise PatchbayError(Reason.ETAG_MISMATCH, "the policy was changed meanwhile; read it again")
        named = policy.organisation_default
        if named is not None and named != self._policy.organisation_default:
            self._require_active(self._at(*address_of(named)))
        self._policy = policy
        self._changed([audit])

    # --- tokens ---

    async def create_token(self, token: Token, audit: AuditEvent) -> None:
        await self._turn()
        if token.id in self._tokens:
            raise _taken("token_id")
        self._tokens[token.id] = token
        self._append([audit])

    async def find_token(self, token_id: str) -> Token | None:
        await self._turn()
        return self._tokens.get(token_id)

    async def list_tokens(self, page: Page) -> Sequence[Token]:
        await self._turn()
        return _page(self._tokens, page.after, page.size)

    async def count_tokens(self) -> int:
        await self._turn()
        return len(self._tokens)

    async def revoke_token(self, token_id: str, at: datetime, audit: AuditEvent) -> bool:
        await self._turn()
        token = self._tokens.get(token_id)
        if token is None or token.revoked_at is not None:
            return False
        self._tokens[token_id] = replace(token, revoked_at=at)
        self._append([audit])
        return True

    async def touch_token(self, token_id: str, at: datetime) -> None:
        await self._turn()
        token = self._tokens.get(token_id)
        if token and (token.last_used_at is None or token.last_used_at < at):
            self._tokens[token_id] = replace(token, last_used_at=at)

    # --- records ---

    async def write_records(self, records: Sequence[Record]) -> None:
        await self._turn()
        fitting = [storable(record) for record in records]
        check_order(fitting)
        again = any(self._records.is_opened_by(record) for record in fitting)
        trail = [audit_chain.event_of(row) for row in self._audit] if again else []
        written = self._records.draft()
        for record in fitting:
            written.write(record)
        self._records.keep(written)
        for record in fitting:
            match record:
                case AttemptClosed(call_id=call_id, number=number):
                    self._holds.pop((call_id, number), None)
                case CallClosed(call_id=call_id):
                    self._holds = {key: hold for key, hold in self._holds.items() if key[0] != call_id}
                case ConnectorUsed(connector_uid=uid, at=at):
                    self._use(uid, at)
                case Audited(event=event) if event not in trail:
                    self._append([event])

    def _use(self, uid: str, at: datetime) -> None:
        stored = self._connectors.get(uid)
        if stored and (stored.last_used_at is None or stored.last_used_at < at):
            self._connectors[uid] = replace(stored, last_used_at=at)

    async def close_interrupted(self, process_id: str, at: datetime) -> int:
        await self._turn()
        closed = self._records.close_interrupted(process_id, at)
        interrupted = self._records.interrupted(process_id)
        self._holds = {key: hold for key, hold in self._holds.items() if key[0] not in interrupted}
        return closed

    async def find_call(self, call_id: str) -> CallRow | None:
        await self._turn()
        return self._records.find(call_id)

    async def list_calls(self, page: Page) -> Sequence[CallRow]:
        await self._turn()
        return _page(self._records.calls, page.after, page.size)

    async def purge_calls(self, now: datetime, rows_max: int) -> int:
        await self._turn()
        days = self._policy.call_log_retention_days
        if days not in RETENTION_DAYS:
            raise PatchbayError(Reason.DEPENDENCY_UNAVAILABLE, retention_message(days))
        return self._records.purge(now - timedelta(days=days), rows_max)

    async def month_tokens(self, connector_uids: Sequence[str], month: str) -> dict[str, int]:
        await self._turn()
        return {uid: self._records.months[uid, month] for uid in connector_uids if (uid, month) in self._records.months}

    # --- hard caps ---

    async def hold_tokens(self, hold: Hold, cap: int, month: str, now: datetime) -> bool:
        assert hold.tokens >= 0, "a hold takes nothing back"
        await self._turn()
        hold = storable(hold)
        key = (hold.call_id, hold.number)
        self._holds = {of: other for of, other in self._holds.items() if other.expires_at > now}
        held = sum(
            other.tokens for of, other in self._holds.items() if other.connector_uid == hold.connector_uid and of != key
        )
        if self._records.months.get((hold.connector_uid, month), 0) + held + hold.tokens > cap:
            return False
        self._holds[key] = hold
        return True

    async def cap_use(self, connector_uids: Sequence[str], month: str, now: datetime) -> dict[str, CapUse]:
        await self._turn()
        held: Counter[str] = Counter()
        for hold in self._holds.values():
            if hold.expires_at > now:
                held[hold.connector_uid] += hold.tokens
        return {uid: CapUse(tokens=self._records.months.get((uid, month), 0), held=held[uid]) for uid in connector_uids}

    # --- audit ---

    async def list_audit(self, page: Page) -> Sequence[AuditRow]:
        after = audit_chain.sequence_after(page)
        await self._turn()
        return self._audit[after : after + page.size]

    async def audit_head(self) -> AuditHead:
        await self._turn()
        return self._head()


class _Records:
    """Calls without their attempts, attempts, and the months that they add up to."""

    def __init__(self) -> None:
        self.calls: MutableMapping[str, CallRow] = {}
        self.attempts: MutableMapping[tuple[str, int], AttemptRow] = {}
        self.months: MutableMapping[tuple[str, str], int] = {}

    def draft(self) -> "_Records":
        """Records to write a group to, which changes nothing here until it is kept."""
        draft = _Records()
        draft.calls = ChainMap({}, self.calls)
        draft.attempts = ChainMap({}, self.attempts)
        draft.months = ChainMap({}, self.months)
        return draft

    def keep(self, draft: "_Records") -> None:
        self.calls.update(_written(draft.calls))
        self.attempts.update(_written(draft.attempts))
        self.months.update(_written(draft.months))

    def write(self, record: Record) -> None:
        match record:
            case CallOpened():
                if self.is_opened_by(record):
                    return
                _require(record.call_id not in self.calls, "a call is opened twice")
                self.calls[record.call_id] = CallRow(opened=record, state=CallState.OPEN, closed=None)
            case AttemptOpened():
                key = (record.call_id, record.number)
                if self.is_opened_by(record):
                    return
                _require(record.call_id in self.calls, "an attempt is opened of a call that was not")
                _require(key not in self.attempts, "an attempt is opened twice")
                self.attempts[key] = AttemptRow(opened=record, state=CallState.OPEN, closed=None)
            case AttemptClosed():
                _require((record.call_id, record.number) in self.attempts, "an attempt closes but was never opened")
                self._close_attempt(record)
            case CallClosed():
                _require(record.call_id in self.calls, "a call closes but was never opened")
                self._close_call(record)
            case ConnectorUsed() | Audited():
                pass  # no part of a call's own record
            case _:
                assert_never(record)

    def is_opened_by(self, record: Record) -> bool:
        """Whether it is a record that opens a call or attempt, and has opened it before."""
        row: CallRow | AttemptRow | None = None
        match record:
            case CallOpened():
                row = self.calls.get(record.call_id)
            case AttemptOpened():
                row = self.attempts.get((record.call_id, record.number))
        return row is not None and row.opened == record

    def _close_attempt(self, record: AttemptClosed) -> None:
        row = self.attempts[record.call_id, record.number]
        if row.state is not CallState.OPEN:
            return
        self.attempts[record.call_id, record.number] = replace(row, state=record.state, closed=record)
        if record.usage:
            month = (row.opened.connector_uid, month_of(record.ended_at))
            tokens = record.usage.input_tokens + record.usage.output_tokens
            self.months[month] = min(self.months.get(month, 0) + tokens, MONTH_MAX)

    def _close_call(self, record: CallClosed) -> None:
        row = self.calls[record.call_id]
        if row.state is CallState.OPEN:
            self.calls[record.call_id] = replace(row, state=record.state, closed=record)

    def close_interrupted(self, process_id: str, at: datetime) -> int:
        others = {call_id for call_id, row in self.calls.items() if row.opened.process_id != process_id}
        for (call_id, _), attempt in list(self.attempts.items()):
            if call_id in others:
                self._close_attempt(_interrupted_attempt(attempt.opened, at))
        open_calls = [call_id for call_id in others if self.calls[call_id].state is CallState.OPEN]
        for call_id in open_calls:
            self._close_call(_interrupted_call(self.calls[call_id].opened, self._attempts_of(call_id), at))
        return len(open_calls)

    def interrupted(self, process_id: str) -> set[str]:
        """The calls of other processes that were interrupted."""
        return {
            call_id
            for call_id, row in self.calls.items()
            if row.state is CallState.INTERRUPTED and row.opened.process_id != process_id
        }

    def _attempts_of(self, call_id: str) -> tuple[AttemptRow, ...]:
        return tuple(row for key, row in sorted(self.attempts.items(), key=lambda item: item[0]) if key[0] == call_id)

    def find(self, call_id: str) -> CallRow | None:
        row = self.calls.get(call_id)
        return replace(row, attempts=self._attempts_of(call_id)) if row else None

    def purge(self, before: datetime, rows_max: int) -> int:
        closed = [call_id for call_id, row in sorted(self.calls.items()) if row.state is not CallState.OPEN]
        expired = {call_id for call_id in closed[:rows_max] if self.calls[call_id].opened.started_at < before}
        self.calls = {call_id: row for call_id, row in self.calls.items() if call_id not in expired}
        self.attempts = {key: row for key, row in self.attempts.items() if key[0] not in expired}
        return len(expired)


def _written(draft: MutableMapping[Any, Any]) -> MutableMapping[Any, Any]:
    assert isinstance(draft, ChainMap)
    return draft.maps[0]


def _interrupted_attempt(opened: AttemptOpened, at: datetime) -> AttemptClosed:
    return AttemptClosed(
        call_id=opened.call_id,
        number=opened.number,
        state=CallState.INTERRUPTED,
        reason=None,
        failure=UpstreamFailure(),
        usage=None,
        first_output_s=None,
        latency_s=_seconds_until(at, opened.started_at),
        ended_at=at,
    )


def _interrupted_call(opened: CallOpened, attempts: Sequence[AttemptRow], at: datetime) -> CallClosed:
    last = attempts[-1].opened if attempts else None
    return CallClosed(
        call_id=opened.call_id,
        state=CallState.INTERRUPTED,
        reason=None,
        connector_uid=last.connector_uid if last else "",
        provider=last.provider if last else "",
        model=last.model if last else "",
        resolved_by=None,
        finish_reason=None,
        usage=None,
        attempts=len(attempts),
        first_output_s=None,
        latency_s=_seconds_until(at, opened.started_at),
        ended_at=at,
    )


def _seconds_until(at: datetime, since: datetime) -> float:
    return max((at - since).total_seconds(), 0.0)


def _require(fact: bool, message: str) -> None:
    if not fact:
        raise PatchbayError(Reason.INTERNAL, message)


def _taken(field: str) -> PatchbayError:
    return PatchbayError(Reason.ALREADY_EXISTS, "there is one already; choose another", field=field)


def _page(rows: Mapping[K, V], after: K, size: int) -> list[V]:
    return [rows[key] for key in sorted(key for key in rows if key > after)[:size]]
