"""The buses that the lanes are on: their URLs with the secrets put in, and what is connected to them."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

from broker.bus.inbox import Inbox
from broker.bus.publisher import Publisher
from broker.domain.errors import UsageError
from broker.domain.lane import Lane

__all__ = ["Buses", "bus_url_of", "shared_bus_url_of"]

_PLACE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


def bus_url_of(lane: Lane, environment: Mapping[str, str] = os.environ) -> str:
    """The lane's bus, with every `${NAME}` filled in from the environment: the catalog itself holds no secret."""

    def value(place: re.Match[str]) -> str:
        found = environment.get(place[1])
        if found is None:
            raise UsageError(f"lane {lane.name}: its bus_url needs the variable {place[1]}, which is not set")
        return found

    return _PLACE.sub(value, lane.bus_url)


def shared_bus_url_of(lane: Lane) -> str:
    """Likewise. Raises UsageError for a bus that lives in one process alone."""
    if lane.bus_url.startswith("lanemem:"):
        raise UsageError(f"lane {lane.name}: its bus_url must name a bus that processes share, such as amqp://…")
    return bus_url_of(lane)


class Buses:
    """One publisher for each bus, however many lanes are on it."""

    def __init__(self, lanes: Sequence[Lane]) -> None:
        self._lanes_by_bus: dict[str, list[Lane]] = defaultdict(list)
        for lane in lanes:
            self._lanes_by_bus[shared_bus_url_of(lane)].append(lane)
        self.publishers: dict[str, Publisher] = {}
        for url, on_it in self._lanes_by_bus.items():
            publisher = Publisher(url)
            self.publishers |= {str(lane.name): publisher for lane in on_it}

    def inboxes(self) -> list[Callable[[int], Inbox]]:
        """For each bus, what opens its lanes' events queues, given how many messages to prefetch."""
        return [_opener(url, [lane.events_queue for lane in on_it]) for url, on_it in self._lanes_by_bus.items()]

    def close(self) -> None:
        """Disconnect the publishers."""
        for publisher in set(self.publishers.values()):
            publisher.close()


def _opener(url: str, queues: list[str]) -> Callable[[int], Inbox]:
    return lambda prefetch: Inbox(url, queues, prefetch)
