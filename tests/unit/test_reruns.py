"""What did not succeed runs again as a batch, whose files hold what all runs brought; two tenants, two batches."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from sqlalchemy import select

from broker.api.app import make_app
from broker.api.desk import Desk
from broker.api.tokens import FixedTokens
from broker.database import batches, reruns
from broker.database.tables import job
from broker.domain.errors import ErrorCode
from broker.domain.ids import format_id, parse_id
from broker.domain.job import BatchStatus
from broker.domain.outcome import Outcome
from broker.domain.paths import OWN
from broker.domain.rerun import RerunRefused, rerun_outcomes
from broker.front import Front
from broker.intake import reruns as intake_reruns
from broker.intake.reruns import RerunTerms
from broker.ledger.tables import attempt, job_outcome
from broker.stages.assembler import Assembler
from tests.unit.asking import ask, refusal
from tests.unit.builders import a_failure, a_job_ran, a_lane, a_line, an_identity, some_lines
from tests.unit.statements import watched

TENANTS = ("blue", "red")


class Reran:
    """A broker with batches of two tenants, stepped by hand."""

    def __init__(self, world) -> None:
        self.world = world
        parts = {"database": world.database, "lanes": world.lanes, "clock": world.clock, "wakeups": world.wakeups}
        self.front = Front(health=world.health, folder=world.folder, **parts)
        self.assembler = Assembler(world.database, world.clock)
        tokens = FixedTokens({f"ib_{name}": an_identity(name) for name in TENANTS})
        self.app = make_app(Desk(self.front, None, 1_000_000), tokens)

    def batch(self, tenant, name, content, **terms):
        files = {"output_path": str(self.world.folder / f"{name}.jsonl")}
        files["error_path"] = str(self.world.folder / f"{name}.errors.jsonl")
        return self.world.take_in(content, tenant_id=tenant, **files, **terms)

    def run(self, fails, code=ErrorCode.ENGINE_REFUSED):
        """All that waits ends: the lines with these names fail, by what their batches' jobs are called."""
        while shards := self.world.claimed():
            for shard in shards:
                names = self.names_of(shard)
                self.world.record(
                    self.world.ran(
                        shard,
                        *(
                            a_failure(index, code)
                            if name in fails
                            else a_job_ran(index, body=b'{"run":"%d"}' % len(fails))
                            for index, name in enumerate(names)
                        ),
                    )
                )
        self.assembler.step()

    def names_of(self, shard):
        ids = [shard.job_id_at(index) for index in range(shard.jobs_count)]
        rows = self.world.read(lambda connection: connection.execute(select(job.c.job_id, job.c.custom_id)).all())
        names = {row.job_id: row.custom_id for row in rows}
        return [names[job_id] for job_id in ids]

    def rerun(self, record, tenant=None, **terms):
        """Made, and all of it taken in."""
        terms = RerunTerms(paths=lambda before: (before.output_path, before.error_path), **terms)
        made = self.front.reruns.create(an_identity(tenant or record.tenant_id), record, terms)
        while self.front.reruns.step():
            pass
        return self.world.batch(made.batch_id)

    def files(self, record):
        return [
            [msgspec.json.decode(line) for line in Path(path).read_bytes().splitlines()]
            for path in (record.output_path, record.error_path)
        ]

    def named(self, record):
        return [[line["custom_id"] for line in lines] for lines in self.files(record)]


@pytest.fixture
def broker(make_world):
    return Reran(make_world(a_lane("one", slots=4), a_lane("two", slots=4)))


