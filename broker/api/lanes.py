"""Lanes, the ledger's summary and the health check over HTTP."""

from __future__ import annotations

from typing import Any

from litestar import get, post
from litestar.datastructures import State
from litestar.params import FromPath, FromQuery

from broker.api import instances, prices
from broker.api.gate import Scope
from broker.api.threads import in_thread
from broker.api.views import LaneView
from broker.domain.lane import LaneState

__all__ = ["routes"]


@get("/v1/health", scope_needed=Scope.HEALTH)
async def health() -> dict[str, str]:
    """The door is open."""
    return {"status": "ok"}


@get("/v1/lanes", scope_needed=Scope.LANES_READ)
async def list_lanes(state: State) -> dict[str, list[LaneView]]:
    """All lanes, in the catalog's order."""
    return {"lanes": await in_thread(state.desk.lanes)}


@post("/v1/lanes/{name:str}/pause", scope_needed=Scope.LANES_WRITE, status_code=200)
async def pause_lane(state: State, name: FromPath[str]) -> LaneView:
    """No new shards, until resumed."""
    return await in_thread(state.desk.set_lane_state, name, LaneState.PAUSED)


@post("/v1/lanes/{name:str}/drain", scope_needed=Scope.LANES_WRITE, status_code=200)
async def drain_lane(state: State, name: FromPath[str]) -> LaneView:
    """No new shards; drained once what it has is done."""
    return await in_thread(state.desk.set_lane_state, name, LaneState.DRAINING)


@post("/v1/lanes/{name:str}/resume", scope_needed=Scope.LANES_WRITE, status_code=200)
async def resume_lane(state: State, name: FromPath[str]) -> LaneView:
    """New shards again."""
    return await in_thread(state.desk.set_lane_state, name, LaneState.OPEN)


@get("/v1/ledger/summary", scope_needed=Scope.LEDGER_READ)
async def ledger_summary(state: State, by: FromQuery[str] = "provider") -> dict[str, list[dict[str, Any]]]:
    """One row per group."""
    return {"rows": await in_thread(state.desk.ledger_summary, by)}


@get("/v1/lanes/{name:str}/desired", scope_needed=Scope.LANES_READ)
async def desired_instances(state: State, name: FromPath[str]) -> dict[str, int]:
    """How many instances the lane should hold, as KEDA's metrics-api scaler reads it."""
    return {"desired": await in_thread(state.desk.desired, name)}


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
