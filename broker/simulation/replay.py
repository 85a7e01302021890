"""The production planner on a virtual clock: plan every minute, deal out free capacity every ten seconds."""

from __future__ import annotations

import msgspec

from broker.rules.placement.arrivals import ArrivalLog
from broker.rules.placement.expecting import stream_of
from broker.rules.placement.lanes import LaneFacts
from broker.rules.placement.planning import Memory, Plan, Situation, make_plan
from broker.rules.placement.policy import Policy
from broker.rules.placement.table import LaneTable
from broker.rules.placement.turns import Turns
from broker.simulation.backlog import Backlog, Served
from broker.simulation.faults import DRAIN_S, Outage
from broker.simulation.fleet import Fleet
from broker.simulation.result import Result, result_of
from broker.simulation.room import deal_step
from broker.simulation.workload import STEP_S, Workload

__all__ = ["Replay", "replay"]

_LOST_WORK_STEPS = 2


def replay(
    lanes: tuple[LaneFacts, ...],
    workload: Workload,
    outages: tuple[Outage, ...] = (),
    policy: Policy | None = None,
    seed: int = 0,
) -> Result:
    """What placing this workload with our planner costs, and how it keeps the deadlines."""
    return Replay(lanes, workload, outages, policy or Policy(), seed).run()


class Replay:
    """One run. Nothing of the future is shown to the planner: only what came, what waits and what is up."""

    def __init__(
        self,
        lanes: tuple[LaneFacts, ...],
        workload: Workload,
        outages: tuple[Outage, ...],
        policy: Policy,
        seed: int,
    ) -> None:
        self.table = LaneTable(lanes)
        self.workload = workload
        self.policy = policy
        self.fleet = Fleet(lanes, outages, seed)
        self.backlog = Backlog(workload.sources)
        self.logs = [ArrivalLog() for _ in workload.sources]
        self.done: dict[str, float] = dict.fromkeys(self.table.providers, 0.0)
        self.idle_s = [0.0] * len(lanes)
        self.lost_s = [0.0] * len(lanes)
        self._lately: list[list[list[Served]]] = [[] for _ in lanes]
        self._turns = Turns(policy)
        self._memory = Memory()
        self._plan: Plan | None = None
        longest_s = max(lane.start_s for lane in lanes)
        # The planner runs before the first arrival that counts, as the history says that they will come.
        self._planning_from_s = -(policy.start_slack * longest_s + 2 * policy.control_s)

    def run(self) -> Result:
        workload = self.workload
        end_s = workload.arrivals_end_s + DRAIN_S
        now_s = workload.start_s
        while now_s < end_s:
            self._step(now_s)
            now_s += STEP_S
            if now_s >= workload.arrivals_end_s and self.backlog.is_empty and now_s % 60 == 0:
                break
        for lane in self.fleet.lanes:
            lane.close(now_s)
        self.backlog.close()
        return result_of(self.fleet, self.backlog, self.done, self.idle_s, self.lost_s)

    def _step(self, now_s: int) -> None:
        step = (now_s - self.workload.start_s) // STEP_S
        if now_s >= self._planning_from_s:
            for index, part in self.fleet.advance(now_s):
                self._give_back(index, part)
            if now_s % self.policy.control_s == 0:
                self._decide(now_s)
        if now_s < self.workload.arrivals_end_s:
            for index, source in enumerate(self.workload.sources):
                jobs = source.jobs[step]
                self.logs[index].add(now_s, jobs)
                if now_s >= 0 and jobs > 0:
                    self.backlog.add(index, now_s, jobs)
        if now_s >= 0 and self._plan is not None:
            self._deal(now_s, self._plan)

    def _decide(self, now_s: int) -> None:
        ahead_s = -self._planning_from_s
        streams = [
            stream_of(self.table, source.terms, source.start_within_s, log, now_s, ahead_s, self.policy)
            for source, log in zip(self.workload.sources, self.logs, strict=True)
        ]
        situation = Situation(
            now_s=now_s,
            states=self.fleet.states(now_s),
            groups=self.backlog.groups(),
            streams=streams,
            done=self.done,
        )
        self._plan, self._memory = make_plan(self.table, situation, self._memory, self.policy)
        for lane, starts, stops in zip(self.fleet.lanes, self._plan.starts, self._plan.stops, strict=True):
            if starts and not lane.away:
                lane.start(now_s, starts)
            if stops:
                lane.stop(now_s, stops)

    def _deal(self, now_s: int, plan: Plan) -> None:
        free_s = [float(STEP_S * len(lane.ready)) for lane in self.fleet.lanes]
        left_s = list(free_s)
        served: list[list[Served]] = [[] for _ in free_s]
        waiting = self.backlog.by_tenant()
        for dealt in deal_step(self.table, now_s, self._turns, waiting, free_s, plan.orders, self.policy):
            served[dealt.index] += self.backlog.serve(dealt.group.group_id, now_s, dealt.jobs)
            kind = dealt.group.terms.kind
            lane = self.table.lanes[dealt.index]
            left_s[dealt.index] -= dealt.jobs / lane.jobs_per_second[kind]
            self.done[lane.provider] += self.table.work(kind, dealt.jobs)
        for index, lately in enumerate(self._lately):
            self.idle_s[index] += left_s[index]
            lately.append(served[index])
            if len(lately) > _LOST_WORK_STEPS:
                lately.pop(0)

    def _give_back(self, index: int, part: float) -> None:
        """A preempted instance loses its last 20 s of work."""
        lane = self.table.lanes[index]
        for one in (one for step in self._lately[index] for one in step):
            jobs = one.jobs * part
            one.jobs -= jobs
            kind = self.workload.sources[one.source].terms.kind
            self.done[lane.provider] -= self.table.work(kind, jobs)
            self.lost_s[index] += jobs / lane.jobs_per_second[kind]
            self.backlog.give_back(msgspec.structs.replace(one, jobs=jobs))