def test_what_failed_runs_again_alone_and_the_files_are_of_all_runs(broker):
    refused = b'{"custom_id": "bad", "method": "POST"}\n'
    blue = broker.batch("blue", "blue", some_lines(4, "a") + refused + some_lines(2, "z"))
    red = broker.batch("red", "red", some_lines(6, "a"))
    broker.run({"a1", "a3", "z0"})
    assert broker.named(blue) == [["a0", "a2", "z1"], ["a1", "a3", "bad", "z0"]]
    reds = [Path(path).read_bytes() for path in (red.output_path, red.error_path)]

    again = broker.rerun(blue)
    assert (again.accepted_jobs, again.refused_lines, again.status) == (3, 0, BatchStatus.RUNNING)
    assert (again.window_seconds, again.constraints) == (blue.window_seconds, blue.constraints)
    assert broker.rerun(blue).batch_id == again.batch_id  # asked again while it runs, it is the same one
    broker.run({"a3"})
    assert broker.named(again) == [["a0", "a1", "a2", "z0", "z1"], ["a3", "bad"]]
    output, errors = broker.files(again)
    assert {line["custom_id"]: line["response"]["body"]["run"] for line in output} == {
        "a0": "3", "a2": "3", "z1": "3", "a1": "1", "z0": "1"
    }  # fmt: skip
    assert errors[1]["error"]["line"] == 5

    last = broker.rerun(blue)  # of what is left after both
    assert last.accepted_jobs == 1
    broker.run(set())
    assert broker.named(last) == [["a0", "a1", "a2", "a3", "z0", "z1"], ["bad"]]
    with pytest.raises(RerunRefused, match="nothing to run again"):
        broker.rerun(blue)

    assert [Path(path).read_bytes() for path in (red.output_path, red.error_path)] == reds
    assert {broker.world.read(batches.progress, one.batch_id).succeeded for one in (blue, again, last)} == {3, 2, 1}
    proven(broker.world, blue, jobs=6 + 3 + 1, successes=6)


def proven(world, record, *, jobs, successes):
    """Each line succeeded once, each run of one is in the ledger, and says what it runs again."""
    rows = [row for row in world.rows(job) if row.tenant_id == record.tenant_id]
    ends = {row.job_id: row.outcome for row in world.rows(job_outcome)}
    assert len(rows) == jobs == len({row.job_id for row in world.rows(attempt) if row.tenant_id == record.tenant_id})
    lines = [row.line_number for row in rows if ends[row.job_id] == Outcome.SUCCEEDED]
    assert len(lines) == len(set(lines)) == successes
    by_id = {row.job_id: row for row in rows}
    for row in rows:
        if row.redrive_of:
            first = by_id[row.redrive_of]
            assert (first.custom_id, first.line_number) == (row.custom_id, row.line_number)
            assert ends[first.job_id] != Outcome.SUCCEEDED
    assert world.verified().faults == []


def test_only_some_kinds_of_ends_and_later_the_others(broker):
    record = broker.batch("blue", "blue", some_lines(3, "f") + some_lines(3, "e"), window_seconds=100)
    other = broker.batch("blue", "other", some_lines(6, "f"))
    shards = {shard.batch_id: shard for shard in broker.world.claimed()}
    mine = shards[record.batch_id]
    names = broker.names_of(mine)
    ran = [a_failure(index, ErrorCode.REPLY_TOO_LARGE) for index, name in enumerate(names) if name.startswith("f")]
    broker.world.record(broker.world.ran(mine, *ran), broker.world.returned(mine, ErrorCode.JOB_EXPIRED))
    broker.world.clock.advance(200)
    assert broker.world.closer.step() > 0
    assert broker.world.counts(record.batch_id).expired == 3
    assert broker.world.counts(other.batch_id).ended == 0
    broker.assembler.step()
    with pytest.raises(RerunRefused, match="cancelled"):
        broker.rerun(record, outcomes=rerun_outcomes("cancelled"))
    expired = broker.rerun(record, outcomes=rerun_outcomes("expired"), window_seconds=50)
    assert (expired.accepted_jobs, expired.window_seconds) == (3, 50)
    assert expired.deadline_us == broker.world.clock() + 50_000_000
    broker.run(set())
    assert broker.named(expired) == [["e0", "e1", "e2"], ["f0", "f1", "f2"]]
    failed = broker.rerun(record)
    broker.run(set())
    assert broker.named(failed) == [["f0", "f1", "f2", "e0", "e1", "e2"], []]
    assert broker.world.counts(other.batch_id).succeeded == 0  # its shard is still out
    assert broker.world.verified().faults == []


def test_a_rerun_comes_in_piece_by_piece_and_may_be_cancelled_meanwhile(broker, monkeypatch):
    monkeypatch.setattr(intake_reruns, "_PAGE_BYTES", 1)
    record = broker.batch("blue", "blue", some_lines(5, "a"))
    broker.batch("red", "red", some_lines(5, "a"))
    broker.run({f"a{number}" for number in range(5)})
    whole = broker.rerun(record)
    assert whole.accepted_jobs == 5
    broker.run({f"a{number}" for number in range(5)})
    terms = RerunTerms(paths=lambda before: (before.output_path, before.error_path))
    part = broker.front.reruns.create(an_identity("blue"), record, terms)
    assert [broker.front.reruns.step() for _ in range(2)] == [True, True]
    broker.world.database.write(lambda connection: batches.request_cancel(connection, "blue", part.batch_id, 1))
    assert not broker.front.reruns.step()
    while broker.world.closer.step():
        pass
    broker.assembler.step()
    part = broker.world.batch(part.batch_id)
    assert (part.status, part.accepted_jobs) == (BatchStatus.CANCELLED, 2)
    _, errors = broker.files(part)
    codes = [line["error"]["code"] for line in errors]
    assert codes == ["batch_cancelled"] * 2 + ["engine_refused"] * 3
    broker.rerun(record)
    broker.run(set())
    ran = broker.world.read(lambda connection: reruns.newest_of(connection, "blue", record))
    assert broker.named(ran) == [[f"a{number}" for number in range(5)], []]


