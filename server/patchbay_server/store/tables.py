"""The tables, and how a value becomes a column and back.

The database itself enforces what must never be otherwise: names unique per owner, one default per owner, a preference
only for the owner's own connector, caps and months that are not negative. No table of calls or of the audit trail has a
column that could hold what was said. `migrations` builds these tables; a test keeps the two alike.
"""

from datetime import datetime
from enum import StrEnum
from typing import Any, Final

import msgspec
from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Dialect,
    Double,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
    literal_column,
)

from patchbay_server.errors import Reason
from patchbay_server.store.bounds import COUNT_MAX, MONTH_MAX
from patchbay_server.store.moments import microseconds, moment
from patchbay_server.types import (
    AuditType,
    CallState,
    CapMode,
    CheckResult,
    ConnectorSettings,
    ConnectorState,
    FinishReason,
    ResolvedBy,
    Scope,
)
from patchbay_server.usage import UsageSource

# --- values in columns ------------------------------------------------------------------------------------------------


class DamagedRow(Exception):
    """A stored value is not what the gateway writes. The text names the kind of value, never the value."""


class Moment(TypeDecorator[datetime]):
    """A moment in whole microseconds since 1970 UTC."""

    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> int | None:
        return None if value is None else microseconds(value)

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:
        try:
            return None if value is None else moment(value)
        except (TypeError, OverflowError):
            raise DamagedRow("moment") from None


class Word(TypeDecorator[StrEnum]):
    """A member of an enum by its value."""

    impl = Text
    cache_ok = True

    def __init__(self, words: type[StrEnum]) -> None:
        super().__init__()
        self.words = words

    def process_bind_param(self, value: StrEnum | None, dialect: Dialect) -> str | None:
        return None if value is None else value.value

    def process_result_value(self, value: Any, dialect: Dialect) -> StrEnum | None:
        try:
            return None if value is None else self.words(value)
        except ValueError:
            raise DamagedRow(self.words.__name__) from None


class Json(TypeDecorator[Any]):
    """A small value of the given shape as JSON text."""

    impl = Text
    cache_ok = True

    def __init__(self, shape: Any) -> None:
        super().__init__()
        self.shape = shape

    def process_bind_param(self, value: Any, dialect: Dialect) -> str:
        return msgspec.json.encode(value, order="deterministic").decode()

    def process_result_value(self, value: Any, dialect: Dialect) -> Any:
        try:
            return msgspec.json.decode(value, type=self.shape)
        except (msgspec.MsgspecError, UnicodeError, TypeError):
            raise DamagedRow("JSON") from None


SETTINGS: Final = Json(ConnectorSettings)
LABELS: Final = Json(dict[str, str])
FIELDS: Final = Json(tuple[str, ...])
SCOPES: Final = Json(frozenset[Scope])
KEY: Final = Text().with_variant(Text(collation="C"), "postgresql")
"""Text that lists are ordered by: by code points in every database, whatever its language."""
SEQUENCE: Final = BigInteger().with_variant(Integer(), "sqlite")
"""A 64-bit primary key; only under this name does SQLite make it the row's own number."""


def _usage_columns() -> list[Column[Any]]:
    """A usage, all NULL when there is none."""
    return [
        Column("input_tokens", BigInteger),
        Column("output_tokens", BigInteger),
        Column("total_tokens", BigInteger),
        Column("cached_input_tokens", BigInteger),
        Column("cache_write_input_tokens", BigInteger),
        Column("reasoning_tokens", BigInteger),
        Column("cost_usd_nanos", BigInteger),
        Column("usage_source", Word(UsageSource)),
    ]


def _routing_columns() -> list[Column[Any]]:
    """A routing outcome, all NULL when the call was direct: a call has no room for a second one."""
    return [
        Column("routing_reserved_model", Text),
        Column("routing_quality_floor", Double),
        Column("routing_candidate_count", BigInteger),
        Column("routing_eligible_count", BigInteger),
        Column("routing_connector_uid", Text),
        Column("routing_model", Text),
        Column("routing_quality", Double),
    ]


# --- what may change --------------------------------------------------------------------------------------------------

METADATA: Final = MetaData()

