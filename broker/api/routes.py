"""Every route of the door, with the scope that it takes: what isn't in this table is open to nobody.

The broker's own routes begin with `/broker/v1`; `/v1` is kept for OpenAI's, which aren't there yet.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from broker.domain.identity import Scope
from broker.domain.paths import LEASES, LEASES_BEFORE, OWN

__all__ = ["JOBS", "LEASE_DOOR", "PUBLIC", "SCOPES", "moved_to", "served_at"]

JOBS = ("POST", f"{OWN}/jobs")
LEASE_DOOR = ("POST", LEASES)

PUBLIC = ("GET", f"{OWN}/health")
"""The one thing that anyone who reaches the door may ask."""

SCOPES: Mapping[tuple[str, str], Scope] = {
    PUBLIC: Scope.HEALTH,
    LEASE_DOOR: Scope.LEASES,
    JOBS: Scope.JOBS_WRITE,
    ("GET", f"{OWN}/jobs/{{job}}"): Scope.JOBS_READ,
    ("GET", f"{OWN}/jobs/{{job}}/result"): Scope.JOBS_READ,
    ("POST", f"{OWN}/jobs/{{job}}/cancel"): Scope.JOBS_WRITE,
    ("POST", f"{OWN}/jobs/{{job}}/redrive"): Scope.JOBS_WRITE,
    ("POST", f"{OWN}/batches"): Scope.BATCHES_WRITE,
    ("GET", f"{OWN}/batches"): Scope.BATCHES_READ,
    ("GET", f"{OWN}/batches/{{batch}}"): Scope.BATCHES_READ,
    ("GET", f"{OWN}/batches/{{batch}}/output"): Scope.BATCHES_READ,
    ("GET", f"{OWN}/batches/{{batch}}/errors"): Scope.BATCHES_READ,
    ("POST", f"{OWN}/batches/{{batch}}/cancel"): Scope.BATCHES_WRITE,
    ("POST", f"{OWN}/batches/{{batch}}/rerun"): Scope.BATCHES_WRITE,
    ("GET", f"{OWN}/lanes"): Scope.LANES_READ,
    ("GET", f"{OWN}/lanes/{{name}}/desired"): Scope.LANES_READ,
    ("POST", f"{OWN}/lanes/{{name}}/pause"): Scope.LANES_WRITE,
    ("POST", f"{OWN}/lanes/{{name}}/drain"): Scope.LANES_WRITE,
    ("POST", f"{OWN}/lanes/{{name}}/resume"): Scope.LANES_WRITE,
    ("GET", f"{OWN}/instances"): Scope.LANES_READ,
    ("POST", f"{OWN}/prices"): Scope.LANES_WRITE,
    ("GET", f"{OWN}/ledger/summary"): Scope.LEDGER_READ,
}

_BEFORE = "/v1/"
_ONCE_OURS = frozenset({"jobs", "batches", "lanes", "instances", "prices", "ledger"})
_DESIRED_BEFORE = re.compile(r"/v1/lanes/[^/]+/desired")


def served_at(path: str) -> str:
    """Where a path is answered: for one version longer workers, probes and autoscalers may use their old ones."""
    if not path.startswith(_BEFORE):
        return path
    if path in {LEASES_BEFORE, "/v1/health"} or _DESIRED_BEFORE.fullmatch(path):
        return _now(path)
    return path


def moved_to(path: str) -> str | None:
    """Where what was at this path is now; None where nothing of ours was."""
    is_ours = path.startswith(_BEFORE) and path.split("/")[2] in _ONCE_OURS
    return _now(path) if is_ours else None


def _now(path: str) -> str:
    return OWN + path.removeprefix("/v1")
