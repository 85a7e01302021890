"""How much a lane may still be sent, and of whom: in line for its places, or beside that line.

A lane's unit is the place: room for one job at an engine. Shards are sent until each place has a job, and as many
behind them as an engine needs so that none falls idle: `ahead` jobs, in two shards for each slot at most. What has
ended no longer counts, so a shard's stragglers keep nobody from their neighbours' places.

The line is filled by whoever has most work, with shards of some seconds. A tenant that has less than its part of
the places needs not wait for them: its jobs, up to that part, go *beside* the line and get the next places that fall
free. So nobody waits behind more than a job of another tenant's, and nobody gets more than its part that way. With one
tenant alone nothing goes beside.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import msgspec

__all__ = ["Entry", "LaneRoom", "shares_of"]

_ANY_NUMBER = 1 << 31


class Entry(msgspec.Struct, frozen=True):
    """A lane takes a shard of at most so many jobs; `beside` its line, or in it."""

    beside: bool
    jobs_max: int


class LaneRoom(msgspec.Struct, kw_only=True):
    """What a lane has and may have. `slots` and `places` are those of all its instances, `slots_each` of one.

    `ahead`: how many jobs may wait there for a place; a shard for less than `least` of them isn't worth it. With
    `is_shared` some room is kept free, so that what goes beside gets past what waits in the lane's queue. A lane
    `on_trial` takes one job, whatever it has besides.
    """

    slots: int
    slots_each: int
    places: int
    is_shared: bool
    ahead: int = _ANY_NUMBER
    least: int = 1
    line: list[tuple[str, int]] = []
    """Shards in line, the first claimed first: whose each is, and how many of its jobs haven't ended.

    A job that has an engine to itself counts as one for each of its places.
    """

    jobs: dict[str, int] = {}
    """Sent or running, and not ended, by tenant, whichever way."""

    jobs_count: int = 0
    jobs_beside: int = 0
    seen_waiting: list[str] | None = None
    on_trial: bool = False

    @property
    def jobs_waiting(self) -> int:
        """How many have no place; below 0: so many places have no job."""
        return self.jobs_count - self.places

    @property
    def waiting(self) -> list[str]:
        """Whose shards have jobs that no place is there for: each shard's tenant, the newest first."""
        if self.seen_waiting is None:
            self.seen_waiting = self._find_waiting()
        return self.seen_waiting

    def _find_waiting(self) -> list[str]:
        beyond = self.jobs_waiting
        tenants = []
        for tenant, jobs_count in reversed(self.line):
            if beyond <= 0:
                break
            tenants.append(tenant)
            beyond -= jobs_count
        return tenants

    @property
    def free(self) -> int:
        """How many shards may still come in line, as far as it doesn't depend on their jobs."""
        if self.on_trial:
            return min(self.slots, 1)
        if not self.slots or self.jobs_waiting > self.ahead - self.least:
            return 0
        kept = (self.slots_each + 1) // 2 if self.is_shared else 0
        return max(0, 2 * self.slots - kept - len(self.waiting))

    def entry(self, tenant_id: str, share: float, *, needs_slot: bool = False) -> Entry | None:
        """How the next shard of this tenant may go here, if its part of the places is `share`; None: not now."""
        if self.on_trial:
            return Entry(beside=False, jobs_max=1) if self.free else None
        if not needs_slot and (jobs_max := self._beside(tenant_id, share)) > 0:
            return Entry(beside=True, jobs_max=jobs_max)
        return Entry(beside=False, jobs_max=self.ahead - self.jobs_waiting) if self.free else None

    def take(self, tenant_id: str, jobs_count: int, *, beside: bool, alone: bool = False) -> None:
        """The lane has this shard too, of which so many jobs haven't ended; one that is `alone` needs an engine."""
        if alone and self.slots:
            jobs_count = max(jobs_count, self.places * self.slots_each // self.slots)
        if self.on_trial:
            self.slots = 0  # that was the one
        self.jobs[tenant_id] = self.jobs.get(tenant_id, 0) + jobs_count
        self.jobs_count += jobs_count
        self.seen_waiting = None
        if beside:
            self.jobs_beside += jobs_count
        else:
            self.line.append((tenant_id, jobs_count))

    def _beside(self, tenant_id: str, share: float) -> int:
        own = self.jobs.get(tenant_id, 0)
        waiting = self.waiting
        # With fewer shards in line than one instance has slots, a slot is free whichever instance gets the next.
        is_free = len(waiting) < self.slots_each
        fills_slots = waiting.count(tenant_id) >= self.slots
        if is_free or fills_slots or own == self.jobs_count:
            return 0
        part = max(1, int(self.places * share))
        # Those in the line keep at least as much.
        return min(part - own, max(1, self.places - part) - self.jobs_beside)


def shares_of(tenants: Collection[str], weights: Mapping[str, float]) -> dict[str, float]:
    """Each tenant's part of what there is, by its weight."""
    total = sum(weights.get(tenant, 1.0) for tenant in tenants)
    return {tenant: weights.get(tenant, 1.0) / total for tenant in tenants}
