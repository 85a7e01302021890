"""What settles or renews goes before what receives, at a link that bears one call at a time."""

from __future__ import annotations

import threading
import time

from broker.bus.drivers.servicebus.turns import Turns


class Link:
    """Two links' worth of turns, and who was at each, in which order."""

    def __init__(self) -> None:
        self.turns = Turns()
        self.order: list[str] = []
        self.inside = 0
        self.inside_max = 0
        self.threads: list[threading.Thread] = []

    def come(self, name: str, *, urgent: bool) -> None:
        thread = threading.Thread(target=self._call, args=(name,), kwargs={"urgent": urgent})
        self.threads.append(thread)
        thread.start()

    def _call(self, name: str, *, urgent: bool) -> None:
        with self.turns.take(urgent=urgent):
            self.inside += 1
            self.inside_max = max(self.inside_max, self.inside)
            self.order.append(name)
            time.sleep(0.001)
            self.inside -= 1

    def end(self) -> None:
        for thread in self.threads:
            thread.join(10)
            assert not thread.is_alive()


def _wait_until(condition):
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_urgent_calls_go_before_receives_that_came_earlier():
    link = Link()
    with link.turns.take(urgent=False):
        for name in ("receive-1", "receive-2"):
            link.come(name, urgent=False)
        for name in ("settle-1", "settle-2"):
            link.come(name, urgent=True)
        _wait_until(lambda: link.turns.urgent_waiting == 2)
    link.end()
    assert set(link.order[:2]) == {"settle-1", "settle-2"}
    assert set(link.order[2:]) == {"receive-1", "receive-2"}
    assert link.inside_max == 1


def test_a_call_that_fails_gives_its_turn_back():
    turns = Turns()
    for urgent in (False, True):
        try:
            with turns.take(urgent=urgent):
                raise ConnectionError
        except ConnectionError:
            pass
    with turns.take(urgent=False):
        assert turns.urgent_waiting == 0


def test_two_links_do_not_wait_for_each_other():
    sick, well = Link(), Link()
    with sick.turns.take(urgent=False):
        sick.come("settle", urgent=True)
        well.come("settle", urgent=True)
        well.end()
        assert (sick.order, well.order) == ([], ["settle"])
    sick.end()
    assert sick.order == ["settle"]
