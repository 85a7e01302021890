"""Roles with least rights on PostgreSQL: who may do what to which table, as SQL that is safe to run again.

Rights are given on the partitioned tables, not on their partitions: so nobody reaches a partition past its
table, and a new month needs no grant. What a table's class is, is said here once for each table; a test asks
that none is forgotten.
"""

from __future__ import annotations

import re

from broker.domain.errors import UsageError

__all__ = ["APPEND_ONLY", "OPERATIONAL", "PRIVATE", "grant_statements"]

APPEND_ONLY = (
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
)
"""The ledger: read and added to, never changed."""

PRIVATE = ("payload", "result", "batch_refusal", "idempotency", "reply", "tenant")
"""What holds prompts, replies, texts that may quote them, or a tenant's secret: for the broker alone."""

OPERATIONAL = (
    "arrival_count",
    "assignment",
    "batch",
    "batch_count",
    "build_seen",
    "cancel_request",
    "commit_mark",
    "desired_change",
    "instance",
    "job",
    "lane",
    "lane_plan",
    "lane_rest",
    "lane_state",
    "late_group",
    "outbox",
    "plan",
    "ready",
    "role_beat",
    "shard",
    "shard_span",
    "share_limit",
    "signing_key",
    "work_count",
    "work_group",
    "worker",
)

_VERSION_TABLE = "broker_schema"
_ROLES = ("owner", "writer", "reader", "auditor")
_PREFIX = re.compile(r"[a-z][a-z0-9_]{0,40}")


def grant_statements(prefix: str = "broker") -> list[str]:
    """The statements, to be run in one transaction, by a superuser, in the schema of the tables, after an upgrade.

    `broker_owner` owns the tables and upgrades them, and makes their partitions. `broker_writer` is what the broker
    runs as: it adds to the ledger and can't change it. `broker_reader` reports; it sees no prompt and no reply.
    `broker_auditor` may see what it may, in transactions that only read, for five minutes each. All can log in
    once they are given a password, or a way of their own in pg_hba.conf.
    """
    if not _PREFIX.fullmatch(prefix):
        raise UsageError(f"roles can't begin with {prefix!r}: use small letters, digits and _")
    owner, writer, reader, auditor = (f"{prefix}_{role}" for role in _ROLES)
    everyone = f"{writer}, {reader}, {auditor}"
    for_all_to_read = ", ".join((*APPEND_ONLY, *OPERATIONAL, _VERSION_TABLE))
    return [
        *(_create(f"{prefix}_{role}") for role in _ROLES),
        _in_this_database("REVOKE ALL ON DATABASE %1$I FROM PUBLIC"),
        _in_this_database(f"GRANT CONNECT ON DATABASE %1$I TO {owner}, {everyone}"),
        _in_this_database("REVOKE ALL ON SCHEMA %2$I FROM PUBLIC"),
        _in_this_database(f"GRANT USAGE, CREATE ON SCHEMA %2$I TO {owner}"),
        _in_this_database(f"GRANT USAGE ON SCHEMA %2$I TO {everyone}"),
        _hand_over(owner),
        _in_this_database(f"REVOKE ALL ON ALL TABLES IN SCHEMA %2$I FROM {everyone}"),
        f"GRANT SELECT ON {for_all_to_read} TO {everyone}",
        f"GRANT INSERT ON {', '.join(APPEND_ONLY)} TO {writer}",
        f"GRANT SELECT, INSERT, UPDATE, DELETE ON {', '.join((*OPERATIONAL, *PRIVATE))} TO {writer}",
        *(f"ALTER ROLE {role} SET timezone = 'UTC'" for role in (writer, reader, auditor)),
        *(f"ALTER ROLE {role} SET default_transaction_read_only = on" for role in (reader, auditor)),
        *(f"ALTER ROLE {role} SET statement_timeout = '5min'" for role in (reader, auditor)),
        *(f"ALTER ROLE {role} SET idle_in_transaction_session_timeout = '5min'" for role in (reader, auditor)),
    ]


def _create(role: str) -> str:
    return (
        f"DO $$ BEGIN IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{role}') THEN"
        f" CREATE ROLE {role} LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS; END IF; END $$"
    )


def _in_this_database(statement: str) -> str:
    """A statement about the database (%1$I) or the schema (%2$I) that we are in."""
    return f"DO $$ BEGIN EXECUTE format('{statement}', current_database(), current_schema()); END $$"


def _hand_over(owner: str) -> str:
    """All tables and functions of the schema to their owner; indexes, partitions and triggers go along."""
    ours = "(SELECT oid FROM pg_namespace WHERE nspname = current_schema())"
    tables = f"SELECT oid::regclass AS name FROM pg_class WHERE relkind IN ('r', 'p') AND relnamespace = {ours}"  # noqa: S608 (a constant)
    refusal = f"proname = 'refuse_ledger_change' AND pronamespace = {ours}"
    functions = f"SELECT oid::regprocedure AS name FROM pg_proc WHERE {refusal}"  # noqa: S608 (a constant)
    loops = " ".join(
        f"FOR found IN {query} LOOP EXECUTE format('ALTER {kind} %s OWNER TO {owner}', found.name); END LOOP;"
        for kind, query in (("TABLE", tables), ("FUNCTION", functions))
    )
    return f"DO $$ DECLARE found record; BEGIN {loops} END $$"
