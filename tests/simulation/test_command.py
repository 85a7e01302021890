"""`broker simulate`, from a trace on disk to figures for programs, and its words for wrong input."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from broker.bootstrap.data_folder import open_database
from broker.database.arrivals import ArrivalTerms, keep_arrivals
from broker.domain.errors import UsageError
from broker.simulation.faults import parse_outage
from broker.simulation.lane_files import read_lanes
from broker.simulation.workload import read_arrivals, start_within_s
from tests.flow.program import lane

LANES = [
    {
        "name": f"{provider}-{market}",
        "provider": provider,
        "market": market,
        "usd_per_hour": price,
        "requests_per_s": {"1min": 10.0, "4h": 5.0},
        "quota": 1 if market == "spot" else 4,
        "start_unbilled_s": 120,
        "start_billed_s": 120,
        "preemptions_per_hour": 0.1 if market == "spot" else 0.0,
    }
    for provider, market, price in (
        ("google-tpu", "spot", 3.0),
        ("oracle-gpu", "on-demand", 10.0),
        ("azure-gpu", "on-demand", 14.0),
    )
]


@pytest.fixture
def trace(tmp_path):
    lines = ["step_start_s,requests_1min,requests_4h"]
    lines += [
        f"{second},{150 + second % 70},{90 if second % 3600 < 1800 else 10}" for second in range(-7200, 14400, 10)
    ]
    path = tmp_path / "trace.csv"
    path.write_text("\n".join(lines))
    return path


def simulate(*arguments):
    command = [sys.executable, "-m", "broker", "simulate", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


def test_figures_of_all_policies_beside_the_bound(trace, tmp_path):
    catalog = tmp_path / "lanes.json"
    catalog.write_text(json.dumps(LANES))
    done = simulate(
        trace, "--catalog", catalog, "--outage", "azure-gpu@1-2", "--share", "oracle-gpu=90", "--format", "json"
    )
    assert done.returncode == 0, done.stderr
    rows = {row["policy"]: row for row in json.loads(done.stdout)}
    assert list(rows)[:2] == ["bound", "EDF merit + cap"]
    assert {"single cloud oracle-gpu", "round robin", "least loaded", "cheapest first"} <= rows.keys()
    ours = rows["EDF merit + cap"]
    assert ours["cost_usd"] > rows["bound"]["cost_usd"] > 0
    assert ours["x_bound"] == pytest.approx(ours["cost_usd"] / rows["bound"]["cost_usd"], rel=1e-3)
    assert ours["missed"] == ours["missed_1min"] + ours["missed_4h"] == 0
    shares = [ours[f"share_percent_{name}"] for name in ("google-tpu", "oracle-gpu", "azure-gpu")]
    assert sum(shares) == pytest.approx(100, abs=0.1)
    assert ours["share_percent_oracle-gpu"] <= 91


def test_an_unknown_provider_is_refused(trace):
    done = simulate(trace, "--outage", "nobody@1-2")
    assert done.returncode == 2
    assert "nobody" in done.stderr


def test_wrong_input_is_named(tmp_path):
    path = tmp_path / "trace.csv"
    with pytest.raises(UsageError, match="can't be read"):
        read_arrivals(path)
    for text, message in (
        ("a,b\n1,2\n", "is no trace"),
        ("step_start_s,requests_soon\n0,1\n", "names no deadline"),
        ("step_start_s,requests_1h\n0,1\n30,1\n", "10 s apart"),
        ("step_start_s,requests_1h\n0,x\n", "could not convert"),
    ):
        path.write_text(text)
        with pytest.raises(UsageError, match=message):
            read_arrivals(path)
    with pytest.raises(UsageError, match="no list of lanes"):
        read_lanes(path)
    for text in ("oracle-gpu", "oracle-gpu@4-2", "@1-2"):
        with pytest.raises(UsageError, match="--outage"):
            parse_outage(text)


def test_deadlines_leave_time_for_service():
    assert [start_within_s(seconds) for seconds in (60, 3_600, 86_400)] == [40, 3_540, 85_800]


def test_ones_own_history_is_replayed_on_ones_own_lanes(tmp_path):
    catalog = tmp_path / "lanes.toml"
    catalog.write_text(
        lane("tpu", "google-tpu", jobs_per_second=5.0, quota=4, start_billed_seconds=60.0)
        + lane("azure", "azure-gpu", price="2.40", jobs_per_second=5.0, quota=20)
    )
    data = tmp_path / "data"
    database = open_database(data)
    for minute in range(300):
        came = {ArrivalTerms("m", "{}", 3_600): 600, ArrivalTerms("m", "{}", 60): 30 + minute % 7}
        database.write(lambda one, at=minute, what=came: keep_arrivals(one, 29_000_000 + at, what))
    database.close()
    done = simulate("--history", "--data", data, "--catalog", catalog, "--no-peers", "--format", "json")
    assert done.returncode == 0, done.stderr
    bound, ours = json.loads(done.stdout)
    assert ours["missed_m 1h"] == 0
    assert ours["missed"] < 120  # of the first minutes: without a day of history no instance is up yet
    assert ours["jobs"] == sum(600 + 30 + minute % 7 for minute in range(300))
    assert bound["x_bound"] == 1.0 <= ours["x_bound"] < 1.5
    assert {"missed_m 1h", "missed_m 1min"} <= ours.keys()


def test_a_trace_or_ones_history_is_needed_and_a_history_has_arrivals(tmp_path):
    assert "name a trace, or --history" in simulate().stderr
    open_database(tmp_path / "data").close()
    done = simulate("--history", "--data", tmp_path / "data")
    assert (done.returncode, "no arrivals are kept yet" in done.stderr) == (2, True)


@pytest.mark.parametrize(("figure", "said"), [("-3", "-3"), ("nan", "nan"), ("inf", "inf")])
def test_a_figure_that_no_trace_can_have_is_named_with_its_line(tmp_path, figure, said):
    path = tmp_path / "trace.csv"
    path.write_text(f"step_start_s,requests_1h\n0,1\n10,{figure}\n")
    with pytest.raises(UsageError, match=f"trace.csv, line 3: requests_1h is {said}; it must be a number of 0 or more"):
        read_arrivals(path)


@pytest.mark.parametrize("steps", ["0,0", "-10,4\n0,0"])
def test_a_trace_that_asks_for_nothing_is_one_sentence(tmp_path, steps):
    path = tmp_path / "trace.csv"
    path.write_text(f"step_start_s,requests_1h\n{steps}\n")
    done = simulate(path)
    assert (done.returncode, done.stderr) == (2, f"error: {path} asks for no jobs: there is nothing to place\n")


def test_no_more_stands_by_than_a_catalog_may_say(trace):
    done = simulate(trace, "--standby", "inf")
    assert done.returncode == 2
    assert "'--standby': Input should be less than or equal to 100" in done.stderr
