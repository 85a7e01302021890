"""How much a lane may still be sent, and of whom: in line for its slots, or beside them.

A lane's slots are filled by whoever has most work, with shards of some seconds. A tenant that has less than its part of
the engines' places there needs not wait for them: its jobs, up to that part, go *beside* the slots and get the next
places that fall free. So nobody waits behind more than a job of another tenant's, and nobody gets more than its part
that way. With one tenant alone nothing goes beside.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import msgspec

__all__ = ["Entry", "LaneRoom", "shares_of"]

_ANY_NUMBER = 1 << 31


class Entry(msgspec.Struct, frozen=True):
    """A lane takes a shard of at most so many jobs; `beside` its slots, or in line for one."""

    beside: bool
    jobs_max: int


class LaneRoom(msgspec.Struct, kw_only=True):
    """What a lane has and may have. `slots` and `places` are those of all its instances, `slots_each` of one.

    With `is_shared` some room is kept free, so that what goes beside gets past what waits in the lane's queue. A lane
    `on_trial` takes one job, whatever it has besides.
    """

    slots: int
    slots_each: int
    places: int
    is_shared: bool
    in_line: dict[str, int] = {}
    """Shards in slots or in line for one, by tenant."""

    jobs: dict[str, int] = {}
    """Sent or running, by tenant, whichever way."""

    jobs_beside: int = 0
    on_trial: bool = False

    @property
    def free(self) -> int:
        """How many shards may still come in line: one is at work in each slot, and one waits behind it."""
        if self.on_trial:
            return min(self.slots, 1)
        kept = (self.slots_each + 1) // 2 if self.is_shared else 0
        return max(0, 2 * self.slots - kept - sum(self.in_line.values()))

    def entry(self, tenant_id: str, share: float, *, needs_slot: bool = False) -> Entry | None:
        """How the next shard of this tenant may go here, if its part of the places is `share`; None: not now."""
        if self.on_trial:
            return Entry(beside=False, jobs_max=1) if self.free else None
        if not needs_slot and (jobs_max := self._beside(tenant_id, share)) > 0:
            return Entry(beside=True, jobs_max=jobs_max)
        return Entry(beside=False, jobs_max=_ANY_NUMBER) if self.free else None

    def take(self, tenant_id: str, jobs_count: int, *, beside: bool, shards_count: int = 1) -> None:
        """The lane has these shards too."""
        if self.on_trial:
            self.slots = 0  # that was the one
        self.jobs[tenant_id] = self.jobs.get(tenant_id, 0) + jobs_count
        if beside:
            self.jobs_beside += jobs_count
        else:
            self.in_line[tenant_id] = self.in_line.get(tenant_id, 0) + shards_count

    def _beside(self, tenant_id: str, share: float) -> int:
        own = self.jobs.get(tenant_id, 0)
        # With fewer shards in line than one instance has slots, a slot is free whichever instance gets the next.
        is_free = sum(self.in_line.values()) < self.slots_each
        fills_slots = self.in_line.get(tenant_id, 0) >= self.slots
        if is_free or fills_slots or own == sum(self.jobs.values()):
            return 0
        part = max(1, int(self.places * share))
        # Those in the slots keep at least as much.
        return min(part - own, max(1, self.places - part) - self.jobs_beside)


def shares_of(tenants: Collection[str], weights: Mapping[str, float]) -> dict[str, float]:
    """Each tenant's part of what there is, by its weight."""
    total = sum(weights.get(tenant, 1.0) for tenant in tenants)
    return {tenant: weights.get(tenant, 1.0) / total for tenant in tenants}
