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
from urllib.parse import parse_qsl, unquote, urlsplit

import msgspec

from broker.bus.driver import LaneDriver
from broker.bus.drivers.servicebus.driver import ServiceBusDriver
from broker.bus.drivers.servicebus.sdk import ServiceBusOptions
from broker.bus.transport import LaneTransport

__all__ = ["ServiceBusDriver", "ServiceBusLaneTransport", "ServiceBusOptions"]


class ServiceBusLaneTransport(LaneTransport):
    """kombu's way to `laneasb://` URLs."""

    driver_type = "laneasb"
    driver_name = "laneasb"

    def open_driver(self, url: str, options: Mapping[str, Any]) -> LaneDriver:
        parts = urlsplit(url)
        if not parts.hostname:
            raise ValueError(
                "a laneasb URL names a namespace: laneasb://KEY_NAME:KEY@NAMESPACE.servicebus.windows.net/"
            )
        settings: dict[str, Any] = dict(parse_qsl(parts.query))
        settings.update({name: options[name] for name in ServiceBusOptions.__struct_fields__ if name in options})
        key = None
        if parts.username and parts.password:
            key = unquote(parts.username), unquote(parts.password)
        host = parts.netloc.rpartition("@")[2]
        return ServiceBusDriver(host, key, msgspec.convert(settings, ServiceBusOptions, strict=False))
