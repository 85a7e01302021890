"""The other side of the account: what the database, the files and the engines' call log say became of each job."""

from __future__ import annotations

import time
from collections import Counter
from uuid import UUID

import msgspec

from broker.database.drivers.postgres.database import open_postgres
from broker.domain.ids import id_at
from broker.domain.shard import Bitmap
from broker.ledger.verifying import verify
from tests.harness.producer import Producer
from tests.harness.report import Report, say
from tests.harness.stand import Stand

__all__ = ["History", "Hold", "check_history", "conclude", "holds", "jobs_of_shards", "read_history", "wait_for_ends"]


class Hold(msgspec.Struct):
    """A shard that a worker had, with the jobs that it never reported."""

    shard_id: bytes
    worker_id: str
    sent: float
    claimed: float
    state: str
    is_closed: bool
    jobs: list[bytes]
    missing: list[bytes]


class History(msgspec.Struct, kw_only=True):
    """Counts for the table; `faults` are what must not be."""

    figures: dict[str, int | str] = {}
    faults: list[str] = []

    def must_be_none(self, name: str, count: int) -> None:
        self.figures[name] = count
        if count:
            self.faults.append(f"{name}: {count}")

    def must_agree(self, name: str, found: int, expected: int) -> None:
        self.figures[name] = found
        if found != expected:
            self.faults.append(f"{name}: {found:,} where {expected:,} should be")


def wait_for_ends(stand: Stand, producer: Producer, seconds: float) -> float:
    """Until every acknowledged job has an outcome and every batch its files; how long that took."""
    began = time.monotonic()
    while True:
        ended = stand.one("SELECT count(*) FROM job_outcome")
        unfinished = stand.one("SELECT count(*) FROM batch WHERE finished_us IS NULL")
        if ended >= len(producer.acknowledged) and not unfinished:
            return time.monotonic() - began
        if time.monotonic() - began > seconds:
            return -1.0
        time.sleep(0.2)


def conclude(stand: Stand, producer: Producer, report: Report, settle_seconds: float) -> None:
    """The last blow has been dealt: stop producing, wait for the ends, and settle the account."""
    left = len(producer.acknowledged) - stand.one("SELECT count(*) FROM job_outcome")
    report.at_least("jobs left at the last blow", left, 1)
    producer.stop_singles()
    settled = wait_for_ends(stand, producer, settle_seconds)
    report.at_most("from the last blow to the last end", settled, settle_seconds)
    crashes = [f"{one.name} {life.code}" for one in stand.everything() for life in one.crashes()]
    report.add({"ends that nobody asked for": len(crashes)})
    for crash in crashes:
        say(f"ended by itself: {crash}")
    check_history(stand, producer, report)


def check_history(stand: Stand, producer: Producer, report: Report) -> None:
    """Add all that `read_history` found."""
    history = read_history(stand, producer)
    report.add(history.figures)
    report.faults += history.faults


def read_history(stand: Stand, producer: Producer) -> History:
    """Everything that can be said once all is over; the roles must be up, and idle."""
    history = History()
    names = dict(_names(stand))
    ended = {job.bytes: (outcome, code) for job, outcome, code in stand.query(_OUTCOMES)}
    _count_jobs(history, producer, names, ended)
    _count_files(history, stand, producer)
    _count_attempts(history, stand)
    _count_calls(history, stand, names)
    _count_sums(history, stand)
    return history


_NAMES = "SELECT job_id, coalesce(custom_id, idempotency_key) FROM job LEFT JOIN idempotency USING (tenant_id, job_id)"
_OUTCOMES = "SELECT job_id, outcome, error_code FROM job_outcome"
_HOLDS = (
    "SELECT shard_id, worker_id, created_us, claimed_us, state, closed_us IS NOT NULL, recorded, jobs_count FROM shard"
    " WHERE claimed_us IS NOT NULL"
)
_SPANS = "SELECT shard_id, first_job_id, jobs_count FROM shard_span ORDER BY shard_id, first_index"


def _names(stand: Stand) -> list[tuple[bytes, str]]:
    return [(job.bytes, name) for job, name in stand.query(_NAMES)]


def _count_jobs(
    history: History, producer: Producer, names: dict[bytes, str], ended: dict[bytes, tuple[str, str | None]]
) -> None:
    named = Counter(names.values())
    ended_names = {names[job] for job in ended if job in names}
    history.figures["attempted"] = len(producer.attempted)
    history.figures["acknowledged"] = len(producer.acknowledged)
    history.figures["unsure, sent again"] = producer.unsure
    lost = producer.acknowledged - ended_names
    history.must_be_none("lost", len(lost))
    history.must_be_none("doubled: names with two jobs", sum(count > 1 for count in named.values()))
    history.figures["recovered: not acknowledged, yet ended"] = len(
        (producer.attempted - producer.acknowledged) & ended_names
    )
    history.must_be_none(
        "unexpected: ended, never sent", len(ended_names - producer.attempted) + len(ended.keys() - names)
    )
    outcomes = Counter(outcome for outcome, _ in ended.values())
    for outcome, count in sorted(outcomes.items()):
        history.figures[f"ended as {outcome}"] = count
    for code, count in sorted(Counter(code for _, code in ended.values() if code).items()):
        history.figures[f"  because {code}"] = count


