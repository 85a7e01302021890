"""Instances over HTTP: what each lane has, under the names that bills use, since when and for how much."""

from __future__ import annotations

import msgspec
from litestar import get
from litestar.datastructures import State
from litestar.params import FromQuery

from broker.api.errors import Refused
from broker.api.gate import Scope
from broker.api.threads import in_thread
from broker.api.views import iso_time
from broker.database.connection import Connection
from broker.database.instances import InstanceRecord, find_instances
from broker.domain.ids import format_id
from broker.domain.instance import InstanceState, instance_hours_us
from broker.domain.lane import Lane, PriceMeter
from broker.front import Front
from broker.ledger.prices import PricedLanes
from broker.rules.pricing import accelerator_cost_nano_usd

__all__ = ["InstanceView", "routes", "show_instances"]

_SHOWN_MAX = 1_000
_US = 1_000_000


class InstanceView(msgspec.Struct, frozen=True, kw_only=True):
    """An instance; `seconds` up as far as is known, and `list_cost_nano_usd` for them at the price that holds now.

    There is no such cost where the lane has left the catalog, or is paid by the token.
    """

    id: str
    lane: str
    state: InstanceState
    resource_id: str
    worker_id: str
    slots: int
    started_at: str
    ready_at: str | None
    draining_at: str | None
    stopped_at: str | None
    last_seen_at: str
    seconds: int
    list_cost_nano_usd: int | None


@get("/v1/instances", scope_needed=Scope.LANES_READ)
async def list_instances(
    state: State, lane: FromQuery[str | None] = None, ended: FromQuery[bool] = False
) -> dict[str, list[InstanceView]]:
    """The newest thousand, oldest first; with `ended`, also those that stopped or were lost."""
    return {"instances": await in_thread(state.desk.instances, lane, ended)}


def show_instances(front: Front, priced: PricedLanes, lane: str | None, *, ended: bool) -> list[InstanceView]:
    """What is known of them now. Raises Refused for a lane that there never was."""
    now_us = front.clock()

    def work(connection: Connection) -> list[InstanceRecord]:
        priced.look(connection)
        return find_instances(connection, now_us, lane, ended=ended, limit=_SHOWN_MAX)

    found = front.database.read(work)
    known = {str(one.name): one for one in priced.all_at(now_us)}
    if lane is not None and lane not in known and not found:
        raise Refused(404, "unknown_lane", f"there is no lane {lane[:80]!r}; the catalog has {', '.join(known)}")
    return [_view(one, known.get(one.lane), now_us) for one in found]


def _view(one: InstanceRecord, lane: Lane | None, now_us: int) -> InstanceView:
    up_us = instance_hours_us(one.state, one.started_us, one.stopped_us, one.last_seen_us, now_us)
    cost = None
    if lane is not None and lane.price.meter is PriceMeter.ACCELERATOR_HOUR:
        cost = accelerator_cost_nano_usd(lane.price, up_us)
    return InstanceView(
        id=format_id("instance", one.instance_id),
        lane=one.lane,
        state=one.state,
        resource_id=one.resource_id,
        worker_id=one.worker_id,
        slots=one.slots,
        started_at=iso_time(one.started_us),
        ready_at=_moment(one.ready_us),
        draining_at=_moment(one.draining_us),
        stopped_at=_moment(one.stopped_us),
        last_seen_at=iso_time(one.last_seen_us),
        seconds=up_us // _US,
        list_cost_nano_usd=cost,
    )


def _moment(moment_us: int | None) -> str | None:
    return None if moment_us is None else iso_time(moment_us)


routes = [list_instances]
