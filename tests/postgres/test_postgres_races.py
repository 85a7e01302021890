"""Two processes of a role at the same moment on real PostgreSQL, many rounds each: one end to a job, and exact sums."""

from __future__ import annotations

import random
import threading
from collections import Counter
from contextlib import ExitStack
from functools import partial

import psycopg
import pytest

from broker.api.desk import Desk
from broker.api.errors import Refused
from broker.database import cancelling
from broker.database.drivers.postgres.leadership import Leadership
from broker.database.tables import cancel_request, job
from broker.domain.errors import ErrorCode
from broker.domain.identity import LOCAL
from broker.domain.outcome import Outcome
from broker.domain.shard import Bitmap, ClaimShard, ClaimShards, RenewLease, ShardState
from broker.front import Front
from broker.ledger.tables import attempt, job_outcome
from broker.rules.submission import admit_job
from tests.postgres.peers import Peers, jobs_in_shards, race
from tests.unit.builders import NOW_US, a_failure, a_job_ran, a_lane, some_lines
from tests.unit.test_submitting import a_request

ROUNDS = 12


@pytest.fixture
def make_peers(make_world, emptied):
    with ExitStack() as stack:

        def make(**lane):
            world = make_world(a_lane(**{"slots": 8, "shard_jobs_max": 4} | lane))
            peers = Peers(world, world.database.url)
            stack.callback(peers.database.close)
            return peers

        yield make


def test_two_recorders_of_the_same_events(make_peers):
    peers, chance = make_peers(), random.Random(1)
    world, records = peers.world, []
    for number in range(ROUNDS):
        records.append(world.take_in(some_lines(20, f"r{number}-")))
        messages = []
        for one in world.claimed():
            ran = [a_failure(i) if chance.random() < 0.3 else a_job_ran(i) for i in range(one.jobs_count)]
            # As one event, as two, and some of it said again.
            cut = chance.randrange(one.jobs_count + 1)
            events = [world.ran(one, *ran[:cut]), world.ran(one, *ran[cut:], number=1), world.ran(one, *ran, number=2)]
            messages += [world.message(event) for event in events]
        orders = [chance.sample(messages, len(messages)) for _ in peers.recorders]
        race(
            *(
                lambda recorder=recorder, order=order: [
                    recorder.record(order[n : n + 5]) for n in range(0, len(order), 5)
                ]
                for recorder, order in zip(peers.recorders, orders, strict=True)
            )
        )
        peers.check(*(record.batch_id for record in records))
        world.clock.advance(40)
    peers.finish(*records)


def test_a_late_success_and_the_second_runs_at_once(make_peers):
    peers = make_peers()
    world, records = peers.world, []
    for number in range(ROUNDS):
        records.append(world.take_in(some_lines(16, f"r{number}-")))
        old = world.claimed()
        world.fall_silent()
        new = world.claimed()
        assert sum(one.jobs_count for one in new) == 16
        late, second = (
            [world.message(world.ran(one, *map(a_job_ran, range(one.jobs_count)))) for one in group]
            for group in (old, new)
        )
        race(partial(peers.recorders[0].record, late), partial(peers.recorders[1].record, second[::-1]))
        peers.check(records[-1].batch_id)
        counts = world.counts(records[-1].batch_id)
        assert (counts.succeeded, counts.attempts) == (16, 32)
    outcomes = Counter(row.outcome for row in world.rows(attempt))
    assert outcomes == {"succeeded": 16 * ROUNDS, "superseded": 16 * ROUNDS}


def test_two_dispatchers_give_no_job_twice(make_peers):
    peers = make_peers(slots=20, shard_jobs_max=3)
    world, records = peers.world, []
    for number in range(ROUNDS):
        records += [world.take_in(some_lines(25, f"r{number}-{half}-")) for half in "ab"]
        world.planner.step()
        race(*(lambda one=one: [one.step() for _ in range(4)] for one in peers.dispatchers))
        given = jobs_in_shards(world)
        assert set(given.values()) == {1}
        assert len(given) + world.waiting_jobs() == 50
        sent = [one for one in world.all_shards().values() if one.state is ShardState.SENT]
        assert all(world.claim(one).granted for one in sent)
        world.record(*(world.ran(one, *map(a_job_ran, range(one.jobs_count))) for one in sent))
        world.run_all()
    peers.finish(*records)


