"""Dealing: at the moment when lanes have room, whose jobs go next, and to which lane; as the newest plan orders.

One decision for each shard, by the rule that the simulation deals by too (`rules.placement.dealing`): what must start
soon goes first, then what is late, then tenants in turn, earliest first. A group's jobs take the first lane of their
assignment with room; the lanes that its constraints forbid are not in it. Lanes of a provider that had more than its
share come last, and wait for work that can't.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from broker.database import batches, lane_states, plans, ready, shards, work_counts
from broker.database.batches import OpenTerms
from broker.database.connection import Connection
from broker.database.lane_work import Capacity
from broker.database.plans import Assignment, LanePlan
from broker.domain.job import WaitingSpan
from broker.domain.lane import Lane, Market, Supply
from broker.health import RESTING, HealthBook, trusted_slots
from broker.rules.decisions import Candidate, GroupPlan
from broker.rules.placement.dealing import steadied
from broker.rules.placement.policy import Policy
from broker.rules.placement.rooms import Entry, LaneRoom, shares_of
from broker.rules.placement.turns import Hand, Turns
from broker.rules.planning import BeyondShare, pick_lane
from broker.rules.regrouping import failed_lanes, refusing_lanes
from broker.rules.sharding import PLACES_PART, body_bytes_max, fits_message

__all__ = ["Choice", "Dealing", "Room", "Waiting"]

_US = 1_000_000
_ASSIGNMENTS_MAX = 2_000
"""Beyond those of groups that wait."""

_TRIAL_S = 15.0
"""After so long a job that tries a lane is taken for lost, and another is sent."""

_AHEAD_S = 2.0
"""How much believed work may wait at a lane, where that is more than a job for each place: engines can be so quick that
a second passes between a job's end and the next shard."""

_LATELY_S = 86_400.0
"""How long a tenant that had work is expected back."""


class Waiting(msgspec.Struct, frozen=True):
    """A group that waits: whose it is, when it is due, and when it must start for that on the fastest lane."""

    group_id: bytes
    tenant: str
    deadline_s: float
    start_by_s: float


class Room(msgspec.Struct):
    """What one step may still do. `budgets`: what batches that have one may still spend, in nano-USD.

    `lanes` are those of the catalog, each at the speed that a slot of it really has, where that is less; `rooms` are
    those of the lanes that take shards. `now_s`: when the step began. `shares`: of the tenants that have work, each
    one's part.
    """

    lanes: dict[str, Lane]
    rooms: dict[str, LaneRoom]
    budgets: dict[bytes, int]
    held_batches: set[bytes]
    shards_left: int
    now_s: float
    shares: dict[str, float] = {}

    @property
    def is_open(self) -> bool:
        """Whether any lane might take a shard of somebody."""
        return any(one.free or (one.is_shared and one.slots) for one in self.rooms.values())

    def entry(self, lane: str, tenant_id: str, *, needs_slot: bool = False) -> Entry | None:
        """How a shard of this tenant may go to the lane; None: not now."""
        room = self.rooms.get(lane)
        return room.entry(tenant_id, self.shares[tenant_id], needs_slot=needs_slot) if room else None


class Choice(msgspec.Struct, frozen=True):
    """The next shard is of this group and goes to this lane, this way; `reason` says in words why."""

    waiting: Waiting
    assignment: Assignment
    lane: Lane
    candidate: Candidate
    entry: Entry
    reason: str


