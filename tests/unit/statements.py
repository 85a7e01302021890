"""Watches the statements of doors: one that touches a tenant's rows must bind the tenant. See docs/security.md.

What PostgreSQL copies in (COPY) isn't seen here; that only adds rows, which carry their tenant or hang on such.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Engine, event

CARRY_THEIR_TENANT = frozenset({"job", "batch", "attempt", "job_outcome", "reply", "idempotency"})
HANG_ON_A_JOB_OR_BATCH = frozenset(
    {"batch_count", "batch_refusal", "payload", "result", "cancel_request", "shard_span", "cost_entry"}
)
TENANTS_TABLES = CARRY_THEIR_TENANT | HANG_ON_A_JOB_OR_BATCH

PLATFORMS_TABLES = frozenset(
    {
        "arrival_count", "assignment", "build_seen", "commit_mark", "desired_change", "instance", "lane", "lane_plan",
        "lane_rest",
        "lane_state", "late_group", "ledger_batch", "ledger_checkpoint", "ledger_seal_leaf", "ledger_stream", "outbox",
        "plan", "price", "price_book", "price_in_force", "ready", "role_beat",
        "shard", "share_limit", "signing_key", "tenant", "work_count",
        "work_group", "worker",
    }
)  # fmt: skip
"""What the loops keep of all tenants' work together, and what is nobody's; doors show it as sums or not at all."""

_BOUND = re.compile(r"\btenant_id = (\?|%\(\w+\)s)")


def fault_of(statement: str, parameters: Any, tenant: str) -> str | None:
    """What is wrong with a door's statement for this tenant."""
    touched = TENANTS_TABLES & set(re.findall(r"\w+", statement))
    adds_rows = statement.lstrip().startswith("INSERT") and "SELECT" not in statement
    if not touched or (adds_rows and not touched & CARRY_THEIR_TENANT):
        return None
    if not adds_rows and not _BOUND.search(statement):
        return f"{sorted(touched)} without a bound tenant: {statement}"
    rows = parameters if isinstance(parameters, list) else [parameters]
    if any(tenant not in (row.values() if isinstance(row, dict) else row) for row in rows):
        return f"{sorted(touched)} bound to another tenant: {statement}"
    return None


class Watched:
    """What was seen, and what was wrong with it."""

    def __init__(self, tenant: str) -> None:
        self.tenant = tenant
        self.tables: set[str] = set()
        self.faults: list[str] = []

    def look(self, _connection, _cursor, statement, parameters, _context, _executemany) -> None:
        self.tables |= TENANTS_TABLES & set(re.findall(r"\w+", statement))
        if fault := fault_of(statement, parameters, self.tenant):
            self.faults.append(fault)


@contextmanager
def watched(tenant: str) -> Iterator[Watched]:
    """Every statement of this process, on whichever database, is taken for one of this tenant's doors."""
    seen = Watched(tenant)
    event.listen(Engine, "before_cursor_execute", seen.look)
    try:
        yield seen
    finally:
        event.remove(Engine, "before_cursor_execute", seen.look)


@contextmanager
def counted() -> Iterator[list[str]]:
    """Every statement of this process, on whichever database; one with many rows counts once."""
    seen: list[str] = []

    def look(_connection, _cursor, statement, _parameters, _context, _executemany) -> None:
        seen.append(statement)

    event.listen(Engine, "before_cursor_execute", look)
    try:
        yield seen
    finally:
        event.remove(Engine, "before_cursor_execute", look)
