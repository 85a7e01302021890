"""Limits on providers' shares, on real processes: the cheapest provider gets its share of steady work, and no more."""

from __future__ import annotations

import time

import pytest

from tests.faults.test_placement_live import LANES, Stream
from tests.harness.stand import ALL_IN_ONE, Stand, StandTerms

pytestmark = pytest.mark.slow

SHARE = 0.6
TOLERANCE = 0.05
STEADY_SECONDS = 20.0


@pytest.fixture
def stand():
    with Stand(StandTerms(lanes=LANES, layout=ALL_IN_ONE, shares={"google-tpu": SHARE})) as made:
        yield made


def parts(stand: Stand) -> dict[str, float]:
    """What part of the work each provider did, from the ledger; all jobs here are of one kind."""
    rows = stand.query("SELECT provider, count(*) FROM attempt WHERE outcome = 'succeeded' GROUP BY provider")
    total = sum(int(jobs) for _, jobs in rows)
    return {provider: round(int(jobs) / total, 4) for provider, jobs in rows}


def test_steady_work_keeps_the_cheapest_provider_at_its_share(stand):
    with Stream(stand) as stream:
        time.sleep(STEADY_SECONDS)
    deadline = time.monotonic() + 30
    while stand.one("SELECT count(*) FROM job_outcome") < len(stream.ids):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    found = parts(stand)
    late = stand.one(
        "SELECT count(*) FROM job JOIN job_outcome USING (job_id)"
        " WHERE outcome <> 'succeeded' OR recorded_us > deadline_us"
    )
    plans = stand.one("SELECT count(*) FROM plan")
    print(f"{len(stream.ids)} jobs in {STEADY_SECONDS:.0f} s, {late} late; parts {found}, {plans} plans")
    assert late == 0
    assert abs(found["google-tpu"] - SHARE) <= TOLERANCE
    assert found["azure-gpu"] > found.get("oracle-gpu", 0.0)  # the rest goes to the next cheapest
    passed = "SELECT count(*) FROM shard WHERE lane <> 'tpu' AND reason LIKE %s"
    assert stand.one(passed, ("%share: tpu passed over, as google-tpu had %",)) > 0
