# ruff: noqa: S101 -- asserts say what our own code owes a store
"""What the core needs of a store.

Every method is one transaction. Whoever changes something hands over the audit event of that fact, which is written in
the same transaction; every change of connectors, preferences or policy also raises the store's version in it. A store
raises DEPENDENCY_UNAVAILABLE when its database cannot be reached or written or holds what it cannot read, and never
lets a driver's exception or a statement out. A caller that is cancelled leaves either the whole transaction or nothing
of it.

Using and testing a connector are observations, not changes: they raise neither the store's version nor the connector's.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Protocol

import msgspec

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


class Page(msgspec.Struct, frozen=True, kw_only=True):
    """Which part of a list: at most `size` (1 or more) rows after the one that `after` (the last row's key, "" for the
    start) names.

    The row that `after` names need not exist any more, so that paging is stable while rows come and go.
    """

    size: int
    after: str = ""

    def __post_init__(self) -> None:
        assert self.size > 0, "SQLite takes a negative limit for none"


class AuditRow(AuditEvent, frozen=True, kw_only=True):
    """An audit event as stored: `sequence` counts 1, 2, 3, ... without gaps; `hash` is `audit_chain.audit_hash` of it
    and the row before.
    """

    sequence: int
    previous_hash: bytes
    hash: bytes


class AuditHead(msgspec.Struct, frozen=True, kw_only=True):
    """Where the audit trail ends, kept apart from its rows so that rows cut off its end are missed. `sequence` 0 means
    an empty trail.
    """

    sequence: int
    hash: bytes


class StoreInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What a store tells of itself. `kind` is "sqlite", "postgresql" or "memory"; `schema_revision` is "" for the last.

    `credentials` counts stored credentials by the id of the master key that seals them.
    """

    kind: str
    schema_revision: str
    credentials: Mapping[str, int]


