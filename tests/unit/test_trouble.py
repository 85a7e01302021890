"""A server in trouble is not a job in trouble: on a real database, with virtual time and servers played by the test."""

from __future__ import annotations

import hashlib
from collections import Counter

import msgspec
import pytest

from broker.domain.errors import ErrorCode
from broker.domain.job import Constraints
from broker.domain.lane import EngineSettings
from broker.ledger.tables import attempt, job_outcome
from broker.rules.evidence import Evidence, evidence_of
from broker.rules.retrying import FAILURES_MAX
from broker.rules.streaks import PATIENCE_MAX
from tests.unit.builders import MODEL, a_failure, a_job_ran, a_lane, a_price, some_lines

ENGINE = EngineSettings(driver="echo", models=(MODEL,), concurrency=8)
CHEAP = a_lane("cheap", engine=ENGINE, shard_jobs_max=8)
DEAR = a_lane("dear", engine=ENGINE, shard_jobs_max=8, price=a_price(32_400_000_000))

SERVERS_TROUBLE = sorted(
    code for code in ErrorCode if evidence_of(code) in (Evidence.SERVER, Evidence.LIMIT, Evidence.OPEN)
)
STEP_S = 0.1
LONGEST_STEP_S = 1.0


class Played:
    """Runs what is dispatched against servers that the test plays; each call takes no time."""

    def __init__(self, world, server) -> None:
        """`server(lane, job, second)` says what happens to a call: a code, or None for a success."""
        self.world, self.server, self.began_us = world, server, world.clock()
        self.calls: Counter[tuple[str, bytes]] = Counter()
        self.when: list[tuple[float, str, bool]] = []

    @property
    def second(self) -> float:
        return (self.world.clock() - self.began_us) / 1e6

    def step(self, *, first_only: bool = False) -> None:
        for shard in self.world.claimed():
            ran, left = [], False
            for index in range(shard.jobs_count):
                job_id = shard.job_id_at(index)
                code = self.server(shard.lane, job_id, self.second)
                self.calls[shard.lane, job_id] += 1
                self.when.append((self.second, shard.lane, code is None))
                now = {"started_us": self.world.clock(), "ended_us": self.world.clock()}
                ran.append(a_job_ran(index, **now) if code is None else a_failure(index, code, **now))
                if code is not None and first_only and index + 1 < shard.jobs_count:
                    left = True
                    break
            self.world.record(self.world.ran(shard, *ran))
            if left:
                self.world.record(self.world.returned(shard, ErrorCode.ENGINE_UNAVAILABLE))
        self.world.clock.advance(max(STEP_S, self.world.dispatcher.seconds_until_due(LONGEST_STEP_S)))

    def run(self, seconds: float, **options) -> None:
        until = self.second + seconds
        while self.second < until and self.world.waiting_jobs():
            self.step(**options)

    def first_success(self, lane: str) -> float:
        return next(second for second, of, is_well in self.when if of == lane and is_well)

    def failed_calls(self, lane: str) -> int:
        return sum(1 for _, of, is_well in self.when if of == lane and not is_well)


def ends(world) -> Counter[str]:
    return Counter(row.outcome for row in world.rows(job_outcome))


def line_numbers(world) -> dict[bytes, int]:
    from broker.database.tables import job

    return {row.job_id: row.line_number for row in world.rows(job)}


@pytest.mark.parametrize("first_only", [True, False], ids=["handed back", "all called"])
@pytest.mark.parametrize("well_after_s", [8.0, 20.0])
@pytest.mark.parametrize("code", SERVERS_TROUBLE)
def test_a_single_lane_that_comes_back_does_all_jobs(make_world, code, well_after_s, first_only):
    world = make_world(CHEAP)
    world.take_in(some_lines(40))
    played = Played(world, lambda _lane, _job, second: code if second < well_after_s else None)
    played.run(60, first_only=first_only)
    assert ends(world) == {"succeeded": 40}
    assert played.first_success("cheap") <= well_after_s + 5
    assert played.second <= well_after_s + 10
    probes = 2 + well_after_s / 3
    assert played.failed_calls("cheap") <= (8 if first_only else 40) + probes
    assert world.verified().faults == []


