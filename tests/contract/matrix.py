"""Which case holds on which driver: gathered from a run, printed at its end, kept in docs/contract.md.

A run need not hold every driver: with BROKER_WRITE_MATRIX=1 what it found takes the place of what `results.json`
has of the same cases, and the page is written from that.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.contract.bus_contract import BusContract
from tests.contract.worker_contract import WorkerContract

__all__ = ["BEGIN", "DRIVERS", "END", "STOCK", "Matrix", "cases", "columns", "page", "record", "title_of"]

DRIVERS = {
    "TestMemoryBus": "memory",
    "TestMemoryWorker": "memory",
    "TestQuorumBus": "amqp",
    "TestQuorumWorker": "amqp",
    "TestClassicBus": "amqp classic",
    "TestClassicWorker": "amqp classic",
    "TestRedisBus": "redis",
    "TestRedisWorker": "redis",
    "TestPubSubBus": "pubsub",
    "TestPubSubWorker": "pubsub",
    "TestServiceBusBus": "servicebus",
    "TestServiceBusWorker": "servicebus",
    "TestOciQueueBus": "ociqueue",
    "TestOciQueueWorker": "ociqueue",
}
"""The drivers that run the contract, by the classes that do."""

STOCK = {
    "TestStockGcpubsubBus": "stock gcpubsub",
    "TestStockGcpubsubWorker": "stock gcpubsub",
    "TestStockServiceBusBus": "stock azureservicebus",
    "TestStockServiceBusWorker": "stock azureservicebus",
}
"""kombu's own transports beside ours: run by hand, and free to fail."""

RESULTS = Path(__file__).with_name("results.json")

PASS, FAIL, DOCUMENTED, NOT_APPLICABLE = "pass", "FAIL", "documented", "n/a"

BEGIN, END = "<!-- begin: written by BROKER_WRITE_MATRIX=1 make contract -->\n", "<!-- end -->\n"


class Matrix:
    """A pytest plugin that notes how each case ended."""

    def __init__(self) -> None:
        self.cells: dict[tuple[str, str], str] = {}
        self.notes: dict[tuple[str, str], str] = {}

    def pytest_runtest_logreport(self, report: Any) -> None:
        path, _, test = report.nodeid.rpartition("::")
        driver = (DRIVERS | STOCK).get(path.rpartition("::")[2])
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
        drivers = [driver for driver in columns() if any(driver == ran for _, ran in self.cells)]
        width = max(len(title_of(case)) for case in cases())
        yield f"{'':{width}}  " + "  ".join(f"{driver:12}" for driver in drivers)
        for case in cases():
            cells = "  ".join(f"{self.cells.get((case, driver), '-'):12}" for driver in drivers)
            yield f"{title_of(case):{width}}  {cells}".rstrip()
        for (case, driver), note in self.notes.items():
            yield f"{driver}, {title_of(case)}: {self.cells[case, driver]}, {note}"


def columns() -> list[str]:
    """The drivers in the order of the page."""
    return list(dict.fromkeys([*DRIVERS.values(), *STOCK.values()]))


def record(matrix: Matrix) -> Matrix:
    """Add what this run found to what is kept; all of it, without cases and drivers that are gone."""
    kept: dict[str, dict[str, str]] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for (case, driver), cell in matrix.cells.items():
        note = matrix.notes.get((case, driver))
        kept.setdefault(driver, {})[case] = f"{cell}: {note}" if note else cell
    ordered = {
        driver: {case: kept[driver][case] for case in cases() if case in kept[driver]}
        for driver in columns()
        if driver in kept
    }
    RESULTS.write_text(json.dumps(ordered, indent=2, ensure_ascii=False) + "\n")
    whole = Matrix()
    for driver, found in ordered.items():
        for case, text in found.items():
            cell, _, note = text.partition(": ")
            whole.cells[case, driver] = cell
            if note:
                whole.notes[case, driver] = note
    return whole


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
    drivers = columns()
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
