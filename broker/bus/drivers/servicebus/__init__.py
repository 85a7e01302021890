"""Azure Service Bus on Microsoft's SDK: queues, peek-lock, the service's own dead letters.

    laneasb://KEY_NAME:KEY@NAMESPACE.servicebus.windows.net/    a shared access key, percent-encoded
    laneasb://NAMESPACE.servicebus.windows.net/                 the machine's identity; needs azure-identity
    laneasb://NAME:KEY@127.0.0.1:5672/?emulator=true            an emulator, without TLS

Further settings, as URL query or transport options, are the fields of `sdk.ServiceBusOptions`.

The service counts every delivery that is given back, so queues want a MaxDeliveryCount of 2,000, its highest:
what is poison is decided here, by `max_attempts`. It bounds queues by bytes, not by messages.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from broker.bus.driver import LaneDriver
from broker.bus.drivers.servicebus.driver import ServiceBusDriver
from broker.bus.drivers.servicebus.sdk import ServiceBusOptions, address_of
from broker.bus.transport import LaneTransport

__all__ = ["ServiceBusDriver", "ServiceBusLaneTransport", "ServiceBusOptions"]


class ServiceBusLaneTransport(LaneTransport):
    """kombu's way to `laneasb://` URLs."""

    driver_type = "laneasb"
    driver_name = "laneasb"

    def open_driver(self, url: str, options: Mapping[str, Any]) -> LaneDriver:
        return ServiceBusDriver(*address_of(url, options))
