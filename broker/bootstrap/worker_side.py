"""A worker's process side: its lanes' engines, one event loop for them, and one Celery worker on their queues."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import structlog

from broker.bus.apps import InProcessWorker, NotTaken, start_in_process, worker_app
from broker.bus.claim_check import ClaimCheck
from broker.bus.driver import BusUnavailable
from broker.bus.envelope import EnvelopeError
from broker.bus.publisher import Publisher
from broker.clock import Clock
from broker.domain.errors import BrokerError, ErrorCode, UsageError
from broker.domain.lane import Lane
from broker.signing import KeyRing, Signer
from workers.engine import EngineError
from workers.engines import open_engine
from workers.lease import ClaimedOnce, LeaseDoor
from workers.runner import Deployment, ShardRunner
from workers.starting import STILL_STARTING, EngineState, bring_up

__all__ = ["WorkerSide", "new_resource_id", "new_worker_id"]

_STOP_SECONDS = 4.0
_START_SECONDS = 5.0
"""How long all lanes wait for an engine that is neither ready nor has failed: one that loads its model takes longer."""

_log = structlog.get_logger(__name__)


def new_worker_id() -> str:
    """The name of this process, which no other has, nor had: in containers, host and process number come again."""
    return f"{socket.gethostname()[:64]}-{os.getpid()}-{secrets.token_hex(4)}"


def new_resource_id() -> str:
    """What to call this machine where nobody said how its cloud does: its host name, and when this process began."""
    return f"{socket.gethostname()[:64]}@{datetime.now(UTC).strftime('%Y-%m-%dT%H:%M:%SZ')}"


class WorkerSide:
    """All lanes given share one bus. Stop it, then, when what it published last is recorded, close it."""

    def __init__(
        self,
        *,
        name: str,
        lanes: Sequence[Lane],
        signers: Mapping[str, Signer],
        ring: KeyRing,
        door: LeaseDoor,
        bus_url: str,
        clock: Clock,
        worker_id: str,
        bus_options: Mapping[str, Any] | None = None,
        claim_check: ClaimCheck | None = None,
    ) -> None:
        self._name = name
        self._lanes = lanes
        self._bus_url = bus_url
        self._bus_options = bus_options
        self._claim_check = claim_check
        self._publisher = Publisher(bus_url, bus_options, claim_check)
        self._loop = asyncio.new_event_loop()
        self._loop_thread = threading.Thread(target=self._loop.run_forever, name="engines", daemon=True)
        try:
            self._deployments = {
                str(lane.name): Deployment(lane, open_engine(lane.engine), self._publisher, signers[lane.name])
                for lane in lanes
            }
        except ValueError as error:
            raise UsageError(str(error)) from None
        self._runner = ShardRunner(
            worker_id=worker_id,
            deployments=self._deployments,
            ring=ring,
            door=ClaimedOnce(door),
            loop=self._loop,
            clock=clock,
        )
        self._worker: InProcessWorker | None = None
        self._tell: EngineState = lambda _lane, _error: None
        self._starting: list[asyncio.Task[None]] = []
        self._states: dict[str, EngineError | None] = {}
        self._changed = threading.Condition()

    @property
    def is_running(self) -> bool:
        """Whether it consumes; it also ends after an error that Celery can't recover from."""
        return self._worker is not None and self._worker.is_running

    def start_engines(self, tell: EngineState, *, wait_seconds: float = _START_SECONDS) -> None:
        """Bring up each engine by itself, for as long as it takes; `tell` hears of each how that goes.

        Returns when each is ready or has failed once, or after so long. Raises BrokerError where one of them can't be
        ready before someone has changed what its lane's settings name.
        """
        self._tell = tell
        self._loop_thread.start()
        self._loop.call_soon_threadsafe(self._start_all)
        with self._changed:
            self._changed.wait_for(self._all_heard_of, wait_seconds)
        self.check_settings()

    def check_settings(self) -> None:
        """Raises BrokerError where an engine can't be ready before someone has changed its lane's settings."""
        for error in self.starting.values():
            if error.code is ErrorCode.ENGINE_MISCONFIGURED:
                raise BrokerError(error.message)

    @property
    def starting(self) -> dict[str, EngineError]:
        """The lanes whose engines aren't ready, each with the reason."""
        with self._changed:
            return {lane: error for lane, error in self._states.items() if error is not None}

    @property
    def is_ready(self) -> bool:
        """Whether each engine has been brought up."""
        with self._changed:
            return all(lane in self._states and self._states[lane] is None for lane in self._deployments)

    def start_worker(self) -> None:
        """Take shards."""
        queues = [lane.shards_queue for lane in self._lanes]
        # A queued shard waits for its lane's slot inside its thread, so that no lane holds up another's.
        concurrency = 2 * sum(lane.slots for lane in self._lanes)
        app = worker_app(self._name, self._bus_url, queues, concurrency, self._bus_options, run_shard=self._run)
        self._worker = start_in_process(app)

    def _run(self, message: bytes) -> None:
        """Fetch what waits in the object store; then it is the runner's."""
        try:
            envelope = self._claim_check.redeem(message) if self._claim_check else message
        except EnvelopeError as error:
            _log.warning("shard_rejected", reason=str(error))
            return
        except BusUnavailable as error:
            raise NotTaken(str(error)) from error
        self._runner.run(envelope)

    def stop(self, *, interrupted: bool, timeout_seconds: float = _STOP_SECONDS) -> None:
        """Hand back what runs and take nothing more; `interrupted` when it is the broker's own process that ends."""
        until = time.monotonic() + timeout_seconds
        self._runner.preempt(interrupted=interrupted)
        if self._worker:
            self._worker.stop(timeout_seconds)
        self._runner.wait(until - time.monotonic())

    def renew_soon(self) -> None:
        """See `ShardRunner.renew_soon`."""
        self._runner.renew_soon()

    def close(self) -> None:
        """End the engines."""
        try:
            asyncio.run_coroutine_threadsafe(self._stop_all(), self._loop).result(_STOP_SECONDS)
        except TimeoutError:
            _log.warning("engines_left_running")  # they end with this process
        self._runner.close()
        self._publisher.close()
        self._loop.call_soon_threadsafe(self._loop.stop)

    def _start_all(self) -> None:
        self._starting = [
            self._loop.create_task(bring_up(deployment, self._hear)) for deployment in self._deployments.values()
        ]

    def _hear(self, lane: str, error: EngineError | None) -> None:
        self._tell(lane, error)
        with self._changed:
            self._states[lane] = error
            self._changed.notify_all()

    def _all_heard_of(self) -> bool:
        """Whether nothing more will be known soon: each has failed or is ready, or one will never be."""
        known = [error for error in self._states.values() if error is None or error.message != STILL_STARTING]
        is_final = any(error is not None and error.code is ErrorCode.ENGINE_MISCONFIGURED for error in known)
        return is_final or len(known) == len(self._deployments)

    async def _stop_all(self) -> None:
        for starting in self._starting:
            starting.cancel()
        await asyncio.gather(*self._starting, return_exceptions=True)
        await asyncio.gather(
            *(deployment.engine.stop() for deployment in self._deployments.values()), return_exceptions=True
        )
