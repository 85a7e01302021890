"""`broker simulate`: what placing a trace would cost, beside the least possible and beside common ways to do it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from broker.cli.options import DatabaseOption, DataOption, FormatOption, read_settings
from broker.cli.printing import OutputFormat, print_rows, say
from broker.domain.errors import UsageError

if TYPE_CHECKING:
    from broker.database.connection import Connection
    from broker.rules.placement.lanes import LaneFacts
    from broker.rules.placement.learning import Speed
    from broker.settings import Settings
    from broker.simulation.comparing import Compared
    from broker.simulation.workload import Workload

__all__ = ["app"]

app = typer.Typer(add_completion=False)

TraceArgument = Annotated[
    Path | None,
    typer.Argument(help="CSV, or .csv.gz: step_start_s, 10 s apart, and requests_<deadline>, such as requests_1h."),
]
LanesOption = Annotated[
    str | None,
    typer.Option(
        "--catalog", help="JSON list of lanes [16 lanes of three clouds, a 70B model]; with --history, as elsewhere."
    ),
]
HistoryOption = Annotated[
    bool, typer.Option("--history", help="Replay what this broker was asked for, on its own lanes.")
]
OutageOption = Annotated[
    list[str] | None, typer.Option("--outage", help="A provider that goes away, as PROVIDER@FROM-TO in hours; repeat.")
]
SpotGoneOption = Annotated[
    bool, typer.Option("--spot-gone", help="Google's spot lanes are away from hour 14 to hour 16.")
]
ShareOption = Annotated[
    list[str] | None,
    typer.Option("--share", help="Most of the work that a provider may do, as PROVIDER=PERCENT, or PERCENT for all."),
]
StandbyOption = Annotated[
    float | None,
    typer.Option(
        "--standby",
        min=0.0,
        max=100.0,
        help="Capacity that stands by for urgent work, times its daily mean [what is worth it].",
    ),
]
MissedOption = Annotated[
    str | None,
    typer.Option("--missed-job-usd", help="What a missed urgent job costs [a hundred times what doing it costs]."),
]
PeersOption = Annotated[bool, typer.Option("--peers/--no-peers", help="Also run the peers.")]
SeedOption = Annotated[int, typer.Option("--seed", help="Start-up times and preemptions follow from it.")]


@app.command()
def simulate(
    trace: TraceArgument = None,
    history: HistoryOption = False,
    catalog: LanesOption = None,
    outage: OutageOption = None,
    spot_gone: SpotGoneOption = False,
    share: ShareOption = None,
    standby: StandbyOption = None,
    missed_job_usd: MissedOption = None,
    peers: PeersOption = True,
    seed: SeedOption = 0,
    data: DataOption = None,
    database_url: DatabaseOption = None,
    shape: FormatOption = OutputFormat.TABLE,
) -> None:
    """Replay a trace, or one's own history, on a virtual clock: cost, missed deadlines, waits, waste, shares."""
    from broker.rules.placement.policy import Policy
    from broker.simulation.comparing import compare_ours, compare_peers
    from broker.simulation.faults import drain_of, named_faults, parse_outage
    from broker.simulation.lane_files import DEFAULT_LANES, read_lanes
    from broker.simulation.workload import STEP_S, read_arrivals

    if history == (trace is not None):
        raise UsageError("name a trace, or --history; one of them")
    if trace is None:
        lanes, workload = _own_history(read_settings(data, catalog), database_url)
    else:
        lanes = read_lanes(Path(catalog) if catalog else DEFAULT_LANES)
        workload = read_arrivals(trace)
    faults = named_faults("spot_gone", workload) if spot_gone else (drain_of(workload),)
    faults = (*(parse_outage(one) for one in outage or ()), *faults)
    for fault in faults:
        if fault.provider is not None and fault.provider not in {lane.provider for lane in lanes}:
            raise UsageError(f"no lane of the catalog is {fault.provider}'s")
    shares = _shares(share or (), lanes)
    policy = Policy(shares=shares, standby=standby, missed_job_nano_usd=_missed_job(missed_job_usd))
    history_steps = -workload.start_s // STEP_S
    if not any(any(source.jobs[history_steps:]) for source in workload.sources):
        raise UsageError(f"{trace or 'the history'} asks for no jobs: there is nothing to place")
    ours = compare_ours(lanes, workload, faults, policy, seed)
    row = _row_for_people if shape is OutputFormat.TABLE else _row
    rows = [{**dict.fromkeys(row(ours)), "policy": "bound", "cost_usd": round(ours.bound_usd, 2), "x_bound": 1.0}]
    rows.append(row(ours))
    if peers:
        rows += [row(one) for one in compare_peers(lanes, workload, faults, ours.bound_usd, seed)]
    print_rows(rows, shape)
    if shape is OutputFormat.TABLE:
        say("Bound: perfect foresight and fractions of instances. Nothing is refused; what starts late is missed.")