def _count_files(history: History, stand: Stand, producer: Producer) -> None:
    """Each line of a batch stands once in its files, with its own answer."""
    lines = missing = doubled = wrong = 0
    for batch, names in producer.batches.items():
        seen: Counter[str] = Counter()
        with stand.client() as client:
            for which in ("output", "errors"):
                for raw in b"".join(client.download(batch, which)).splitlines():
                    line = msgspec.json.decode(raw)
                    seen[line["custom_id"]] += 1
                    if which == "output":
                        answer = line["response"]["body"]["choices"][0]["message"]["content"]
                        wrong += answer != line["custom_id"]
        lines += sum(seen.values())
        missing += len(set(names) - seen.keys())
        doubled += sum(count > 1 for count in seen.values())
    history.figures["lines in files"] = lines
    history.must_be_none("lines missing in files", missing)
    history.must_be_none("doubled lines in files", doubled)
    history.must_be_none("wrong answers in files", wrong)


def _count_attempts(history: History, stand: Stand) -> None:
    outcomes = stand.query("SELECT outcome, count(*) FROM attempt GROUP BY 1 ORDER BY 1")
    for outcome, count in outcomes:
        history.figures[f"attempts {outcome}"] = count
    twice = (
        "SELECT count(*) FROM (SELECT 1 FROM attempt WHERE outcome = 'succeeded' GROUP BY job_id HAVING count(*) > 1)"
    )
    history.must_be_none("charged twice", stand.one(f"{twice} AS t"))
    doubled = "SELECT count(*) FROM (SELECT 1 FROM attempt GROUP BY shard_id, shard_index HAVING count(*) > 1) AS t"
    history.must_be_none("doubled: an attempt with two rows", stand.one(doubled))
    decided = stand.one("SELECT count(*) FROM job_outcome WHERE attempt_id IS NOT NULL")
    history.must_agree("decisive attempts", stand.one("SELECT count(*) FROM attempt WHERE decisive"), decided)
    alone = (
        "SELECT count(*) FROM job_outcome o WHERE attempt_id IS NOT NULL AND NOT EXISTS"
        " (SELECT 1 FROM attempt a WHERE a.attempt_id = o.attempt_id AND a.job_id = o.job_id AND a.decisive)"
    )
    history.must_be_none("outcomes without their attempt", stand.one(alone))
    history.must_be_none(
        "shards left sent or running",
        stand.one("SELECT count(*) FROM shard WHERE closed_us IS NULL AND state IN ('sent', 'running')"),
    )
    history.must_be_none("spans left waiting", stand.one("SELECT count(*) FROM ready"))
    history.must_be_none("left in the outbox", stand.one("SELECT count(*) FROM outbox"))


def _count_calls(history: History, stand: Stand, names: dict[bytes, str]) -> None:
    """Each call of an engine is an attempt's, or of a job whose shard was taken back and is still awaited."""
    calls = Counter(bytes.fromhex(label) for label in stand.calls())
    attempts = Counter(job.bytes for (job,) in stand.query("SELECT job_id FROM attempt"))
    awaited = Counter(job for hold in holds(stand) if not hold.is_closed for job in hold.missing)
    history.figures["engine calls"] = sum(calls.values())
    history.figures["extra calls (waste)"] = sum(calls.values()) - len(calls)
    history.figures["awaited from taken-back shards"] = sum(awaited.values())
    unseen = {job: count - attempts[job] - awaited[job] for job, count in calls.items()}
    history.must_be_none("extra calls without a trace", sum(count for count in unseen.values() if count > 0))
    history.must_be_none("calls of unknown jobs", len(calls.keys() - names))


def jobs_of_shards(stand: Stand) -> dict[UUID, list[bytes]]:
    """The jobs of every shard that ever was, in order of their places in it."""
    jobs: dict[UUID, list[bytes]] = {}
    for shard, first_job, count in stand.query(_SPANS):
        jobs.setdefault(shard, []).extend(id_at(first_job.bytes, place) for place in range(count))
    return jobs


def holds(stand: Stand) -> list[Hold]:
    """Every shard that any worker ever had."""
    jobs_of = jobs_of_shards(stand)
    found = []
    for shard, worker, sent_us, claimed_us, state, closed, recorded, jobs_count in stand.query(_HOLDS):
        jobs = jobs_of[shard]
        missing = [jobs[index] for index in Bitmap(bytes(recorded)).missing(jobs_count)]
        found.append(Hold(shard.bytes, worker, sent_us / 1e6, claimed_us / 1e6, state, closed, jobs, missing))
    return found


def _count_sums(history: History, stand: Stand) -> None:
    attempts = stand.one("SELECT sum(cost_nano_usd) FROM attempt")
    history.must_agree("nano-USD sealed", stand.one("SELECT sum(sum_cost_nano_usd) FROM ledger_batch"), attempts)
    batches = stand.one("SELECT sum(cost_nano_usd) FROM attempt WHERE batch_id IS NOT NULL")
    history.must_agree("nano-USD of batches", stand.one("SELECT sum(cost_nano_usd) FROM batch_count"), batches)
    wasted = "SELECT sum(cost_nano_usd) FROM attempt WHERE batch_id IS NOT NULL AND outcome <> 'succeeded'"
    history.must_agree("nano-USD wasted", stand.one("SELECT sum(wasted_nano_usd) FROM batch_count"), stand.one(wasted))
    database = open_postgres(stand.postgres.url, name="checker")
    try:
        found = database.read(verify)
    finally:
        database.close()
    history.figures["ledger rows verified"] = found.rows
    history.must_be_none("faults in the ledger", len(found.faults))
    history.faults += found.faults[:5]
