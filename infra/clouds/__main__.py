"""`make clouds`: one batch over Google Pub/Sub, Azure Service Bus and OCI Queue at once, on this machine.

Starts PostgreSQL, Google's Pub/Sub emulator and this project's emulators of the other two; makes the queues with
`broker bus apply`; starts the broker's roles and a worker for each lane; runs a batch of echo jobs and of jobs for a
small real model; shows from the ledger what ran where and over which queue; checks the output; and cleans up.
"""

from __future__ import annotations

import argparse
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import msgspec

from broker.catalog.lanes import load_lanes
from infra.clouds.batch import check_output, write_batch
from infra.clouds.buses import three_buses
from infra.clouds.processes import Failed, Processes
from infra.clouds.report import cloud_of, print_report
from infra.servers.process import ServerFailed, ServerMissing

_CATALOG = Path(__file__).with_name("lanes.toml")
_START_SECONDS = 90.0


def main() -> None:
    """Exit code 0 when every job stands once in the ledger and once in the output; 1 with the reason otherwise."""
    given = _parser().parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C, so that nothing is left running
    folder = Path(tempfile.mkdtemp(prefix="clouds-"))
    try:
        _demonstrate(folder, given)
    except ServerMissing as error:
        shutil.rmtree(folder, ignore_errors=True)
        sys.stderr.write(f"{error}\n")
        sys.exit(1)
    except (Failed, ServerFailed) as error:
        sys.stderr.write(f"{error}\n")
        sys.stderr.write(f"The logs are in {folder}.\n")
        sys.exit(1)
    except KeyboardInterrupt:
        shutil.rmtree(folder, ignore_errors=True)
        sys.exit(130)
    shutil.rmtree(folder, ignore_errors=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m infra.clouds", description=__doc__)
    parser.add_argument("--jobs", type=int, default=3_000, help="echo jobs (%(default)s)")
    parser.add_argument("--model-jobs", type=int, default=30, help="jobs of the real model (%(default)s)")
    parser.add_argument("--window", default="100s", help="when the batch must be done (%(default)s)")
    parser.add_argument("--output", type=Path, default=Path("build/clouds/output.jsonl"), help="replies (%(default)s)")
    return parser


def _demonstrate(folder: Path, given: argparse.Namespace) -> None:
    began = time.monotonic()
    _say(began, "starting PostgreSQL, Google's Pub/Sub emulator, and our emulators of Service Bus and OCI Queue")
    with three_buses() as buses, Processes(folder) as processes:
        processes.tell(
            BROKER_DATABASE_URL=buses.database_url,
            BROKER_DATA=str(folder / "data"),
            BROKER_CATALOG=str(_CATALOG),
            BROKER_TRUSTED=str(folder / "broker.pub"),
            **buses.variables,
        )
        processes.run("broker", "db", "upgrade", shown=False)
        made = processes.run("broker", "bus", "apply", "--format", "json", shown=False)
        _say(began, f"they are up; `broker bus apply` made their queues: {_counted(made)}")
        lanes = load_lanes(str(_CATALOG))
        for lane in lanes:
            processes.run("broker", "keys", "lane", "create", str(lane.name), "--to", str(folder), shown=False)
        processes.start("broker", "broker", "serve", "--port", "0")
        address = re.search(r"http://[\w.:]+", processes.wait_to_say("broker", "http://", _START_SECONDS))
        processes.tell(BROKER_URL=address[0] if address else "")
        _say(
            began, f"the broker is up on {address[0] if address else 'its port'}; starting {len(lanes)} lanes' workers"
        )
        for lane in lanes:
            name = str(lane.name)
            key = str(folder / f"lane-{name}.key")
            processes.start(f"worker-{name}", "broker", "worker", "--lane", name, "--key", key)
        for lane in lanes:
            processes.wait_to_say(f"worker-{lane.name}", "Ready", _START_SECONDS)
        source = write_batch(folder / "batch.jsonl", given.jobs, given.model_jobs)
        _say(began, f"the workers are up; running {given.jobs:,} echo jobs and {given.model_jobs} on the real model")
        given.output.parent.mkdir(parents=True, exist_ok=True)
        wait = ("--wait", "--window", given.window, "--output", str(given.output))
        processes.run("broker", "batch", "create", str(source), *wait)
        print_report(buses, lanes, given.jobs + given.model_jobs)
        check_output(source, given.output)
        _say(began, f"every job stands once in the ledger, and once in {given.output}")
        _say(began, "stopping all of it")
    _say(began, "nothing is left running")


def _counted(made: str) -> str:
    """How many queues each cloud has now, from what `broker bus apply` says."""
    clouds = Counter(cloud_of(line["bus"]) for line in msgspec.json.decode(made))
    return ", ".join(f"{count} on {cloud}" for cloud, count in clouds.items())


def _say(began: float, sentence: str) -> None:
    sys.stdout.write(f"[{time.monotonic() - began:5.1f} s] {sentence}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