def test_two_rescuers_and_workers_that_renew_and_claim_at_the_last_moment(make_peers):
    peers, chance = make_peers(), random.Random(2)
    world, records, seen = peers.world, [], Counter()
    for number in range(ROUNDS):
        records.append(world.take_in(some_lines(24, f"r{number}-")))
        for one in peers.rescuers:
            one.step()
        written = world.dispatch()
        claimed, unclaimed = written[::2], written[1::2]
        assert all(world.claim(one).granted for one in claimed)
        world.clock.advance(56)  # the lease, and the time to claim, are over
        for one in peers.rescuers:
            one._last_step_us = world.clock()  # and both have looked on meanwhile
        late = chance.sample(claimed, len(claimed) // 2)
        renewals = [RenewLease(one.shard_id, one.lane, "w1", Bitmap.of([0]).to_bytes()) for one in late]
        claims = [ClaimShard(one.shard_id, one.lane, "w1") for one in unclaimed]
        renewed, granted, *_ = race(
            lambda renewals=renewals: [peers.doors[0].renew(one) for one in renewals],
            lambda claims=claims: [peers.doors[1].claim(one) for one in claims],
            *(one.step for one in peers.rescuers),
        )
        state = {one.shard_id: one.state for one in world.all_shards().values()}
        for one, answer in zip([*late, *unclaimed], [*renewed, *granted], strict=True):
            # Granted and taken back a moment later can't be: it had its whole lease then.
            seen[answer.granted] += 1
            assert state[one.shard_id] is (ShardState.RUNNING if answer.granted else ShardState.TAKEN_BACK)
        given = jobs_in_shards(world)
        assert set(given.values()) <= {1}
        assert len(given) + world.waiting_jobs() == 24
        running = [one for one in world.all_shards().values() if one.state is ShardState.RUNNING]
        world.record(*(world.ran(one, *map(a_job_ran, range(one.jobs_count))) for one in running))
        world.run_all()
    assert seen[True], "no worker was ever faster than the rescuers"
    assert seen[False], "no rescuer was ever faster than the workers"
    peers.finish(*records)


def test_cancelling_while_jobs_are_dispatched_claimed_and_recorded(make_peers):
    peers, chance = make_peers(), random.Random(3)
    world, records, wanted = peers.world, [], set()

    def work(door, recorder):
        """A worker that takes what is sent, and heeds what it hears at its claim and at one renewal."""
        sent = [one for one in world.all_shards().values() if one.state is ShardState.SENT]
        answers = door.claim_all(ClaimShards(tuple(one.shard_id for one in sent), "lane-a", "w1")) if sent else []
        for one, answer in zip(sent, answers, strict=True):
            if answer.granted:
                again = door.renew(RenewLease(one.shard_id, one.lane, "w1", b""))
                stop = Bitmap(again.cancelled_jobs)
                ran = [
                    a_failure(i, ErrorCode.JOB_CANCELLED, outcome=Outcome.CANCELLED) if i in stop else a_job_ran(i)
                    for i in range(one.jobs_count)
                ]
                recorder.record([world.message(world.ran(one, *ran))])

    def ask(job_ids):
        for job_id in job_ids:
            peers.database.write(lambda connection, job_id=job_id: cancelling.request(connection, "t", job_id, NOW_US))

    for number in range(ROUNDS):
        record = world.take_in(some_lines(24, f"r{number}-"))
        records.append(record)
        mine = [row.job_id for row in world.rows(job) if row.batch_id == record.batch_id]
        chosen = chance.sample(mine, 12)
        wanted |= set(chosen)
        world.planner.step()
        peers.dispatchers[0].step()
        race(
            lambda chosen=chosen: ask(chosen[:6]),
            lambda chosen=chosen: ask(chosen[6:]),
            peers.dispatchers[1].step,
            *(one.step for one in peers.closers),
            *(lambda pair=pair: work(*pair) for pair in zip(peers.doors, peers.recorders, strict=True)),
        )
    while world.waiting() or any(one.state is ShardState.SENT for one in world.all_shards().values()):
        peers.closers[0].step()
        peers.dispatchers[0].step()
        work(peers.doors[0], peers.recorders[0])
    running = [one for one in world.all_shards().values() if one.state is ShardState.RUNNING]
    world.record(*(world.ran(one, *map(a_job_ran, range(one.jobs_count))) for one in running))
    peers.closers[1].step()
    assert world.count(cancel_request) == 0
    ended = {row.job_id: row.outcome for row in world.rows(job_outcome)}
    assert {job_id for job_id, outcome in ended.items() if outcome == "cancelled"} <= wanted
    assert {outcome for job_id, outcome in ended.items() if job_id not in wanted} == {"succeeded"}
    peers.finish(*records)


@pytest.fixture
def desks(make_peers, tmp_path):
    """Two doors to producers, each storing on its own."""
    peers = make_peers()
    made, threads = [], []
    for database in (peers.world.database, peers.database):
        front = Front(
            database=database, lanes=peers.world.lanes, clock=peers.world.clock, wakeups=peers.world.wakeups,
            health=peers.world.health, folder=tmp_path,
        )  # fmt: skip
        threads.append(threading.Thread(target=front.submitting.run))
        threads[-1].start()
        made.append((Desk(front, None, 1_000), front))
    yield peers, made
    for _, front in made:
        front.submitting.close()
    for thread in threads:
        thread.join(10)


def _store(desk, jobs):
    answered, got = threading.Event(), []
    desk.jobs.offer(LOCAL, jobs, lambda answer: (got.append(answer), answered.set()))
    assert answered.wait(30)
    assert isinstance(got[0], list), got[0]
    return [one.job_id for one in got[0]]


def test_two_intakes_of_the_same_idempotency_keys_store_each_job_once(desks):
    peers, made = desks
    chance = random.Random(4)
    for number in range(2 * ROUNDS):
        keys = [f"{number}-{place}" for place in range(30)]

        def submit(desk, order):
            jobs = [admit_job(a_request(idempotency_key=key), peers.world.lanes, LOCAL.tenant, NOW_US) for key in order]
            return dict(zip(order, _store(desk, jobs), strict=True))

        orders = [chance.sample(keys, 30) for _ in made]
        first, second = race(
            *(lambda desk=desk, order=order: submit(desk, order) for (desk, _), order in zip(made, orders, strict=True))
        )
        assert first == second
    assert peers.world.count(job) == peers.world.waiting_jobs() == 60 * ROUNDS


def test_redriving_twice_while_the_end_is_recorded_makes_one_job(desks):
    peers, made = desks
    world = peers.world
    for number in range(ROUNDS):
        request = admit_job(a_request(idempotency_key=f"one-{number}"), world.lanes, LOCAL.tenant, NOW_US)
        [job_id] = _store(made[0][0], [request])
        (one,) = world.claimed()
        message = world.message(world.ran(one, a_failure(0, ErrorCode.ENGINE_REFUSED)))

        def redrive(desk, job_id=job_id):
            for _ in range(200):
                try:
                    return _store(desk, [desk.jobs.redriven(LOCAL, f"job_{job_id.hex()}")])[0]
                except Refused:
                    continue  # it has not ended yet
            return None

        _, *again = race(
            lambda message=message: peers.recorders[1].record([message]),
            *(lambda desk=desk: redrive(desk) for desk, _ in made),
        )
        assert len({found for found in again if found}) <= 1
        made_of_it = [row.job_id for row in world.rows(job) if row.redrive_of == job_id]
        assert made_of_it == [found for found in again if found][:1]
        world.run_all()
    peers.check()


def test_the_leader_changes_amid_a_step_and_both_go_on(make_peers, postgres_url):
    """One was led to believe that it leads, lost its session amid its transaction, and commits after all."""
    peers = make_peers(slots=20, shard_jobs_max=3)
    world, records = peers.world, []
    leaders = [Leadership(world.database.url, "dispatcher") for _ in range(2)]
    assert leaders[0].is_leader()
    for number in range(ROUNDS):
        records.append(world.take_in(some_lines(30, f"r{number}-")))
        world.planner.step()
        inside, go_on = threading.Event(), threading.Event()
        plain = peers.looks[number % 2]

        def slow_look(connection, inside=inside, go_on=go_on, plain=plain):
            inside.set()
            assert go_on.wait(20)
            return plain(connection)

        old, new = peers.dispatchers[number % 2], peers.dispatchers[1 - number % 2]
        peers.looks[number % 2] = slow_look
        deposed, successor = leaders[number % 2], leaders[1 - number % 2]

        def take_over(inside=inside, go_on=go_on, deposed=deposed, successor=successor, new=new):
            assert inside.wait(20)
            deposed.close()
            while not successor.is_leader():
                pass
            threading.Timer(0.1, go_on.set).start()
            return new.step()

        counts = race(old.step, take_over)
        peers.looks[number % 2] = plain
        given = jobs_in_shards(world)
        assert set(given.values()) == {1}
        assert (len(given), sum(counts), world.waiting_jobs()) == (30, 10, 0)
        leaders[number % 2] = Leadership(world.database.url, "dispatcher")
        sent = [one for one in world.all_shards().values() if one.state is ShardState.SENT]
        assert all(world.claim(one).granted for one in sent)
        world.record(*(world.ran(one, *map(a_job_ran, range(one.jobs_count))) for one in sent))
    for one in leaders:
        one.close()
    peers.finish(*records)


def test_steps_whose_sessions_are_cut_amid_them_are_kept_once_or_not_at_all(make_peers):
    peers, chance = make_peers(), random.Random(5)
    world, records = peers.world, []

    def cut():
        with psycopg.connect(world.database.url, autocommit=True) as admin:
            for _ in range(12):
                admin.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname ="
                    " current_database() AND (application_name LIKE 'test %' OR application_name LIKE 'peer %')"
                )
                threading.Event().wait(chance.uniform(0, 0.01))

    for number in range(ROUNDS // 2):
        records.append(world.take_in(some_lines(24, f"r{number}-")))
        messages = [world.message(world.ran(one, *map(a_job_ran, range(one.jobs_count)))) for one in world.claimed()]
        records.append(world.take_in(some_lines(24, f"s{number}-")))
        world.planner.step()
        race(
            cut,
            *(lambda one=one, messages=messages: one.record(messages) for one in peers.recorders),
            *(one.step for one in peers.dispatchers),
            *(one.step for one in peers.closers),
        )
        sent = [one for one in world.all_shards().values() if one.state is ShardState.SENT]
        assert set(jobs_in_shards(world).values()) <= {1}
        assert all(world.claim(one).granted for one in sent)
        world.record(*(world.ran(one, *map(a_job_ran, range(one.jobs_count))) for one in sent))
        world.run_all()
    peers.finish(*records)


def test_a_shard_is_one_workers_however_many_claim_it_at_once(make_peers):
    peers = make_peers(slots=4)
    world = peers.world
    for number in range(2 * ROUNDS):
        record = world.take_in(some_lines(16, f"r{number}-"))
        written = [one.shard_id for one in world.dispatch()]
        questions = [
            (door, ClaimShards(tuple(order), "lane-a", f"w{worker}"))
            for worker, (door, order) in enumerate(zip(peers.doors * 2, [written, written[::-1]] * 2, strict=True))
        ]
        answers = race(*(lambda door=door, question=question: door.claim_all(question) for door, question in questions))
        granted = Counter(
            shard_id
            for (_, question), found in zip(questions, answers, strict=True)
            for shard_id, one in zip(question.shard_ids, found, strict=True)
            if one.granted
        )
        assert granted == dict.fromkeys(written, 1)
        kept = world.all_shards()
        for worker, ((_, question), found) in enumerate(zip(questions, answers, strict=True)):
            for shard_id, one in zip(question.shard_ids, found, strict=True):
                assert one.granted == (kept[shard_id].worker_id == f"w{worker}")
        for shard_id in written:
            event = world.ran(kept[shard_id], *map(a_job_ran, range(kept[shard_id].jobs_count)))
            world.record(type(event)(event.shard_id, event.lane, kept[shard_id].worker_id, 0, event.jobs))
        peers.check(record.batch_id)
