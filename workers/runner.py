"""One shard, step by step: verify, claim, run its jobs at once, meter, report, hand back what is left."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from contextlib import suppress

import structlog

from broker.bus.apps import NotTaken
from broker.bus.envelope import EnvelopeError, Opened, open_shard
from broker.clock import Clock
from broker.domain.errors import ErrorCode, named
from broker.domain.events import JobRan
from broker.domain.lane import Lane
from broker.domain.shard import Bitmap, RunShard, ShardJob
from broker.signing import KeyRing, Signer
from workers.engine import Engine, EngineError, EngineReply, EngineRequest
from workers.job_runners import JobRunners
from workers.lease import Lease, LeaseDoor
from workers.meter import Meter, Reading
from workers.outcomes import EventOutlet, EventPublisher, OutcomeReport
from workers.places import Places
from workers.shard_budget import JobCosts, ShardBudget
from workers.slots import Slot, Slots
from workers.spending import Spending
from workers.telling import Stop, job_ran
from workers.throttle import Throttle

__all__ = ["Deployment", "ShardRunner"]

_SLOT_POLL_SECONDS = 0.5
# Threads that are there only while so many wait: an outage must not make one shard's renewal wait for another's.
_RENEWALS_MIN, _RENEWALS_MAX = 64, 512

_log = structlog.get_logger(__name__)


class Deployment:
    """A lane as this worker serves it: its engine, the meter on it, and the way its events go."""

    def __init__(self, lane: Lane, engine: Engine, publisher: EventPublisher, signer: Signer) -> None:
        self.lane = lane
        self.engine = engine
        self.outlet = EventOutlet(publisher, lane.events_queue)
        self.signer = signer
        self.meter = Meter()
        self.spending = Spending(lane)
        # Metering begins where the engine begins: who waits here uses no accelerator, and is no crash's suspect.
        self.places = Places(lane.engine.concurrency)
        self.slots = Slots(lane.slots, self.places)
        self.job_costs: JobCosts = {}
        self.throttle = Throttle(self.places)
        self._starting = ""

    def say_starting(self, message: str) -> None:
        """Its engine isn't up, for this reason: a job that comes all the same is told so, and nothing is sent."""
        self._starting = message

    def say_started(self) -> None:
        """Its engine is up. On the engines' loop."""
        self._starting = ""
        self.throttle.open()

    def run(self, request: EngineRequest) -> Awaitable[EngineReply]:
        """What the engine makes of it. Raises EngineError."""
        if self._starting:
            raise EngineError(ErrorCode.ENGINE_STARTING, self._starting, is_free=True)
        return self.engine.run(request)


