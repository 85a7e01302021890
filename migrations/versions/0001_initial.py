"""The first schema: operational tables, the ledger's tables, and what keeps the ledger as it was written."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.types import TypeEngine

from broker.database.types import BigCounter, Digest, Id
from migrations.append_only import partition_by_month, refuse_changes_on_postgresql, refuse_changes_on_sqlite

__all__ = ["down_revision", "downgrade", "revision", "upgrade"]

revision = "0001"
down_revision = None

APPEND_ONLY = ("attempt", "cost_entry", "job_outcome", "ledger_batch", "price")
PARTITIONED = ("attempt", "cost_entry")


def upgrade() -> None:
    on_postgresql = op.get_bind().dialect.name == "postgresql"
    _create_tenancy()
    _create_batches()
    _create_jobs()
    _create_requests()
    _create_planning()
    _create_shards()
    _create_attempt()
    _create_cost_entry()
    _create_outcomes_and_proofs()
    _create_price()
    if on_postgresql:
        refuse_changes_on_postgresql(APPEND_ONLY)
        partition_by_month(PARTITIONED)
    else:
        refuse_changes_on_sqlite(APPEND_ONLY)
        op.execute(f"PRAGMA application_id = {int.from_bytes(b'IBrk')}")  # by which the file is known as ours


def downgrade() -> None:
    raise NotImplementedError("The ledger is never taken back; restore a backup instead.")


def _columns(kind: TypeEngine[Any] | type[TypeEngine[Any]], *names: str) -> list[sa.Column[Any]]:
    """A run of required columns of one type."""
    return [sa.Column(name, kind, nullable=False) for name in names]


def _create_tenancy() -> None:
    op.create_table(
        "tenant",
        sa.Column("tenant_id", sa.String(64), primary_key=True),
        sa.Column("created_us", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "signing_key",
        sa.Column("key_id", sa.String(64), primary_key=True),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("owner", sa.String(128), nullable=False),
        sa.Column("public_key", sa.LargeBinary(32), nullable=False),
        sa.Column("created_us", sa.BigInteger, nullable=False),
        sa.Column("revoked_us", sa.BigInteger),
    )
    op.create_table(
        "work_group",
        sa.Column("group_id", Id, primary_key=True),
        sa.Column("digest", Digest, nullable=False),
        sa.Column("tenant_id", sa.String(64), sa.ForeignKey("tenant.tenant_id"), nullable=False),
        sa.Column("endpoint", sa.String(64), nullable=False),
        sa.Column("model", sa.String(256), nullable=False),
        sa.Column("constraints", sa.Text, nullable=False),
        *_columns(sa.BigInteger, "deadline_us", "created_us"),
        sa.UniqueConstraint("digest"),
    )


def _create_batches() -> None:
    op.create_table(
        "batch",
        sa.Column("batch_id", Id, primary_key=True),
        sa.Column("tenant_id", sa.String(64), sa.ForeignKey("tenant.tenant_id"), nullable=False),
        sa.Column("name", sa.Text),
        sa.Column("source_name", sa.Text, nullable=False),
        sa.Column("source_digest", Digest, nullable=False),
        sa.Column("source_bytes", sa.BigInteger, nullable=False),
        sa.Column("output_path", sa.Text),
        sa.Column("error_path", sa.Text),
        *_columns(sa.BigInteger, "window_seconds", "deadline_us"),
        sa.Column("max_cost_nano_usd", sa.BigInteger),
        sa.Column("constraints", sa.Text, nullable=False),
        *_columns(sa.BigInteger, "created_us", "read_lines", "read_bytes", "accepted_jobs", "refused_lines"),
        sa.Column("read_us", sa.BigInteger),
        sa.Column("cancel_requested_us", sa.BigInteger),
        sa.Column("finished_us", sa.BigInteger),
        sa.Column("status", sa.String(16), nullable=False),
    )
    op.create_index("ix_batch_source", "batch", ["tenant_id", "source_digest", "created_us"])
    unfinished = sa.text("finished_us IS NULL")
    op.create_index("ix_batch_open", "batch", ["created_us"], sqlite_where=unfinished, postgresql_where=unfinished)
    op.create_table(
        "batch_refusal",
        sa.Column("batch_id", Id, sa.ForeignKey("batch.batch_id"), primary_key=True),
        sa.Column("line_number", sa.BigInteger, primary_key=True),
        sa.Column("custom_id", sa.Text),
        sa.Column("error_code", sa.String(32), nullable=False),
        sa.Column("message", sa.Text, nullable=False),
    )
    op.create_table(
        "batch_count",
        sa.Column("batch_id", Id, primary_key=True),
        sa.Column("writer", sa.String(64), primary_key=True),
        *_columns(sa.BigInteger, "succeeded", "failed", "cancelled", "expired", "attempts"),
        *_columns(sa.BigInteger, "input_tokens", "output_tokens", "cost_nano_usd", "wasted_nano_usd"),
    )


def _create_jobs() -> None:
    op.create_table(
        "job",
        sa.Column("job_id", Id, primary_key=True),
        sa.Column("tenant_id", sa.String(64), nullable=False),
        sa.Column("group_id", Id, nullable=False),
        sa.Column("batch_id", Id),
        sa.Column("line_number", sa.BigInteger),
        sa.Column("custom_id", sa.Text),
        sa.Column("body_bytes", sa.Integer, nullable=False),
        *_columns(sa.BigInteger, "submitted_us", "deadline_us"),
        sa.Column("budget_nano_usd", sa.BigInteger),
        sa.Column("tags", sa.Text),
        sa.Column("redrive_of", Id),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_job_batch", "job", ["batch_id", "line_number"], unique=True)
    op.create_index("ix_job_custom", "job", ["batch_id", "custom_id"], unique=True)
    op.create_table(
        "payload",
        sa.Column("job_id", Id, primary_key=True),
        sa.Column("body", sa.LargeBinary),
        sa.Column("object_ref", sa.Text),
        sa.Column("salt", sa.LargeBinary(16), nullable=False),
        sa.CheckConstraint("(body IS NULL) <> (object_ref IS NULL)", name=op.f("ck_payload_one_place")),
    )
    op.create_table(
        "result",
        sa.Column("job_id", Id, primary_key=True),
        sa.Column("attempt_id", Id),
        sa.Column("status_code", sa.Integer, nullable=False),
        sa.Column("request_id", sa.Text, nullable=False),
        sa.Column("error_code", sa.String(32)),
        sa.Column("message", sa.Text),
        sa.Column("body", sa.LargeBinary),
        sa.Column("object_ref", sa.Text),
    )
    op.create_table(
        "ready",
        sa.Column("first_job_id", Id, primary_key=True),
        sa.Column("jobs_count", sa.Integer, nullable=False),
        sa.Column("group_id", Id, sa.ForeignKey("work_group.group_id"), nullable=False),
        sa.Column("batch_id", Id),
        sa.Column("deadline_us", sa.BigInteger, nullable=False),
        *_columns(sa.Integer, "body_bytes_max", "attempt_number", "failures", "crashes"),
        sa.Column("alone", sa.Boolean, nullable=False),
        sa.Column("not_before_us", sa.BigInteger, nullable=False),
    )
    op.create_index("ix_ready_order", "ready", ["group_id", "deadline_us", "first_job_id"])


def _create_requests() -> None:
    op.create_table(
        "idempotency",
        sa.Column("tenant_id", sa.String(64), primary_key=True),
        sa.Column("idempotency_key", sa.String(256), primary_key=True),
        sa.Column("fingerprint", Digest, nullable=False),
        sa.Column("job_id", Id, nullable=False),
        sa.Column("created_us", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "cancel_request",
        sa.Column("job_id", Id, primary_key=True),
        sa.Column("requested_us", sa.BigInteger, nullable=False),
    )


def _create_planning() -> None:
    op.create_table(
        "lane",
        sa.Column("name", sa.String(128), primary_key=True),
        sa.Column("description", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "plan",
        sa.Column("generation", BigCounter, primary_key=True, autoincrement=False),
        sa.Column("plan_id", Id, nullable=False),
        sa.Column("created_us", sa.BigInteger, nullable=False),
        sa.Column("inputs_digest", Digest, nullable=False),
    )
    op.create_table(
        "assignment",
        sa.Column("assignment_id", Id, primary_key=True),
        sa.Column("generation", BigCounter, sa.ForeignKey("plan.generation"), nullable=False),
        sa.Column("group_id", Id, sa.ForeignKey("work_group.group_id"), nullable=False),
        sa.Column("candidates", sa.Text, nullable=False),
        sa.Column("removed", sa.Text, nullable=False),
    )
    op.create_index("ix_assignment_group", "assignment", ["group_id", "generation"])
    op.create_table(
        "lane_state",
        sa.Column("lane", sa.String(128), primary_key=True),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("changed_us", sa.BigInteger, nullable=False),
    )


def _create_shards() -> None:
    op.create_table(
        "shard",
        sa.Column("shard_id", Id, primary_key=True),
        sa.Column("tenant_id", sa.String(64), nullable=False),
        sa.Column("group_id", Id, nullable=False),
        sa.Column("batch_id", Id),
        sa.Column("lane", sa.String(128), nullable=False),
        sa.Column("assignment_id", Id),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("jobs_count", sa.Integer, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        *_columns(sa.BigInteger, "created_us", "claim_by_us"),
        sa.Column("claimed_us", sa.BigInteger),
        sa.Column("lease_until_us", sa.BigInteger),
        sa.Column("worker_id", sa.String(128)),
        sa.Column("recorded", sa.LargeBinary, nullable=False),
        sa.Column("running", sa.LargeBinary),
        sa.Column("hold_nano_usd", sa.BigInteger, nullable=False),
        sa.Column("closed_us", sa.BigInteger),
    )
    still_open = sa.text("closed_us IS NULL")
    op.create_index("ix_shard_open", "shard", ["lane", "state"], sqlite_where=still_open, postgresql_where=still_open)
    op.create_table(
        "shard_span",
        sa.Column("shard_id", Id, primary_key=True),
        sa.Column("first_index", sa.Integer, primary_key=True),
        sa.Column("first_job_id", Id, nullable=False),
        *_columns(sa.Integer, "jobs_count", "attempt_number", "failures", "crashes"),
        sa.Column("alone", sa.Boolean, nullable=False),
        sa.Column("body_bytes_max", sa.Integer, nullable=False),
        sa.Column("deadline_us", sa.BigInteger, nullable=False),
    )
    op.create_index("ix_shard_span_job", "shard_span", ["first_job_id"])
    op.create_table(
        "outbox",
        sa.Column("shard_id", Id, primary_key=True),
        sa.Column("lane", sa.String(128), nullable=False),
    )


def _month_and_proof() -> list[sa.Column[Any]]:
    """The key of a partitioned ledger row (which must hold what it is partitioned by) and where its proof lies."""
    return [
        sa.Column("recorded_us", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("stream_id", Id, primary_key=True),
        sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("ledger_batch", sa.BigInteger, nullable=False),
        sa.Column("schema_version", sa.Integer, nullable=False),
    ]


def _create_attempt() -> None:
    op.create_table(
        "attempt",
        *_month_and_proof(),
        *_columns(Id, "attempt_id", "job_id"),
        *_columns(sa.Integer, "shard_index", "attempt_number"),
        sa.Column("batch_id", Id),
        sa.Column("tenant_id", sa.String(64), nullable=False),
        sa.Column("shard_id", Id, nullable=False),
        sa.Column("assignment_id", Id),
        sa.Column("lane", sa.String(128), nullable=False),
        sa.Column("provider", sa.String(32), nullable=False),
        *_columns(sa.String(64), "region", "accelerator"),
        sa.Column("accelerator_count", sa.Integer, nullable=False),
        sa.Column("market", sa.String(16), nullable=False),
        sa.Column("engine", sa.String(32), nullable=False),
        sa.Column("model", sa.String(256), nullable=False),
        sa.Column("worker_id", sa.String(128), nullable=False),
        sa.Column("stand_in", sa.Boolean, nullable=False),
        sa.Column("price_version", sa.String(64), nullable=False),
        sa.Column("dispatched_us", sa.BigInteger, nullable=False),
        sa.Column("outcome", sa.String(16), nullable=False),
        sa.Column("error_code", sa.String(32)),
        sa.Column("status_code", sa.Integer, nullable=False),
        sa.Column("decisive", sa.Boolean, nullable=False),
        sa.Column("submitted_us", sa.BigInteger, nullable=False),
        sa.Column("started_us", sa.BigInteger),
        *_columns(sa.BigInteger, "ended_us", "queue_us", "run_us"),
        *_columns(sa.BigInteger, "input_tokens", "cached_input_tokens", "output_tokens", "reasoning_tokens"),
        sa.Column("accelerator_us", sa.BigInteger, nullable=False),
        *_columns(sa.BigInteger, "list_cost_nano_usd", "cost_nano_usd", "cost_upper_nano_usd"),
        sa.Column("cost_basis", sa.String(16), nullable=False),
        sa.Column("request_digest", Digest),
        sa.Column("reply_digest", Digest),
        sa.Column("reply_bytes", sa.BigInteger, nullable=False),
        sa.Column("provider_request_id", sa.Text, nullable=False),
        sa.Column("trace_id", sa.LargeBinary(16)),
        sa.Column("leaf", Digest, nullable=False),
        postgresql_partition_by="RANGE (recorded_us)",
    )
    op.create_index("ix_attempt_job", "attempt", ["job_id"])
    op.create_index("ix_attempt_batch", "attempt", ["batch_id"])
    if op.get_bind().dialect.name == "postgresql":
        op.create_index("ix_attempt_tenant", "attempt", ["tenant_id", "recorded_us"])


def _create_cost_entry() -> None:
    op.create_table(
        "cost_entry",
        *_month_and_proof(),
        sa.Column("entry_id", Id, nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("tenant_id", sa.String(64)),
        sa.Column("batch_id", Id),
        sa.Column("attempt_id", Id),
        sa.Column("lane", sa.String(128), nullable=False),
        sa.Column("provider", sa.String(32), nullable=False),
        sa.Column("worker_id", sa.String(128), nullable=False),
        sa.Column("stand_in", sa.Boolean, nullable=False),
        *_columns(sa.BigInteger, "period_start_us", "period_end_us", "accelerator_us"),
        sa.Column("price_version", sa.String(64), nullable=False),
        sa.Column("cost_nano_usd", sa.BigInteger, nullable=False),
        sa.Column("cost_basis", sa.String(16), nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("leaf", Digest, nullable=False),
        postgresql_partition_by="RANGE (recorded_us)",
    )
    op.create_index("ix_cost_entry_lane", "cost_entry", ["lane", "recorded_us"])


def _create_outcomes_and_proofs() -> None:
    op.create_table(
        "job_outcome",
        sa.Column("job_id", Id, primary_key=True),
        sa.Column("stream_id", Id, nullable=False),
        *_columns(sa.BigInteger, "seq", "ledger_batch"),
        sa.Column("schema_version", sa.Integer, nullable=False),
        sa.Column("recorded_us", sa.BigInteger, nullable=False),
        sa.Column("tenant_id", sa.String(64), nullable=False),
        sa.Column("batch_id", Id),
        sa.Column("outcome", sa.String(16), nullable=False),
        sa.Column("error_code", sa.String(32)),
        sa.Column("attempt_id", Id),
        sa.Column("leaf", Digest, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "ledger_stream",
        sa.Column("stream_id", Id, primary_key=True),
        sa.Column("slot", sa.String(64), nullable=False),
        sa.Column("opened_us", sa.BigInteger, nullable=False),
        sa.UniqueConstraint("slot"),
    )
    op.create_table(
        "ledger_batch",
        sa.Column("stream_id", Id, primary_key=True),
        sa.Column("batch_number", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("schema_version", sa.Integer, nullable=False),
        sa.Column("first_seq", sa.BigInteger, nullable=False),
        sa.Column("rows_count", sa.Integer, nullable=False),
        sa.Column("sum_cost_nano_usd", sa.BigInteger, nullable=False),
        *_columns(Digest, "merkle_root", "previous_hash", "batch_hash"),
        sa.Column("committed_us", sa.BigInteger, nullable=False),
    )


def _create_price() -> None:
    op.create_table(
        "price",
        sa.Column("version", sa.String(64), primary_key=True),
        sa.Column("lane", sa.String(128), nullable=False),
        sa.Column("meter", sa.String(32), nullable=False),
        *_columns(sa.BigInteger, "instance_hour_pico_usd", "input_token_pico_usd", "output_token_pico_usd"),
        sa.Column("source", sa.Text, nullable=False),
        sa.Column("as_of", sa.String(10), nullable=False),
        sa.Column("imported_us", sa.BigInteger, nullable=False),
    )
    op.create_index("ix_price_lane", "price", ["lane", "imported_us"])
