"""Watching: what the planner decides by: what waits, what lanes do and cost, what keeps coming."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import msgspec

from broker.clock import Clock
from broker.database import arrivals, jobs, lane_states, plans, ready
from broker.database.arrivals import ArrivalTerms
from broker.database.connection import Connection, Database
from broker.database.lane_work import Capacity, OpenWork, open_work
from broker.database.ready import GroupWaiting
from broker.domain.job import GroupKey
from broker.domain.lane import Lane, Supply
from broker.health import RESTING, HealthBook
from broker.ledger.prices import PricedLanes, PriceHistory
from broker.ledger.speeds import newest_samples
from broker.ledger.work_done import Counted, WorkDone
from broker.rules.placement.expecting import Expecting, window_class_s
from broker.rules.placement.facts import demands_of, instances_of
from broker.rules.placement.learning import Sample, Speed, SpeedBook
from broker.rules.placement.policy import Policy
from broker.rules.placement.table import LaneTable
from broker.rules.placement.trouble import silence
from broker.rules.placement.work import Stream, Terms

__all__ = ["GroupSeen", "LaneSeen", "Seen", "Watching"]

_US = 1_000_000
_LEARN_SECONDS = 60.0
"""How far back a new watcher reads the ledger for the lanes' speeds."""

_SETTLED_US = 2_000_000
"""Jobs get their ids before they are committed; what is older than that is counted as arrived."""

_HISTORY_MINUTES = 24 * 60 + 31
_KEPT_MINUTES = 14 * 24 * 60
_KEYS_MAX = 8_000
"""Keys of groups that are remembered beyond those of groups that wait."""


class LaneSeen(msgspec.Struct, frozen=True):
    """A lane at the price that holds: instances that are there, speeds by model, and why it gets no work, if so.

    `trust`: what part of it its health allows, 0 to 1.
    """

    lane: Lane
    ready: int
    speeds: dict[str, Speed]
    trouble: str | None
    trust: float = 1.0

    @property
    def name(self) -> str:
        return str(self.lane.name)


class GroupSeen(msgspec.Struct, frozen=True):
    """A group that waits: what it is, when its first job is due, and how many jobs may go now.

    Of those, `often_preempted` stay off lanes that may be taken away.
    """

    group_id: bytes
    key: GroupKey
    deadline_us: int
    jobs_count: int
    often_preempted: int = 0


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """One look. `generation` is that of the newest plan; `is_busy`: some lane has work.

    `done`: jobs of the last week by lane and model, where shares are limited; `done_lately` of the last six hours.
    """

    now_us: int
    generation: int
    waiting: list[GroupSeen]
    lanes: list[LaneSeen]
    is_busy: bool
    done: Mapping[tuple[str, str], float] = {}
    done_lately: Mapping[tuple[str, str], float] = {}


class _Read(msgspec.Struct, frozen=True, kw_only=True):
    """What one snapshot of the database holds."""

    now_us: int
    generation: int
    waiting: list[GroupWaiting]
    often_preempted: dict[bytes, int]
    prices: PriceHistory | None
    slots: Mapping[str, int]
    held: set[str]
    work: dict[str, OpenWork]
    samples: list[Sample]
    brought_us: dict[str, int]
    came: list[arrivals.Arrivals]
    keys: dict[bytes, GroupKey]
    counted: Counted | None


