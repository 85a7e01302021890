"""What may be asked of lanes, their instances and their prices."""

from __future__ import annotations

import structlog

from broker.api.errors import Refused
from broker.api.views import instance_view, lane_view
from broker.catalog.price_files import read_prices
from broker.database import lane_states, plans, shards
from broker.database.connection import Connection
from broker.database.instances import InstanceRecord, find_instances
from broker.domain.answers import InstanceView, LaneView, PricesTaken
from broker.domain.errors import UsageError
from broker.domain.identity import Identity
from broker.domain.lane import LaneState
from broker.front import Front
from broker.ledger.prices import BookEntry, PricedLanes, import_book
from broker.wakeups import Topic

__all__ = ["LanesDesk"]

_INSTANCES_SHOWN_MAX = 1_000

_log = structlog.get_logger(__name__)


class LanesDesk:
    """Looking, steering and pricing. Lanes are the platform's: all who may look see the same, whatever their tenant."""

    def __init__(self, front: Front) -> None:
        self._front = front
        self._database = front.database
        self._priced = PricedLanes(front.lanes)

    def every(self, _identity: Identity) -> list[LaneView]:
        """All lanes, in the catalog's order."""

        def work(connection: Connection) -> list[LaneView]:
            held, taken = lane_states.held_lanes(connection), shards.open_shards(connection)
            plan = plans.lane_plans(connection)
            self._priced.look(connection)
            now_us = self._front.clock()
            resting, live = self._front.health.resting(), self._front.live_slots(connection)
            return [
                lane_view(
                    lane,
                    live.get(lane.name, 0),
                    _state_shown(held.get(lane.name), taken.get(lane.name, 0)),
                    taken.get(lane.name, 0),
                    resting.get(lane.name),
                    plan.get(str(lane.name)),
                    now_us,
                )
                for lane in self._priced.all_at(now_us)
            ]

        return self._database.read(work)

    def set_state(self, identity: Identity, name: str, state: LaneState) -> LaneView:
        """Let a lane have new shards, or not."""
        self._check_lane(name)
        now_us = self._front.clock()
        self._database.write(lambda connection: lane_states.set_state(connection, name, state, now_us))
        _log.info("lane_steered", lane=name, state=state, by=identity.subject)
        self._front.wakeups.notify(Topic.DISPATCHER)
        return next(view for view in self.every(identity) if view.name == name)

    def desired(self, _identity: Identity, name: str) -> int:
        """How many instances the planner wants of a lane."""
        self._check_lane(name)
        plan = self._database.read(plans.lane_plans).get(name)
        return plan.desired if plan else 0

    def instances(self, _identity: Identity, lane: str | None, *, ended: bool) -> list[InstanceView]:
        """The newest thousand as they are known now. Raises Refused for a lane that there never was."""
        now_us = self._front.clock()

        def work(connection: Connection) -> list[InstanceRecord]:
            self._priced.look(connection)
            return find_instances(connection, now_us, lane, ended=ended, limit=_INSTANCES_SHOWN_MAX)

        records = self._database.read(work)
        known = {str(one.name): one for one in self._priced.all_at(now_us)}
        if lane is not None and lane not in known and not records:
            raise Refused(404, "unknown_lane", f"there is no lane {lane[:80]!r}; the catalog has {', '.join(known)}")
        return [instance_view(record, known.get(record.lane), now_us) for record in records]

    def import_prices(self, identity: Identity, name: str, content: bytes) -> PricesTaken:
        """Check a book and have it hold. Raises Refused, saying which row and field is at fault."""
        try:
            book = read_prices(name, content, self._front.lanes)
        except UsageError as error:
            raise Refused(400, "invalid_file", str(error), field="file") from None
        entries = [BookEntry(lane, price) for lane, price in book.prices.items()]
        now_us = self._front.clock()
        self._database.write(lambda connection: import_book(connection, book.book, name, entries, now_us))
        _log.info("prices_imported", book=book.book, prices=len(entries), by=identity.subject)
        self._front.wakeups.notify(Topic.PLANNER)
        return PricesTaken(book.book, len(entries))

    def _check_lane(self, name: str) -> None:
        if name not in {str(lane.name) for lane in self._front.lanes}:
            known = ", ".join(str(lane.name) for lane in self._front.lanes)
            raise Refused(404, "unknown_lane", f"there is no lane {name[:80]!r}; the catalog has {known}")


def _state_shown(state: LaneState | None, shards_count: int) -> str:
    if state is LaneState.DRAINING and shards_count == 0:
        return "drained"
    return state or LaneState.OPEN
