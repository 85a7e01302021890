"""Instances over HTTP: what each lane has, under the names that bills use, since when and for how much."""

from __future__ import annotations

from litestar import get
from litestar.datastructures import State
from litestar.di import NamedDependency
from litestar.params import FromQuery

from broker.api.desk.lanes import LanesDesk
from broker.api.threads import in_thread
from broker.domain.answers import InstanceView
from broker.domain.identity import Identity

__all__ = ["routes"]


@get("/instances")
async def list_instances(
    state: State,
    identity: NamedDependency[Identity],
    lane: FromQuery[str | None] = None,
    ended: FromQuery[bool] = False,
) -> dict[str, list[InstanceView]]:
    """The newest thousand, oldest first; with `ended`, also those that stopped or were lost."""
    desk: LanesDesk = state.desk.lanes
    return {"instances": await in_thread(lambda: desk.instances(identity, lane, ended=ended))}


routes = [list_instances]
