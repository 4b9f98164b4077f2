"""Hard caps with what running attempts hold of them, and what routing came to."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

MONTH_MAX = 2**61
COUNT_MAX = 10**15
CALLS_COMMENT = "counts and names of calls; columns from `reason` on are set when a call closes"
CALLS_COMMENT_NOW = "counts and names of calls; columns from `reason` to `ended_at` are set when a call closes"


def upgrade() -> None:
    op.add_column("connectors", sa.Column("cap_mode", sa.Text, nullable=False, server_default="soft"))
    for column in (
        sa.Column("routing_reserved_model", sa.Text),
        sa.Column("routing_quality_floor", sa.Double),
        sa.Column("routing_candidate_count", sa.BigInteger),
        sa.Column("routing_eligible_count", sa.BigInteger),
        sa.Column("routing_connector_uid", sa.Text),
        sa.Column("routing_model", sa.Text),
        sa.Column("routing_quality", sa.Double),
    ):
        op.add_column("calls", column)
    op.create_table(
        "holds",
        sa.Column("call_id", sa.Text, nullable=False),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("connector_uid", sa.Text, nullable=False),
        sa.Column("tokens", sa.BigInteger, nullable=False),
        sa.Column("expires_at", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("call_id", "number", name="pk_holds"),
        sa.CheckConstraint(f"tokens BETWEEN 0 AND {COUNT_MAX}", name="ck_holds_tokens_in_bounds"),
        comment="tokens of hard caps that running attempts may yet use",
    )
    op.create_index("ix_holds_connector_uid", "holds", ["connector_uid"])
    op.create_index("ix_holds_expires_at", "holds", ["expires_at"])
    if op.get_context().dialect.name == "sqlite":
        _make_months_anew()
    else:
        op.create_check_constraint("ck_months_do_not_overflow", "months", f"tokens <= {MONTH_MAX}")
        op.create_table_comment("calls", CALLS_COMMENT_NOW, existing_comment=CALLS_COMMENT)


def _make_months_anew() -> None:
    """SQLite adds no rule to a table that is there."""
    op.rename_table("months", "months_0001")
    op.create_table(
        "months",
        sa.Column("connector_uid", sa.Text, nullable=False),
        sa.Column("month", sa.Text, nullable=False),
        sa.Column("tokens", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("connector_uid", "month", name="pk_months"),
        sa.CheckConstraint("tokens >= 0", name="ck_months_not_negative"),
        sa.CheckConstraint(f"tokens <= {MONTH_MAX}", name="ck_months_do_not_overflow"),
        comment="tokens that each connector used in each UTC month, such as 2026-11",
    )
    op.execute("INSERT INTO months SELECT connector_uid, month, tokens FROM months_0001")
    op.drop_table("months_0001")