def test_a_single_lane_that_comes_back_after_ten_minutes(make_world):
    world = make_world(CHEAP)
    world.take_in(some_lines(40))
    played = Played(world, lambda _lane, _job, second: ErrorCode.ENGINE_FAILED if second < 600 else None)
    played.run(660)
    assert ends(world) == {"succeeded": 40}
    assert played.first_success("cheap") <= 605
    assert played.failed_calls("cheap") <= 40 + 600 / 3.5


@pytest.mark.parametrize("jobs", [1, 10, 40])
@pytest.mark.parametrize("code", SERVERS_TROUBLE)
def test_a_sick_lane_beside_a_well_one_costs_no_job_and_few_calls(make_world, code, jobs):
    world = make_world(CHEAP, DEAR)
    world.take_in(some_lines(jobs))
    played = Played(world, lambda lane, _job, _second: code if lane == "cheap" else None)
    played.run(30)
    assert ends(world) == {"succeeded": jobs}
    assert max(played.calls[one] for one in played.calls if one[0] == "cheap") <= 2
    assert played.second <= 10


@pytest.mark.parametrize("code", SERVERS_TROUBLE)
def test_two_sick_lanes_that_come_back(make_world, code):
    world = make_world(CHEAP, DEAR)
    world.take_in(some_lines(20, "a"))
    world.take_in(some_lines(20, "b"), constraints=Constraints(lanes=("dear",)))
    well_after_s = {"cheap": 12.0, "dear": 20.0}
    played = Played(world, lambda lane, _job, second: code if second < well_after_s[lane] else None)
    played.run(60)
    assert ends(world) == {"succeeded": 40}
    assert played.first_success("cheap") <= 17
    assert played.first_success("dear") <= 25


def test_a_server_is_left_alone_for_as_long_as_it_says(make_world):
    world = make_world(CHEAP)
    world.take_in(some_lines(5))
    (shard,) = world.claimed()
    busy = [a_failure(index, ErrorCode.ENGINE_BUSY, retry_after_s=9) for index in range(5)]
    world.record(world.ran(shard, *busy))
    for _ in range(8):
        world.clock.advance(1.0)
        assert world.dispatch() == []
    world.clock.advance(1.0)
    (shard,) = world.claimed()
    assert shard.jobs_count == 1
    world.record(world.ran(shard, a_job_ran()))
    world.clock.advance(5)
    world.run_all()
    assert ends(world) == {"succeeded": 5}


def test_a_lane_that_works_rests_too_where_its_server_asks_for_longer_than_its_worker_waits(make_world):
    """Its worker sends nothing meanwhile, so what it were given would come back at once, over and over."""
    world = make_world(CHEAP)
    world.take_in(some_lines(40))
    shard, other, _ = world.claimed()
    world.record(world.ran(shard, *(a_job_ran(n) for n in range(7)), a_failure(7, ErrorCode.ENGINE_BUSY)))
    assert len(world.claimed()) == 1
    world.record(world.ran(other, a_job_ran(0), a_failure(1, ErrorCode.ENGINE_BUSY, retry_after_s=20)))
    world.record(world.returned(other, ErrorCode.ENGINE_BUSY))
    assert world.dispatch() == []
    assert 19 < world.health.resting()["cheap"].left_s <= 20


def test_one_job_tries_a_lane_after_its_rest_and_one_that_is_lost_is_followed_by_another(make_world):
    world = make_world(CHEAP)
    world.take_in(some_lines(20))
    for shard in world.claimed():
        world.record(world.ran(shard, *(a_failure(n, ErrorCode.ENGINE_UNREACHABLE) for n in range(shard.jobs_count))))
    world.clock.advance(1)
    assert [shard.jobs_count for shard in world.claimed()] == [1]
    for _ in range(10):
        world.clock.advance(1)
        assert world.dispatch() == []
    assert world.fall_silent(25) == 1  # its worker is gone
    assert [shard.jobs_count for shard in world.dispatch()] == [1]
    assert world.dispatch() == []


