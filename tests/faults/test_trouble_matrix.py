"""Servers in trouble, of every kind, beside well ones and alone: each job ends well, and soon, and with few calls.

Most of a cell is waiting, so all cells of a form run in one broker at the same time, each with a model, lines and (in
the embedded form) lanes of its own; each is judged by itself.
"""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from tests.flow.program import Program, custom_ids, kill_group
from tests.flow.served import Served
from tests.harness.certificates import Certificates
from tests.harness.sick_server import TROUBLES, Ward
from tests.harness.trouble import (
    ATTEMPTS,
    Plan,
    Seen,
    each_apart,
    encoded,
    few_lanes,
    limited,
    table,
)
from tests.harness.unsure_names import NAMES_FOLDER
from tests.services.private_rabbit import PrivateRabbit

pytestmark = pytest.mark.slow

SECONDS_MAX = 120.0
LONGER = ("429", "500", "loading", "refused connection", "no answer")

EMBEDDED = each_apart(TROUBLES, LONGER)
LIMITED = limited()

SERVED_ALONE = (
    "429",
    "429, Retry-After in seconds",
    "500",
    "503",
    "308",
    "200 with an error",
    "no answer",
    "cut amid the reply",
    "refused connection",
    "loading",
)
SERVED_BESIDE = ("429, Retry-After in seconds", "500", "no answer", "refused connection")
SERVED = few_lanes(SERVED_ALONE, SERVED_BESIDE, "")
HALVES = [few_lanes(TROUBLES[part::2], TROUBLES[part::2], f"half{part}-") for part in (0, 1)]


def run_embedded(plan: Plan, folder) -> Seen:
    """`broker batch run` of all cells' lines at once."""
    program = Program(folder)
    certificates = Certificates(folder)
    (names := folder / "names").mkdir()
    with Ward(plan.servers, names, certificates) as ward, pytest.MonkeyPatch.context() as patch:
        program.catalog.write_text(plan.catalog({name: server.url for name, server in ward.servers.items()}))
        program.give(plan.requests())
        patch.setenv("SSL_CERT_FILE", str(certificates.trusted_file))
        patch.setenv(NAMES_FOLDER, str(names))
        process = program.start(*program.command(), module="tests.harness.unsure_names")
        try:
            said, complained = process.communicate(SECONDS_MAX)
        finally:
            kill_group(process)
        assert process.returncode == 0, (said[-500:], complained)
        program.verify()
        return Seen(plan, ward.servers, program.query(ATTEMPTS), custom_ids(program.output), custom_ids(program.errors))


def run_served(plan: Plan, folder, database_url) -> Seen:
    """`broker serve` with all roles, a worker to each lane, and one batch of all cells' lines."""
    certificates = Certificates(folder)
    (known := folder / "names").mkdir()
    (folder / "in.jsonl").write_bytes(encoded(plan.requests()))
    environment = {"SSL_CERT_FILE": str(certificates.trusted_file), NAMES_FOLDER: str(known)}
    with PrivateRabbit() as rabbit, Ward(plan.servers, known, certificates) as ward, ExitStack() as stack:
        urls = {name: server.url for name, server in ward.servers.items()}
        served = Served(folder, database_url, rabbit.url, plan.catalog(urls, bus_url=rabbit.url), environment)
        stack.callback(served.close)
        for one in plan.servers:
            served.broker("keys", "lane", "create", one.name)
        served.serve()
        url = ["--url", (served.data / "url").read_text().strip()]
        for one in plan.servers:
            served.start("worker", "--lane", one.name, *url, module="tests.harness.unsure_names")
        names = ", ".join(f"'{one.name}'" for one in plan.servers)  # the database may have those of a plan before
        there = f"SELECT count(DISTINCT lane) FROM worker WHERE lane IN ({names})"
        served.until(lambda: served.one(there) == len(urls), "all workers are there")
        output, errors = folder / "out.jsonl", folder / "errors.jsonl"
        files = ["--output", str(output), "--errors", str(errors)]
        said = served.broker("batch", "create", "in.jsonl", *url, "--wait", *files)
        assert "Traceback" not in said + served.logs()
        assert "Every row is as it was written." in served.broker("ledger", "verify")
        return Seen(plan, ward.servers, served.rows(ATTEMPTS), custom_ids(output), custom_ids(errors))


def shown(seen: Seen) -> Seen:
    """With its table on standard output: see it with `pytest -s`."""
    print("", table(map(seen.found, seen.plan.cells)), sep="\n")
    return seen


@pytest.fixture(scope="module")
def embedded(tmp_path_factory) -> Seen:
    return shown(run_embedded(EMBEDDED, tmp_path_factory.mktemp("embedded")))


@pytest.mark.parametrize("cell", EMBEDDED.cells, ids=lambda cell: cell.name)
def test_in_one_process(embedded, cell):
    assert embedded.found(cell).faults == []


@pytest.fixture(scope="module")
def embedded_limited(tmp_path_factory) -> Seen:
    """Once more where it fails: how many calls are under way before the first refusal is the machine's doing too."""
    for _ in range(2):
        seen = shown(run_embedded(LIMITED, tmp_path_factory.mktemp("limited")))
        if not any(seen.found(cell).faults for cell in LIMITED.cells):
            break
    return seen


@pytest.mark.parametrize("cell", LIMITED.cells, ids=lambda cell: cell.name)
def test_limits_in_one_process(embedded_limited, cell):
    assert embedded_limited.found(cell).faults == []


@pytest.fixture(scope="module")
def served(tmp_path_factory, postgres_url) -> Seen:
    return shown(run_served(SERVED, tmp_path_factory.mktemp("served"), postgres_url))


@pytest.mark.parametrize("cell", SERVED.cells, ids=lambda cell: cell.name)
def test_with_a_worker_to_each_lane(served, cell):
    assert served.found(cell).faults == []


@pytest.fixture(scope="module")
def served_halves(tmp_path_factory, postgres_url) -> list[Seen]:
    """One after the other, for each has two dozen processes."""
    return [shown(run_served(half, tmp_path_factory.mktemp("half"), postgres_url)) for half in HALVES]


@pytest.mark.long
@pytest.mark.parametrize(
    ("number", "cell"),
    [pytest.param(number, cell, id=cell.name) for number, half in enumerate(HALVES) for cell in half.cells],
)
def test_each_with_a_worker_to_each_lane(served_halves, number, cell):
    assert served_halves[number].found(cell).faults == []
