"""`python -m tests.harness CAMPAIGN [name=value ...]`: a campaign at any size; without values, the full one.

`python -m tests.harness all` is each of them at full size, one after another, whatever the others find.

python -m tests.harness kills jobs=20000 kills=50 terms=20 seed=7 layout=one-each
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import msgspec

from tests.harness.bus_loss import BusLossTerms, run_bus_loss
from tests.harness.database_loss import (
    AwayTerms,
    DatabaseTerms,
    RecorderTerms,
    run_commit_cuts,
    run_database_away,
    run_database_kills,
    run_recorder_deaths,
)
from tests.harness.freezes import FreezeTerms, run_freezes
from tests.harness.handback import HandbackTerms, run_handback
from tests.harness.hardships import DiskTerms, NetworkTerms, run_full_disk, run_network
from tests.harness.kills import KillTerms, run_kills
from tests.harness.report import Report
from tests.harness.stand import ALL_IN_ONE, IN_PAIRS, ONE_EACH

__all__ = ["main"]

CAMPAIGNS: dict[str, tuple[type[msgspec.Struct], Callable[..., Report]]] = {
    "kills": (KillTerms, run_kills),
    "bus-loss": (BusLossTerms, run_bus_loss),
    "database-kills": (DatabaseTerms, run_database_kills),
    "database-away": (AwayTerms, run_database_away),
    "commit-cuts": (DatabaseTerms, run_commit_cuts),
    "recorder-deaths": (RecorderTerms, run_recorder_deaths),
    "freezes": (FreezeTerms, run_freezes),
    "network": (NetworkTerms, run_network),
    "full-disk": (DiskTerms, run_full_disk),
    "handback": (HandbackTerms, run_handback),
}
LAYOUTS = {"all-in-one": ALL_IN_ONE, "in-pairs": IN_PAIRS, "one-each": ONE_EACH}


def main(words: list[str]) -> int:
    """0 when everything held; 1 when not; 2 when it was asked wrongly."""
    if words == ["all"]:
        return max([_run_and_name(name) for name in CAMPAIGNS])
    if not words or words[0] not in CAMPAIGNS:
        sys.stderr.write(f"name a campaign: {', '.join(CAMPAIGNS)}\n{__doc__}")
        return 2
    kind, run = CAMPAIGNS[words[0]]
    given: dict[str, Any] = dict(word.split("=", 1) for word in words[1:] if "=" in word)
    keep = "--keep" in words
    if "layout" in given:
        given["layout"] = LAYOUTS[given["layout"]]
    report = run(msgspec.convert(given, kind, strict=False), keep=keep)
    report.print()
    return 1 if report.faults else 0


def _run_and_name(name: str) -> int:
    sys.stdout.write(f"== {name}\n")
    sys.stdout.flush()
    return main([name])


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