def _own_history(settings: Settings, database_url: str | None) -> tuple[tuple[LaneFacts, ...], Workload]:
    from broker.bootstrap.ledger_reader import read_ledger
    from broker.catalog.lanes import load_lanes
    from broker.clock import utc_now_us
    from broker.database.arrivals import kept_arrivals
    from broker.ledger.prices import PricedLanes
    from broker.ledger.speeds import learned_speeds
    from broker.simulation.history import Arrived, lanes_of, workload_of

    lanes = load_lanes(settings.catalog)
    priced = PricedLanes(lanes)

    def read(connection: Connection) -> tuple[list[Arrived], dict[str, dict[str, Speed]]]:
        priced.look(connection)
        kept = kept_arrivals(connection, 0)
        came = [Arrived(at, one.model, one.constraints, one.window_seconds, jobs) for at, one, jobs in kept]
        return came, learned_speeds(connection, lanes)

    came, speeds = read_ledger(settings.data, database_url or settings.database_url, read)
    workload = workload_of(came)
    return lanes_of(priced.all_at(utc_now_us()), speeds, workload), workload


def _missed_job(text: str | None) -> int | None:
    from broker.domain.money import nano_from_usd

    try:
        nano_usd = int(nano_from_usd(text)) if text is not None else None
    except ValueError:
        nano_usd = 0
    if nano_usd == 0:
        raise UsageError(f"--missed-job-usd {text!r} is not an amount above 0, such as 0.01")
    return nano_usd


def _shares(texts: list[str] | tuple[()], lanes: tuple[LaneFacts, ...]) -> dict[str, float]:
    providers = sorted({lane.provider for lane in lanes})
    shares: dict[str, float] = {}
    for text in texts:
        name, _, percent = text.rpartition("=")
        try:
            part = float(percent) / 100
        except ValueError:
            raise UsageError(f"--share {text!r} is not PROVIDER=PERCENT or PERCENT") from None
        if not 0 < part <= 1 or (name and name not in providers):
            raise UsageError(f"--share {text!r}: there are {', '.join(providers)}, and 0 to 100 percent")
        shares |= {name: part} if name else dict.fromkeys(providers, part)
    return shares


def _row(one: Compared) -> dict[str, Any]:
    result = one.result
    row: dict[str, Any] = {
        "policy": one.name,
        "cost_usd": round(result.cost_usd, 2),
        "x_bound": round(one.ratio, 4),
        "jobs": round(result.jobs),
        "missed": round(result.missed, 1),
        "wasted_usd": round(result.wasted_usd, 2),
    }
    for each in result.classes:
        row[f"wait_p50_s_{each.kind}"] = round(each.wait_p50_s)
        row[f"wait_p95_s_{each.kind}"] = round(each.wait_p95_s)
        row[f"missed_{each.kind}"] = round(each.missed, 1)
    for provider, part in _all_shares(one).items():
        row[f"share_percent_{provider}"] = round(100 * part, 2)
    return row


def _row_for_people(one: Compared) -> dict[str, Any]:
    """The same with figures that are read together in one column."""
    classes = one.result.classes
    kinds = "/".join(each.kind for each in classes)
    percents = {name.split("-")[0]: 100 * part for name, part in _all_shares(one).items()}
    return {
        "policy": one.name,
        "cost_usd": round(one.result.cost_usd, 2),
        "x_bound": round(one.ratio, 4),
        "missed": round(one.result.missed),
        f"missed {kinds}": "/".join(f"{each.missed:,.0f}" for each in classes),
        f"wait p50 s {kinds}": "/".join(f"{each.wait_p50_s:.0f}" for each in classes),
        f"wait p95 s {kinds}": "/".join(f"{each.wait_p95_s:.0f}" for each in classes),
        "wasted_usd": round(one.result.wasted_usd, 2),
        "share % " + "/".join(percents): "/".join(f"{part:.1f}" for part in percents.values()),
    }


def _all_shares(one: Compared) -> dict[str, float]:
    """Every provider's part, none for those that the policy doesn't use."""
    return {provider: one.result.shares.get(provider, 0.0) for provider in one.providers}
