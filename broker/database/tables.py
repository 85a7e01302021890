"""The operational tables: what is waiting, what is under way, and what was asked for.

Nothing here is the ledger (`broker.ledger.tables`), and none of it is updated once per job: a job is
inserted, its waiting span in `ready` is deleted at dispatch, and its end is a row in the ledger's
`job_outcome`. The only row that changes on the hot path is `shard`. Times are Unix microseconds (UTC).
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    String,
    Table,
    Text,
    UniqueConstraint,
    false,
)

from broker.database.build_sightings import build_seen
from broker.database.capacity_tables import desired_change, instance
from broker.database.planning_tables import arrival_count, assignment, lane_plan, late_group, plan
from broker.database.types import Digest, Id, ProducersName, metadata

__all__ = [
    "arrival_count",
    "assignment",
    "batch",
    "batch_count",
    "batch_refusal",
    "build_seen",
    "cancel_request",
    "commit_mark",
    "desired_change",
    "idempotency",
    "instance",
    "job",
    "lane",
    "lane_plan",
    "lane_rest",
    "lane_state",
    "late_group",
    "outbox",
    "payload",
    "plan",
    "ready",
    "reply",
    "result",
    "role_beat",
    "shard",
    "shard_span",
    "signing_key",
    "tenant",
    "work_group",
    "worker",
]

tenant = Table(
    "tenant",
    metadata,
    Column("tenant_id", String(64), primary_key=True),
    Column("created_us", BigInteger, nullable=False),
    Column("beginning_key", LargeBinary(32)),  # keys the digests in `ready` and `shard_span`; made on first use
)

signing_key = Table(
    "signing_key",
    metadata,
    Column("key_id", String(64), primary_key=True),
    Column("role", String(16), nullable=False),  # broker, lane, producer
    Column("owner", String(128), nullable=False),  # a lane's name, a tenant, or the broker
    Column("public_key", LargeBinary(32), nullable=False),
    Column("created_us", BigInteger, nullable=False),
    Column("revoked_us", BigInteger),
)

work_group = Table(
    "work_group",
    metadata,
    Column("group_id", Id, primary_key=True),
    Column("digest", Digest, nullable=False),
    Column("tenant_id", ForeignKey("tenant.tenant_id"), nullable=False),
    Column("endpoint", String(64), nullable=False),
    Column("model", String(256), nullable=False),
    Column("constraints", Text, nullable=False),  # canonical JSON of domain.job.Constraints
    Column("deadline_us", BigInteger, nullable=False),  # the start of its deadline bucket
    Column("created_us", BigInteger, nullable=False),
    UniqueConstraint("digest"),
)

batch = Table(
    "batch",
    metadata,
    Column("batch_id", Id, primary_key=True),
    Column("tenant_id", ForeignKey("tenant.tenant_id"), nullable=False),
    Column("name", Text),  # as its producer calls it
    Column("source_name", Text, nullable=False),  # the path of the file
    Column("source_digest", Digest, nullable=False),
    Column("source_bytes", BigInteger, nullable=False),
    Column("output_path", Text),
    Column("error_path", Text),
    Column("window_seconds", BigInteger, nullable=False),
    Column("deadline_us", BigInteger, nullable=False),
    Column("max_cost_nano_usd", BigInteger),
    Column("constraints", Text, nullable=False),
    Column("created_us", BigInteger, nullable=False),
    # How far intake has read the source: the next line and byte, moved in the transaction that inserts the jobs.
    Column("read_lines", BigInteger, nullable=False, default=0),
    Column("read_bytes", BigInteger, nullable=False, default=0),
    Column("accepted_jobs", BigInteger, nullable=False, default=0),
    Column("refused_lines", BigInteger, nullable=False, default=0),
    Column("read_us", BigInteger),  # when the whole source was in
    Column("cancel_requested_us", BigInteger),
    Column("finished_us", BigInteger),
    Column("status", String(16), nullable=False),
    Index("ix_batch_source", "tenant_id", "source_digest", "created_us"),
    Index(
        "ix_batch_open",
        "created_us",
        sqlite_where=Column("finished_us").is_(None),
        postgresql_where=Column("finished_us").is_(None),
    ),
)

batch_refusal = Table(
    "batch_refusal",
    metadata,
    Column("batch_id", ForeignKey("batch.batch_id"), primary_key=True),
    Column("line_number", BigInteger, primary_key=True),
    Column("custom_id", Text),
    Column("error_code", String(32), nullable=False),
    Column("message", Text, nullable=False),
)

job = Table(
    "job",
    metadata,
    Column("job_id", Id, primary_key=True),
    Column("tenant_id", String(64), nullable=False),
    Column("group_id", Id, nullable=False),
    Column("batch_id", Id),
    Column("line_number", BigInteger),
    Column("custom_id", Text),
    Column("body_bytes", Integer, nullable=False),
    Column("submitted_us", BigInteger, nullable=False),
    Column("deadline_us", BigInteger, nullable=False),
    Column("budget_nano_usd", BigInteger),
    Column("tags", Text),
    Column("redrive_of", Id),  # the ended job that this one runs again
    Index("ix_job_batch", "batch_id", "line_number", unique=True),
    Index("ix_job_custom", "batch_id", "custom_id", unique=True),
    sqlite_with_rowid=False,  # one tree instead of two: its rows are small and come in the order of their ids
)

idempotency = Table(
    "idempotency",
    metadata,
    Column("tenant_id", String(64), primary_key=True),
    Column("idempotency_key", ProducersName(256), primary_key=True),
    Column("fingerprint", Digest, nullable=False),
    Column("job_id", Id, nullable=False),
    Column("created_us", BigInteger, nullable=False),
)

# Requests still to be honoured; one goes when its job has ended.
cancel_request = Table(
    "cancel_request",
    metadata,
    Column("job_id", Id, primary_key=True),
    Column("requested_us", BigInteger, nullable=False),
)

payload = Table(
    "payload",
    metadata,
    Column("job_id", Id, primary_key=True),
    Column("body", LargeBinary),
    Column("object_ref", Text),
    # Keys the digests that the ledger keeps; when it goes with the payload, they say nothing any more.
    Column("salt", LargeBinary(16), nullable=False),
    CheckConstraint("(body IS NULL) <> (object_ref IS NULL)", name="one_place"),
)

result = Table(
    "result",
    metadata,
    Column("job_id", Id, primary_key=True),
    Column("attempt_id", Id),
    Column("status_code", Integer, nullable=False),
    Column("request_id", Text, nullable=False),
    Column("error_code", String(32)),
    Column("message", Text),
    Column("body", LargeBinary),
    Column("object_ref", Text),
)

# What producers on the bus asked to be told, until they were: an end that a job will have, or why there is no job.
reply = Table(
    "reply",
    metadata,
    Column("message_digest", Digest, primary_key=True),  # of the envelope that asked
    Column("place", Integer, primary_key=True, autoincrement=False),  # in its list
    Column("tenant_id", String(64), nullable=False),
    Column("reply_to", ProducersName(128), nullable=False),
    Column("idempotency_key", ProducersName(256), nullable=False),
    Column("job_id", Id),  # null where it was refused
    Column("error_code", String(32)),
    Column("message", Text),
    Index("ix_reply_job", "job_id"),
)

ready = Table(
    "ready",
    metadata,
    Column("first_job_id", Id, primary_key=True),
    Column("jobs_count", Integer, nullable=False),
    Column("group_id", ForeignKey("work_group.group_id"), nullable=False),
    Column("batch_id", Id),
    Column("deadline_us", BigInteger, nullable=False),
    Column("body_bytes_max", Integer, nullable=False),
    Column("attempt_number", Integer, nullable=False),  # that its next attempt will have
    Column("failures", Integer, nullable=False),  # attempts that counted against rules.retrying.FAILURES_MAX
    Column("crashes", Integer, nullable=False),  # likewise against CRASHES_MAX
    Column("alone", Boolean, nullable=False),  # a crash's suspect: travels in a shard of its own
    Column("not_before_us", BigInteger, nullable=False),
    Column("failed_lanes", Text),  # rules.regrouping; null where none has
    Column("preemptions", Integer, nullable=False, server_default="0"),  # attempts whose machine was taken away
    Column("beginning", LargeBinary(8)),  # of the first job's prompt, keyed: rules.beginnings
    Column("beginnings", Integer, nullable=False, server_default="0"),  # how many kinds its jobs have, at most
    Column("submitted_us", BigInteger),  # null in rows of builds before 0008
    Index("ix_ready_order", "group_id", "deadline_us", "first_job_id"),
    Index("ix_ready_batch", "batch_id"),
    Index("ix_ready_due", "deadline_us"),
)

# Every lane that was ever configured, as it last was: its late events and open shards outlive the catalog.
lane = Table(
    "lane",
    metadata,
    Column("name", String(128), primary_key=True),
    Column("description", LargeBinary, nullable=False),  # MessagePack of domain.lane.Lane
)

# Lanes that get no new shards, because someone said so; the others have no row.
lane_state = Table(
    "lane_state",
    metadata,
    Column("lane", String(128), primary_key=True),
    Column("state", String(16), nullable=False),  # domain.lane.LaneState
    Column("changed_us", BigInteger, nullable=False),
)

# Lanes whose engines were at fault lately (broker.health); the row goes with a success after the lane's full return.
lane_rest = Table(
    "lane_rest",
    metadata,
    Column("lane", String(128), primary_key=True),
    Column("until_us", BigInteger, nullable=False),
    Column("rest_seconds", Float, nullable=False),
    Column("error_code", String(32), nullable=False),
    Column("since_us", BigInteger, nullable=False, server_default="0"),  # the first fault of those in a row
    Column("back_us", BigInteger),  # the first success after the last of them
)

# Worker processes that said they are there; one that left says so.
worker = Table(
    "worker",
    metadata,
    Column("worker_id", String(128), primary_key=True),
    Column("lane", String(128), nullable=False),
    Column("slots", Integer, nullable=False),
    Column("started_us", BigInteger, nullable=False),
    Column("seen_us", BigInteger, nullable=False),
    Column("left_us", BigInteger),
    Index("ix_worker_seen", "seen_us"),
)

# When each role of the broker last said that it works; the rescuer takes nothing back while the door is shut.
role_beat = Table(
    "role_beat",
    metadata,
    Column("role", String(32), primary_key=True),
    Column("beat_us", BigInteger, nullable=False),
)

shard = Table(
    "shard",
    metadata,
    Column("shard_id", Id, primary_key=True),
    Column("tenant_id", String(64), nullable=False),
    Column("group_id", Id, nullable=False),
    Column("batch_id", Id),
    Column("lane", String(128), nullable=False),
    Column("assignment_id", Id),
    Column("reason", Text, nullable=False),
    Column("jobs_count", Integer, nullable=False),
    Column("state", String(16), nullable=False),  # domain.shard.ShardState
    Column("created_us", BigInteger, nullable=False),
    Column("claim_by_us", BigInteger, nullable=False),
    Column("claimed_us", BigInteger),
    Column("lease_until_us", BigInteger),
    Column("worker_id", String(128)),
    Column("recorded", LargeBinary, nullable=False),  # bitmap of the indices whose attempts are in the ledger
    Column("running", LargeBinary),  # bitmap of the indices that the last renewal named
    Column("hold_nano_usd", BigInteger, nullable=False),  # set aside from the batch's budget; 0 where it has none
    Column("closed_us", BigInteger),
    Column("beside", Boolean, nullable=False, server_default=false()),  # it needs no slot: rules.placement.rooms
    Index("ix_shard_assignment", "assignment_id"),
    Index(
        "ix_shard_open",
        "lane",
        "state",
        sqlite_where=Column("closed_us").is_(None),
        postgresql_where=Column("closed_us").is_(None),
    ),
)

shard_span = Table(
    "shard_span",
    metadata,
    Column("shard_id", Id, primary_key=True),
    Column("first_index", Integer, primary_key=True),
    Column("first_job_id", Id, nullable=False),
    Column("jobs_count", Integer, nullable=False),
    Column("attempt_number", Integer, nullable=False),
    Column("failures", Integer, nullable=False),
    Column("crashes", Integer, nullable=False),
    Column("alone", Boolean, nullable=False),
    Column("body_bytes_max", Integer, nullable=False),
    Column("deadline_us", BigInteger, nullable=False),
    Column("failed_lanes", Text),  # rules.regrouping; null where none has
    Column("preemptions", Integer, nullable=False, server_default="0"),  # attempts whose machine was taken away
    Column("beginning", LargeBinary(8)),  # of the first job's prompt, keyed: rules.beginnings
    Column("beginnings", Integer, nullable=False, server_default="0"),  # how many kinds its jobs have, at most
    Column("submitted_us", BigInteger),  # null in rows of builds before 0008
    Index("ix_shard_span_job", "first_job_id"),
)

outbox = Table(
    "outbox",
    metadata,
    Column("shard_id", Id, primary_key=True),
    Column("lane", String(128), nullable=False),
)

batch_count = Table(
    "batch_count",
    metadata,
    Column("batch_id", Id, primary_key=True),
    Column("writer", String(64), primary_key=True),
    *(
        Column(name, BigInteger, nullable=False, default=0)
        for name in (
            "succeeded",
            "failed",
            "cancelled",
            "expired",
            "attempts",
            "input_tokens",
            "output_tokens",
            "cost_nano_usd",
            "wasted_nano_usd",
        )
    ),
    # The most that attempts of unknown cost can have cost besides.
    Column("unknown_nano_usd", BigInteger, nullable=False, default=0, server_default="0"),
)

# One row to a write that is under way, on PostgreSQL: see drivers/postgres/marks.py. It leaves room in its pages,
# so that a change stays in place.
commit_mark = Table(
    "commit_mark",
    metadata,
    Column("slot", Id, primary_key=True),
    Column("mark", BigInteger, nullable=False),
    Column("used_us", BigInteger, nullable=False),  # when a process last moved it
    postgresql_with={"fillfactor": 20},
)
