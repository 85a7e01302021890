"""Many batches, many requests to cancel: what a step asks of the database doesn't grow with them."""

from __future__ import annotations

import pytest

from broker.database import batches, cancelling
from broker.database.tables import cancel_request, job
from broker.domain.errors import ErrorCode
from broker.domain.outcome import Outcome
from broker.ledger.tables import job_outcome
from broker.stages.assembler import Assembler
from tests.unit.builders import NOW_US, World, a_lane, some_lines
from tests.unit.statements import counted

COST = 10_000


def _ids(world: World) -> dict[str, bytes]:
    return {row.custom_id: row.job_id for row in world.rows(job)}


def _ask_for_the_end_of(world: World, *names: str) -> None:
    ids = _ids(world)

    def work(connection):
        for name in names:
            cancelling.request(connection, "t", ids[name], NOW_US)

    world.database.write(work)


def _ended(world: World) -> dict[bytes, tuple[str, str]]:
    return {row.job_id: (row.outcome, row.error_code) for row in world.rows(job_outcome)}


def _cancel(world: World, batch_id: bytes) -> None:
    world.database.write(lambda connection: batches.request_cancel(connection, "t", batch_id, NOW_US))


def _statements(step) -> int:
    with counted() as seen:
        step()
    return len(seen)


def test_jobs_are_cut_out_of_a_span_wherever_they_are(world):
    mine, other = world.take_in(some_lines(10)), world.take_in(some_lines(3, "o"))
    ids = _ids(world)
    _ask_for_the_end_of(world, "a0", "a3", "a4", "a9", "o1")
    world.closer.step()
    assert _ended(world) == {
        ids[name]: (Outcome.CANCELLED, ErrorCode.JOB_CANCELLED) for name in ("a0", "a3", "a4", "a9", "o1")
    }
    assert sorted(span.jobs_count for span in world.waiting()) == [1, 1, 2, 4]
    assert (world.counts(mine.batch_id).cancelled, world.counts(other.batch_id).cancelled) == (4, 1)
    assert world.count(cancel_request) == 0
    world.run_all()
    assert (world.counts(mine.batch_id).succeeded, world.counts(other.batch_id).succeeded) == (6, 2)
    assert world.verified().faults == []


def test_requests_for_running_jobs_keep_none_from_being_honoured(make_world, monkeypatch):
    monkeypatch.setattr("broker.stages.closer._REQUESTS_PER_PAGE", 2)
    monkeypatch.setattr("broker.stages.closer._PAGES_PER_STEP", 1)
    world = make_world(a_lane(slots=1, shard_jobs_max=5))
    world.take_in(some_lines(5, "running"))
    running = world.claimed()
    world.take_in(some_lines(2, "waiting"))
    _ask_for_the_end_of(world, *(f"running{n}" for n in range(5)), "waiting1")
    for _ in range(4):
        world.closer.step()
    assert list(_ended(world)) == [_ids(world)["waiting1"]]
    assert world.renew(running[0], range(5)).cancelled_jobs == b"\x1f"
    assert world.count(cancel_request) == 5  # kept for their worker to hear of


@pytest.mark.parametrize("how_many", [2, 150])
def test_a_request_takes_no_statement_of_its_own(world, how_many):
    world.take_in(some_lines(how_many))
    world.take_in(some_lines(1, "other"))
    _ask_for_the_end_of(world, *(f"a{n}" for n in range(how_many)))
    assert _statements(world.closer.step) <= 30
    assert len(_ended(world)) == how_many


def _open_batches(world: World, how_many: int) -> None:
    for number in range(how_many):
        world.take_in(some_lines(2, f"{number}-"), max_cost_nano_usd=COST // 2, source_digest=bytes([number]) * 32)


def test_an_open_batch_takes_no_statement_of_its_own(make_world):
    found = []
    for how_many in (2, 12):
        world = make_world(a_lane())
        _open_batches(world, how_many)
        assembler = Assembler(world.database, world.clock)
        assembling, dispatching = _statements(assembler.step), _statements(world.dispatcher.step)
        world.planner.step()
        found.append((assembling, dispatching, _statements(world.dispatcher.step), _statements(world.closer.step)))
        assert set(_ended(world).values()) == {(Outcome.FAILED, ErrorCode.BUDGET_EXCEEDED)}
        assert len(_ended(world)) == 2 * how_many
    few, many = found
    assert few[:3] == many[:3]
    assert many[3] - few[3] <= 2 * 10  # its counters' row, and what its jobs were asked


def test_what_a_step_ends_is_bounded_and_the_next_goes_on(world, monkeypatch):
    monkeypatch.setattr("broker.stages.closer._JOBS_PER_STEP", 5)
    records = [world.take_in(some_lines(count, f"{count}-")) for count in (4, 3, 7)]
    well = world.take_in(some_lines(2, "well"))
    for record in records:
        _cancel(world, record.batch_id)
    ended, steps = 0, []
    while world.closer.step():
        steps.append(len(_ended(world)) - ended)
        ended = len(_ended(world))
    assert sum(steps) == 14
    assert max(steps) <= 7  # one span ends whole
    assert [world.counts(record.batch_id).cancelled for record in records] == [4, 3, 7]
    assert (world.waiting_jobs(), world.counts(well.batch_id).ended) == (2, 0)


def test_what_was_dispatched_since_it_was_looked_at_is_not_ended(make_world):
    world = make_world(a_lane(slots=4, shard_jobs_max=2))
    sent, kept = world.take_in(some_lines(2, "s")), world.take_in(some_lines(2, "k"))
    world.planner.step()
    for record in (sent, kept):
        _cancel(world, record.batch_id)
    due = world.read(world.closer._find_due)
    assert len(due) == 2
    world.database.write(
        lambda connection: connection.exec_driver_sql("UPDATE batch SET cancel_requested_us = NULL WHERE 1 = 1")
    )
    world.dispatcher.step()
    world.database.write(lambda connection: world.closer._close(connection, due))
    assert _ended(world) == {}
    assert len(world.all_shards()) == 2


def test_a_budget_that_was_raised_since_it_was_looked_at_is_not_spent(make_world):
    world = make_world(a_lane())
    poor, saved = (world.take_in(some_lines(1, name), max_cost_nano_usd=COST // 2) for name in ("p", "s"))
    world.planner.step()
    due = world.read(world.closer._find_due)
    assert len(due) == 2
    world.database.write(lambda connection: batches.set_budget(connection, "t", saved.batch_id, COST * 10))
    world.database.write(lambda connection: world.closer._close(connection, due))
    assert (world.counts(poor.batch_id).failed, world.counts(saved.batch_id).failed) == (1, 0)
    assert [span.batch_id for span in world.waiting()] == [saved.batch_id]
