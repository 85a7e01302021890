"""Google's clients as the driver uses them: how they connect, their errors as the port's, their limits."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlsplit

import grpc
import msgspec
from google.api_core.exceptions import (
    Aborted,
    DeadlineExceeded,
    Forbidden,
    GoogleAPICallError,
    InternalServerError,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    RetryError,
    ServiceUnavailable,
    Unauthorized,
    from_grpc_error,
)
from google.api_core.retry import Retry, if_exception_type
from google.auth.exceptions import GoogleAuthError
from google.pubsub_v1 import PublisherClient, SubscriberClient
from google.pubsub_v1.services.publisher.transports import PublisherGrpcTransport
from google.pubsub_v1.services.subscriber.transports import SubscriberGrpcTransport

from broker.bus.driver import BusUnavailable, QueueMissing

__all__ = [
    "HOW_TO_MAKE",
    "Clients",
    "PubSubOptions",
    "batches",
    "from_rpc_error",
    "open_clients",
    "patience",
    "read_url",
    "translated",
]

HOW_TO_MAKE = "`broker bus apply` makes what is missing"

GOOGLE = "pubsub.googleapis.com"

_CHANNEL_OPTIONS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),  # a pull brings many messages; gRPC's own limit is 4 MiB
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2_000),  # else up to two minutes after a long outage
]

_PASSES_BY_ITSELF = if_exception_type(
    Aborted, DeadlineExceeded, InternalServerError, ResourceExhausted, ServiceUnavailable
)


class PubSubOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a `lanepubsub` URL may say; times in seconds.

    `endpoint` is host:port; one outside googleapis.com is an emulator, spoken to without TLS or credentials.
    `create` makes missing queues, which needs the right to; without it they must be there. The subscriptions'
    acknowledgement deadline is `lease_seconds`, for which Google takes 10 to 600; they keep messages for
    `retention_seconds`, and after `max_deliveries`, 5 to 100, Pub/Sub itself moves a message to the dead letters.
    `max_message_bytes` leaves room below Google's 10 MB. `confirm_seconds` is the longest wait for one answer,
    `retry_seconds` for how long a call that failed in passing is made again.
    """

    endpoint: str | None = None
    create: bool = False
    lease_seconds: int = 30
    retention_seconds: int = 7 * 86_400
    max_deliveries: int = 100
    max_message_bytes: int = 9_000_000
    confirm_seconds: float = 15.0
    retry_seconds: float = 3.0


class Clients(NamedTuple):
    """Google's two clients on one channel."""

    publisher: PublisherClient
    subscriber: SubscriberClient
    channel: grpc.Channel


def read_url(url: str, options: Mapping[str, Any] | None = None) -> tuple[str, PubSubOptions]:
    """The project and the settings; options given beside the URL come first. Raises ValueError."""
    parts = urlsplit(url)
    if not parts.netloc:
        raise ValueError("a lanepubsub URL names a project: lanepubsub://PROJECT/")
    settings: dict[str, Any] = dict(parse_qsl(parts.query))
    given = options or {}
    settings.update({name: given[name] for name in PubSubOptions.__struct_fields__ if name in given})
    return parts.netloc, msgspec.convert(settings, PubSubOptions, strict=False)


def open_clients(options: PubSubOptions) -> Clients:
    """Clients for Google or an emulator. Nothing is connected yet. Raises BusUnavailable without credentials."""
    endpoint = options.endpoint or os.environ.get("PUBSUB_EMULATOR_HOST") or GOOGLE
    if endpoint.partition(":")[0].endswith(".googleapis.com"):
        try:
            channel = PublisherGrpcTransport.create_channel(endpoint, options=_CHANNEL_OPTIONS)
        except GoogleAuthError as error:
            raise BusUnavailable(f"{endpoint} needs Google credentials, and there are none: {error}") from error
    else:
        channel = grpc.insecure_channel(endpoint, _CHANNEL_OPTIONS)
    return Clients(
        PublisherClient(transport=PublisherGrpcTransport(channel=channel)),
        SubscriberClient(transport=SubscriberGrpcTransport(channel=channel)),
        channel,
    )


def patience(options: PubSubOptions) -> dict[str, Any]:
    """How long one answer is waited for, and for how long what fails in passing is tried again."""
    retry = Retry(_PASSES_BY_ITSELF, initial=0.1, maximum=1.0, timeout=options.retry_seconds)
    return {"retry": retry, "timeout": options.confirm_seconds}


@contextmanager
def translated(queue: str) -> Iterator[None]:
    """The SDK's errors as the port's; ValueError for what Google calls an invalid argument."""
    try:
        yield
    except RetryError as error:
        raise BusUnavailable(f"Pub/Sub failed at queue {queue!r}: {error.cause}") from error
    except NotFound as error:
        raise QueueMissing(f"queue {queue!r} is gone from Pub/Sub ({error.message}); {HOW_TO_MAKE}") from error
    except InvalidArgument as error:
        raise ValueError(f"Pub/Sub does not take what was sent to queue {queue!r}: {error.message}") from error
    except (Forbidden, Unauthorized, GoogleAuthError) as error:
        raise BusUnavailable(f"this identity may not use queue {queue!r} on Pub/Sub: {error}") from error
    except GoogleAPICallError as error:
        raise BusUnavailable(f"Pub/Sub failed at queue {queue!r}: {error}") from error
    except ValueError as error:  # grpc's word for a closed channel
        raise BusUnavailable(f"the connection to Pub/Sub is closed: {error}") from error


def from_rpc_error(error: grpc.RpcError) -> GoogleAPICallError:
    """What the client would have raised; for calls made past it."""
    found: GoogleAPICallError = from_grpc_error(error)  # type: ignore[no-untyped-call]  # Google left it bare
    return found


def batches(sizes: Sequence[int], count_max: int, bytes_max: int) -> Iterator[list[int]]:
    """Indices in order, cut so that no batch has more items or bytes than that; one too large goes alone."""
    batch: list[int] = []
    held = 0
    for index, size in enumerate(sizes):
        if batch and (len(batch) >= count_max or held + size > bytes_max):
            yield batch
            batch, held = [], 0
        batch.append(index)
        held += size
    if batch:
        yield batch