def test_a_job_that_fails_while_others_succeed_ends_and_they_do_not_wait_for_it(make_world):
    world = make_world(CHEAP)
    record = world.take_in(some_lines(40))
    poison = {job_id for job_id, line in line_numbers(world).items() if line in (3, 17)}
    played = Played(world, lambda _lane, job, _second: ErrorCode.ENGINE_FAILED if job in poison else None)
    played.run(60)
    assert ends(world) == {"succeeded": 38}  # nothing else is left to succeed beside them
    world.take_in(some_lines(60, "b"), window_seconds=3_600)
    played.run(60)
    assert ends(world) == {"succeeded": 98, "failed": 2}
    assert max(played.calls["cheap", job] for job in poison) <= 20
    assert world.counts(record.batch_id).failed == 2


def test_jobs_that_break_a_server_one_after_another_keep_no_good_one_from_it(make_world):
    """The first 12 lines break it, so it looks sick from the start; the others have to show that it isn't."""
    world = make_world(CHEAP)
    world.take_in(some_lines(30))
    poison = {job_id for job_id, line in line_numbers(world).items() if line <= 12}
    played = Played(world, lambda _lane, job, _second: ErrorCode.ENGINE_FAILED if job in poison else None)
    played.run(90)
    assert ends(world)["succeeded"] == 18
    assert max(second for second, _, is_well in played.when if is_well) <= 60
    world.take_in(some_lines(30, "b"))
    played.run(60)
    assert ends(world)["succeeded"] == 48


def test_a_refusal_is_final_where_others_succeed_and_asked_elsewhere_where_none_does(make_world):
    world = make_world(CHEAP, DEAR)
    world.take_in(some_lines(10))
    bad = {job_id for job_id, line in line_numbers(world).items() if line == 4}
    played = Played(world, lambda _lane, job, _second: ErrorCode.ENGINE_REFUSED if job in bad else None)
    played.run(20)
    assert ends(world) == {"succeeded": 9, "failed": 1}
    assert sum(played.calls[one] for one in played.calls if one[1] in bad) == 1


def test_a_lane_that_refuses_all_beside_a_well_one(make_world):
    world = make_world(CHEAP, DEAR)
    world.take_in(some_lines(10))
    played = Played(world, lambda lane, _job, _second: ErrorCode.ENGINE_REFUSED if lane == "cheap" else None)
    played.run(20)
    assert ends(world) == {"succeeded": 10}
    assert max(played.calls.values()) == 1


def test_what_both_lanes_refuse_ends_with_two_calls_and_the_words_of_the_last(make_world):
    from broker.database.tables import result

    world = make_world(CHEAP, DEAR)
    world.take_in(some_lines(3))
    played = Played(world, lambda _lane, _job, _second: ErrorCode.ENGINE_REFUSED)
    played.run(20)
    assert ends(world) == {"failed": 3}
    assert set(played.calls.values()) == {1}
    assert {row.message for row in world.rows(result)} == {"it broke (lane dear)"}


@pytest.mark.parametrize("others", [0, 9], ids=["alone", "in company"])
def test_what_one_server_can_not_do_goes_to_one_that_can(make_world, others):
    world = make_world(CHEAP, DEAR)
    world.take_in(some_lines(others + 2))
    lines = line_numbers(world)
    long = {job_id for job_id, line in lines.items() if line > others}
    impossible = {job_id for job_id, line in lines.items() if line > others + 1}

    def server(lane, job, _second):
        return ErrorCode.ENGINE_UNSUITED if job in (long if lane == "cheap" else impossible) else None

    played = Played(world, server)
    played.run(20)
    assert ends(world) == {"succeeded": others + 1, "failed": 1}
    assert {played.calls[lane, job] for lane in ("cheap", "dear") for job in long} == {1}
    assert [row.error_code for row in world.rows(job_outcome) if row.error_code] == ["engine_unsuited"]


def test_a_job_that_only_a_busy_lane_may_do_holds_up_none_behind_it(make_world):
    """300 jobs that `dear` refused wait for `cheap`, which rests; those behind them go to `dear`."""
    world = make_world(CHEAP, DEAR)
    world.take_in(some_lines(300, "a"))
    played = Played(world, lambda lane, _job, _second: ErrorCode.ENGINE_UNSUITED if lane == "dear" else None)
    world.health.fault("cheap", ErrorCode.ENGINE_UNREACHABLE, 3_600.0)
    for _ in range(150):
        played.step()
    assert played.failed_calls("dear") == 300
    world.take_in(some_lines(10, "b"))
    played.server = lambda _lane, _job, _second: None
    for _ in range(10):
        played.step()
    assert ends(world) == {"succeeded": 10}


