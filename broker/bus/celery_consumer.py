"""Celery's consumer, made to refuse what isn't an envelope, and never to log a body."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import structlog
from celery import bootsteps
from celery.worker.components import Hub, Timer
from celery.worker.consumer import Consumer

from broker.bus.serializer import CONTENT_TYPE

__all__ = ["EnvelopeConsumer", "PromptShutdown"]

log = structlog.get_logger()

SHUTDOWN_CHECK_SECONDS = 0.5


DELAYS = "celery.worker.consumer.delayed_delivery:DelayedDelivery"


class EnvelopeConsumer(Consumer):
    """Rejects foreign messages, into the dead letters where the bus has them, naming only type and reason.

    Celery's own handlers would log the body, and acknowledge what they can't decode.
    """

    class Blueprint(Consumer.Blueprint):
        # On quorum queues it would declare 28 queues for messages with a delay, of which we send none.
        default_steps = tuple(step for step in Consumer.Blueprint.default_steps if step != DELAYS)

    def create_task_handler(self, *args: Any, **kwargs: Any) -> Callable[[Any], Any]:
        receive = super().create_task_handler(*args, **kwargs)

        def receive_envelope(message: Any) -> Any:
            # kombu lets a few content types through whatever accept_content says.
            if message.content_type != CONTENT_TYPE:
                return self._refuse(message, "unknown content type")
            return receive(message)

        return receive_envelope

    def on_decode_error(self, message: Any, exc: Exception) -> None:
        self._refuse(message, type(exc).__name__)

    def on_unknown_message(self, body: Any, message: Any) -> None:
        self._refuse(message, "not a task")

    def on_unknown_task(self, body: Any, message: Any, exc: Exception) -> None:
        self._refuse(message, "unknown task")

    def on_invalid_task(self, body: Any, message: Any, exc: Exception) -> None:
        self._refuse(message, type(exc).__name__)

    def _refuse(self, message: Any, reason: str) -> None:
        queue = message.delivery_info.get("routing_key", "")
        log.warning("message_refused", queue=queue, content_type=message.content_type, reason=reason)
        message.reject(requeue=False)


class PromptShutdown(bootsteps.StartStopStep):
    """Lets the event loop look for SIGTERM twice a second; idle, Celery's looks every ten seconds only."""

    requires = (Hub, Timer)

    def include_if(self, parent: Any) -> bool:
        return bool(parent.use_eventloop)

    def start(self, parent: Any) -> None:
        parent.timer.call_repeatedly(SHUTDOWN_CHECK_SECONDS, _nothing)

    def stop(self, parent: Any) -> None:
        """The timer ends with its hub."""


def _nothing() -> None:
    pass