class Watching:
    """Remembers speeds, arrivals and the keys of groups, all for itself: the planner gets values."""

    def __init__(
        self,
        database: Database,
        lanes: Sequence[Lane],
        clock: Clock,
        health: HealthBook,
        capacity: Capacity,
        *,
        policy: Policy,
    ) -> None:
        self.is_elastic = any(lane.supply is Supply.ELASTIC for lane in lanes)
        self._database = database
        self._clock = clock
        self._health = health
        self._capacity = capacity
        self._lanes = PricedLanes(lanes)
        self._speeds = SpeedBook(lanes)
        self._expecting = Expecting()
        self._policy = policy
        self._work = WorkDone() if policy.limits_shares else None
        self._keys: dict[bytes, GroupKey] = {}
        self._brought_us: dict[str, int] = {}
        self._learned_us = clock() - int(_LEARN_SECONDS * _US)
        self._counted_us: int | None = None

    def look(self) -> Seen:
        """What is so now."""
        read = self._database.read(self._read)
        self._learn(read)
        waiting = [
            GroupSeen(
                group.group_id,
                self._keys[group.group_id],
                group.deadline_us,
                group.jobs_count,
                read.often_preempted.get(group.group_id, 0),
            )
            for group in read.waiting
        ]
        self._forget_keys(read.now_us, {group.group_id for group in waiting})
        lanes = [self._lane_seen(lane, read) for lane in self._lanes.all_at(read.now_us)]
        return Seen(
            now_us=read.now_us,
            generation=read.generation,
            waiting=waiting,
            lanes=lanes,
            is_busy=bool(read.work),
            done=self._work.week(read.now_us) if self._work else {},
            done_lately=self._work.lately(read.now_us) if self._work else {},
        )

    def streams(
        self, table: LaneTable, now_s: float, ahead_s: float, service_s: Callable[[Terms], float]
    ) -> list[Stream]:
        """What keeps coming; only where somebody starts instances for it."""
        if not self.is_elastic:
            return []
        return self._expecting.streams(table, now_s, ahead_s, service_s, self._policy)

    def _read(self, connection: Connection) -> _Read:
        now_us = self._clock()
        waiting = ready.waiting_groups(connection, now_us)
        samples, brought_us = newest_samples(connection, self._learned_us)
        came: list[arrivals.Arrivals] = []
        from_us = self._counted_us
        if from_us is not None and now_us - _SETTLED_US > from_us:
            came = arrivals.count_jobs(connection, from_us, now_us - _SETTLED_US)
        unknown = {one.group_id for one in waiting} | {one.group_id for one in came}
        unknown -= self._keys.keys()
        groups = jobs.load_groups(connection, sorted(unknown)) if unknown else []
        return _Read(
            now_us=now_us,
            generation=plans.current_plan(connection)[0],
            waiting=waiting,
            often_preempted=ready.often_preempted(connection, now_us, self._policy.preemptions_max),
            prices=self._lanes.read(connection),
            slots=self._capacity(connection),
            held=set(lane_states.held_lanes(connection)),
            work=open_work(connection),
            samples=samples,
            brought_us=brought_us,
            came=came,
            keys={group.group_id: group.key for group in groups},
            counted=self._work.read(connection, now_us) if self._work else None,
        )

    def _learn(self, read: _Read) -> None:
        """Speeds from what ended, expectations from what came."""
        self._keys |= read.keys
        self._lanes.note(read.prices)
        for sample in read.samples:
            self._speeds.observe(read.now_us / _US, sample)
        self._brought_us |= read.brought_us
        if self._work and read.counted:
            self._work.note(read.counted)
            self._work.keep(self._database, read.now_us)
        self._learned_us = max([self._learned_us, *read.brought_us.values()])
        if self._counted_us is None:
            self._recall(read.now_us)
        elif read.now_us - _SETTLED_US > self._counted_us:
            self._note_arrivals(read)

    def _forget_keys(self, now_us: int, waiting: Collection[bytes]) -> None:
        """Of groups that are past their deadline, and of the oldest where there are too many; none that waits."""
        others = [group_id for group_id in self._keys if group_id not in waiting]
        too_many = len(others) - _KEYS_MAX
        for number, group_id in enumerate(others):
            if number < too_many or self._keys[group_id].deadline_us < now_us:
                del self._keys[group_id]

    def _recall(self, now_us: int) -> None:
        """The arrivals of the last day, which an earlier planner kept."""
        first = now_us // _US // 60 - _HISTORY_MINUTES
        for minute, terms, count in self._database.read(lambda one: arrivals.kept_arrivals(one, first)):
            self._expecting.add(minute * 60.0, _terms(terms), terms.window_seconds, count)
        self._counted_us = now_us - _SETTLED_US

    def _note_arrivals(self, read: _Read) -> None:
        """Count what came since the last look, and keep it by the minute."""
        came: dict[ArrivalTerms, int] = {}
        for one in read.came:
            key = self._keys[one.group_id]
            terms = ArrivalTerms(key.model, key.constraints, window_class_s(one.window_us / _US))
            came[terms] = came.get(terms, 0) + one.jobs
        counted_us = self._counted_us = read.now_us - _SETTLED_US
        for terms, count in came.items():
            self._expecting.add(counted_us / _US, _terms(terms), terms.window_seconds, count)
        if came:
            minute = counted_us // _US // 60

            def work(connection: Connection) -> None:
                arrivals.keep_arrivals(connection, minute, came)
                arrivals.forget_before(connection, minute - _KEPT_MINUTES)

            self._database.write(work, durable=False)

    def _lane_seen(self, lane: Lane, read: _Read) -> LaneSeen:
        name, now_s = str(lane.name), read.now_us / _US
        speeds = {model: self._speeds.speed(name, model, now_s) for model in lane.engine.models}
        slots = read.slots.get(name, 0)
        trouble = self._trouble(lane, speeds, read) if slots else None
        return LaneSeen(lane, instances_of(lane, slots), speeds, trouble, self._health.trusts().get(name, 1.0))

    def _trouble(self, lane: Lane, speeds: Mapping[str, Speed], read: _Read) -> str | None:
        """Why the lane gets no work, although it is there."""
        name = str(lane.name)
        if name in read.held:
            return "paused or draining"
        if rest := self._health.resting().get(name):
            return f"{RESTING}: {rest.code}"
        work = read.work.get(name)
        if work is None:
            return None
        heard_us = max(work.claimed_us, work.oldest_us, self._brought_us.get(name, 0))
        slowest_s = max(speed.job_s for speed in speeds.values()) * lane.engine.concurrency
        return silence((read.now_us - heard_us) / _US, slowest_s)


def _terms(terms: ArrivalTerms) -> Terms:
    return Terms(terms.model, terms.model, demands_of(terms.constraints))
