"""Which case holds on which driver: gathered from a run, printed at its end, kept in docs/contract.md."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from tests.contract.bus_contract import BusContract
from tests.contract.worker_contract import WorkerContract

__all__ = ["DRIVERS", "Matrix", "cases", "page", "title_of"]

DRIVERS = {
    "TestMemoryBus": "memory",
    "TestMemoryWorker": "memory",
    "TestQuorumBus": "amqp",
    "TestQuorumWorker": "amqp",
    "TestClassicBus": "amqp classic",
    "TestClassicWorker": "amqp classic",
    "TestRedisBus": "redis",
    "TestRedisWorker": "redis",
}
"""The drivers that run the contract, by the classes that do."""

PASS, FAIL, DOCUMENTED, NOT_APPLICABLE = "pass", "FAIL", "documented", "n/a"

_INTRODUCTION = """# The bus contract

What any lane's bus must do, and which driver does it. Each row is a test of
[tests/contract](../tests/contract/bus_contract.py) that runs unchanged on every driver, against real servers; cases
21 to 23 break a server of their own. `make contract` runs them and prints this table;
`BROKER_WRITE_MATRIX=1 make contract` writes this page.

| | |
|---|---|
| `memory` | `lanemem://`, the embedded form's bus |
| `amqp` | `amqp://`, RabbitMQ with quorum queues, the default |
| `amqp classic` | `amqp://…?queue_type=classic`, durable classic queues: faster on one node, and not replicated |
| `redis` | `redis://`, Redis 6.2 or newer; as durable as its `appendonly` and `appendfsync` make it |

`pass`: it holds. `documented`: it does not, and the note says what that means. `n/a`: the case has no meaning there.

"""


class Matrix:
    """A pytest plugin that notes how each case ended."""

    def __init__(self) -> None:
        self.cells: dict[tuple[str, str], str] = {}
        self.notes: dict[tuple[str, str], str] = {}

    def pytest_runtest_logreport(self, report: Any) -> None:
        path, _, test = report.nodeid.rpartition("::")
        driver = DRIVERS.get(path.rpartition("::")[2])
        if driver is None or (report.when != "call" and report.passed):
            return
        key = (test, driver)
        if hasattr(report, "wasxfail"):
            self.cells[key], self.notes[key] = (DOCUMENTED if report.skipped else FAIL), report.wasxfail
        elif report.skipped:
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
            self.cells[key], self.notes[key] = NOT_APPLICABLE, reason.removeprefix("Skipped: ")
        else:
            self.cells[key] = PASS if report.passed and self.cells.get(key) != FAIL else FAIL

    def lines(self) -> Iterator[str]:
        """The table for a terminal."""
        drivers = list(dict.fromkeys(DRIVERS.values()))
        width = max(len(title_of(case)) for case in cases())
        yield f"{'':{width}}  " + "  ".join(f"{driver:12}" for driver in drivers)
        for case in cases():
            cells = "  ".join(f"{self.cells.get((case, driver), '-'):12}" for driver in drivers)
            yield f"{title_of(case):{width}}  {cells}".rstrip()
        for (case, driver), note in self.notes.items():
            yield f"{driver}, {title_of(case)}: {self.cells[case, driver]}, {note}"


def cases() -> list[str]:
    """The names of all tests of the contract, by case number; those without one last."""
    names = [name for contract in (BusContract, WorkerContract) for name in vars(contract) if name.startswith("test_")]
    return sorted(names, key=lambda name: (not re.match(r"test_c\d", name), name))


def title_of(case: str) -> str:
    """`test_c05_an_acknowledged_message_never_returns` as a person reads it."""
    numbered = re.match(r"test_(c\d+)_(.*)", case)
    if numbered is None:
        return case.removeprefix("test_").replace("_", " ")
    return f"{numbered[1].upper()} {numbered[2].replace('_', ' ')}"


def page(matrix: Matrix) -> str:
    """docs/contract.md for this run."""
    drivers = list(dict.fromkeys(DRIVERS.values()))
    rows = [f"| | {' | '.join(drivers)} |", "|---" * (len(drivers) + 1) + "|"]
    marks: dict[str, int] = {}
    for case in cases():
        cells = []
        for driver in drivers:
            note = matrix.notes.get((case, driver))
            mark = f" [{marks.setdefault(note, len(marks) + 1)}](#notes)" if note else ""
            cells.append(matrix.cells.get((case, driver), "not run") + mark)
        rows.append(f"| {title_of(case)} | {' | '.join(cells)} |")
    notes = [f"{number}. {note[:1].upper()}{note[1:]}." for note, number in marks.items()]
    return _INTRODUCTION + "\n".join(rows) + "\n\n## Notes\n\n" + "\n".join(notes) + "\n"
