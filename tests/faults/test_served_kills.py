"""The served form while its processes die, stop and leave: short campaigns of `tests.harness`, which runs long ones."""

from __future__ import annotations

import pytest

from tests.harness.freezes import FreezeTerms, run_freezes
from tests.harness.handback import HandbackTerms, run_handback
from tests.harness.kills import KillTerms, run_kills

pytestmark = pytest.mark.slow


def test_kills_of_every_kind_of_process_lose_and_double_nothing_and_orphans_run_again_in_time():
    report = run_kills(KillTerms(jobs=1_800, kills=8, terms=4, pause_seconds=1.5, delay_seconds=1.0))
    report.print()
    assert report.faults == []


def test_a_worker_that_was_stopped_past_its_lease_speaks_late_and_is_charged_once():
    report = run_freezes(FreezeTerms(stops=4, at_once=4))
    report.print()
    assert report.faults == []


def test_a_worker_that_leaves_amid_ten_minutes_of_work_has_it_run_elsewhere_within_seconds():
    report = run_handback(HandbackTerms())
    report.print()
    assert report.faults == []