class Dealing:
    """Follows the plan, and remembers whose turn it is."""

    def __init__(
        self, lanes: Sequence[Lane], health: HealthBook, capacity: Capacity, policy: Policy | None = None
    ) -> None:
        self._lanes = {str(lane.name): lane for lane in lanes}
        self._health = health
        self._capacity = capacity
        self._policy = policy or Policy()
        self._turns = Turns(self._policy)
        self._seen_s: dict[str, float] = {}
        self._plan_id = b""
        self._generation: int | None = None
        self._assignments: dict[bytes, Assignment] = {}
        self._lane_plans: dict[str, LanePlan] = {}
        self._fastest: dict[str, _Fastest] = {}
        self._beyond: dict[str, BeyondShare] = {}
        self._trials: dict[str, tuple[float, float]] = {}

    def room(self, connection: Connection, now_us: int, shards_max: int) -> Room:
        """What the lanes have room for, and what the batches may spend."""
        self._follow_plan(connection)
        closed = lane_states.held_lanes(connection) | self._health.resting().keys()
        there, trusts = self._capacity(connection), self._health.trusts()
        slots = trusted_slots(there, trusts)
        trials = self._health.on_trial()
        tried = {name for name, ended_s in trials.items() if self._is_tried(name, ended_s, now_us / _US)}
        rooms = {
            name: self._empty_room(
                lane, self._slots_to_use(name, slots.get(name, 0)), trusts.get(name, 1.0) * there.get(name, 0)
            )
            for name, lane in self._lanes.items()
            if name not in closed and name not in tried
        }
        for one in shards.unended(connection):
            if room := rooms.get(one.lane):
                room.take(one.tenant_id, one.jobs_count, beside=one.beside, alone=one.alone)
        for name in trials.keys() & rooms.keys():
            rooms[name].on_trial = True
        terms = batches.open_terms(connection)
        return Room(
            lanes={name: self._as_it_is(lane) for name, lane in self._lanes.items()},
            rooms=rooms,
            budgets=_budgets_left(connection, terms),
            # What is to be cancelled and waits is the closer's.
            held_batches={one.batch_id for one in terms if one.cancel_requested},
            shards_left=shards_max,
            now_s=now_us / _US,
        )

    def note_sent(self, lanes: Iterable[str], now_s: float) -> None:
        """These lanes were sent something: one that is on trial has its job."""
        trials = self._health.on_trial()
        kept = {name: sent for name, sent in self._trials.items() if trials.get(name) == sent[0]}
        self._trials = kept | {name: (trials[name], now_s) for name in lanes if name in trials}

    def _is_tried(self, name: str, rest_ended_s: float, now_s: float) -> bool:
        """Whether a job tries the lane already, since this rest of its."""
        ended_s, sent_s = self._trials.get(name, (None, 0.0))
        return ended_s == rest_ended_s and now_s - sent_s < _TRIAL_S

    def only_trials(self, waiting: Waiting, room: Room) -> bool:
        """Whether all that has room for the group are lanes on trial."""
        candidates = self._assignments[waiting.group_id].plan.candidates
        rooms = [room.rooms[one.lane] for one in candidates if room.entry(one.lane, waiting.tenant)]
        return bool(rooms) and all(one.on_trial for one in rooms)

    def hand(self, connection: Connection, now_us: int, room: Room) -> tuple[Hand[Waiting], bool]:
        """What waits and is planned, to be dealt; and whether something waits that is not. Sets the room's shares."""
        groups = ready.waiting_groups(connection, now_us)
        planned = [
            self._waiting(assignment, group.deadline_us / _US)
            for group in groups
            if (assignment := self._assignments.get(group.group_id))
        ]
        planned.sort(key=lambda waiting: waiting.start_by_s)
        if len(self._assignments) > len(planned) + _ASSIGNMENTS_MAX:
            self._assignments = {one.group_id: self._assignments[one.group_id] for one in planned}
        now_s = now_us / _US
        lines: dict[str, list[Waiting]] = {}
        for waiting in planned:
            lines.setdefault(waiting.tenant, []).append(waiting)
        here = lines.keys() | set().union(*(lane_room.jobs for lane_room in room.rooms.values()))
        room.shares = shares_of(here, self._policy.tenant_weights)
        self._seen_s |= dict.fromkeys(here, now_s)
        self._seen_s = {tenant: seen_s for tenant, seen_s in self._seen_s.items() if now_s - seen_s <= _LATELY_S}
        return self._turns.hand(now_s, lines), len(planned) < len(groups)

    def has_room(self, waiting: Waiting, room: Room) -> bool:
        """Whether any lane that may serve the group could take a shard."""
        plan = self._assignments[waiting.group_id].plan
        passed = self._beyond if self._can_wait(waiting, plan, room) else {}
        return any(room.entry(one.lane, waiting.tenant) for one in plan.candidates if one.lane not in passed)

    def bytes_max(self, waiting: Waiting, room: Room) -> int:
        """The largest body that any lane of the group's with room carries; 0 when none has room."""
        candidates = self._assignments[waiting.group_id].plan.candidates
        with_room = (one.lane for one in candidates if room.entry(one.lane, waiting.tenant))
        return max((body_bytes_max(self._lanes[lane]) for lane in with_room), default=0)

    def choose(self, waiting: Waiting, first: WaitingSpan, room: Room) -> Choice | None:
        """The lane for the group's next shard, which begins with `first`: one with room whose messages can carry it."""
        assignment = self._assignments[waiting.group_id]
        left_s = waiting.start_by_s - room.now_s
        lanes = tuple(steadied(assignment.plan.candidates, self._is_spot, first.preemptions, left_s, self._policy))
        plan = msgspec.structs.replace(assignment.plan, candidates=lanes) if first.preemptions else assignment.plan
        kept_off_spot = len(lanes) < len(assignment.plan.candidates)
        plan = self._that_carry(_those_not_failed_first(plan, first), first.body_bytes_max)
        entries = {
            one.lane: entry
            for one in plan.candidates
            # A suspect wants the engine to itself, so it waits for its turn.
            if (entry := room.entry(one.lane, waiting.tenant, needs_slot=first.alone))
        }
        picked = pick_lane(plan, entries, self._beyond, can_wait=self._can_wait(waiting, plan, room))
        if picked is None:
            return None
        candidate, reason = picked
        entry = entries[candidate.lane]
        if entry.beside:
            reason = f"{reason}, beside other tenants' work"
        refusing = refusing_lanes(first)
        if len(plan.candidates) + len(refusing) < len(lanes):
            reason = f"{reason}, of those whose messages carry {first.body_bytes_max:,} bytes"
        if kept_off_spot:
            reason = f"{reason}, kept off spot after {first.preemptions} preemptions"
        if failed := failed_lanes(first):
            reason = f"{reason}, after {', '.join(failed)} failed it"
        return Choice(waiting, assignment, room.lanes[candidate.lane], candidate, entry, reason)

    def work(self, waiting: Waiting, lane: str, jobs_count: int) -> float:
        """So many jobs of the group, in seconds of an instance of the lane that is fastest at them.

        Where nothing is believed of their model, it is in those of this lane.
        """
        fastest = self._fastest.get(self._assignments[waiting.group_id].model)
        if fastest is None:
            here = self._lanes[lane]
            return jobs_count / (here.jobs_per_second * here.slots)
        return jobs_count * fastest.job_s

    def _waiting(self, assignment: Assignment, deadline_s: float) -> Waiting:
        fastest = self._fastest.get(assignment.model)
        start_by_s = deadline_s - fastest.run_s if fastest and fastest.is_seen else deadline_s
        return Waiting(assignment.group_id, assignment.tenant_id, deadline_s, start_by_s)

    def _empty_room(self, lane: Lane, slots: int, trusted: float) -> LaneRoom:
        """`slots` are whole ones; what a lane's health allows of its places, `trusted` slots' worth, may be a part."""
        places_each = lane.engine.concurrency
        places = max(1, int(min(slots, trusted) * places_each / lane.slots)) if slots else 0
        least = max(1, min(places, places_each // PLACES_PART))
        return LaneRoom(
            slots=slots,
            slots_each=lane.slots,
            places=places,
            is_shared=len(self._seen_s) > 1,
            ahead=max(places, least, round(min(slots, trusted) * lane.jobs_per_second * _AHEAD_S)),
            least=least,
        )

    def _follow_plan(self, connection: Connection) -> None:
        generation, plan_id = plans.current_plan(connection)
        if plan_id == self._plan_id:
            return
        if self._generation is None or generation <= self._generation:
            self._assignments = plans.load_waiting(connection)
        else:
            self._assignments |= plans.load_later(connection, self._generation)
        known = {group_id: self._of_the_catalog(one) for group_id, one in self._assignments.items()}
        self._assignments = {group_id: one for group_id, one in known.items() if one is not None}
        self._lane_plans = plans.lane_plans(connection)
        self._fastest = _fastest(self._lanes, self._lane_plans)
        limits = work_counts.share_limits(connection)
        self._beyond = {
            name: limits[lane.provider]
            for name, lane in self._lanes.items()
            if lane.provider in limits and lane.supply is not Supply.ELASTIC  # of those the planner wants fewer
        }
        self._plan_id, self._generation = plan_id, generation

    def _of_the_catalog(self, assignment: Assignment) -> Assignment | None:
        """Without candidates that this process's catalog doesn't have; None where that leaves nothing said."""
        plan = assignment.plan
        here = tuple(one for one in plan.candidates if one.lane in self._lanes)
        if len(here) == len(plan.candidates):
            return assignment if here or plan.removed else None
        if not here:
            return None
        return msgspec.structs.replace(assignment, plan=msgspec.structs.replace(plan, candidates=here))

    def _can_wait(self, waiting: Waiting, plan: GroupPlan, room: Room) -> bool:
        """Whether a lane within its provider's share works, and will do it in time."""
        due_by_us = max((one.due_by_us for one in self._beyond.values()), default=0)
        return (
            bool(self._beyond)
            and waiting.deadline_s * _US > due_by_us
            and any(
                one.lane in room.rooms and one.lane not in self._beyond and self._is_used(one.lane)
                for one in plan.candidates
            )
        )

    def _is_used(self, name: str) -> bool:
        said = self._lane_plans.get(name)
        return said is not None and said.trouble is None and said.usable > 0

    def _slots_to_use(self, name: str, slots: int) -> int:
        """Those of the lane's instances that the plan wants used; none where it is in trouble."""
        said = self._lane_plans.get(name)
        if said is None:
            return slots
        lane = self._lanes[name]
        if said.trouble is not None:
            # Its health is looked at anew for each step, and may be better than it was at the planner's last look.
            return min(slots, lane.slots) if said.trouble.startswith(RESTING) else 0
        return min(slots, said.usable * lane.slots) if lane.supply is Supply.ELASTIC else slots

    def _as_it_is(self, lane: Lane) -> Lane:
        """The lane at the speed that was learned, where it is slower than believed: its shards get smaller."""
        said = self._lane_plans.get(str(lane.name))
        if said is None or not said.speeds:
            return lane
        slot_speed = 1.0 / (max(one.job_s for one in said.speeds.values()) * lane.slots)
        if slot_speed >= lane.jobs_per_second:
            return lane
        return msgspec.structs.replace(lane, jobs_per_second=slot_speed)

    def _that_carry(self, plan: GroupPlan, body_bytes: int) -> GroupPlan:
        """Lanes whose messages can carry, or refer to, such a job."""
        fitting = tuple(one for one in plan.candidates if fits_message(self._lanes[one.lane], body_bytes))
        return plan if len(fitting) == len(plan.candidates) else msgspec.structs.replace(plan, candidates=fitting)

    def _is_spot(self, candidate: Candidate) -> bool:
        return self._lanes[candidate.lane].market is Market.SPOT


def _those_not_failed_first(plan: GroupPlan, first: WaitingSpan) -> GroupPlan:
    """The lanes that the span's jobs may go to: none that refused them, and those that failed them last."""
    failed = failed_lanes(first)
    if not failed:
        return plan
    refusing = refusing_lanes(first)
    asked = [one for one in plan.candidates if one.lane not in refusing]
    asked.sort(key=lambda one: one.lane in failed)
    return msgspec.structs.replace(plan, candidates=tuple(asked))


class _Fastest(msgspec.Struct, frozen=True):
    """Of a model: the fewest seconds of a busy instance for a job, and the fewest that one job takes, of all lanes.

    `is_seen`: jobs of it ended somewhere. Until then nothing counts as late, as the catalog says how much a lane gets
    done, and not how long one job takes.
    """

    job_s: float
    run_s: float
    is_seen: bool


def _fastest(lanes: Mapping[str, Lane], lane_plans: Mapping[str, LanePlan]) -> dict[str, _Fastest]:
    """By model, as far as the planner's newest word goes."""
    fastest: dict[str, _Fastest] = {}
    for name, lane_plan in lane_plans.items():
        lane = lanes.get(name)
        if lane is None:
            continue
        for model, speed in lane_plan.speeds.items():
            best = fastest.get(model)
            here = _Fastest(speed.job_s, speed.job_s * lane.engine.concurrency, speed.jobs > 0)
            if best is not None:
                here = _Fastest(min(here.job_s, best.job_s), min(here.run_s, best.run_s), here.is_seen or best.is_seen)
            fastest[model] = here
    return fastest


def _budgets_left(connection: Connection, terms: list[OpenTerms]) -> dict[bytes, int]:
    """What each batch with a budget may still spend, beside what is spent and held."""
    budgets = {one.batch_id: one.max_cost_nano_usd for one in terms if one.max_cost_nano_usd is not None}
    if not budgets:
        return {}
    spent, held = batches.spent_nano_usd(connection, budgets), shards.held_nano_usd(connection, budgets)
    return {batch_id: budget - spent.get(batch_id, 0) - held.get(batch_id, 0) for batch_id, budget in budgets.items()}