class ShardRunner:
    """Runs the shards that the bus brings; one for all lanes of a worker process."""

    def __init__(
        self,
        *,
        worker_id: str,
        deployments: Mapping[str, Deployment],
        ring: KeyRing,
        door: LeaseDoor,
        loop: asyncio.AbstractEventLoop,
        clock: Clock,
    ) -> None:
        self._worker_id = worker_id
        self._deployments = deployments
        self._ring = ring
        self._door = door
        self._loop = loop
        self._clock = clock
        self._stopping: Stop | None = None
        self._running: set[_ShardRun] = set()
        self._under_way: dict[Future[None], bytes] = {}
        # Not the loop's own threads: publishing and name look-ups may hang there for longer than a lease lasts.
        places = sum(deployment.places.count for deployment in deployments.values())  # as many as shards under way
        at_once = min(max(_RENEWALS_MIN, places), _RENEWALS_MAX)
        self._renewals = ThreadPoolExecutor(at_once, thread_name_prefix="renewals")

    def run(self, envelope: bytes) -> None:
        """Returns when the next message may come: once the shard gave up its slot, or never was this worker's.

        From then on it is left to itself, as is one that runs beside the slots once it is claimed: the lease holds it,
        not its message. Raises NotTaken where the broker could not be asked whether it is this worker's.
        """
        opened = self._open(envelope)
        if opened is None:
            return
        order = opened.body
        deployment = self._deployments[order.lane]
        if order.beside:
            if self._stopping is not Stop.INTERRUPTED:
                self._start(order, deployment, None)
            return
        slot = self._wait_for_slot(deployment, opened.expires_us)
        # One that waits here when the worker leaves is claimed only to be handed back: sooner than it would be missed.
        if slot is None:
            if self._stopping is Stop.PREEMPTED:
                self._start(order, deployment, None)
            return
        try:
            if self._start(order, deployment, slot):
                slot.wait()
        finally:
            slot.give_up()

    def wait(self, timeout_seconds: float, shard_id: bytes | None = None) -> None:
        """Until the shards under way have ended, or that one, for which `run` doesn't wait."""
        under_way = dict(self._under_way)
        wait([one for one, shard in under_way.items() if shard_id in (None, shard)], timeout_seconds)

    def preempt(self, *, interrupted: bool = False) -> None:
        """Stop everything that runs and hand it back; `interrupted` when it is our own process that ends."""
        self._stopping = Stop.INTERRUPTED if interrupted else Stop.PREEMPTED
        self._loop.call_soon_threadsafe(self._stop_all, self._stopping)

    def close(self) -> None:
        """Renew no more; those under way are left to themselves."""
        self._renewals.shutdown(wait=False, cancel_futures=True)

    def renew_soon(self) -> None:
        """Ask the lease door at once, for it may have something new to say; a hint, from any thread."""
        self._loop.call_soon_threadsafe(self._renew_all)

    def _open(self, envelope: bytes) -> Opened[RunShard] | None:
        try:
            opened = open_shard(self._ring, envelope, self._clock())
        except EnvelopeError as error:
            _log.warning("shard_rejected", reason=str(error))
            return None
        if opened.audience != opened.body.lane or opened.body.lane not in self._deployments:
            _log.warning("shard_rejected", reason=f"it is for lane {opened.audience}")
            return None
        return opened

    def _wait_for_slot(self, deployment: Deployment, expires_us: int) -> Slot | None:
        """None when the worker stops first, or the order expires, whose shard has then gone elsewhere."""
        while self._stopping is None and self._clock() <= expires_us:
            if slot := deployment.slots.take(_SLOT_POLL_SECONDS):
                return slot
        return None

    def _end(self, running: Future[None]) -> None:
        self._under_way.pop(running, None)
        if not running.cancelled() and (error := running.exception()):
            _log.error("shard_failed", error=named(error), exc_info=error)

    def _start(self, order: RunShard, deployment: Deployment, slot: Slot | None) -> bool:
        """Claim the shard, and set it under way on the loop; False where it is another's."""
        lease = Lease(self._door, order.shard_id, order.lane, self._worker_id)
        if not self._claim(lease):
            _log.info("shard_not_ours", shard=order.shard_id.hex(), lane=order.lane)
            return False
        running = asyncio.run_coroutine_threadsafe(self._work(order, deployment, lease, slot), self._loop)
        self._under_way[running] = order.shard_id
        running.add_done_callback(self._end)
        return True

    def _claim(self, lease: Lease) -> bool:
        try:
            return lease.claim()
        except Exception as error:
            # Not at once: a worker that is about to leave would be brought the same message over and over.
            time.sleep(_SLOT_POLL_SECONDS)
            raise NotTaken(f"the broker can't be asked: {type(error).__name__}") from error

    async def _work(self, order: RunShard, deployment: Deployment, lease: Lease, slot: Slot | None) -> None:
        try:
            run = _ShardRun(order, deployment, lease, slot, self._renewals, self._worker_id, self._clock)
            self._running.add(run)
            try:
                await run.run(self._stopping)
            finally:
                self._running.discard(run)
        finally:
            if slot is not None:
                slot.give_up()

    def _stop_all(self, reason: Stop) -> None:
        for run in self._running:
            run.stop(reason)

    def _renew_all(self) -> None:
        for run in self._running:
            run.renew_soon.set()


