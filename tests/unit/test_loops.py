"""The thread layer on real threads: two loops at a time, one that meets trouble beside one that is well."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from broker.bootstrap import loop as loop_module
from broker.bootstrap.loop import Every, Loop, Woken
from broker.bootstrap.threads import Threads
from broker.domain.errors import BrokerError
from broker.wakeups import Topic, Waiter, Wakeups

ROOT = Path(__file__).parents[2]


def until(condition: Callable[[], object], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:g} s"
        time.sleep(0.005)


class Leader:
    """Leads while `leading`; asking who leads raises what is in `raises`, once each."""

    def __init__(self, *, leading: bool = True) -> None:
        self.leading = leading
        self.raises: list[BaseException] = []
        self.asked = self.closed = 0

    def is_leader(self) -> bool:
        self.asked += 1
        if self.raises:
            raise self.raises.pop()
        return self.leading

    def close(self) -> None:
        self.closed += 1


class Trouble:
    """A step that counts its turns and raises what is in `raises`, once each."""

    def __init__(self, *raises: BaseException) -> None:
        self.turns = 0
        self.raises = list(raises)

    def __call__(self) -> None:
        self.turns += 1
        if self.raises:
            raise self.raises.pop(0)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(loop_module, "POLL_SECONDS", 0.02)


@pytest.fixture
def wakeups():
    return Wakeups()


@pytest.fixture
def threads(wakeups):
    made = Threads(wakeups, full_disk_sentence="full", end_seconds=60.0, end_process=lambda: None)
    yield made
    made.stop()
    made.end()
    made.join(5.0)
    assert not [thread for thread in threading.enumerate() if thread.name in {"sick", "well"}]


def run_beside_a_well_one(threads: Threads, sick: Loop) -> Trouble:
    """The step of the loop that is well."""
    well = Trouble()
    threads.start(Loop(name="well", step=well, rest=Every(0.005)))
    threads.start(sick)
    return well


@pytest.mark.parametrize(
    ("error", "event", "failure"),
    [
        (BrokerError("the database is away"), "stage_stuck", "the database is away"),
        (KeyError("x"), "stage_failed", None),
    ],
)
def test_a_step_that_raises_is_logged_and_taken_again(threads, error, event, failure):
    step = Trouble(error, error)
    with capture_logs() as logs:
        well = run_beside_a_well_one(threads, Loop(name="sick", step=step, rest=Every(0.005)))
        until(lambda: step.turns >= 5 and well.turns >= 5)
    assert [line["stage"] for line in logs if line["event"] == event] == ["sick", "sick"]
    assert (str(threads.failure) if threads.failure else None) == failure
    assert threads.death is None


def test_what_is_no_exception_ends_its_thread_and_reports_the_death(wakeups):
    died, ended = threading.Event(), threading.Event()
    threads = Threads(wakeups, full_disk_sentence="full", end_seconds=0.2, on_death=died.set, end_process=ended.set)
    leader, step = Leader(), Trouble(SystemExit(3))
    with capture_logs() as logs:
        well = run_beside_a_well_one(threads, Loop(name="sick", step=step, rest=Every(0.005), leads=leader))
        assert died.wait(5)
        turns = well.turns
        until(lambda: well.turns > turns)  # until somebody stops it, or the time is over
        assert ended.wait(5), "nobody stopped it, so the process ends by itself"
    assert [(line["stage"], line["reason"]) for line in logs if line["event"] == "thread_ended"] == [
        ("sick", "SystemExit: 3")
    ]
    assert step.turns == 1
    assert leader.closed == 1, "another process may lead at once"
    with pytest.raises(BrokerError, match=r"the thread sick ended \(SystemExit: 3\), so this process ends too"):
        threads.check()
    assert threads.failure is threads.death
    threads.stop()
    threads.join(5.0)


def test_a_thread_that_merely_returns_is_a_death_too(wakeups):
    died = threading.Event()
    threads = Threads(wakeups, full_disk_sentence="full", end_seconds=60.0, on_death=died.set, end_process=lambda: None)
    threads.spawn("returns", lambda: None)
    assert died.wait(5)
    assert "returns ended (it returned)" in str(threads.death)
    threads.end()


def test_an_orderly_stop_in_time_spares_the_last_resort(wakeups):
    ended = threading.Event()
    threads = Threads(wakeups, full_disk_sentence="full", end_seconds=0.3, end_process=ended.set)
    threads.report_end("x", None)
    threads.stop()
    threads.end()
    assert not ended.wait(0.6)


def test_a_wake_up_just_after_the_time_is_over_is_kept_for_the_next_wait(monkeypatch):
    waiter = Waiter()
    wait = waiter._event.wait

    def woken_too_late(timeout_seconds):
        woken = wait(timeout_seconds)
        waiter.wake()
        return woken

    monkeypatch.setattr(waiter._event, "wait", woken_too_late)
    assert not waiter.wait(0.01)
    monkeypatch.undo()
    assert waiter.wait(0.0)
    assert not waiter.wait(0.0)


def test_what_outlasts_the_others_is_not_waited_for(threads):
    over = threading.Event()
    threads.spawn("outlasting", over.wait, over.is_set, outlasts=True)
    threads.stop()
    began = time.monotonic()
    threads.join(20.0)
    assert time.monotonic() - began < 10.0
    over.set()


def test_a_thread_whose_work_is_over_may_return(threads):
    over = threading.Event()
    threads.spawn("well", over.wait, over.is_set)
    over.set()
    threads.join(5.0)
    assert threads.death is None


@pytest.mark.parametrize("error", [BrokerError("a full pool"), ValueError("x")])
def test_a_rest_that_raises_is_guarded_like_a_step(threads, error):
    """The dispatcher's rest asks the database what is due next; that once ended its thread, and nobody noticed."""
    raised = []

    def poll() -> float:
        if len(raised) < 2:
            raised.append(1)
            raise error
        return 0.005

    step = Trouble()
    sick = Loop(name="sick", step=step, rest=Woken(topic=Topic.DISPATCHER, poll_seconds=poll, brief_seconds=0.001))
    well = run_beside_a_well_one(threads, sick)
    until(lambda: step.turns >= 6 and well.turns >= 6)
    assert len(raised) == 2
    assert threads.death is None


