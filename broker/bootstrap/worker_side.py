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
from broker.domain.errors import BrokerError, UsageError
from broker.domain.lane import Lane
from broker.signing import KeyRing, Signer
from workers.engine import EngineError
from workers.engines import open_engine
from workers.lease import ClaimedOnce, LeaseDoor
from workers.runner import Deployment, ShardRunner

__all__ = ["WorkerSide", "new_resource_id", "new_worker_id"]

_STOP_SECONDS = 4.0

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

    @property
    def is_running(self) -> bool:
        """Whether it consumes; it also ends after an error that Celery can't recover from."""
        return self._worker is not None and self._worker.is_running

    def start_engines(self) -> None:
        """Raises BrokerError when an engine can't be brought up."""
        self._loop_thread.start()
        try:
            asyncio.run_coroutine_threadsafe(self._start_all(), self._loop).result()
        except EngineError as error:
            raise BrokerError(error.message) from None

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

    async def _start_all(self) -> None:
        await asyncio.gather(*(deployment.engine.start() for deployment in self._deployments.values()))

    async def _stop_all(self) -> None:
        await asyncio.gather(
            *(deployment.engine.stop() for deployment in self._deployments.values()), return_exceptions=True
        )
