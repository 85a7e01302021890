"""The ledger's tables: append-only, never updated, proven row by row.

Every ledger row carries the stream and sequence of its writer, the number of the batch record that
covers it, its schema version, and `leaf`, the SHA-256 of its canonical bytes (`broker.ledger.canonical`). Which columns
a row of a version has is in `broker.ledger.versions`; those of later versions stand behind `leaf`, and are null in it.
On PostgreSQL the large ones are partitioned by month of `recorded_us`, so that retention is a dropped
partition. Uniqueness across partitions lives in `job_outcome`, which is not partitioned.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, Column, Index, Integer, LargeBinary, String, Table, Text

from broker.database.types import BigCounter, Digest, Id, metadata

__all__ = [
    "PARTITIONED",
    "attempt",
    "cost_entry",
    "job_outcome",
    "ledger_batch",
    "ledger_checkpoint",
    "ledger_seal_leaf",
    "ledger_stream",
    "price",
    "price_book",
    "price_in_force",
]


def _proof_columns() -> tuple[Column[int] | Column[bytes], ...]:
    return (
        Column("stream_id", Id, primary_key=True),
        Column("seq", BigInteger, primary_key=True, autoincrement=False),
        Column("ledger_batch", BigInteger, nullable=False),
        Column("schema_version", Integer, nullable=False),
    )


attempt = Table(
    "attempt",
    metadata,
    Column("recorded_us", BigInteger, primary_key=True, autoincrement=False),
    *_proof_columns(),
    Column("attempt_id", Id, nullable=False),
    Column("job_id", Id, nullable=False),
    Column("shard_index", Integer, nullable=False),
    Column("attempt_number", Integer, nullable=False),
    # What it shares with the other jobs of its shard: whose, where, at which price.
    Column("batch_id", Id),
    Column("tenant_id", String(64), nullable=False),
    Column("shard_id", Id, nullable=False),
    Column("assignment_id", Id),
    Column("lane", String(128), nullable=False),
    Column("provider", String(32), nullable=False),
    Column("region", String(64), nullable=False),
    Column("accelerator", String(64), nullable=False),
    Column("accelerator_count", Integer, nullable=False),
    Column("market", String(16), nullable=False),
    Column("engine", String(32), nullable=False),
    Column("model", String(256), nullable=False),
    Column("worker_id", String(128), nullable=False),
    Column("stand_in", Boolean, nullable=False),  # the hardware was not the lane's
    Column("price_version", String(64), nullable=False),
    Column("dispatched_us", BigInteger, nullable=False),
    # How it ended.
    Column("outcome", String(16), nullable=False),
    Column("error_code", String(32)),
    Column("status_code", Integer, nullable=False),
    Column("decisive", Boolean, nullable=False),  # this attempt ended its job
    # How long; the *_us durations of the run are from the worker's monotonic clock.
    Column("submitted_us", BigInteger, nullable=False),
    Column("started_us", BigInteger),
    Column("ended_us", BigInteger, nullable=False),
    Column("queue_us", BigInteger, nullable=False),
    Column("run_us", BigInteger, nullable=False),
    # What it used and cost. Tokens are null where nobody knows them.
    Column("input_tokens", BigInteger),
    Column("cached_input_tokens", BigInteger),
    Column("output_tokens", BigInteger),
    Column("reasoning_tokens", BigInteger),
    Column("accelerator_us", BigInteger, nullable=False),
    Column("list_cost_nano_usd", BigInteger, nullable=False),
    Column("cost_nano_usd", BigInteger, nullable=False),
    Column("cost_upper_nano_usd", BigInteger, nullable=False),  # above cost_nano_usd only where the basis is unknown
    Column("cost_basis", String(16), nullable=False),
    # What proves it, without the text itself.
    Column("request_digest", Digest),
    Column("reply_digest", Digest),
    Column("reply_bytes", BigInteger, nullable=False),
    Column("provider_request_id", Text, nullable=False),
    Column("trace_id", LargeBinary(16)),
    Column("leaf", Digest, nullable=False),
    # Since version 2: first what it shares with its shard's other jobs.
    Column("resource_id", String(512)),  # the provider's name for the instance, as bills have it
    Column("zone", String(64)),
    Column("endpoint", String(64)),
    Column("claimed_us", BigInteger),
    Column("currency", String(3)),  # ISO 4217, of what the provider bills
    Column("price_digest", Digest),
    Column("decision_digest", Digest),
    Column("due_us", BigInteger),
    Column("first_token_us", BigInteger),
    Column("cache_write_tokens", BigInteger),
    Column("usage_basis", String(16)),  # how its tokens are known: domain.usage.UsageBasis
    Column("tier_asked", String(32)),
    Column("tier_served", String(32)),
    Column("key_id", String(64)),  # the submitter's
    Column("tags", Text),  # canonical JSON
    Column("charged_nano_usd", BigInteger),  # to the tenant, apart from what it cost
    Index("ix_attempt_job", "job_id"),
    Index("ix_attempt_batch", "batch_id"),
    # SQLite has one tenant, and pays for each index with every row.
    Index("ix_attempt_tenant", "tenant_id", "recorded_us").ddl_if(dialect="postgresql"),
    postgresql_partition_by="RANGE (recorded_us)",
)

cost_entry = Table(
    "cost_entry",
    metadata,
    Column("recorded_us", BigInteger, primary_key=True, autoincrement=False),
    *_proof_columns(),
    Column("entry_id", Id, nullable=False),
    Column("kind", String(16), nullable=False),  # attribution idle overhead true_up correction adjustment credit
    Column("tenant_id", String(64)),
    Column("batch_id", Id),
    Column("attempt_id", Id),
    Column("lane", String(128), nullable=False),
    Column("provider", String(32), nullable=False),
    Column("worker_id", String(128), nullable=False),
    Column("stand_in", Boolean, nullable=False),
    Column("period_start_us", BigInteger, nullable=False),
    Column("period_end_us", BigInteger, nullable=False),
    Column("accelerator_us", BigInteger, nullable=False),
    Column("price_version", String(64), nullable=False),
    Column("cost_nano_usd", BigInteger, nullable=False),
    Column("cost_basis", String(16), nullable=False),
    Column("reason", Text, nullable=False),
    Column("leaf", Digest, nullable=False),
    # Since version 2.
    Column("resource_id", String(512)),
    Column("region", String(64)),
    Column("zone", String(64)),
    Column("accelerator", String(64)),
    Column("currency", String(3)),
    Column("bill_line_digest", Digest),
    Index("ix_cost_entry_lane", "lane", "recorded_us"),
    postgresql_partition_by="RANGE (recorded_us)",
)

job_outcome = Table(
    "job_outcome",
    metadata,
    Column("job_id", Id, primary_key=True),
    Column("stream_id", Id, nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("ledger_batch", BigInteger, nullable=False),
    Column("schema_version", Integer, nullable=False),
    Column("recorded_us", BigInteger, nullable=False),
    Column("tenant_id", String(64), nullable=False),
    Column("batch_id", Id),
    Column("outcome", String(16), nullable=False),
    Column("error_code", String(32)),
    Column("attempt_id", Id),  # null where the job ended while waiting
    Column("leaf", Digest, nullable=False),
    # Since version 2.
    Column("attempt_number", Integer),  # of the attempt that ended it; later ones are superseded or lost
    Column("submission_digest", Digest),
    sqlite_with_rowid=False,  # one tree instead of two: its rows are small and come in the order of their ids
)

ledger_stream = Table(
    "ledger_stream",
    metadata,
    Column("stream_id", Id, primary_key=True),
    Column("slot", String(64), nullable=False, unique=True),  # the writer's durable place, such as recorder-0
    Column("opened_us", BigInteger, nullable=False),
)

ledger_batch = Table(
    "ledger_batch",
    metadata,
    Column("stream_id", Id, primary_key=True),
    Column("batch_number", BigInteger, primary_key=True, autoincrement=False),
    Column("schema_version", Integer, nullable=False),
    Column("first_seq", BigInteger, nullable=False),
    Column("rows_count", Integer, nullable=False),
    Column("sum_cost_nano_usd", BigInteger, nullable=False),
    Column("merkle_root", Digest, nullable=False),
    Column("previous_hash", Digest, nullable=False),
    Column("batch_hash", Digest, nullable=False),
    Column("committed_us", BigInteger, nullable=False),
)

# The one tree over the batches of all streams, in the order in which the sealer saw them.
ledger_seal_leaf = Table(
    "ledger_seal_leaf",
    metadata,
    Column("tree_index", BigCounter, primary_key=True, autoincrement=False),
    Column("stream_id", Id, nullable=False),
    Column("batch_number", BigInteger, nullable=False),
    Column("batch_hash", Digest, nullable=False),
    Index("ix_ledger_seal_leaf_batch", "stream_id", "batch_number", unique=True),
)

ledger_checkpoint = Table(
    "ledger_checkpoint",
    metadata,
    Column("tree_size", BigCounter, primary_key=True, autoincrement=False),
    Column("root", Digest, nullable=False),
    Column("sealed_us", BigInteger, nullable=False),
    Column("note", Text, nullable=False),  # the signed note, as it was published
)

price = Table(
    "price",
    metadata,
    Column("version", String(64), primary_key=True),
    Column("lane", String(128), nullable=False),
    Column("meter", String(32), nullable=False),
    Column("instance_hour_pico_usd", BigInteger, nullable=False),
    Column("input_token_pico_usd", BigInteger, nullable=False),
    Column("output_token_pico_usd", BigInteger, nullable=False),
    Column("source", Text, nullable=False),
    Column("as_of", String(10), nullable=False),
    Column("imported_us", BigInteger, nullable=False),
    # Since version 2 of the ledger. A price that says nothing of cached tokens has none for them.
    Column("sku", String(256)),
    Column("billing_account", String(256)),
    Column("cached_input_token_pico_usd", BigInteger),
    Column("cache_write_token_pico_usd", BigInteger),
    Column("valid_from_us", BigInteger),
    Column("valid_until_us", BigInteger),
    Index("ix_price_lane", "lane", "imported_us"),
)

# One import of prices. What it says of each lane is in `price_in_force`.
price_book = Table(
    "price_book",
    metadata,
    Column("book", String(64), primary_key=True),
    Column("source_name", Text, nullable=False),  # the file
    Column("prices_count", Integer, nullable=False),
    Column("imported_us", BigInteger, nullable=False),
)

# From when on a lane's price is which; the newest row that has begun holds.
price_in_force = Table(
    "price_in_force",
    metadata,
    Column("lane", String(128), primary_key=True),
    Column("from_us", BigInteger, primary_key=True, autoincrement=False),
    Column("price_version", String(64), nullable=False),
    Column("book", String(64), nullable=False),  # `catalog` for what the catalog said
)

PARTITIONED = (attempt, cost_entry)
"""The tables that are partitioned by month on PostgreSQL."""
