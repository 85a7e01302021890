"""OCI Queue on Oracle's SDK, the extra `oci`: leases by visibility timeout, dead letters in a queue of their own.

    laneoci://REGION/COMPARTMENT_OCID                   the machine's identity (instance principal)
    laneoci://REGION/COMPARTMENT_OCID?profile=NAME      a key of ~/.oci/config
    laneoci://127.0.0.1:8095/COMPARTMENT_OCID?emulator=true

Further settings, as URL query or transport options, are the fields of `address.OciQueueOptions`.

A lane's queue is the one in the compartment whose display name is the queue's name; of several the oldest. The
service's own dead letters go by the number of deliveries, which every release counts, and know no reasons. So its
limit stays off, what is poison is decided here, and dead letters are put into `<queue>-dead` with their reason.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from broker.bus.driver import LaneDriver
from broker.bus.drivers.ociqueue.address import address_of
from broker.bus.transport import LaneTransport

__all__ = ["OciQueueLaneTransport"]


class OciQueueLaneTransport(LaneTransport):
    """kombu's way to `laneoci://` URLs."""

    driver_type = "laneoci"
    driver_name = "laneoci"

    def open_driver(self, url: str, options: Mapping[str, Any]) -> LaneDriver:
        address = address_of(url, options)
        # Only who has a lane on OCI needs the SDK.
        driver: LaneDriver = importlib.import_module("broker.bus.drivers.ociqueue.driver").OciQueueDriver(address)
        return driver
