"""Random sequences of submissions, cancels, servers' trouble, losses and restarts: nothing is lost, or told twice.

Every stage works on a real database, on virtual time; the workers are played, for the test decides what servers answer.
`make faults-all` runs 10,000 sequences (BROKER_SEQUENCES), the tests of each change 200.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections import Counter
from pathlib import Path

import msgspec
import structlog
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from broker.bootstrap.data_folder import DATABASE_FILE, open_database
from broker.database import batches, tables
from broker.domain.errors import ErrorCode
from broker.domain.events import JobRan
from broker.domain.job import Constraints
from broker.domain.lane import EngineSettings
from broker.domain.outcome import Outcome
from broker.domain.shard import ShardState
from broker.ledger.tables import attempt, job_outcome
from broker.stages.assembler import Assembler
from tests.unit.builders import (
    LEASE_SECONDS,
    MODEL,
    SECOND_US,
    World,
    a_failure,
    a_job_ran,
    a_lane,
    a_price,
    some_lines,
)

SEQUENCES = int(os.environ.get("BROKER_SEQUENCES", "200"))
RENEW_S = LEASE_SECONDS / 3
LONGEST_CALL_S = 4.0
PLACES = 3

ENGINE = EngineSettings(driver="echo", models=(MODEL,), concurrency=PLACES)
LANES = (
    a_lane("cheap", engine=ENGINE, shard_jobs_max=4),
    a_lane("dear", engine=ENGINE, shard_jobs_max=4, price=a_price(9_000_000_000)),
)
TROUBLE = st.sampled_from(
    [
        ErrorCode.ENGINE_BUSY,
        ErrorCode.ENGINE_UNAVAILABLE,
        ErrorCode.ENGINE_FAILED,
        ErrorCode.ENGINE_TIMEOUT,
        ErrorCode.ENGINE_UNREACHABLE,
        ErrorCode.ENGINE_STARTING,
        ErrorCode.ENGINE_OUT_OF_CREDIT,
    ]
)
WINDOW_S = st.sampled_from([40, 900])
LANE = st.sampled_from([str(lane.name) for lane in LANES])
_MIGRATED: list[Path] = []


def migrated() -> Path:
    """A database that was migrated once."""
    if not _MIGRATED:
        folder = Path(tempfile.mkdtemp(prefix="sequences-"))
        open_database(folder).close()
        _MIGRATED.append(folder / DATABASE_FILE)
    return _MIGRATED[0]


class Run:
    """A shard with its worker: calls under way, by index with their end, and what hasn't begun."""

    def __init__(self, shard, now_s: float) -> None:
        self.shard, self.renewed_s = shard, now_s
        self.left = list(range(shard.jobs_count))
        self.calls: dict[int, tuple[float, float]] = {}
        self.stopped: ErrorCode | None = None


