"""The tables of the first release.

SQLite and PostgreSQL differ in two ways here: how a trigger is written, and that PostgreSQL is told to order keys by
code points.
"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

KEY = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
SEQUENCE = sa.BigInteger().with_variant(sa.Integer(), "sqlite")

APPEND_ONLY = {
    "sqlite": (
        "CREATE TRIGGER audit_events_no_update BEFORE UPDATE ON audit_events "
        "BEGIN SELECT RAISE(ABORT, 'the audit trail is append-only'); END",
        "CREATE TRIGGER audit_events_no_delete BEFORE DELETE ON audit_events "
        "BEGIN SELECT RAISE(ABORT, 'the audit trail is append-only'); END",
        # INSERT OR REPLACE deletes without asking the trigger above.
        "CREATE TRIGGER audit_events_no_replace BEFORE INSERT ON audit_events "
        "WHEN EXISTS (SELECT 1 FROM audit_events WHERE sequence = NEW.sequence) "
        "BEGIN SELECT RAISE(ABORT, 'the audit trail is append-only'); END",
    ),
    "postgresql": (
        "CREATE FUNCTION refuse_audit_change() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION 'the audit trail is append-only'; END $$",
        "CREATE TRIGGER audit_events_no_change BEFORE UPDATE OR DELETE OR TRUNCATE ON audit_events "
        "FOR EACH STATEMENT EXECUTE FUNCTION refuse_audit_change()",
    ),
}


def upgrade() -> None:
    _create_administration()
    _create_audit()
    _create_calls()


def _create_administration() -> None:
    heads = op.create_table(
        "heads",
        sa.Column("id", sa.Integer, nullable=False, autoincrement=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("audit_sequence", sa.BigInteger, nullable=False),
        sa.Column("audit_hash", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_heads"),
        sa.CheckConstraint("id = 1", name="ck_heads_one_row"),
        comment="one row: the store's version and the end of the audit trail",
    )
    op.bulk_insert(heads, [{"id": 1, "version": 1, "audit_sequence": 0, "audit_hash": bytes(32)}])
    connectors = op.create_table(
        "connectors",
        sa.Column("uid", sa.Text, nullable=False),
        sa.Column("owner", KEY, nullable=False),
        sa.Column("id", KEY, nullable=False),
        sa.Column("type", sa.Text, nullable=False),
        sa.Column("display_name", sa.Text, nullable=False),
        sa.Column("sealed_blob", sa.LargeBinary, nullable=False),
        sa.Column("sealed_key_id", sa.Text, nullable=False),
        sa.Column("model_hint", sa.Text),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("is_default", sa.Boolean, nullable=False),
        sa.Column("settings", sa.Text, nullable=False),
        sa.Column("labels", sa.Text, nullable=False),
        sa.Column("monthly_token_cap", sa.BigInteger),
        sa.Column("last_used_at", sa.BigInteger),
        sa.Column("last_test_at", sa.BigInteger),
        sa.Column("last_test_result", sa.Text),
        sa.Column("rotated_at", sa.BigInteger, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("updated_at", sa.BigInteger, nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("uid", name="pk_connectors"),
        sa.UniqueConstraint("owner", "id", name="uq_connectors_owner_id"),
        sa.UniqueConstraint("owner", "display_name", name="uq_connectors_owner_display_name"),
        sa.UniqueConstraint("owner", "uid", name="uq_connectors_owner_uid"),
        sa.CheckConstraint("monthly_token_cap >= 0", name="ck_connectors_cap_not_negative"),
        sa.CheckConstraint(
            "NOT is_default OR state IN ('active', 'auth_invalid')", name="ck_connectors_default_is_usable"
        ),
    )
    op.create_index(
        "uq_connectors_one_default",
        "connectors",
        ["owner"],
        unique=True,
        sqlite_where=connectors.c.is_default,
        postgresql_where=connectors.c.is_default,
    )
    op.create_table(
        "preferences",
        sa.Column("owner", sa.Text, nullable=False),
        sa.Column("feature", KEY, nullable=False),
        sa.Column("connector_uid", sa.Text, nullable=False),
        sa.Column("updated_at", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("owner", "feature", name="pk_preferences"),
        sa.ForeignKeyConstraint(
            ["owner", "connector_uid"],
            ["connectors.owner", "connectors.uid"],
            ondelete="CASCADE",
            name="fk_preferences_own_connector",
        ),
    )
    op.create_index("ix_preferences_connector_uid", "preferences", ["connector_uid"])
    policies = op.create_table(
        "policies",
        sa.Column("id", sa.Integer, nullable=False, autoincrement=False),
        sa.Column("document", sa.Text, nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_policies"),
        sa.CheckConstraint("id = 1", name="ck_policies_one_row"),
    )
    op.bulk_insert(policies, [{"id": 1, "document": '{"updated_at":"1970-01-01T00:00:00Z"}', "version": 1}])
    op.create_table(
        "tokens",
        sa.Column("id", KEY, nullable=False),
        sa.Column("digest", sa.LargeBinary, nullable=False),
        sa.Column("display_name", sa.Text, nullable=False),
        sa.Column("scopes", sa.Text, nullable=False),
        sa.Column("owner", sa.Text),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("expires_at", sa.BigInteger),
        sa.Column("revoked_at", sa.BigInteger),
        sa.Column("last_used_at", sa.BigInteger),
        sa.PrimaryKeyConstraint("id", name="pk_tokens"),
    )


def _create_audit() -> None:
    op.create_table(
        "audit_events",
        sa.Column("sequence", SEQUENCE, nullable=False, autoincrement=False),
        sa.Column("at", sa.BigInteger, nullable=False),
        sa.Column("type", sa.Text, nullable=False),
        sa.Column("actor", sa.Text, nullable=False),
        sa.Column("subject", sa.Text, nullable=False),
        sa.Column("owner", sa.Text, nullable=False),
        sa.Column("connector_uid", sa.Text, nullable=False),
        sa.Column("qualifier", sa.Text, nullable=False),
        sa.Column("changed_fields", sa.Text, nullable=False),
        sa.Column("call_id", sa.Text, nullable=False),
        sa.Column("previous_hash", sa.LargeBinary, nullable=False),
        sa.Column("hash", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("sequence", name="pk_audit_events"),
    )
    op.create_index("ix_audit_events_owner", "audit_events", ["owner", "sequence"])
    op.create_index("ix_audit_events_connector_uid", "audit_events", ["connector_uid", "sequence"])
    for statement in APPEND_ONLY[op.get_context().dialect.name]:
        op.execute(statement)


def _create_calls() -> None:
    op.create_table(
        "calls",
        sa.Column("call_id", KEY, nullable=False),
        sa.Column("process_id", sa.Text, nullable=False),
        sa.Column("caller", sa.Text, nullable=False),
        sa.Column("owner", sa.Text, nullable=False),
        sa.Column("feature", sa.Text, nullable=False),
        sa.Column("requested_model", sa.Text, nullable=False),
        sa.Column("streaming", sa.Boolean, nullable=False),
        sa.Column("labels", sa.Text, nullable=False),
        sa.Column("request_id", sa.Text, nullable=False),
        sa.Column("started_at", sa.BigInteger, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("reason", sa.Text),
        sa.Column("connector_uid", sa.Text),
        sa.Column("provider", sa.Text),
        sa.Column("model", sa.Text),
        sa.Column("resolved_by", sa.Text),
        sa.Column("finish_reason", sa.Text),
        *_usage_columns(),
        sa.Column("attempts", sa.Integer),
        sa.Column("first_output_s", sa.Double),
        sa.Column("latency_s", sa.Double),
        sa.Column("ended_at", sa.BigInteger),
        sa.PrimaryKeyConstraint("call_id", name="pk_calls"),
        comment="counts and names of calls; columns from `reason` on are set when a call closes",
    )
    op.create_index("ix_calls_owner_started_at", "calls", ["owner", "started_at"])
    still_open = sa.text("state = 'open'")
    op.create_index("ix_calls_open", "calls", ["process_id"], sqlite_where=still_open, postgresql_where=still_open)
    op.create_table(
        "attempts",
        sa.Column("call_id", KEY, nullable=False),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("connector_uid", sa.Text, nullable=False),
        sa.Column("provider", sa.Text, nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("started_at", sa.BigInteger, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("reason", sa.Text),
        sa.Column("failure_provider", sa.Text),
        sa.Column("failure_connector", sa.Text),
        sa.Column("failure_http_status", sa.BigInteger),
        sa.Column("failure_provider_code", sa.Text),
        sa.Column("failure_upstream_request_id", sa.Text),
        sa.Column("failure_attempt_count", sa.BigInteger),
        *_usage_columns(),
        sa.Column("first_output_s", sa.Double),
        sa.Column("latency_s", sa.Double),
        sa.Column("ended_at", sa.BigInteger),
        sa.PrimaryKeyConstraint("call_id", "number", name="pk_attempts"),
        sa.ForeignKeyConstraint(["call_id"], ["calls.call_id"], ondelete="CASCADE", name="fk_attempts_call"),
    )
    op.create_index("ix_attempts_open", "attempts", ["call_id"], sqlite_where=still_open, postgresql_where=still_open)
    op.create_table(
        "months",
        sa.Column("connector_uid", sa.Text, nullable=False),
        sa.Column("month", sa.Text, nullable=False),
        sa.Column("tokens", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("connector_uid", "month", name="pk_months"),
        sa.CheckConstraint("tokens >= 0", name="ck_months_not_negative"),
        comment="tokens that each connector used in each UTC month, such as 2026-11",
    )


def _usage_columns() -> list[sa.Column[int] | sa.Column[str]]:
    return [
        sa.Column("input_tokens", sa.BigInteger),
        sa.Column("output_tokens", sa.BigInteger),
        sa.Column("total_tokens", sa.BigInteger),
        sa.Column("cached_input_tokens", sa.BigInteger),
        sa.Column("cache_write_input_tokens", sa.BigInteger),
        sa.Column("reasoning_tokens", sa.BigInteger),
        sa.Column("cost_usd_nanos", sa.BigInteger),
        sa.Column("usage_source", sa.Text),
    ]
