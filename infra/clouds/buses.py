"""PostgreSQL and the three clouds' queues, on ports of their own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import msgspec

from infra.servers.emulators import PrivateOciQueue, PrivateServiceBus
from infra.servers.postgres import PrivatePostgres
from infra.servers.pubsub import PrivatePubSub

__all__ = ["Buses", "three_buses"]


class Buses(msgspec.Struct, frozen=True):
    """`variables` are what the catalog's bus URLs are filled in with."""

    database_url: str
    variables: Mapping[str, str]


@contextmanager
def three_buses() -> Iterator[Buses]:
    """Up while the block runs, each in a process and a folder of its own that are gone afterwards."""
    with (
        PrivatePostgres() as postgres,
        PrivatePubSub() as pubsub,
        PrivateServiceBus() as servicebus,
        PrivateOciQueue() as ociqueue,
    ):
        yield Buses(
            postgres.url,
            {
                "CLOUDS_PUBSUB": pubsub.url_of("clouds"),
                "CLOUDS_SERVICEBUS": servicebus.url,
                "CLOUDS_OCIQUEUE": ociqueue.url,
            },
        )
