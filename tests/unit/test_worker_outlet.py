"""A lane's way to the bus: what gathers while one call publishes goes with the next, and each hears of its own."""

from __future__ import annotations

import asyncio
import threading

from broker.bus.driver import BusUnavailable, PublishError
from workers.outcomes import EventOutlet


class Bus:
    """Confirms when the test says so; refuses what it is told to."""

    def __init__(self):
        self.calls, self.let_go, self.refuses = [], threading.Event(), set()

    def publish_events(self, queue, envelopes):
        self.calls.append(list(envelopes))
        assert self.let_go.wait(5)
        if b"lost" in self.refuses:
            raise BusUnavailable("gone")
        if refused := {place: ValueError(one) for place, one in enumerate(envelopes) if one in self.refuses}:
            raise PublishError(refused)


def _send_three(bus):
    async def run():
        outlet = EventOutlet(bus, "q")
        first = asyncio.create_task(outlet.send(b"1"))
        while not bus.calls:  # noqa: ASYNC110 (it is called on a thread)
            await asyncio.sleep(0.001)
        others = [asyncio.create_task(outlet.send(one)) for one in (b"2", b"3")]
        await asyncio.sleep(0.01)
        bus.let_go.set()
        return await asyncio.gather(first, *others, return_exceptions=True)

    return asyncio.run(run())


def test_what_gathers_goes_together():
    bus = Bus()
    assert _send_three(bus) == [None, None, None]
    assert bus.calls == [[b"1"], [b"2", b"3"]]


def test_one_that_is_refused_holds_up_no_other():
    bus = Bus()
    bus.refuses = {b"3"}
    first, second, third = _send_three(bus)
    assert (first, second) == (None, None)
    assert isinstance(third, ValueError)


def test_a_lost_bus_is_told_to_all_and_the_next_goes_out_anew():
    bus = Bus()
    bus.refuses = {b"lost"}
    assert all(isinstance(one, BusUnavailable) for one in _send_three(bus))
    assert bus.calls == [[b"1"], [b"2", b"3"]]
    bus.refuses = set()

    async def again():
        await EventOutlet(bus, "q").send(b"4")

    asyncio.run(again())
    assert bus.calls[2:] == [[b"4"]]
