"""The Celery apps: one that works a lane's queues, one that only publishes.

One worker per process: Celery's event loop, its shutdown flag and its task registry are the process's.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import structlog
from celery import Celery
from celery.app import trace
from celery.exceptions import Reject
from celery.worker import state

from broker.bus.celery_consumer import PromptShutdown
from broker.bus.serializer import CONTENT_TYPE, SERIALIZER
from broker.bus.topology import lane_queue, plain_url, prepare_kombu, transport_for, transport_options_for

__all__ = ["TASK_NAME", "InProcessWorker", "NotTaken", "producer_app", "start_in_process", "worker_app"]

log = structlog.get_logger()

TASK_NAME = "workers.run_shard"
HEARTBEAT_SECONDS = 20


class NotTaken(Exception):
    """Raised by `run_shard`: this worker does not run the shard, and another may. The bus has it back."""


class _WithoutRejects(logging.Filter):
    """What is given back is said in one line of ours; Celery's would have a traceback of three errors."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not (record.exc_info and isinstance(record.exc_info[1], Reject))


_WITHOUT_REJECTS = _WithoutRejects()


def producer_app(bus_url: str, transport_options: Mapping[str, Any] | None = None) -> Celery:
    """An app for publishing. Any number may live in one process; none becomes Celery's current app."""
    prepare_kombu()
    app = Celery("broker-producer", broker=plain_url(bus_url), set_as_current=False, autofinalize=True)
    app.conf.update(_common(bus_url, transport_options))
    return app


def worker_app(
    name: str,
    bus_url: str,
    queues: Sequence[str],
    concurrency: int,
    transport_options: Mapping[str, Any] | None = None,
    *,
    run_shard: Callable[[bytes], None],
) -> Celery:
    """The app of one worker: `concurrency` shards at once from these queues, at most as many prefetched.

    `run_shard` gets the envelope and returns when the shard is done and its events are confirmed; only then is
    the message acknowledged. Raising NotTaken gives it back; any other error is logged and the message acknowledged,
    for retries are the database's business.
    """
    prepare_kombu()
    app = Celery(name, broker=plain_url(bus_url), set_as_current=True)
    app.conf.update(
        _common(bus_url, transport_options),
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_channel_error_retry=True,
        broker_heartbeat=HEARTBEAT_SECONDS,  # on AMQP; a broker that hangs is left after twice that
        task_queues=[lane_queue(bus_url, queue, transport_options) for queue in queues],
        task_default_queue=queues[0],
        task_acks_late=True,
        task_acks_on_failure=True,
        task_acks_on_timeout=True,
        task_reject_on_worker_lost=False,
        worker_pool="threads",
        worker_concurrency=concurrency,
        worker_prefetch_multiplier=1,
        worker_consumer="broker.bus.celery_consumer:EnvelopeConsumer",
        worker_enable_remote_control=False,
        worker_send_task_events=False,
        worker_cancel_long_running_tasks_on_connection_loss=False,  # needs terminate_job, which threads lack
        worker_enable_prefetch_count_reduction=False,
        worker_detect_quorum_queues=True,
        worker_hijack_root_logger=False,  # structlog owns logging
        worker_redirect_stdouts=False,
    )
    app.steps["worker"].add(PromptShutdown)
    logging.getLogger(trace.__name__).addFilter(_WITHOUT_REJECTS)

    # Not shared: Celery would give two apps of one process the first one's function.
    @app.task(name=TASK_NAME, shared=False, ignore_result=True)
    def run(envelope: bytes) -> None:
        try:
            run_shard(envelope)
        except NotTaken as error:
            log.warning("shard_given_back", worker=name, reason=str(error))
            raise Reject(str(error), requeue=True) from None

    return app


def _common(bus_url: str, transport_options: Mapping[str, Any] | None) -> dict[str, Any]:
    return {
        "broker_transport": transport_for(bus_url),
        "broker_transport_options": transport_options_for(bus_url, transport_options),
        "broker_pool_limit": 4,
        "broker_pool_acquire_timeout": 10,
        "task_serializer": SERIALIZER,
        "accept_content": [CONTENT_TYPE],
        "result_accept_content": [CONTENT_TYPE],
        "task_compression": None,
        "task_protocol": 2,
        "task_ignore_result": True,
        "result_backend": None,
        "task_store_errors_even_if_ignored": False,
        "task_create_missing_queues": False,
        "task_send_sent_event": False,
        "task_publish_retry": False,  # the outbox retries
    }


class InProcessWorker:
    """A Celery worker in a thread of this process; see `start_in_process`."""

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._ready = threading.Event()
        # Without this Celery's pool threads would look for the task in whichever app is current for them.
        trace.setup_worker_optimizations(app, app.main)
        self._controller = app.WorkController(
            pool_cls="threads",
            hostname=app.main,
            ready_callback=self._on_ready,
            without_gossip=True,
            without_mingle=True,
            without_heartbeat=True,
        )
        self._thread = threading.Thread(target=self._controller.start, name=f"worker-{app.main}", daemon=True)

    @property
    def is_running(self) -> bool:
        """Whether the worker's thread lives; it also ends after an error that Celery can't recover from."""
        return self._thread.is_alive()

    def start(self, ready_seconds: float) -> bool:
        """Start, and wait until it consumes; False when it doesn't yet, since the bus can't be reached."""
        self._thread.start()
        return self._ready.wait(ready_seconds)

    def stop(self, timeout_seconds: float) -> bool:
        """Take no more shards, let running ones end, settle them, disconnect.

        False if that took too long: then the thread goes on ending by itself, and no other worker may be started
        in this process.
        """
        state.should_stop = 0  # the loop raises WorkerShutdown(0), which is Celery's warm shutdown
        hub = self._controller.hub
        if hub is not None:
            hub.call_soon(_nothing)
        self._thread.join(timeout_seconds)
        if self._thread.is_alive():
            log.warning("worker_stop_timed_out", worker=self._app.main, timeout_seconds=timeout_seconds)
            return False
        state.should_stop = None
        trace.reset_worker_optimizations(self._app)
        return True

    def _on_ready(self, consumer: Any) -> None:
        self._ready.set()


def start_in_process(app: Celery, ready_seconds: float = 10.0) -> InProcessWorker:
    """Run the app's worker in a thread; returns when it consumes, or after `ready_seconds` when the bus is down."""
    worker = InProcessWorker(app)
    if not worker.start(ready_seconds):
        log.warning("worker_not_ready", worker=app.main, ready_seconds=ready_seconds)
    return worker


def _nothing() -> None:
    pass