class PlayedWorker:
    """One lane's, with one slot. `messages` is its bus."""

    def __init__(self, machine: Sequences, lane: str) -> None:
        self.machine, self.lane, self.number = machine, lane, 0
        self.messages: list = []
        self.run: Run | None = None

    @property
    def name(self) -> str:
        return f"{self.lane}-{self.number}"

    def crash(self) -> None:
        self.number += 1
        self.run = None

    def step(self) -> None:
        machine, now_s = self.machine, self.machine.now_s
        while self.run is None and self.messages:
            shard = self.messages.pop(0)
            answer = machine.world.claim(shard, self.name)
            if answer.granted:
                self.run = Run(shard, now_s)
                self._heed(answer.cancelled)
        if (run := self.run) is None:
            return
        if now_s - run.renewed_s >= RENEW_S:
            answer = machine.world.renew(run.shard, run.calls, self.name)
            run.renewed_s = now_s
            if not answer.granted:
                self.run = None
                return
            self._heed(answer.cancelled)
        self._end_calls(run, now_s)
        self._begin_calls(run, now_s)
        if not run.calls and (not run.left or run.stopped):
            if run.left:
                machine.tell(self, machine.world.returned(run.shard, run.stopped or ErrorCode.INTERRUPTED))
            self.run = None

    def _heed(self, cancelled: bool) -> None:
        run = self.run
        if not cancelled or run is None:
            return
        ran = [self._ran(index, call, ErrorCode.BATCH_CANCELLED) for index, call in run.calls.items()]
        run.calls, run.stopped = {}, ErrorCode.BATCH_CANCELLED
        if ran:
            self.machine.tell(self, self.machine.world.ran(run.shard, *ran))

    def _begin_calls(self, run: Run, now_s: float) -> None:
        while run.left and not run.stopped and len(run.calls) < PLACES:
            index = run.left.pop(0)
            self.machine.note_call(run.shard, index)
            seconds = 0.0 if self.machine.is_quick(self.lane) else 1.0 + (run.shard.job_id_at(index)[-1] % 4)
            run.calls[index] = (now_s, now_s + seconds)

    def _end_calls(self, run: Run, now_s: float) -> None:
        ended = [(index, call) for index, call in run.calls.items() if call[1] <= now_s]
        ran = []
        for index, call in ended:
            del run.calls[index]
            code = self.machine.trouble.get(self.lane)
            ran.append(self._ran(index, call, code))
            if code:
                run.stopped = code  # what has not begun goes back
        if ran:
            self.machine.tell(self, self.machine.world.ran(run.shard, *ran))

    def _ran(self, index: int, call: tuple[float, float], code: ErrorCode | None) -> JobRan:
        began_us, now_us = self.machine.began_us, self.machine.world.clock()
        times = {"started_us": began_us + round(call[0] * SECOND_US), "ended_us": now_us}
        if code is None:
            return a_job_ran(index, **times)
        is_cancelled = code is ErrorCode.BATCH_CANCELLED
        return a_failure(index, code, **times, **({"outcome": Outcome.CANCELLED} if is_cancelled else {}))