heads = Table(
    "heads",
    METADATA,
    Column("id", Integer, nullable=False, autoincrement=False),
    Column("version", BigInteger, nullable=False),
    Column("audit_sequence", BigInteger, nullable=False),
    Column("audit_hash", LargeBinary, nullable=False),
    PrimaryKeyConstraint("id", name="pk_heads"),
    CheckConstraint("id = 1", name="ck_heads_one_row"),
    comment="one row: the store's version and the end of the audit trail",
)

connectors = Table(
    "connectors",
    METADATA,
    Column("uid", Text, nullable=False),
    Column("owner", KEY, nullable=False),
    Column("id", KEY, nullable=False),
    Column("type", Text, nullable=False),
    Column("display_name", Text, nullable=False),
    Column("sealed_blob", LargeBinary, nullable=False),
    Column("sealed_key_id", Text, nullable=False),
    Column("model_hint", Text),
    Column("state", Word(ConnectorState), nullable=False),
    Column("is_default", Boolean, nullable=False),
    Column("settings", SETTINGS, nullable=False),
    Column("labels", LABELS, nullable=False),
    Column("monthly_token_cap", BigInteger),
    Column("last_used_at", Moment),
    Column("last_test_at", Moment),
    Column("last_test_result", Word(CheckResult)),
    Column("rotated_at", Moment, nullable=False),
    Column("created_at", Moment, nullable=False),
    Column("updated_at", Moment, nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("cap_mode", Word(CapMode), nullable=False, server_default=CapMode.SOFT.value),
    PrimaryKeyConstraint("uid", name="pk_connectors"),
    UniqueConstraint("owner", "id", name="uq_connectors_owner_id"),
    UniqueConstraint("owner", "display_name", name="uq_connectors_owner_display_name"),
    UniqueConstraint("owner", "uid", name="uq_connectors_owner_uid"),
    CheckConstraint("monthly_token_cap >= 0", name="ck_connectors_cap_not_negative"),
    CheckConstraint("NOT is_default OR state IN ('active', 'auth_invalid')", name="ck_connectors_default_is_usable"),
)
Index(
    "uq_connectors_one_default",
    connectors.c.owner,
    unique=True,
    sqlite_where=connectors.c.is_default,
    postgresql_where=connectors.c.is_default,
)

preferences = Table(
    "preferences",
    METADATA,
    Column("owner", Text, nullable=False),
    Column("feature", KEY, nullable=False),
    Column("connector_uid", Text, nullable=False),
    Column("updated_at", Moment, nullable=False),
    PrimaryKeyConstraint("owner", "feature", name="pk_preferences"),
    ForeignKeyConstraint(
        ["owner", "connector_uid"],
        ["connectors.owner", "connectors.uid"],
        ondelete="CASCADE",
        name="fk_preferences_own_connector",
    ),
    Index("ix_preferences_connector_uid", "connector_uid"),
)

policies = Table(
    "policies",
    METADATA,
    Column("id", Integer, nullable=False, autoincrement=False),
    Column("document", Text, nullable=False),
    Column("version", BigInteger, nullable=False),
    PrimaryKeyConstraint("id", name="pk_policies"),
    CheckConstraint("id = 1", name="ck_policies_one_row"),
)

tokens = Table(
    "tokens",
    METADATA,
    Column("id", KEY, nullable=False),
    Column("digest", LargeBinary, nullable=False),
    Column("display_name", Text, nullable=False),
    Column("scopes", SCOPES, nullable=False),
    Column("owner", Text),
    Column("created_at", Moment, nullable=False),
    Column("expires_at", Moment),
    Column("revoked_at", Moment),
    Column("last_used_at", Moment),
    PrimaryKeyConstraint("id", name="pk_tokens"),
)

# --- what only grows --------------------------------------------------------------------------------------------------

audit_events = Table(
    "audit_events",
    METADATA,
    Column("sequence", SEQUENCE, nullable=False, autoincrement=False),
    Column("at", Moment, nullable=False),
    Column("type", Word(AuditType), nullable=False),
    Column("actor", Text, nullable=False),
    Column("subject", Text, nullable=False),
    Column("owner", Text, nullable=False),
    Column("connector_uid", Text, nullable=False),
    Column("qualifier", Text, nullable=False),
    Column("changed_fields", FIELDS, nullable=False),
    Column("call_id", Text, nullable=False),
    Column("previous_hash", LargeBinary, nullable=False),
    Column("hash", LargeBinary, nullable=False),
    PrimaryKeyConstraint("sequence", name="pk_audit_events"),
    Index("ix_audit_events_owner", "owner", "sequence"),
    Index("ix_audit_events_connector_uid", "connector_uid", "sequence"),
)

calls = Table(
    "calls",
    METADATA,
    Column("call_id", KEY, nullable=False),
    Column("process_id", Text, nullable=False),
    Column("caller", Text, nullable=False),
    Column("owner", Text, nullable=False),
    Column("feature", Text, nullable=False),
    Column("requested_model", Text, nullable=False),
    Column("streaming", Boolean, nullable=False),
    Column("labels", LABELS, nullable=False),
    Column("request_id", Text, nullable=False),
    Column("started_at", Moment, nullable=False),
    Column("state", Word(CallState), nullable=False),
    Column("reason", Word(Reason)),
    Column("connector_uid", Text),
    Column("provider", Text),
    Column("model", Text),
    Column("resolved_by", Word(ResolvedBy)),
    Column("finish_reason", Word(FinishReason)),
    *_usage_columns(),
    Column("attempts", Integer),
    Column("first_output_s", Double),
    Column("latency_s", Double),
    Column("ended_at", Moment),
    *_routing_columns(),
    PrimaryKeyConstraint("call_id", name="pk_calls"),
    Index("ix_calls_owner_started_at", "owner", "started_at"),
    comment="counts and names of calls; columns from `reason` to `ended_at` are set when a call closes",
)
OPEN_CALL: Final = calls.c.state == literal_column("'open'")
"""Written out, because SQLite uses a partial index only for a condition without parameters."""
Index("ix_calls_open", calls.c.process_id, sqlite_where=OPEN_CALL, postgresql_where=OPEN_CALL)

attempts = Table(
    "attempts",
    METADATA,
    Column("call_id", KEY, nullable=False),
    Column("number", Integer, nullable=False),
    Column("connector_uid", Text, nullable=False),
    Column("provider", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("started_at", Moment, nullable=False),
    Column("state", Word(CallState), nullable=False),
    Column("reason", Word(Reason)),
    Column("failure_provider", Text),
    Column("failure_connector", Text),
    Column("failure_http_status", BigInteger),
    Column("failure_provider_code", Text),
    Column("failure_upstream_request_id", Text),
    Column("failure_attempt_count", BigInteger),
    *_usage_columns(),
    Column("first_output_s", Double),
    Column("latency_s", Double),
    Column("ended_at", Moment),
    PrimaryKeyConstraint("call_id", "number", name="pk_attempts"),
    ForeignKeyConstraint(["call_id"], ["calls.call_id"], ondelete="CASCADE", name="fk_attempts_call"),
)
OPEN_ATTEMPT: Final = attempts.c.state == literal_column("'open'")
Index("ix_attempts_open", attempts.c.call_id, sqlite_where=OPEN_ATTEMPT, postgresql_where=OPEN_ATTEMPT)

months = Table(
    "months",
    METADATA,
    Column("connector_uid", Text, nullable=False),
    Column("month", Text, nullable=False),
    Column("tokens", BigInteger, nullable=False),
    PrimaryKeyConstraint("connector_uid", "month", name="pk_months"),
    CheckConstraint("tokens >= 0", name="ck_months_not_negative"),
    CheckConstraint(f"tokens <= {MONTH_MAX}", name="ck_months_do_not_overflow"),
    comment="tokens that each connector used in each UTC month, such as 2026-11",
)

holds = Table(
    "holds",
    METADATA,
    Column("call_id", Text, nullable=False),
    Column("number", Integer, nullable=False),
    Column("connector_uid", Text, nullable=False),
    Column("tokens", BigInteger, nullable=False),
    Column("expires_at", Moment, nullable=False),
    PrimaryKeyConstraint("call_id", "number", name="pk_holds"),
    CheckConstraint(f"tokens BETWEEN 0 AND {COUNT_MAX}", name="ck_holds_tokens_in_bounds"),
    Index("ix_holds_connector_uid", "connector_uid"),
    Index("ix_holds_expires_at", "expires_at"),
    comment="tokens of hard caps that running attempts may yet use",
)
