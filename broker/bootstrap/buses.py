"""The buses that the lanes are on: their URLs with the secrets put in, and what is connected to them."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

import msgspec

from broker.bus.claim_check import PARKED_BYTES_MAX, ClaimCheck, envelope_bytes_max
from broker.bus.inbox import Inbox
from broker.bus.payload_store import PayloadStore, StoreUnavailable
from broker.bus.publisher import Publisher
from broker.domain.errors import UsageError
from broker.domain.lane import Lane

__all__ = ["Buses", "bus_url_of", "fitted", "in_one_process", "open_store", "shared_bus_url_of"]

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


def fitted(lanes: Sequence[Lane], *, by_reference: bool) -> list[Lane]:
    """The lanes with what their buses can carry; `by_reference`: there is a store for a job that is larger."""
    return [_fitted(lane, PARKED_BYTES_MAX if by_reference else 0) for lane in lanes]


def _fitted(lane: Lane, parked_bytes_max: int) -> Lane:
    carried = min(lane.message_bytes_max, envelope_bytes_max(shared_bus_url_of(lane)))
    return msgspec.structs.replace(lane, message_bytes_max=carried, parked_bytes_max=parked_bytes_max)


def in_one_process(lanes: Sequence[Lane]) -> list[Lane]:
    """The lanes with what the bus in memory carries: a body above a lane's limit is a message of its own there."""
    return [msgspec.structs.replace(lane, parked_bytes_max=PARKED_BYTES_MAX) for lane in lanes]


def open_store(url: str, *, makes_folder: bool) -> PayloadStore:
    """The object store for what a bus can't carry.

    Raises UsageError where the URL names none, or a folder that can't be written and read. Any other store is first
    asked when it is needed: it may be away now, and back by then.
    """
    try:
        store = PayloadStore(url, makes_folder=makes_folder)
        if not store.signs:
            store.check()
    except (ValueError, StoreUnavailable) as error:
        raise UsageError(f"BROKER_PAYLOADS_URL: {error}") from None
    return store


class Buses:
    """One publisher for each bus, however many lanes are on it."""

    def __init__(self, lanes: Sequence[Lane], claim_check: ClaimCheck | None = None) -> None:
        self._claim_check = claim_check
        self._lanes_by_bus: dict[str, list[Lane]] = defaultdict(list)
        for lane in lanes:
            self._lanes_by_bus[shared_bus_url_of(lane)].append(lane)
        self.publishers: dict[str, Publisher] = {}
        for url, on_it in self._lanes_by_bus.items():
            # More than shards are cut to is a single large job: where there is a store it goes by reference, for not
            # every bus that has no limit of its own takes it from every server.
            cut_to = max(lane.message_bytes_max for lane in on_it)
            publisher = Publisher(url, claim_check=claim_check, direct_bytes_max=cut_to)
            self.publishers |= {str(lane.name): publisher for lane in on_it}

    def inboxes(self) -> list[Callable[[int], Inbox]]:
        """For each bus, what opens its lanes' events queues, given how many messages to prefetch."""
        return [
            _opener(url, [lane.events_queue for lane in on_it], self._claim_check)
            for url, on_it in self._lanes_by_bus.items()
        ]

    def close(self) -> None:
        """Disconnect the publishers."""
        for publisher in set(self.publishers.values()):
            publisher.close()


def _opener(url: str, queues: list[str], claim_check: ClaimCheck | None) -> Callable[[int], Inbox]:
    return lambda prefetch: Inbox(url, queues, prefetch, claim_check=claim_check)