def test_a_spent_budget_is_not_spent_again_unasked(broker):
    rich = broker.batch("blue", "rich", some_lines(4, "r"), max_cost_nano_usd=1_000_000)
    poor = broker.batch("blue", "poor", some_lines(4, "p"), max_cost_nano_usd=1)
    broker.run({"r1"})
    while broker.world.closer.step():
        pass
    broker.assembler.step()
    spent = broker.world.counts(rich.batch_id).cost_nano_usd
    assert broker.rerun(rich).max_cost_nano_usd == 1_000_000 - spent
    with pytest.raises(RerunRefused, match="spent its budget"):
        broker.rerun(poor)
    again = broker.rerun(poor, max_cost_nano_usd=500_000)
    assert (again.max_cost_nano_usd, again.accepted_jobs) == (500_000, 4)


def test_a_model_that_no_lane_has_any_more_is_said_of_each_line(broker):
    other = a_line("two", body={"model": "m2"}) + b"\n"
    record = broker.batch("blue", "blue", some_lines(1, "a") + other)
    broker.run({"a0"})
    broker.world.clock.advance(100_000)
    while broker.world.closer.step():
        pass
    broker.assembler.step()
    again = broker.rerun(record)
    assert (again.accepted_jobs, again.refused_lines) == (1, 1)
    broker.run(set())
    output, errors = broker.files(again)
    assert [line["custom_id"] for line in output] == ["a0"]
    assert [(line["custom_id"], line["error"]["code"]) for line in errors] == [("two", "unknown_model")]


def test_the_door_runs_again_what_is_the_askers_own(broker):
    finished = {name: broker.batch(name, name, some_lines(4, f"{name}-")) for name in TENANTS}
    broker.run({"blue-1", "red-2", "red-3"})
    running = {name: broker.batch(name, f"{name} more", some_lines(2, "m")) for name in TENANTS}
    made = {}
    for name, record in finished.items():
        path = f"{OWN}/batches/{format_id('batch', record.batch_id)}/rerun"
        for token, status in ((f"ib_{name}", 201), *((f"ib_{other}", 404) for other in TENANTS if other != name)):
            with watched(token.removeprefix("ib_")) as seen:
                answer = ask(broker.app, "POST", path, token=token)
            assert (answer[0], seen.faults) == (status, []), answer
            if status == 201:
                made[name] = msgspec.json.decode(answer[1])
        assert made[name]["rerun_of"] == format_id("batch", record.batch_id)
        assert refusal(ask(broker.app, "POST", f"{path}?only=refused", token=f"ib_{name}")) == (400, "invalid_field")
        assert refusal(ask(broker.app, "POST", f"{path}?only=x", token=f"ib_{name}")) == (400, "invalid_field")
        again = msgspec.json.decode(ask(broker.app, "POST", path, token=f"ib_{name}")[1])
        assert again["id"] == made[name]["id"]
        still = f"{OWN}/batches/{format_id('batch', running[name].batch_id)}/rerun"
        assert refusal(ask(broker.app, "POST", still, token=f"ib_{name}")) == (409, "not_finished")
    while broker.front.reruns.step():
        pass
    broker.run(set())
    for name, state in made.items():
        shown = msgspec.json.decode(ask(broker.app, "GET", f"{OWN}/batches/{state['id']}", token=f"ib_{name}")[1])
        assert (shown["status"], shown["succeeded"]) == ("completed", {"blue": 1, "red": 2}[name])
        output = ask(broker.app, "GET", f"{OWN}/batches/{state['id']}/output", token=f"ib_{name}")[1]
        names = [msgspec.json.decode(line)["custom_id"] for line in output.splitlines()]
        assert names == [f"{name}-{number}" for number in range(4)]
        record = broker.world.batch(parse_id("batch", state["id"]))
        assert record.output_path != finished[name].output_path
    assert broker.world.verified().faults == []