@pytest.mark.parametrize("error", [BrokerError("no session"), ValueError("a descriptor above 1023")])
def test_who_leads_may_raise_and_is_asked_again(threads, error):
    leader, step = Leader(), Trouble()
    leader.raises = [error, error]
    well = run_beside_a_well_one(threads, Loop(name="sick", step=step, rest=Every(0.005), leads=leader))
    until(lambda: step.turns >= 3 and well.turns >= 3)
    assert threads.death is None


def test_who_stands_by_asks_on_and_works_once_it_leads(threads):
    leader, step = Leader(leading=False), Trouble()
    well = run_beside_a_well_one(threads, Loop(name="sick", step=step, rest=Every(0.005), leads=leader))
    until(lambda: leader.asked >= 3 and well.turns >= 3)
    assert step.turns == 0
    leader.leading = True
    until(lambda: step.turns >= 2)


def test_a_leader_that_rests_for_an_hour_notices_within_a_second_that_it_leads_no_more(threads):
    leader, step = Leader(), Trouble()
    threads.start(Loop(name="sick", step=step, rest=Every(3_600.0), leads=leader))
    until(lambda: leader.asked >= 5)
    assert step.turns == 1
    leader.leading = False
    asked = leader.asked
    until(lambda: leader.asked >= asked + 3)
    assert step.turns == 1
    leader.leading = True
    until(lambda: step.turns == 2)


def test_a_leader_that_can_do_nothing_makes_room_for_another(threads, monkeypatch):
    monkeypatch.setattr(loop_module, "_STUCK_SECONDS", 0.1)
    monkeypatch.setattr(loop_module, "_RESIGNED_SECONDS", 0.02)
    stuck, passing = Leader(), Leader()
    alone = Trouble(*[BrokerError("likewise")] * 50)
    threads.start(Loop(name="stuck", step=Trouble(*[BrokerError("a full pool")] * 10_000), leads=stuck))
    threads.start(Loop(name="passing", step=Trouble(BrokerError("once")), rest=Every(0.005), leads=passing))
    threads.start(Loop(name="alone", step=alone))
    until(lambda: stuck.closed >= 2 and alone.turns > 20)
    assert passing.closed == 0