class Store(Protocol):
    # --- life ---

    async def ping(self) -> None:
        """Prove that the database answers and can be read."""
        ...

    async def describe(self) -> StoreInfo: ...

    async def close(self) -> None: ...

    async def version(self) -> int:
        """The version that every change of connectors, preferences or policy raises, by whichever process."""
        ...

    async def snapshot(self, owner: str) -> Snapshot:
        """All that resolving a call of `owner` needs, read in one transaction.

        A connector whose row cannot be read is left out, with a line in the log that names its uid, so that it stops no
        calls but its own. Reading that connector itself is DEPENDENCY_UNAVAILABLE.
        """
        ...

    # --- connectors ---

    async def create_connector(self, connector: Connector, audit: AuditEvent) -> None:
        """Add a connector, which is not yet anybody's default.

        Raises:
            ALREADY_EXISTS, `field` `connector_id` or `connector.display_name`, when the owner has one of that id or
            display name.
        """
        ...

    async def find_connector(self, owner: str, connector_id: str) -> Connector | None: ...

    async def list_connectors(self, owner: str | None, page: Page) -> Sequence[Connector]:
        """Ordered by (owner, id), which is also the page key `owner/id`. `owner` None lists all owners'."""
        ...

    async def save_connector(self, connector: Connector, expected_version: int, audits: Sequence[AuditEvent]) -> None:
        """Replace the connector of that uid if its version is still `expected_version`.

        `connector.version` must be `expected_version + 1`, its owner and id the stored ones. Its last use, last test
        and default flag are not taken from `connector`: other methods own them. A connector that becomes anything but
        ACTIVE or AUTH_INVALID loses its default flag and every preference and organisation default that points to it in
        the same transaction; losing the last raises the policy's version.

        Raises:
            ETAG_MISMATCH when the version moved on, CONNECTOR_NOT_FOUND when it is gone, ALREADY_EXISTS for a taken
            display name.
        """
        ...

    async def delete_connector(self, uid: str, expected_version: int | None, audit: AuditEvent) -> None:
        """Delete it and every place that points to it (default flag, preferences, organisation default). Its audit
        trail and calls stay.

        Raises:
            ETAG_MISMATCH when the version is not `expected_version` (None takes any), CONNECTOR_NOT_FOUND.
        """
        ...

    async def mark_auth_invalid(self, uid: str, sealed: Sealed, at: datetime, audit: AuditEvent) -> bool:
        """Turn ACTIVE into AUTH_INVALID if the connector still holds the credential `sealed`; True when this call made
        the transition.

        The audit event is written and the connector's version raised only with the transition, so that it exists once
        however many calls fail together.
        """
        ...

    async def record_test(self, uid: str, at: datetime, result: CheckResult) -> None:
        """Keep the latest test's moment and result; nothing when the connector is gone."""
        ...

    async def reseal_connector(self, uid: str, old: Sealed, new: Sealed) -> bool:
        """Exchange the sealed form of an unchanged credential; False when it changed meanwhile.

        Raises the store's version, since snapshots hold sealed forms, but not the connector's.
        """
        ...

    # --- default and preferences ---

    async def set_default(self, owner: str, uid: str | None, audit: AuditEvent) -> None:
        """Make `uid` the owner's one default connector, or none of them.

        Nothing changes, and no audit event is written, when that is how it was. No connector's version is raised: the
        flag belongs to the owner.

        Raises:
            CONNECTOR_NOT_FOUND when it is not the owner's, CONNECTOR_INACTIVE when it is not ACTIVE.
        """
        ...

    async def set_preference(self, owner: str, feature: str, uid: str, at: datetime, audit: AuditEvent) -> None:
        """An atomic upsert: of two concurrent writers the last wins. Raises as `set_default`."""
        ...

    async def clear_preference(self, owner: str, feature: str, audit: AuditEvent) -> bool:
        """False, and no audit event, when there was none."""
        ...

    async def list_preferences(self, owner: str, page: Page) -> Sequence[Preference]:
        """Ordered by feature, which is also the page key."""
        ...

    # --- policy ---

    async def policy(self) -> Policy:
        """The policy; the default one, version 1 and as of 1970, when none was ever saved. Numbers in it are as stored,
        in bounds or not.
        """
        ...

    async def save_policy(self, policy: Policy, expected_version: int, audit: AuditEvent) -> None:
        """Replace the policy if its version is still `expected_version`; `policy.version` must be `expected_version +
        1`.

        Raises:
            ETAG_MISMATCH; CONNECTOR_NOT_FOUND or CONNECTOR_INACTIVE for a newly named organisation default that is not
            there or not ACTIVE.
        """
        ...

    # --- tokens ---

    async def create_token(self, token: Token, audit: AuditEvent) -> None:
        """Raises: ALREADY_EXISTS, `field` `token_id`, when there is one of that id."""
        ...

    async def find_token(self, token_id: str) -> Token | None: ...

    async def list_tokens(self, page: Page) -> Sequence[Token]:
        """Ordered by id, which is also the page key."""
        ...

    async def count_tokens(self) -> int: ...

    async def revoke_token(self, token_id: str, at: datetime, audit: AuditEvent) -> bool:
        """False, and no audit event, when there is no such token or it was revoked before."""
        ...

    async def touch_token(self, token_id: str, at: datetime) -> None:
        """Keep the latest moment at which the token was used; nothing when it is gone."""
        ...

    # --- records ---

    async def write_records(self, records: Sequence[Record]) -> None:
        """Write a group of records in their order, in one transaction that is durable when this returns.

        An attempt that closes adds its tokens (input plus output) to the month of its `ended_at` of the connector that
        it was made on, so that a failed attempt's tokens count where they were spent, and its hold goes in the same
        moment; a call that closes adds nothing to that, and gives back whatever else is held for it. A closing record
        changes a row that is still open and nothing else, so that nothing counts twice: the first close stands. A
        ConnectorUsed keeps the latest moment, and is nothing when the connector is gone.

        A record is never lost over its contents: text beyond 512 characters is cut, characters that a database cannot
        hold become U+FFFD, counts are kept within 0 and 10^15.

        A group may be written again, since the answer to a commit can be lost: a record that opens what was opened
        before by the same record is nothing, and an audit event beside it that is in the trail is not written twice.

        Raises:
            INTERNAL, with nothing written, for a record that opens what was opened before by another record or within
            the same group, or that belongs to what was never opened.
        """
        ...

    async def close_interrupted(self, process_id: str, at: datetime) -> int:
        """Close every open call and attempt of other processes than `process_id` as INTERRUPTED, without usage or
        reason; how many calls that were. What was held for them is free again.

        Such a call names the connector, provider and model of its last attempt and lasted until `at`.
        """
        ...

    async def find_call(self, call_id: str) -> CallRow | None: ...

    async def list_calls(self, page: Page) -> Sequence[CallRow]:
        """Without their attempts, ordered by call id (which sorts by time of start), which is also the page key."""
        ...

    async def purge_calls(self, now: datetime, rows_max: int) -> int:
        """Delete calls, with their attempts, that started longer before `now` than the policy's retention; how many
        that were.

        Takes the oldest, at most `rows_max`, so that one purge is many short transactions: call again until it answers
        0. Open calls and the months' tokens stay.

        Raises:
            DEPENDENCY_UNAVAILABLE, with nothing deleted, when the stored retention is not within `RETENTION_DAYS`: a
            damaged number must not cost the log.
        """
        ...

    async def month_tokens(self, connector_uids: Sequence[str], month: str) -> dict[str, int]:
        """Tokens that each connector used in `month` (`2026-11`); connectors without use are left out."""
        ...

    # --- hard caps ---

    async def hold_tokens(self, hold: Hold, cap: int, month: str, now: datetime) -> bool:
        """Hold `hold.tokens` of a connector's cap for an attempt, or change the hold that the attempt has to that many.

        False, with no hold made or changed, when the tokens of `month`, the live holds of other attempts on the
        connector and `hold.tokens` together pass `cap`. Of holds that are asked for together no two are granted the
        same tokens. The attempt need not be opened yet. Holds that have expired by `now`, on any connector, count
        nothing and are removed. More than 10^15 tokens are held as so many, as no attempt counts for more.
        """
        ...

    async def cap_use(self, connector_uids: Sequence[str], month: str, now: datetime) -> dict[str, CapUse]:
        """What of each connector's cap is taken in `month` and at `now`: an entry for every uid that was asked for."""
        ...

    # --- audit ---

    async def list_audit(self, page: Page) -> Sequence[AuditRow]:
        """In the order of writing; the page key is the row's sequence number as text.

        Raises:
            INVALID_REQUEST, `field` `page_token`, for a page key that is not such a number.
        """
        ...

    async def audit_head(self) -> AuditHead: ...


ACTIVE_STATES = frozenset({ConnectorState.ACTIVE})
"""States in which a connector may answer, be the default or be preferred."""
POINTED_STATES = frozenset({ConnectorState.ACTIVE, ConnectorState.AUTH_INVALID})
"""States in which a connector keeps what points to it: a refused key is replaced sooner or later, a switched-off
connector is not waited for.
"""
RETENTION_DAYS = range(7, 366)
"""For how many days calls may be kept."""


def retention_message(days: int) -> str:
    """Why nothing is purged, for operators."""
    bounds = f"{RETENTION_DAYS[0]} to {RETENTION_DAYS[-1]}"
    return (
        f"the stored call-log retention of {days} days is not within {bounds}: save the policy anew; no call was purged"
    )


def address_of(name: str) -> tuple[str, str]:
    """Owner and id in a connector's resource name; two empty strings, which no connector has, when it is not one."""
    match name.split("/"):
        case ["owners", owner, "connectors", connector_id]:
            return owner, connector_id
    return "", ""
