"""What a queue is on Pub/Sub: two topics with a subscription each, looked at, compared and made."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from contextlib import suppress

import structlog
from google.api_core.exceptions import AlreadyExists, Forbidden, NotFound
from google.pubsub_v1.types import DeadLetterPolicy, ExpirationPolicy, Subscription

from broker.bus.driver import QueueMissing
from broker.bus.drivers.pubsub.sdk import HOW_TO_MAKE, Clients, PubSubOptions, patience

__all__ = ["Queues", "dead_letters_of"]

log = structlog.get_logger()

_DEAD = "-dead"


def dead_letters_of(queue: str) -> str:
    """The name under which the queue's dead letters are kept."""
    return f"{queue}{_DEAD}"


class Queues:
    """The topics and subscriptions of one project.

    All raise Google's own errors, except that `check` raises QueueMissing.
    """

    def __init__(self, project: str, clients: Clients, options: PubSubOptions) -> None:
        self.project = project
        self._publisher, self._subscriber, _ = clients
        self._options = options
        self._patience = patience(options)

    def topic(self, name: str) -> str:
        return f"projects/{self.project}/topics/{name}"

    def subscription(self, name: str) -> str:
        return f"projects/{self.project}/subscriptions/{name}"

    def check(self, queue: str) -> int | None:
        """Raise QueueMissing unless both pairs are there and hang together; the queue's acknowledgement deadline.

        A topic without a subscription takes messages and drops them, so publishers look too. Who may not look finds
        out by using the queue, and hears None.
        """
        try:
            found = {name: self.find(name) for name in (queue, dead_letters_of(queue))}
            faults = [fault for name in found for fault in self.faults(name, found[name])]
        except Forbidden as error:
            log.info("queue_not_checked", queue=queue, reason=error.message)
            return None
        subscription = found[queue]
        if faults or subscription is None:
            raise QueueMissing(f"in the Google project {self.project!r} {', '.join(faults)}; {HOW_TO_MAKE}")
        return subscription.ack_deadline_seconds

    def faults(self, name: str, found: Subscription | None) -> Iterator[str]:
        """Why messages sent to the name would not arrive at the subscription, as it was found."""
        if not self._has_topic(name):
            yield f"the topic {name!r} is missing"
        if found is None:
            yield f"the subscription {name!r} is missing"
        elif found.topic != self.topic(name):
            yield f"the subscription {name!r} belongs to {found.topic!r}, not to the topic of its name"

    def find(self, name: str) -> Subscription | None:
        """The subscription as it is."""
        with suppress(NotFound):
            return self._subscriber.get_subscription(subscription=self.subscription(name), **self._patience)
        return None

    def wanted(self, name: str) -> Subscription:
        """The subscription as it should be: kept without use, and with dead letters unless it holds them itself."""
        wanted = Subscription(
            name=self.subscription(name),
            topic=self.topic(name),
            ack_deadline_seconds=self._options.lease_seconds,
            message_retention_duration=dt.timedelta(seconds=self._options.retention_seconds),
            expiration_policy=ExpirationPolicy(),  # without a time to live: never
        )
        if not name.endswith(_DEAD):
            wanted.dead_letter_policy = DeadLetterPolicy(
                dead_letter_topic=self.topic(dead_letters_of(name)), max_delivery_attempts=self._options.max_deliveries
            )
        return wanted

    def make(self, queue: str) -> None:
        """Make what the queue lacks; what is there stays as it is."""
        for name in (dead_letters_of(queue), queue):
            self.make_pair(name)

    def make_pair(self, name: str) -> None:
        """Make the topic and the subscription of one name where they are missing."""
        with suppress(AlreadyExists):
            self._publisher.create_topic(name=self.topic(name), **self._patience)
        with suppress(AlreadyExists):
            self._subscriber.create_subscription(request=self.wanted(name), **self._patience)

    def change(self, name: str, fields: list[str]) -> None:
        """Give these fields of the subscription the values that are wanted."""
        request = {"subscription": self.wanted(name), "update_mask": {"paths": fields}}
        self._subscriber.update_subscription(request=request, **self._patience)

    def delete(self, queue: str) -> None:
        """Delete the queue's own pair, if it is there; its dead letters stay."""
        with suppress(NotFound):
            self._subscriber.delete_subscription(subscription=self.subscription(queue), **self._patience)
        with suppress(NotFound):
            self._publisher.delete_topic(topic=self.topic(queue), **self._patience)

    def _has_topic(self, name: str) -> bool:
        with suppress(NotFound):
            self._publisher.get_topic(topic=self.topic(name), **self._patience)
            return True
        return False
