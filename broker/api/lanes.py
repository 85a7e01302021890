"""Lanes, the ledger's summary and the health check over HTTP."""

from __future__ import annotations

from typing import Any

from litestar import get, post
from litestar.datastructures import State
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery

from broker.api import instances, prices
from broker.api.threads import in_summary_thread, in_thread
from broker.domain.answers import LaneView
from broker.domain.identity import Identity
from broker.domain.lane import LaneState

__all__ = ["routes"]


@get("/health")
async def health() -> dict[str, str]:
    """The door is open."""
    return {"status": "ok"}


@get("/lanes")
async def list_lanes(state: State, identity: NamedDependency[Identity]) -> dict[str, list[LaneView]]:
    """All lanes, in the catalog's order."""
    return {"lanes": await in_thread(state.desk.lanes.every, identity)}


@post("/lanes/{name:str}/pause", status_code=200)
async def pause_lane(state: State, identity: NamedDependency[Identity], name: FromPath[str]) -> LaneView:
    """No new shards, until resumed."""
    return await in_thread(state.desk.lanes.set_state, identity, name, LaneState.PAUSED)


@post("/lanes/{name:str}/drain", status_code=200)
async def drain_lane(state: State, identity: NamedDependency[Identity], name: FromPath[str]) -> LaneView:
    """No new shards; drained once what it has is done."""
    return await in_thread(state.desk.lanes.set_state, identity, name, LaneState.DRAINING)


@post("/lanes/{name:str}/resume", status_code=200)
async def resume_lane(state: State, identity: NamedDependency[Identity], name: FromPath[str]) -> LaneView:
    """New shards again."""
    return await in_thread(state.desk.lanes.set_state, identity, name, LaneState.OPEN)


@get("/ledger/summary")
async def ledger_summary(
    state: State, identity: NamedDependency[Identity], by: FromQuery[str] = "provider"
) -> dict[str, list[dict[str, Any]]]:
    """One row per group."""
    return {"rows": await in_summary_thread(state.desk.ledger.summary, identity, by)}


@get("/lanes/{name:str}/desired")
async def desired_instances(state: State, identity: NamedDependency[Identity], name: FromPath[str]) -> dict[str, int]:
    """How many instances the lane should hold, as KEDA's metrics-api scaler reads it."""
    return {"desired": await in_thread(state.desk.lanes.desired, identity, name)}


routes = [
    health,
    list_lanes,
    desired_instances,
    pause_lane,
    drain_lane,
    resume_lane,
    ledger_summary,
    *instances.routes,
    *prices.routes,
]
