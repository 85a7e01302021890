"""Queues as Atom entries: the service's XML, its order of elements, its forms of times and durations."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any
from xml.sax.saxutils import escape, quoteattr

from infra.emulators.servicebus.queues.description import FOREVER_MS, QueueStatus
from infra.emulators.servicebus.queues.namespace import Entry
from infra.emulators.servicebus.queues.queue import Counts

__all__ = ["READERS", "error", "feed", "namespace", "queue"]

CONNECT = "http://schemas.microsoft.com/netservices/2010/10/servicebus/connect"
COUNTS = "http://schemas.microsoft.com/netservices/2011/06/servicebus"
ATOM = "http://www.w3.org/2005/Atom"
INSTANCE = "http://www.w3.org/2001/XMLSchema-instance"
FOREVER = "P10675199DT2H48M5.4775807S"
DURATION = re.compile(r"P(?:(\d+)D)?(?:T(?:(\d+)H)?(?:(\d+)M)?(?:(\d+(?:\.\d+)?)S)?)?")


def duration(milliseconds: int) -> str:
    """ISO 8601, as .NET writes it."""
    if milliseconds >= FOREVER_MS:
        return FOREVER
    seconds, rest = divmod(milliseconds, 1000)
    days, seconds = divmod(seconds, 86_400)
    hours, seconds = divmod(seconds, 3_600)
    minutes, seconds = divmod(seconds, 60)
    clock = "".join(f"{value}{unit}" for value, unit in ((hours, "H"), (minutes, "M")) if value)
    if rest:
        clock += f"{seconds}.{rest:03}".rstrip("0") + "S"
    elif seconds:
        clock += f"{seconds}S"
    day = f"{days}D" if days else ""
    return f"P{day}" + (f"T{clock}" if clock else "" if day else "T0S")


def read_duration(text: str) -> int:
    found = DURATION.fullmatch(text)
    if found is None or not any(found.groups()):
        raise ValueError(text)
    days, hours, minutes = (int(part or 0) for part in found.groups()[:3])
    whole = ((days * 24 + hours) * 60 + minutes) * 60_000 + round(float(found[4] or 0) * 1000)
    return min(whole, FOREVER_MS)


def _read_bool(text: str) -> bool:
    if text.lower() not in {"true", "false"}:
        raise ValueError(text)
    return text.lower() == "true"


READERS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "LockDuration": ("lock_duration_ms", read_duration),
    "MaxSizeInMegabytes": ("max_size_megabytes", int),
    "RequiresDuplicateDetection": ("requires_duplicate_detection", _read_bool),
    "RequiresSession": ("requires_session", _read_bool),
    "DefaultMessageTimeToLive": ("default_ttl_ms", read_duration),
    "DeadLetteringOnMessageExpiration": ("dead_letters_expired", _read_bool),
    "DuplicateDetectionHistoryTimeWindow": ("duplicate_window_ms", read_duration),
    "MaxDeliveryCount": ("max_delivery_count", int),
    "EnableBatchedOperations": ("enable_batched_operations", _read_bool),
    "Status": ("status", QueueStatus),
    "UserMetadata": ("user_metadata", str),
    "AutoDeleteOnIdle": ("auto_delete_on_idle_ms", read_duration),
    "EnablePartitioning": ("enable_partitioning", _read_bool),
    "EnableExpress": ("enable_express", _read_bool),
    "MaxMessageSizeInKilobytes": ("max_message_kilobytes", int),
}
"""From an element's name to the field of a QueueDescription and how its text is read."""


