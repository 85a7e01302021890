"""The tables of planning: decisions with their reasons, what each lane should hold, and what came when."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Float, ForeignKey, Index, Integer, String, Table, Text

from broker.database.types import BigCounter, Digest, Id, metadata

__all__ = ["arrival_count", "assignment", "lane_plan", "late_group", "plan", "share_limit", "work_count"]

plan = Table(
    "plan",
    metadata,
    Column("generation", BigCounter, primary_key=True, autoincrement=False),
    Column("plan_id", Id, nullable=False),
    Column("created_us", BigInteger, nullable=False),
    Column("inputs_digest", Digest, nullable=False),
)

# A group's decision holds until a later generation has another one for it.
assignment = Table(
    "assignment",
    metadata,
    Column("assignment_id", Id, primary_key=True),
    Column("generation", ForeignKey("plan.generation"), nullable=False),
    Column("group_id", ForeignKey("work_group.group_id"), nullable=False),
    Column("candidates", Text, nullable=False),  # JSON of rules.planning.Candidate, in the order of their use
    Column("removed", Text, nullable=False),  # JSON of rules.planning.Removed
    Index("ix_assignment_group", "group_id", "generation"),
    Index("ix_assignment_generation", "generation"),
)

# The planner's newest word on each lane.
lane_plan = Table(
    "lane_plan",
    metadata,
    Column("lane", String(128), primary_key=True),
    Column("generation", BigCounter, nullable=False),
    Column("desired", Integer, nullable=False),  # instances, for whoever starts and stops them
    Column("usable", Integer, nullable=False),  # instances whose slots get work
    Column("ready", Integer, nullable=False),  # instances that were there
    Column("price_version", String(64), nullable=False),  # by which it was planned
    Column("speeds", Text, nullable=False),  # JSON of rules.placement.learning.Speed by model
    Column("trouble", Text),  # why it gets no work
    Column("planned_us", BigInteger, nullable=False),
)

# Groups that are expected to end after their deadline; the row goes when that is no longer so.
late_group = Table(
    "late_group",
    metadata,
    Column("group_id", Id, primary_key=True),
    Column("finish_us", BigInteger, nullable=False),
    Column("noticed_us", BigInteger, nullable=False),
)

# How many jobs came on the same terms in each minute of the last days, for the planner's expectations.
arrival_count = Table(
    "arrival_count",
    metadata,
    Column("minute", BigInteger, primary_key=True, autoincrement=False),  # since 1970
    Column("terms_digest", Digest, primary_key=True),
    Column("model", String(256), nullable=False),
    Column("constraints", Text, nullable=False),
    Column("window_seconds", BigInteger, nullable=False),
    Column("jobs", BigInteger, nullable=False),
)

# How many jobs of a model each lane did in each ten minutes of the last week, for the providers' shares.
work_count = Table(
    "work_count",
    metadata,
    Column("minute", BigInteger, primary_key=True, autoincrement=False),  # their first, since 1970
    Column("lane", String(128), primary_key=True),
    Column("model", String(256), primary_key=True),
    Column("jobs", BigInteger, nullable=False),
    Column("counted_us", BigInteger, nullable=False),  # up to when the ledger had been counted by then
)

# Providers that have had more than their share of the work; the row goes when that is no longer so.
share_limit = Table(
    "share_limit",
    metadata,
    Column("provider", String(32), primary_key=True),
    Column("share", Float, nullable=False),  # that it may have, 0 to 1
    Column("part", Float, nullable=False),  # that it had
    Column("due_by_us", BigInteger, nullable=False),  # what is due by then may go there nevertheless
    Column("noticed_us", BigInteger, nullable=False),
)
