"""How soon the work of a worker that died, or stopped, ran again: from the blow to its jobs' next claim."""

from __future__ import annotations

from collections import defaultdict
from typing import NamedTuple

from tests.harness.history import Hold, holds
from tests.harness.stand import Stand

__all__ = ["Blow", "Orphans", "orphans_after"]


class Blow(NamedTuple):
    """A worker's process met its end, or was stopped, at `at` (Unix seconds)."""

    at: float
    pid: int


class Orphans(NamedTuple):
    """`jobs` were with the worker, claimed and without a recorded end; the last of them was claimed again after
    `seconds`; `never` of them were not, and needed not, for a late result ended them.
    """

    blow: Blow
    jobs: int
    seconds: float
    never: int


def orphans_after(stand: Stand, blows: list[Blow]) -> list[Orphans]:
    """For each blow that left any."""
    held = holds(stand)
    claims: dict[bytes, list[float]] = defaultdict(list)
    for hold in held:
        for job in hold.jobs:
            claims[job].append(hold.claimed)
    found = []
    for blow in blows:
        worker = stand.worker_process(blow.pid)
        left = [hold for hold in held if hold.worker_id.startswith(worker) and hold.claimed <= blow.at]
        # What a graceful end hands back is closed as returned; an open or taken-back one was orphaned.
        orphaned = [job for hold in left if hold.state == "taken_back" for job in _orphaned(hold)]
        again = [min((at for at in claims[job] if at > blow.at), default=None) for job in orphaned]
        waits = [at - blow.at for at in again if at is not None]
        if orphaned:
            found.append(Orphans(blow, len(orphaned), max(waits, default=0.0), len(again) - len(waits)))
    return found


def _orphaned(hold: Hold) -> list[bytes]:
    return hold.missing
