"""A Pub/Sub emulator of a test's own: Google's."""

from __future__ import annotations

from infra.servers import pubsub
from tests.services.process import InTests

__all__ = ["PrivatePubSub"]


class PrivatePubSub(InTests, pubsub.PrivatePubSub):
    """Skips the test where Google's emulator isn't installed."""
