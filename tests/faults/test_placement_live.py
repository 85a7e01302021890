"""Placement on real processes: lanes that die, slow down or get dearer lose their new work within five seconds."""

from __future__ import annotations

import threading
import time
from collections import Counter
from typing import Self

import pytest

from tests.harness.stand import ALL_IN_ONE, LaneTerms, Stand, StandTerms

pytestmark = pytest.mark.slow

SECONDS_TO_NOTICE = 5.0
WINDOW = "90s"
"""Time enough for what a lane takes down with it: a lease is 15 s."""

LANES = (
    LaneTerms(name="tpu", price="1.20", delay_seconds=0.1, slots=4, jobs_per_second=40.0, delay_can_change=True),
    LaneTerms(name="azure", provider="azure-gpu", price="2.40", delay_seconds=0.08, slots=4, jobs_per_second=50.0),
    LaneTerms(name="oracle", provider="oracle-gpu", price="3.60", delay_seconds=0.06, slots=4, jobs_per_second=65.0),
)
"""A job costs 1.20, 1.92 and 2.16 parts here: tpu is the cheapest, and any of them could do all the work."""


class Stream:
    """Forty jobs a second, from a thread, until it is stopped."""

    def __init__(self, stand: Stand) -> None:
        self._stand, self._stopping = stand, threading.Event()
        self.ids: list[str] = []
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        number = 0
        with self._stand.client() as client:
            while not self._stopping.wait(0.25):
                body = {"model": "m", "messages": [{"role": "user", "content": f"say {number}"}]}
                self.ids += [one.id for one in client.submit_many([{"body": body, "window": WINDOW}] * 10)]
                number += 1


@pytest.fixture
def stand():
    with Stand(StandTerms(lanes=LANES, layout=ALL_IN_ONE)) as made:
        yield made


def lanes_of_new_shards(stand: Stand, from_seconds: float, to_seconds: float) -> Counter[str]:
    """Where the shards went that were written in this time."""
    rows = stand.query(
        "SELECT lane, sum(jobs_count) FROM shard WHERE created_us >= %s AND created_us < %s GROUP BY lane",
        (int(from_seconds * 1e6), int(to_seconds * 1e6)),
    )
    return Counter({lane: int(jobs) for lane, jobs in rows})


def new_work_after(stand: Stand, what: str) -> Counter[str]:
    """Where new work goes from five seconds after now on, for three seconds; when the bad lane last got some."""
    now = time.time()
    time.sleep(SECONDS_TO_NOTICE + 3.5)
    found = lanes_of_new_shards(stand, now + SECONDS_TO_NOTICE, now + SECONDS_TO_NOTICE + 3)
    last = {
        lane: (round(int(last_us) / 1e6 - now, 2), reason)
        for lane, last_us, reason in stand.query(
            "SELECT DISTINCT ON (lane) lane, created_us, reason FROM shard WHERE created_us >= %s"
            " ORDER BY lane, created_us DESC",
            (int(now * 1e6),),
        )
    }
    print(f"{what}: new work of seconds 5 to 8 went to {dict(found)}; last shard, in seconds after: {last}")
    return found


def test_new_work_leaves_a_lane_that_is_slow_dear_or_dead_and_deadlines_hold(stand):
    with Stream(stand) as stream:
        time.sleep(6)
        now = time.time()
        assert lanes_of_new_shards(stand, now - 3, now).keys() == {"tpu"}
        stand.set_delay("tpu", 1.0)
        assert new_work_after(stand, "tpu ten times slower").keys() == {"azure"}
        book = stand.folder / "book.csv"
        today = time.strftime("%Y-%m-%d", time.gmtime())
        book.write_text(f"lane,on_demand_usd_per_hour,source,as_of\nazure,4.80,the test,{today}\n")
        said = stand.broker("prices", "import", str(book), "--database-url", stand.postgres.url)
        assert "1 price(s)" in said
        assert new_work_after(stand, "azure twice as dear").keys() == {"oracle"}
        for worker in stand.workers_of("oracle"):
            worker.kill()
            worker.retire(0.0)
        assert new_work_after(stand, "oracle killed").keys() == {"azure"}
    deadline = time.monotonic() + 90
    while stand.one("SELECT count(*) FROM job_outcome") < len(stream.ids):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    late = stand.query(
        "SELECT encode(job.job_id::text::bytea, 'escape') FROM job JOIN job_outcome USING (job_id)"
        " WHERE outcome <> 'succeeded' OR recorded_us > deadline_us"
    )
    assert late == [], f"of {len(stream.ids)} jobs with slack these were late: {late}"
    print(f"{len(stream.ids)} jobs due within {WINDOW}, all in time")
