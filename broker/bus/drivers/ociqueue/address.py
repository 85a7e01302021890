"""What a `laneoci` URL says: where the queues are, who we are, and how they should be."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any
from urllib.parse import parse_qsl, urlsplit

import msgspec

__all__ = ["Address", "OciQueueOptions", "address_of", "dead_letters_of"]

DEAD_SUFFIX = "-dead"


class OciQueueOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a `laneoci` URL may say; times in whole seconds.

    `profile` of `config_file` names a key; without it the machine's identity is used. `emulator` talks plain HTTP to
    the URL's host, with a key made up for this process; `endpoint` leads to another place than the region's name
    does. `create` makes missing queues, which needs the right to manage them. `retention_seconds` is for queues made
    here. `dead_letters` names one queue for all dead letters, where the region grants few queues.
    `max_message_bytes` is what fits the 128 KiB of text that the service takes.
    """

    lease_seconds: Annotated[int, msgspec.Meta(ge=1, le=43_200)] = 60
    profile: str | None = None
    config_file: str = "~/.oci/config"
    emulator: bool = False
    endpoint: str | None = None
    create: bool = False
    retention_seconds: Annotated[int, msgspec.Meta(ge=10, le=604_800)] = 604_800
    dead_letters: str | None = None
    max_message_bytes: Annotated[int, msgspec.Meta(ge=1)] = 104_000
    answer_seconds: Annotated[float, msgspec.Meta(gt=0)] = 15.0


class Address(msgspec.Struct, frozen=True):
    """A checked URL."""

    region: str
    compartment: str
    endpoint: str | None
    options: OciQueueOptions


def address_of(url: str, options: Mapping[str, Any]) -> Address:
    """Raises ValueError, with a sentence, for what makes no sense."""
    parts = urlsplit(url)
    compartment = parts.path.strip("/")
    if not parts.netloc or not compartment:
        raise ValueError("a laneoci URL names a region and a compartment: laneoci://REGION/COMPARTMENT_OCID")
    settings: dict[str, Any] = dict(parse_qsl(parts.query))
    settings.update({name: options[name] for name in OciQueueOptions.__struct_fields__ if name in options})
    try:
        checked = msgspec.convert(settings, OciQueueOptions, strict=False)
    except msgspec.ValidationError as error:
        raise ValueError(f"a laneoci URL can't be read: {error}") from None
    endpoint = f"http://{parts.netloc}" if checked.emulator else checked.endpoint
    return Address(parts.netloc, compartment, endpoint, checked)


def dead_letters_of(queue: str, options: OciQueueOptions) -> str | None:
    """The queue for its dead letters; None for such a queue itself."""
    dead = options.dead_letters or f"{queue}{DEAD_SUFFIX}"
    return None if queue in {dead, options.dead_letters} or queue.endswith(DEAD_SUFFIX) else dead