class Sequences(RuleBasedStateMachine):
    @initialize()
    def start(self) -> None:
        structlog.configure(processors=[_drop])
        self.folder = Path(tempfile.mkdtemp(prefix="sequence-"))
        shutil.copy(migrated(), self.folder / DATABASE_FILE)
        self.database = open_database(self.folder)
        self.world = World(self.database, LANES, self.folder)
        self.began_us = self.world.clock()
        self.assembler = Assembler(self.database, self.world.clock)
        self.workers = {str(lane.name): PlayedWorker(self, str(lane.name)) for lane in LANES}
        self.trouble: dict[str, ErrorCode] = {}
        self.batches: list = []
        self.lines: dict[bytes, int] = {}
        self.cancelled_s: dict[bytes, float] = {}
        self.late_calls: list = []
        self.calls: Counter[bytes] = Counter()
        self.twice = False

    @property
    def now_s(self) -> float:
        return (self.world.clock() - self.began_us) / SECOND_US

    def is_quick(self, lane: str) -> bool:
        """A server that is in trouble says so at once, but for one that never answers."""
        return self.trouble.get(lane) not in (None, ErrorCode.ENGINE_TIMEOUT)

    def note_call(self, shard, index: int) -> None:
        self.calls[shard.job_id_at(index)] += 1
        asked_s = self.cancelled_s.get(shard.batch_id)
        if asked_s is not None and self.now_s > asked_s + RENEW_S + 1.0:
            self.late_calls.append((shard.lane, self.now_s, asked_s))

    def tell(self, worker: PlayedWorker, event) -> None:
        """What a worker publishes arrives, now and then twice."""
        event = msgspec.structs.replace(event, worker_id=worker.name)
        self.world.record(*([event, event] if self.twice else [event]))

    def tick(self, seconds: float) -> None:
        for shard in self.world.dispatch():
            self.workers[shard.lane].messages.append(shard)
        for worker in self.workers.values():
            worker.step()
        self.world.closer.step()
        self.world.rescuer.step()
        self.assembler.step()
        self.world.clock.advance(seconds)

    def let_pass(self, seconds: float) -> None:
        until_s = self.now_s + seconds
        while self.now_s < until_s:
            self.tick(min(1.0, until_s - self.now_s))

    # What may happen.

    @precondition(lambda self: len(self.batches) < 4)
    @rule(
        count=st.integers(1, 9), tenant=st.sampled_from("ab"), window=st.sampled_from([40, 900]), only=st.none() | LANE
    )
    def submit(self, count, tenant, window, only) -> None:
        terms = {"constraints": Constraints(lanes=(only,))} if only else {}
        content = some_lines(count, f"{len(self.batches)}-")
        paths = {name: str(self.folder / f"{len(self.batches)}.{name}") for name in ("output_path", "error_path")}
        record = self.world.take_in(content, tenant_id=tenant, window_seconds=window, **terms, **paths)
        self.batches.append(record)
        self.lines[record.batch_id] = count

    @precondition(lambda self: self.batches)
    @rule(number=st.integers(0, 3))
    def cancel(self, number) -> None:
        record = self.batches[number % len(self.batches)]
        self.database.write(
            lambda connection: batches.request_cancel(connection, record.tenant_id, record.batch_id, self.world.clock())
        )
        self.cancelled_s.setdefault(record.batch_id, self.now_s)

    @rule(lane=LANE, code=TROUBLE)
    def fall_ill(self, lane, code) -> None:
        self.trouble[lane] = code

    @rule(lane=LANE)
    def get_well(self, lane) -> None:
        self.trouble.pop(lane, None)

    @rule(seconds=st.sampled_from([1, 3, 12]))
    def wait(self, seconds) -> None:
        self.let_pass(seconds)

    @rule(lane=LANE)
    def lose_worker(self, lane) -> None:
        self.workers[lane].crash()

    @rule(lane=LANE)
    def lose_bus(self, lane) -> None:
        self.workers[lane].messages.clear()

    @rule()
    def restart_broker(self) -> None:
        before = self.world
        self.world = World(self.database, LANES, self.folder)
        self.world.clock.now_us = before.clock.now_us
        for name in ("signers", "ring"):
            setattr(self.world, name, getattr(before, name))
        self.world.recorder._ring = before.ring
        self.assembler = Assembler(self.database, self.world.clock)

    @rule(twice=st.booleans())
    def repeat_events(self, twice) -> None:
        self.twice = twice

    # What must be so at the end.

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        try:
            self.trouble = {}
            for _ in range(60):
                if not any(self.world.batch(one.batch_id).finished_us is None for one in self.batches):
                    break
                self.let_pass(5)
            self.check()
        finally:
            self.database.close()
            shutil.rmtree(self.folder)

    def check(self) -> None:
        assert self.late_calls == []
        jobs = {row.job_id: row for row in self.world.rows(tables.job)}
        ends = {row.job_id: row for row in self.world.rows(job_outcome)}
        assert ends.keys() == jobs.keys()
        assert Counter(row.outcome for row in ends.values())["failed"] == 0  # no job was ever to blame
        costs: Counter[bytes] = Counter()
        for row in self.world.rows(attempt):
            costs[row.batch_id] += row.cost_nano_usd
        for record in self.batches:
            self.check_batch(record, Counter(row.outcome for row in ends.values() if row.batch_id == record.batch_id))
            assert self.world.counts(record.batch_id).cost_nano_usd == costs[record.batch_id]
        assert self.world.waiting() == []
        open_states = {ShardState.SENT, ShardState.RUNNING}
        assert not [one for one in self.world.all_shards().values() if one.state in open_states]
        assert self.world.verified().faults == []

    def check_batch(self, record, ends: Counter) -> None:
        now, counts = self.world.batch(record.batch_id), self.world.counts(record.batch_id)
        assert now.finished_us is not None
        told = {name: getattr(counts, name) for name in ("succeeded", "failed", "cancelled", "expired")}
        assert told == {name: ends[name] for name in told}
        assert sum(told.values()) == self.lines[record.batch_id]
        if record.batch_id not in self.cancelled_s:
            assert counts.cancelled == 0
        replies, errors = (_names(Path(path)) for path in (now.output_path, now.error_path))
        assert len(replies) == counts.succeeded
        assert sorted(replies + errors) == sorted(set(replies + errors))
        assert len(replies + errors) == self.lines[record.batch_id]


def _names(path: Path) -> list[str]:
    return [json.loads(line)["custom_id"] for line in path.read_text().splitlines()]


def _drop(*_):
    raise structlog.DropEvent


TestSequences = Sequences.TestCase
TestSequences.settings = settings(
    max_examples=SEQUENCES,
    stateful_step_count=14,
    deadline=None,
    phases=(Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink),
    suppress_health_check=list(HealthCheck),
)
