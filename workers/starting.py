"""Bringing up one engine, however long that takes: tried until it is ready, and told each time."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from contextlib import suppress

import structlog

from broker.domain.errors import ErrorCode
from workers.engine import EngineError
from workers.runner import Deployment

__all__ = ["STILL_STARTING", "EngineState", "bring_up"]

STILL_STARTING = "the engine is starting"
"""All that is known of one that hasn't failed yet."""

_log = structlog.get_logger(__name__)

_PAUSE_S = 0.5
_PAUSE_MAX_S = 4.0
_TOLD_S = 0.25
"""So often it is said again that an engine isn't ready: a lane that rests for that must not be tried in between."""

EngineState = Callable[[str, EngineError | None], None]
"""Told of a lane why its engine isn't ready, or None once it is. On the engines' thread; must not block."""


async def bring_up(deployment: Deployment, tell: EngineState) -> None:
    """Returns when the engine is ready, or by a cancel. Until then its jobs end as ENGINE_STARTING, unsent."""
    lane = str(deployment.lane.name)
    error = EngineError(ErrorCode.ENGINE_STARTING, STILL_STARTING, is_free=True)
    deployment.say_starting(error.message)
    pause_s = _PAUSE_S
    while True:
        attempt = asyncio.ensure_future(_failure_of(deployment))
        try:
            # What was wrong the last time is still so while it is tried again.
            while not (await asyncio.wait([attempt], timeout=_TOLD_S))[0]:
                tell(lane, error)
        finally:
            attempt.cancel()
            await asyncio.wait([attempt])
        failure = attempt.result()
        if failure is None:
            deployment.say_started()
            tell(lane, None)
            return
        error = failure
        deployment.say_starting(error.message)
        tell(lane, error)
        await _pause(pause_s * random.uniform(0.75, 1.0), lane, error, tell)  # noqa: S311 (no secret hangs on it)
        pause_s = min(2 * pause_s, _PAUSE_MAX_S)


async def _failure_of(deployment: Deployment) -> EngineError | None:
    try:
        await deployment.engine.start()
    except EngineError as error:
        return error
    except Exception as error:  # noqa: BLE001 (a driver's bug is a lane's trouble, and no other lane's)
        _log.exception("engine_driver_failed", lane=deployment.lane.name)
        return EngineError(ErrorCode.ENGINE_STARTING, f"the engine's driver failed: {type(error).__name__}")
    return None


async def _pause(seconds: float, lane: str, error: EngineError, tell: EngineState) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            while True:
                await asyncio.sleep(_TOLD_S)
                tell(lane, error)
