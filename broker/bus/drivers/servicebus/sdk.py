"""Microsoft's SDK as the driver uses it: its clients, its errors as the port's, its batches."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import msgspec
from azure.core.exceptions import AzureError, ClientAuthenticationError, HttpResponseError, ResourceNotFoundError
from azure.core.pipeline.transport import RequestsTransport
from azure.servicebus import ServiceBusClient, ServiceBusMessage, ServiceBusSender, TransportType
from azure.servicebus.exceptions import (
    MessageAlreadySettled,
    MessageLockLostError,
    MessageSizeExceededError,
    MessagingEntityNotFoundError,
    ServiceBusQuotaExceededError,
)
from azure.servicebus.management import ServiceBusAdministrationClient

from broker.bus.driver import BusUnavailable, MessageRefused, MessageTooLarge, QueueMissing

__all__ = ["ServiceBusOptions", "address_of", "batches", "open_clients", "queue_form", "translated"]

_MAX_DELIVERY_COUNT = 2_000


class ServiceBusOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a `laneasb` URL may say; times in seconds.

    `lease_seconds` is the queues' lock duration. `create` makes missing queues, which needs the right to manage the
    namespace; without it they must be there. `endpoint` (sb://host:port) and `ca_file` lead to another place than
    the namespace's name does. `max_message_bytes` leaves room for what the SDK adds to 256 KB, the standard limit.
    `max_size_megabytes` of a queue; without it the service's own default.
    """

    lease_seconds: float = 60.0
    create: bool = False
    emulator: bool = False
    endpoint: str | None = None
    ca_file: str | None = None
    max_message_bytes: int = 250_000
    max_size_megabytes: int | None = None
    confirm_seconds: float = 15.0

    @property
    def answer_seconds(self) -> float:
        """How long one answer is waited for: a lost one must leave the time to renew the queue's other locks."""
        return min(max(self.lease_seconds / 6, 1.0), 15.0)


def address_of(url: str, options: Mapping[str, Any]) -> tuple[str, tuple[str, str] | None, ServiceBusOptions]:
    """Host, key's name and key where there is one, and the options of a URL, those given in the mapping first.

    Raises ValueError for a URL without a namespace, and for options that don't exist.
    """
    parts = urlsplit(url)
    if not parts.hostname:
        raise ValueError("a laneasb URL names a namespace: laneasb://KEY_NAME:KEY@NAMESPACE.servicebus.windows.net/")
    settings: dict[str, Any] = dict(parse_qsl(parts.query))
    settings.update({name: options[name] for name in ServiceBusOptions.__struct_fields__ if name in options})
    key = None
    if parts.username and parts.password:
        key = unquote(parts.username), unquote(parts.password)
    host = parts.netloc.rpartition("@")[2]
    return host, key, msgspec.convert(settings, ServiceBusOptions, strict=False)


def queue_form(options: ServiceBusOptions) -> dict[str, Any]:
    """How a queue is made: properties by the SDK's names."""
    size = {} if options.max_size_megabytes is None else {"max_size_in_megabytes": options.max_size_megabytes}
    return size | {
        "lock_duration": timedelta(seconds=options.lease_seconds),
        "max_delivery_count": _MAX_DELIVERY_COUNT,
        "dead_lettering_on_message_expiration": True,
    }


class _PlainHttp(RequestsTransport):
    """The administration client asks for https even of an emulator."""

    def send(self, request: Any, **kwargs: Any) -> Any:
        request.url = request.url.replace("https://", "http://", 1)
        return super().send(request, **kwargs)


def batches(sender: ServiceBusSender, items: Sequence[bytes]) -> Iterator[tuple[list[int], Any]]:
    """The items as the fewest batches that the service takes; one that fits into none goes alone."""
    indices: list[int] = []
    batch = sender.create_message_batch()
    for index, data in enumerate(items):
        message = ServiceBusMessage(data)
        try:
            batch.add_message(message)
        except MessageSizeExceededError:
            if indices:
                yield indices, batch
            indices, batch = [], sender.create_message_batch()
            try:
                batch.add_message(message)
            except MessageSizeExceededError:
                yield [index], message
                continue
        indices.append(index)
    if indices:
        yield indices, batch


@contextmanager
def translated(queue: str) -> Iterator[None]:
    """The SDK's errors as the port's. Lost locks and settled messages pass, for they concern one message."""
    try:
        yield
    except (MessageLockLostError, MessageAlreadySettled):
        raise
    except (MessagingEntityNotFoundError, ResourceNotFoundError) as error:
        raise QueueMissing(f"queue {queue!r} doesn't exist") from error
    except ServiceBusQuotaExceededError as error:
        raise MessageRefused(f"queue {queue!r} is full: {error}") from error
    except MessageSizeExceededError as error:
        raise MessageTooLarge(f"queue {queue!r} doesn't take messages of that size: {error}") from error
    except ClientAuthenticationError as error:
        raise PermissionError(f"the key may not manage queue {queue!r}: {error.message}") from error
    except HttpResponseError as error:
        if error.status_code in {401, 403}:
            raise PermissionError(f"the key may not manage queue {queue!r}: {error.message}") from error
        raise BusUnavailable(f"administering queue {queue!r} failed: {error.message}") from error
    except (AzureError, OSError, ValueError) as error:
        # A link that was shut down raises ValueError.
        raise BusUnavailable(f"Service Bus failed at queue {queue!r}: {error!r}") from error


def open_clients(
    host: str, key: tuple[str, str] | None, options: ServiceBusOptions
) -> tuple[ServiceBusClient, ServiceBusAdministrationClient]:
    """The SDK's two clients. Nothing is connected yet."""
    quick: dict[str, Any] = {"retry_total": 2, "retry_backoff_factor": 0.1, "retry_backoff_max": 2}
    quick["try_timeout"] = max(options.answer_seconds, 5.0)  # opening a link takes its time too
    admin: dict[str, Any] = {"retry_total": 2, "retry_backoff_factor": 0.1}
    if options.ca_file is not None:
        quick["connection_verify"] = admin["connection_verify"] = options.ca_file
    if options.endpoint is not None:
        # With an endpoint the SDK would choose WebSockets.
        quick.update(custom_endpoint_address=options.endpoint, transport_type=TransportType.Amqp)
    if options.emulator:
        admin["transport"] = _PlainHttp()
    if key is None:
        # Only who has no key needs the package.
        credential = importlib.import_module("azure.identity").DefaultAzureCredential()
        return ServiceBusClient(host, credential, **quick), ServiceBusAdministrationClient(host, credential, **admin)
    text = f"Endpoint=sb://{host};SharedAccessKeyName={key[0]};SharedAccessKey={key[1]}"
    if options.emulator:
        text += ";UseDevelopmentEmulator=true"
    return (
        ServiceBusClient.from_connection_string(text, **quick),
        ServiceBusAdministrationClient.from_connection_string(text, **admin),
    )