def _moment(milliseconds: int) -> str:
    moment = datetime.fromtimestamp(milliseconds / 1000, UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%f") + "Z"


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else escape(str(value))


def _elements(pairs: Sequence[tuple[str, Any]]) -> str:
    return "".join(f"<{name}>{_text(value)}</{name}>" for name, value in pairs if value is not None)


def queue(entry: Entry, counts: Counts, base: str) -> bytes:
    """The entry with settings and runtime counts; MessageCount has dead letters and scheduled ones in it too."""
    asked = entry.queue.description
    total = counts.active + counts.deferred + counts.scheduled + counts.dead
    settings = [
        *(("LockDuration", duration(asked.lock_duration_ms)), ("MaxSizeInMegabytes", asked.max_size_megabytes)),
        ("RequiresDuplicateDetection", asked.requires_duplicate_detection),
        ("RequiresSession", asked.requires_session),
        ("DefaultMessageTimeToLive", duration(asked.default_ttl_ms)),
        ("DeadLetteringOnMessageExpiration", asked.dead_letters_expired),
        ("DuplicateDetectionHistoryTimeWindow", duration(asked.duplicate_window_ms)),
        ("MaxDeliveryCount", asked.max_delivery_count),
        ("EnableBatchedOperations", asked.enable_batched_operations),
        *(("SizeInBytes", counts.size_bytes), ("MessageCount", total), ("IsAnonymousAccessible", False)),
    ]
    state = [
        *(("Status", asked.status.value), ("UserMetadata", asked.user_metadata)),
        *(("CreatedAt", _moment(entry.created_ms)), ("UpdatedAt", _moment(entry.updated_ms))),
        *(("AccessedAt", _moment(entry.accessed_ms)), ("SupportOrdering", True)),
    ]
    details = [
        *(("ActiveMessageCount", counts.active), ("DeadLetterMessageCount", counts.dead)),
        *(("ScheduledMessageCount", counts.scheduled), ("TransferMessageCount", 0)),
        ("TransferDeadLetterMessageCount", 0),
    ]
    rest = [
        *(
            ("AutoDeleteOnIdle", duration(asked.auto_delete_on_idle_ms)),
            ("EnablePartitioning", asked.enable_partitioning),
        ),
        *(("EntityAvailabilityStatus", "Available"), ("EnableExpress", asked.enable_express)),
        ("MaxMessageSizeInKilobytes", asked.max_message_kilobytes),
    ]
    counted = "".join(f"<d2p1:{name}>{value}</d2p1:{name}>" for name, value in details)
    content = (
        f'<QueueDescription xmlns="{CONNECT}" xmlns:i="{INSTANCE}">{_elements(settings)}<AuthorizationRules/>'
        f'{_elements(state)}<CountDetails xmlns:d2p1="{COUNTS}">{counted}</CountDetails>{_elements(rest)}'
        f"</QueueDescription>"
    )
    return _entry(entry.queue.name, f"{base}/{entry.queue.name}", entry.created_ms, entry.updated_ms, content)


def namespace(name: str, base: str, created_ms: int) -> bytes:
    fields = [
        *(("Alias", None), ("CreatedTime", _moment(created_ms)), ("MessagingSKU", "Standard")),
        *(("MessagingUnits", 0), ("ModifiedTime", _moment(created_ms)), ("Name", name), ("NamespaceType", "Messaging")),
    ]
    content = f'<NamespaceInfo xmlns="{CONNECT}" xmlns:i="{INSTANCE}">{_elements(fields)}</NamespaceInfo>'
    return _entry(name, f"{base}/$namespaceinfo", created_ms, created_ms, content)


def _entry(title: str, address: str, created_ms: int, updated_ms: int, content: str) -> bytes:
    return (
        f'<entry xmlns="{ATOM}"><id>{escape(address)}</id><title type="text">{escape(title)}</title>'
        f"<published>{_moment(created_ms)}</published><updated>{_moment(updated_ms)}</updated>"
        f'<author><name>servicebus-emulator</name></author><link rel="self" href={quoteattr(address)}/>'
        f'<content type="application/xml">{content}</content></entry>'
    ).encode()


def feed(title: str, base: str, path: str, found: Sequence[bytes], more: str | None = None) -> bytes:
    links = f'<link rel="self" href={quoteattr(f"{base}/{path}")}/>'
    if more is not None:
        links += f'<link rel="next" href={quoteattr(more)}/>'
    head = (
        f'<feed xmlns="{ATOM}"><title type="text">{escape(title)}</title><id>{escape(base)}/{escape(path)}</id>'
        f"<updated>{_moment(0)}</updated>{links}"
    )
    return head.encode() + b"".join(found) + b"</feed>"


def error(status: int, detail: str) -> bytes:
    return f"<Error><Code>{status}</Code><Detail>{escape(detail)}</Detail></Error>".encode()
