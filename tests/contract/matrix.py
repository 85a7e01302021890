"""Which case holds on which driver: gathered from a run, printed at its end, kept in docs/contract.md."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from tests.contract.bus_contract import BusContract
from tests.contract.worker_contract import WorkerContract

__all__ = ["BEGIN", "DRIVERS", "END", "Matrix", "cases", "page", "title_of"]

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

BEGIN, END = "<!-- begin: written by BROKER_WRITE_MATRIX=1 make contract -->\n", "<!-- end -->\n"


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


def page(matrix: Matrix, text: str) -> str:
    """The text with this run's table in place of the one between its marks."""
    before, _, rest = text.partition(BEGIN)
    _, mark, after = rest.partition(END)
    assert mark, "the page has lost its marks"
    return f"{before}{BEGIN}{table(matrix)}{END}{after}"


def table(matrix: Matrix) -> str:
    """The results in Markdown, with numbered notes below."""
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
    return "\n".join(rows) + "\n\n### Notes\n\n" + "\n".join(notes) + "\n"