@pytest.mark.parametrize("rest", [Every(3_600.0), Woken(topic=Topic.PLANNER, poll_seconds=lambda: 3_600.0)])
def test_a_stop_ends_a_rest_at_once(threads, rest):
    step, finished = Trouble(), []
    threads.start(Loop(name="sick", step=step, rest=rest, finish=lambda: finished.append(1)))
    until(lambda: step.turns == 1)
    began = time.monotonic()
    threads.stop()
    threads.join(5.0)
    assert time.monotonic() - began < 1.0
    assert (step.turns, finished) == (1, [1])


def test_a_stop_ends_who_stands_by(threads, monkeypatch):
    monkeypatch.setattr(loop_module, "POLL_SECONDS", 3_600.0)
    leader = Leader(leading=False)
    threads.start(Loop(name="sick", step=Trouble(), leads=leader))
    until(lambda: leader.asked)
    threads.stop()
    threads.join(5.0)
    assert leader.closed == 1


def test_what_fails_while_it_is_stopped_is_logged_and_kills_nobody(threads):
    def finish() -> None:
        raise SystemExit(4)

    with capture_logs() as logs:
        well = run_beside_a_well_one(threads, Loop(name="sick", step=Trouble(), finish=finish))
        until(lambda: well.turns >= 2)
        threads.stop()
        threads.join(5.0)
    assert [line["stage"] for line in logs if line["event"] == "stage_failed"] == ["sick"]
    assert threads.death is None


def test_a_notification_wakes_only_the_loop_of_its_topic(threads, wakeups):
    planner, closer = Trouble(), Trouble()
    rests = {topic: Woken(topic=topic, poll_seconds=lambda: 3_600.0) for topic in (Topic.PLANNER, Topic.CLOSER)}
    threads.start(Loop(name="planner", step=planner, rest=rests[Topic.PLANNER]))
    threads.start(Loop(name="closer", step=closer, rest=rests[Topic.CLOSER]))
    until(lambda: planner.turns == closer.turns == 1)
    wakeups.notify(Topic.PLANNER)
    until(lambda: planner.turns == 2)
    assert closer.turns == 1


def test_a_notification_amid_the_deaf_time_is_kept(threads, wakeups):
    step = Trouble()
    rest = Woken(topic=Topic.ASSEMBLER, poll_seconds=lambda: 3_600.0, deaf_seconds=0.2)
    threads.start(Loop(name="sick", step=step, rest=rest))
    until(lambda: step.turns == 1)
    began = time.monotonic()
    wakeups.notify(Topic.ASSEMBLER)
    until(lambda: step.turns == 2)
    assert time.monotonic() - began > 0.1


_PROGRAM = """
import sys, threading, time
from broker.bootstrap.loop import Every, Loop
from broker.bootstrap.threads import Threads
from broker.wakeups import Wakeups

stop = threading.Event()
stops = sys.argv[1] == "stops"
threads = Threads(Wakeups(), full_disk_sentence="", end_seconds=0.5, on_death=stop.set)

def step():
    raise SystemExit(0)  # even one that says that all is well

threads.start(Loop(name="well", step=lambda: None, rest=Every(0.01)))
threads.start(Loop(name="sick", step=step))
if not stops:
    time.sleep(3600)
stop.wait()
threads.stop()
threads.join(5)
threads.end()
try:
    threads.check()
except Exception as error:
    print(error, file=sys.stderr)
    sys.exit(1)
"""


@pytest.mark.parametrize("main_thread", ["stops", "hangs"])
def test_a_dead_thread_ends_its_process_with_1_whatever_the_main_thread_does(main_thread):
    began = time.monotonic()
    ran = subprocess.run(
        [sys.executable, "-c", _PROGRAM, main_thread],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert ran.returncode == 1, ran
    assert "thread_ended" in ran.stdout + ran.stderr
    assert time.monotonic() - began < 30
