"""How soon the work of a worker that died, or stopped, ran again: from the blow to its jobs' next claim."""

from __future__ import annotations

from collections import defaultdict
from typing import NamedTuple

from tests.harness.history import holds
from tests.harness.stand import Stand

__all__ = ["Blow", "Orphans", "orphans_after"]


class Blow(NamedTuple):
    """A worker's process met its end, or was stopped, at `at` (Unix seconds)."""

    at: float
    pid: int


class Orphans(NamedTuple):
    """`jobs` were with the worker, claimed and without a recorded end. The last of them was sent again, in the shard
    that was claimed, after `sent_seconds`, and claimed after `seconds`; `never` of them were not, and needed not, for
    a late result ended them.
    """

    blow: Blow
    jobs: int
    sent_seconds: float
    seconds: float
    never: int


def orphans_after(stand: Stand, blows: list[Blow]) -> list[Orphans]:
    """For each blow that left any."""
    held = holds(stand)
    claims: dict[bytes, list[tuple[float, float]]] = defaultdict(list)
    for hold in held:
        for job in hold.jobs:
            claims[job].append((hold.claimed, hold.sent))
    found = []
    for blow in blows:
        worker = stand.worker_process(blow.pid)
        left = [hold for hold in held if hold.worker_id.startswith(worker) and hold.claimed <= blow.at]
        # What a graceful end hands back is closed as returned; a taken-back one was orphaned.
        orphaned = [job for hold in left if hold.state == "taken_back" for job in hold.missing]
        again = [min((one for one in claims[job] if one[0] > blow.at), default=None) for job in orphaned]
        seen = [one for one in again if one is not None]
        if orphaned:
            sent = max((sent - blow.at for _, sent in seen), default=0.0)
            claimed = max((claimed - blow.at for claimed, _ in seen), default=0.0)
            found.append(Orphans(blow, len(orphaned), sent, claimed, len(again) - len(seen)))
    return found