class _ShardRun:
    """One shard while it runs. Everything here happens on the event loop."""

    def __init__(
        self,
        order: RunShard,
        deployment: Deployment,
        lease: Lease,
        slot: Slot | None,
        renewals: Executor,
        worker_id: str,
        clock: Clock,
    ) -> None:
        self._order = order
        self._deployment = deployment
        self._throttle = deployment.throttle
        self._meter = deployment.meter
        self._jobs = JobRunners(
            len(order.jobs),
            self._run_job,
            deployment.places,
            ahead=order.beside,
            exclusive=order.exclusive,
            throttle=deployment.throttle,
        )
        self._lease = lease
        self._slot = None if order.exclusive else slot  # a suspect has the engine to itself to its end
        self._renewals = renewals
        self._clock = clock
        self._budget: ShardBudget | None = None
        if order.budget_nano_usd is not None:
            price = deployment.lane.price
            self._budget = ShardBudget(order.budget_nano_usd, price, order.model, deployment.job_costs)
        self._stopped: Stop | None = None
        self._kept_back: ErrorCode | None = None
        self._returned: ErrorCode | None = None
        self._done = Bitmap()
        self._cancelled = Bitmap()
        self.renew_soon = asyncio.Event()
        self._report = OutcomeReport(
            shard_id=order.shard_id,
            lane=order.lane,
            worker_id=worker_id,
            outlet=deployment.outlet,
            signer=deployment.signer,
            clock=clock,
        )

    async def run(self, already_stopping: Stop | None) -> None:
        """As many jobs in flight at once as the engine has places for, until each has ended or been stopped."""
        self._cancelled = Bitmap(self._lease.cancelled_jobs)
        keeper = asyncio.ensure_future(self._keep_lease())
        if already_stopping or self._lease.cancelled:
            self.stop(already_stopping or Stop.CANCELLED)
        if self._slot is not None:
            self._give_up_slot(self._slot)
        await self._jobs.run_all()
        # A shard whose lease is lost is no longer ours to hand back; what it brought still counts.
        is_ours = self._stopped is not Stop.LEASE_LOST
        left = self._stopped.value[1] if self._stopped else self._jobs.gave_up or self._kept_back
        self._returned = left if is_ours else None
        await self._report.finish(self._returned)
        keeper.cancel()  # only now: until its results are confirmed, the shard is this worker's
        _log.debug("shard_ran", shard=self._order.shard_id.hex(), lane=self._order.lane, jobs=len(self._order.jobs))

    def stop(self, reason: Stop) -> None:
        """Stop the jobs that still run; the first reason counts. Those that wait never ran, and are handed back."""
        if self._stopped is None:
            self._stopped = reason
            if reason is Stop.INTERRUPTED:
                self._report.give_up()
            self._jobs.stop()

    def _cancel_jobs(self, asked: Bitmap) -> None:
        """End these jobs; the others run on. What is handed back isn't this worker's to end."""
        if self._returned:
            return
        for index in self._done.missing(len(self._order.jobs)):
            if index in asked and index not in self._cancelled:
                self._cancelled.add(index)
                if not self._jobs.cancel(index):
                    reading, now_us = self._meter.begin(), self._clock()
                    self._end(index, self._order.jobs[index], Stop.JOB_CANCELLED, reading, now_us, sent=False)

    async def _run_job(self, index: int) -> None:
        """One job at the engine, unless it may no longer begin. A cancel ends it like any other outcome."""
        job = self._order.jobs[index]
        if self._slot is not None and self._jobs.waiting <= self._slot.few:
            self._give_up_slot(self._slot)
        started_us = self._clock()
        if index in self._cancelled:
            self._end(index, job, Stop.JOB_CANCELLED, self._meter.begin(), started_us, sent=False)
            return
        if not self._may_begin(job, started_us):
            return
        reading = self._meter.begin()
        request = EngineRequest(job.job_id.hex(), self._order.endpoint, job.body)
        ran = self._end(index, job, await self._call(index, request), reading, started_us)
        if self._budget:
            self._budget.end(ran)

    def _give_up_slot(self, slot: Slot) -> None:
        """Not in trouble: while one tries the engine, others would be claimed only to wait, and be handed back."""
        if self._throttle.trouble is None and slot.is_due(self._jobs.waiting):
            slot.give_up()
            self._slot = None

    async def _call(self, index: int, request: EngineRequest) -> EngineReply | EngineError | Stop:
        throttle = self._throttle
        mark = throttle.begin()
        try:
            reply = await self._deployment.run(request)
        except EngineError as error:
            ended = error
        except asyncio.CancelledError:
            throttle.let_go()
            return Stop.JOB_CANCELLED if index in self._cancelled else self._stopped or Stop.INTERRUPTED
        except Exception as error:  # noqa: BLE001 (a driver's bug must end its job, not silence the shard)
            _log.exception("engine_driver_failed", lane=self._order.lane)
            ended = EngineError(ErrorCode.ENGINE_INVALID_REPLY, f"the engine's driver failed: {type(error).__name__}")
        else:
            throttle.succeeded()
            return reply
        throttle.failed(mark, ended.code, ended.retry_after_s)
        return ended

    def _may_begin(self, job: ShardJob, now_us: int) -> bool:
        """Not past its deadline, nor where the shard's budget is spent: then it is handed back at the shard's end."""
        if 0 < job.deadline_us <= now_us:
            self._kept_back = ErrorCode.JOB_EXPIRED
            return False
        if self._budget:
            if not self._budget.may_begin():
                self._kept_back = ErrorCode.BUDGET_EXCEEDED
                return False
            self._budget.begin()
        return True

    def _end(
        self,
        index: int,
        job: ShardJob,
        ended: EngineReply | EngineError | Stop,
        reading: Reading,
        started_us: int,
        *,
        sent: bool = True,
    ) -> JobRan:
        """`sent`: the engine may have had it, whatever came of it."""
        self._done.add(index)
        accelerator_us, run_us = self._meter.end(reading)
        if sent:
            spent = self._deployment.spending.of(
                self._order.endpoint, job.body, None if isinstance(ended, Stop) else ended
            )
        else:
            spent = self._deployment.spending.of_unsent()
        times = (started_us, started_us + run_us, run_us)
        ran = job_ran(index, job, ended, spent, times, accelerator_us, sent=sent)
        self._report.add(ran)
        return ran

    async def _keep_lease(self) -> None:
        """Renew until cancelled; stop the jobs when the lease is lost or the batch is cancelled."""
        loop = asyncio.get_running_loop()
        while self._stopped is None:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._lease.renew_seconds):
                    await self.renew_soon.wait()
            self.renew_soon.clear()
            running = Bitmap.of(self._jobs.running).to_bytes()
            try:
                granted = await loop.run_in_executor(self._renewals, self._lease.renew, running)
            except Exception as error:  # noqa: BLE001 (the broker can't be asked; the lease still runs)
                _log.warning("renewal_failed", shard=self._order.shard_id.hex(), error=named(error))
                granted = not self._lease.is_over
            if self._stopped is not None:
                return  # meanwhile: what hasn't ended is handed back, and who is told so also cancels it
            if not granted:
                _log.warning("lease_lost", shard=self._order.shard_id.hex(), lane=self._order.lane)
                self.stop(Stop.LEASE_LOST)
            elif self._lease.cancelled:
                self.stop(Stop.CANCELLED)
            elif self._lease.cancelled_jobs:
                self._cancel_jobs(Bitmap(self._lease.cancelled_jobs))