def test_a_limit_that_some_get_through_rests_nothing_and_is_never_counted(make_world):
    world = make_world(CHEAP, DEAR)
    world.take_in(some_lines(60))
    calls = Counter()

    def server(_lane, _job, second):
        calls[second] += 1
        return ErrorCode.ENGINE_BUSY if calls[second] % 4 != 1 else None

    played = Played(world, server)
    played.run(120)
    assert ends(world) == {"succeeded": 60}
    assert {row.lane for row in world.rows(attempt)} >= {"cheap"}


def of_worker(world, worker, shard, *ran):
    return msgspec.structs.replace(world.ran(shard, *ran), worker_id=worker)


def test_a_worker_with_a_sick_server_blames_no_job_for_what_its_lanes_other_worker_does(make_world):
    """The two have a lane in common and not a server. All of one's jobs come to the sick one, time and again."""
    world = make_world(a_lane("two", engine=ENGINE, shard_jobs_max=1, slots=2))
    world.take_in(some_lines(1))
    for _ in range(10):
        (shard,) = world.dispatch()
        world.claim(shard, "sick")
        world.take_in(some_lines(1, f"of-{world.clock()}"))
        (other,) = world.dispatch()
        world.claim(other, "well")
        now = {"started_us": world.clock(), "ended_us": world.clock()}
        world.record(of_worker(world, "sick", shard, a_failure(0, ErrorCode.ENGINE_FAILED, **now)))
        world.record(of_worker(world, "well", other, a_job_ran(0, **now)))
        world.clock.advance(31)
    assert ends(world) == {"succeeded": 10}


def test_a_job_that_fails_beside_others_of_its_own_worker_ends_whatever_the_other_worker_does(make_world):
    world = make_world(a_lane("two", engine=ENGINE, shard_jobs_max=1, slots=2))
    world.take_in(some_lines(1))
    for _ in range(4):
        (shard,) = world.dispatch()
        world.claim(shard, "well")
        now = {"started_us": world.clock(), "ended_us": world.clock()}
        world.take_in(some_lines(1, f"of-{world.clock()}"))
        (other,) = world.dispatch()
        world.claim(other, "well")
        world.record(of_worker(world, "well", other, a_job_ran(0, **now)))
        world.record(of_worker(world, "well", shard, a_failure(0, ErrorCode.ENGINE_FAILED, **now)))
        world.clock.advance(31)
    assert ends(world) == {"succeeded": 4, "failed": 1}


@pytest.mark.parametrize(("of", "fail"), [(2, 1), (10, 1)])
def test_a_server_that_fails_part_of_its_calls_fails_no_job(make_world, of, fail):
    """Where every second call fails, one job in sixteen fails four times; which, is drawn anew for each call."""
    world = make_world(a_lane("cheap", engine=ENGINE, shard_jobs_max=64))
    world.take_in(some_lines(200))
    calls = Counter()

    def server(_lane, job, _second):
        calls[job] += 1
        drawn = hashlib.sha256(job + bytes([calls[job]])).digest()[0]
        return ErrorCode.ENGINE_FAILED if drawn % of < fail else None

    played = Played(world, server)
    played.run(900)
    assert ends(world) == {"succeeded": 200}


def test_where_some_jobs_always_fail_each_is_tried_so_often_and_no_more(make_world):
    world = make_world(CHEAP)
    world.take_in(some_lines(40))
    poison = {job_id for job_id, line in line_numbers(world).items() if line % 10 == 0}
    played = Played(world, lambda _lane, job, _second: ErrorCode.ENGINE_FAILED if job in poison else None)
    for _ in range(8):
        played.run(60)
        world.take_in(some_lines(20, f"{played.second}"))
    assert ends(world)["failed"] == len(poison)
    assert max(played.calls["cheap", job] for job in poison) <= 3 * (FAILURES_MAX + PATIENCE_MAX)
