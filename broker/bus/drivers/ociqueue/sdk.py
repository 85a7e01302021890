"""Oracle's SDK as the driver uses it: its clients, who we are to them, its errors as the port's."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from broker.bus.driver import BusUnavailable, MessageRefused, MessageTooLarge, QueueMissing
from broker.bus.drivers.ociqueue.address import Address

try:
    import oci
except ImportError as error:
    raise ValueError(
        "a laneoci URL needs Oracle's SDK, which is not installed: pip install 'inference-broker[oci]'"
    ) from error

__all__ = ["Invalid", "Sdk", "Throttled", "oci", "translated"]

CONNECT_SECONDS = 5.0
THROTTLED_TRIES = 3
THROTTLED_SECONDS = 0.2  # doubled each time, where the service doesn't say
THROTTLED_SECONDS_MAX = 5.0
FULL = {"LimitExceeded", "QuotaExceeded"}

T = TypeVar("T")


class Throttled(BusUnavailable):
    """Too many requests at once. `after_seconds` is what the service asks us to wait, if it does."""

    def __init__(self, message: str, after_seconds: float | None) -> None:
        super().__init__(message)
        self.after_seconds = after_seconds


class Invalid(BusUnavailable):
    """The service found fault with the request itself; of a batch one message may be to blame."""


@contextmanager
def translated(queue: str) -> Iterator[None]:
    """The SDK's errors as the port's."""
    try:
        yield
    except oci.exceptions.ServiceError as error:
        raise _service_error(queue, error) from error
    except (OSError, ValueError, oci.exceptions.ClientError) as error:
        # The SDK's request errors are OSErrors; an answer that is no JSON raises ValueError.
        raise BusUnavailable(f"OCI Queue can't be reached for queue {queue!r}: {_first(error)}") from error


def _service_error(queue: str, error: Any) -> Exception:
    said = f"{error.status} {error.code}: {error.message}"
    match error.status:
        case 404:
            return QueueMissing(f"queue {queue!r} doesn't exist, or we may not use it; OCI Queue says {said}")
        case 401 | 403:
            return BusUnavailable(f"OCI Queue doesn't take our key at queue {queue!r}: {said}")
        case 413:
            return MessageTooLarge(f"queue {queue!r} doesn't take messages of that size: {said}")
        case 429:
            return Throttled(f"OCI Queue asks for fewer requests at queue {queue!r}: {said}", _retry_after(error))
        case 400 if error.code in FULL:
            return MessageRefused(f"queue {queue!r} is full: {said}")
        case 400:
            return Invalid(f"queue {queue!r} doesn't take this: {said}")
        case _:
            return BusUnavailable(f"OCI Queue failed at queue {queue!r}: {said}")


def _retry_after(error: Any) -> float | None:
    try:
        return float(error.headers.get("retry-after"))
    except (TypeError, ValueError):
        return None


def _first(error: BaseException) -> str:
    """What happened; the SDK's errors carry much advice behind it."""
    if isinstance(error, oci.exceptions.ServiceError):
        return str(error.message)
    while error.args and isinstance(error.args[0], BaseException):
        error = error.args[0]
    return f"{type(error).__name__}: {error.args[0]}" if error.args else repr(error)


class Sdk:
    """The SDK's clients of one region, without its retries and circuit breaker: callers know better.

    Raises ValueError when the configuration makes no sense, BusUnavailable when the machine has no identity.
    """

    def __init__(self, address: Address) -> None:
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._clients: dict[str, Any] = {}
        self._config, self._options = _identity(address)
        self._options.update(
            timeout=(CONNECT_SECONDS, address.options.answer_seconds),
            retry_strategy=oci.retry.NoneRetryStrategy(),
            circuit_breaker_strategy=oci.circuit_breaker.NoCircuitBreakerStrategy(),
        )
        regional = {} if address.endpoint is None else {"service_endpoint": address.endpoint}
        try:
            self.admin: Any = oci.queue.QueueAdminClient(self._config, **regional, **self._options)
        except (oci.exceptions.ClientError, OSError, ValueError) as error:
            raise ValueError(f"the key of {_profile(address)} can't be used: {_first(error)}") from error

    def messages(self, endpoint: str) -> Any:
        """The client of a queue's own endpoint; it may be used from several threads."""
        with self._lock:
            client = self._clients.get(endpoint)
            if client is None:
                client = oci.queue.QueueClient(self._config, service_endpoint=endpoint, **self._options)
                self._clients[endpoint] = client
            return client

    def call(self, queue: str, ask: Callable[[], T]) -> T:
        """Ask, as often as it takes while the service asks for patience. Raises the port's errors."""
        for attempt in range(THROTTLED_TRIES):
            try:
                with translated(queue):
                    return ask()
            except Throttled as error:
                wanted = error.after_seconds or THROTTLED_SECONDS * 2**attempt
                last = attempt == THROTTLED_TRIES - 1
                if last or wanted > THROTTLED_SECONDS_MAX or self._closing.wait(wanted):
                    raise
        raise AssertionError("the last attempt returns or raises")

    def close(self) -> None:
        self._closing.set()
        with self._lock:
            clients, self._clients = list(self._clients.values()), {}
        for client in (self.admin, *clients):
            client.base_client.session.close()


def _identity(address: Address) -> tuple[dict[str, Any], dict[str, Any]]:
    """The SDK's configuration, and what its clients need beside it."""
    options = address.options
    if options.emulator:
        return dict(_made_up()), {}
    if options.profile is not None:
        try:
            config = oci.config.from_file(options.config_file, options.profile)
        except oci.exceptions.ClientError as error:
            raise ValueError(f"{_profile(address)} can't be used: {_first(error)}") from error
        return {**config, "region": address.region}, {}
    try:
        return {"region": address.region}, {"signer": _machine()}
    except Exception as error:
        # Whatever it is, the cause is that nothing here tells who this machine is.
        raise BusUnavailable(
            "this machine has no OCI identity; name a key with ?profile=NAME, or let a dynamic group contain it: "
            f"{_first(error)}"
        ) from error


def _profile(address: Address) -> str:
    return f"profile {address.options.profile!r} of {address.options.config_file}"


@functools.cache
def _machine() -> Any:
    """The instance's identity, asked for once; it renews itself. Callers try again, so the SDK need not."""
    return oci.auth.signers.InstancePrincipalsSecurityTokenSigner(retry_strategy=oci.retry.NoneRetryStrategy())


@functools.cache
def _made_up() -> dict[str, Any]:
    """A key for an emulator, which looks at the form of signatures alone."""
    key = rsa.generate_private_key(65_537, 2_048)
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
    return {
        "tenancy": "ocid1.tenancy.oc1..emulator",
        "user": "ocid1.user.oc1..emulator",
        "fingerprint": ":".join(["00"] * 16),
        "key_content": pem,
        "region": "us-ashburn-1",
    }
