"""docs/contract.md speaks of every case and driver, and hides no failure."""

from __future__ import annotations

from pathlib import Path

from tests.contract.matrix import BEGIN, END, STOCK, Matrix, cases, columns, page, title_of

PAGE = Path(__file__).parents[2] / "docs" / "contract.md"
GOOD = ("pass", "n/a [", "documented [")


def rows_of(text):
    written = text.partition(BEGIN)[2].partition(END)[0]
    lines = [line for line in written.splitlines() if line.startswith("| ")]
    return {cells[0]: cells[1:] for cells in ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)}


def flaws_of(text):
    rows = rows_of(text)
    drivers = columns()
    flaws = [] if rows.get("") == drivers else [f"drivers: {rows.get('')}"]
    for case in cases():
        cells = rows.get(title_of(case), [])
        allowed = [(*GOOD, "FAIL") if driver in STOCK.values() else GOOD for driver in drivers]
        if len(cells) != len(drivers) or not all(map(str.startswith, cells, allowed)):
            flaws.append(f"{title_of(case)}: {cells}")
    return flaws


def test_the_page_holds_every_case_on_every_driver():
    assert flaws_of(PAGE.read_text()) == [], "BROKER_WRITE_MATRIX=1 make contract"


def test_a_failure_and_a_case_that_was_not_run_are_flaws():
    matrix = Matrix()
    for case in cases():
        for driver in columns():
            matrix.cells[case, driver] = "pass"
    assert flaws_of(page(matrix, f"{BEGIN}{END}")) == []
    matrix.cells[cases()[0], "redis"] = "FAIL"
    del matrix.cells[cases()[1], "amqp"]
    assert [flaw.partition(":")[0] for flaw in flaws_of(page(matrix, f"{BEGIN}{END}"))] == [
        title_of(case) for case in cases()[:2]
    ]
