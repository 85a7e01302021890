"""Placement: cost beside the perfect-information bound and peers, missed deadlines, and the planner's own time."""

from __future__ import annotations

import time
from pathlib import Path
from random import Random

from broker.domain.lane import Market
from broker.rules.placement.lanes import LaneFacts, LaneNow
from broker.rules.placement.planning import Memory, Situation, make_plan
from broker.rules.placement.policy import Policy
from broker.rules.placement.table import LaneTable
from broker.rules.placement.turns import Turns
from broker.rules.placement.work import Demands, Group, Stream, Terms
from broker.simulation.comparing import compare_ours, compare_peers
from broker.simulation.faults import named_faults
from broker.simulation.lane_files import DEFAULT_LANES, read_lanes
from broker.simulation.room import deal_step
from broker.simulation.workload import read_arrivals
from tests.bench.table import print_table

__all__ = ["measure", "measure_planner"]

FIXTURES = Path(__file__).parents[1] / "fixtures" / "placement"
_CASES = ("base", "spot_gone", "provider_down")
_WORKLOADS = ("w0", "w1", "w2")


def measure(build: Path) -> dict[str, float]:
    """The keys placement_*, each the worst of w0 to w2, and the peers' best ratios on the same three."""
    lanes = read_lanes(DEFAULT_LANES)
    figures: dict[str, float] = {}
    rows = []
    peers: dict[str, list[float]] = {}
    for name in _WORKLOADS:
        workload = read_arrivals(FIXTURES / f"{name}_arrivals.csv.gz")
        for case in _CASES:
            faults = named_faults(case, workload)
            ours = compare_ours(lanes, workload, faults)
            rows.append((f"{name} {case}: ours", *ours.cells()))
            _worst(figures, f"placement_ratio_{case}", ours.ratio)
            _worst(figures, f"placement_missed_{case}", ours.result.missed)
            if case == "base":
                for row in compare_peers(lanes, workload, faults, ours.bound_usd):
                    rows.append((f"{name} {case}: {row.name}", *row.cells()))
                    peers.setdefault(row.name, []).append(row.ratio)
    print_table(
        "Placement: two days of arrivals, cost over the perfect-information bound",
        ("", "USD", "x bound", "missed", "missed %", "p95 wait s by class", "wasted USD", "share by provider %"),
        rows,
    )
    for name, ratios in peers.items():
        key = name.replace(" ", "_")
        figures[f"{key}_ratio" if not key.startswith("single") else f"{key}"] = max(ratios)
    figures["best_single_cloud_ratio"] = min(max(v) for k, v in peers.items() if k.startswith("single"))
    wanted = {k: round(v, 4) for k, v in figures.items() if not k.startswith("single")}
    return wanted | measure_planner()


def _worst(figures: dict[str, float], key: str, value: float) -> None:
    figures[key] = max(value, figures.get(key, 0.0))


def measure_planner(rounds: int = 7) -> dict[str, float]:
    """A plan for 1,000,000 jobs in 2,000 groups over 60 lanes, and the dealing of one fresh urgent job; median CPU."""
    lanes, groups, streams = _large()
    states = tuple(LaneNow(ready=lane.quota // 2) for lane in lanes)
    plans, deals = [], []
    for _ in range(rounds):
        table = LaneTable(lanes)
        situation = Situation(now_s=0.0, states=states, groups=groups, streams=streams)
        started = time.process_time()
        plan, _ = make_plan(table, situation, Memory(), Policy())
        plans.append(time.process_time() - started)
        if len(plan.decided) != len(groups):
            raise SystemExit(f"{len(groups)} groups gave {len(plan.decided)} decisions")
        fresh = Group(group_id="fresh", tenant="t0", terms=groups[0].terms, start_by_s=40.0, jobs=1)
        free_s = [float(lane.quota) for lane in lanes]
        policy = Policy()
        turns = Turns(policy)
        started = time.process_time()
        dealt = deal_step(table, 0.0, turns, {"t0": [fresh]}, free_s, plan.orders, policy)
        deals.append(time.process_time() - started)
        if len(dealt) != 1:
            raise SystemExit(f"one fresh job was dealt {len(dealt)} times")
    figures = {
        "plan_1m_ms": round(sorted(plans)[rounds // 2] * 1e3, 2),
        "decide_us": round(sorted(deals)[rounds // 2] * 1e6, 1),
    }
    print_table(
        "Planner: 1,000,000 jobs in 2,000 groups over 60 lanes, nothing remembered (median CPU)",
        ("", "value"),
        [(key, f"{value:,}") for key, value in figures.items()],
    )
    return figures


def _large() -> tuple[tuple[LaneFacts, ...], list[Group], list[Stream]]:
    chance = Random(7)
    kinds = [f"kind-{n}" for n in range(6)]
    providers = ("google-tpu", "azure-gpu", "oracle-gpu")
    lanes = tuple(
        LaneFacts(
            name=f"lane-{n:02}",
            provider=providers[n % 3],
            region=f"region-{n % 10}",
            market=Market.SPOT if n % 4 == 0 else Market.ON_DEMAND,
            models=("model",),
            price_version="1",
            hour_nano_usd=chance.randrange(2, 120) * 10**9,
            jobs_per_second={kind: chance.uniform(3, 100) for kind in kinds},
            quota=chance.randrange(1, 16),
            start_unbilled_s=180,
            start_billed_s=180,
            preemptions_per_hour=0.1 if n % 4 == 0 else 0.0,
        )
        for n in range(60)
    )
    demands = [Demands()]
    for n in range(49):
        regions = tuple(sorted(chance.sample([f"region-{r}" for r in range(10)], chance.randrange(1, 9))))
        demands.append(Demands(regions=regions, providers=tuple(sorted(chance.sample(providers, 1 + n % 3)))))
    groups = [
        Group(
            group_id=f"group-{n}",
            tenant=f"t{n % 40}",
            terms=Terms("model", kinds[n % 6], demands[n % 50]),
            start_by_s=float(chance.randrange(40, 86_400)),
            jobs=500,
        )
        for n in range(2_000)
    ]
    streams = [
        Stream(
            terms=Terms("model", kind),
            start_within_s=40.0 if n % 2 else 85_800.0,
            recent_rate=20.0,
            expected_rate=25.0,
            sudden_rate=40.0,
            day_rate=18.0,
        )
        for n, kind in enumerate(kinds)
    ]
    return lanes, groups, streams
