"""Google Pub/Sub on Google's own clients: unary pull, leases of our own, every publish confirmed.

    lanepubsub://PROJECT/                                the machine's identity, at pubsub.googleapis.com
    lanepubsub://PROJECT/?endpoint=127.0.0.1:8085        an emulator; so does the variable PUBSUB_EMULATOR_HOST

Further settings, as URL query or transport options, are the fields of `sdk.PubSubOptions`.

A queue is a topic and a subscription of one name; its dead letters are a second pair, `<queue>-dead`, and each of
them carries its reason as an attribute. Streaming pull isn't used: its end stops leases and acknowledgements too,
while running shards still need both.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from broker.bus.driver import LaneDriver
from broker.bus.drivers.pubsub.driver import PubSubDriver
from broker.bus.drivers.pubsub.sdk import PubSubOptions, read_url
from broker.bus.transport import LaneTransport

__all__ = ["PubSubDriver", "PubSubLaneTransport", "PubSubOptions"]


class PubSubLaneTransport(LaneTransport):
    """kombu's way to `lanepubsub://` URLs."""

    driver_type = "lanepubsub"
    driver_name = "lanepubsub"

    def open_driver(self, url: str, options: Mapping[str, Any]) -> LaneDriver:
        return PubSubDriver(*read_url(url, options))
