"""The object store as a worker without credentials reaches it: by URLs that the broker signed, for one body each."""

from __future__ import annotations

from collections.abc import Callable

import httpx

from broker.bus.envelope import Kind
from broker.bus.payload_store import NoPlace, PayloadMissing, StoreUnavailable
from broker.domain.parked import ParkAnswer, Ticket

__all__ = ["SignedPlace"]

_ANSWER_SECONDS = 30.0


class SignedPlace:
    """`ask_to_park` asks the broker, naming lane, shard, digest and size; it raises StoreUnavailable if it can't."""

    def __init__(self, ask_to_park: Callable[[str, bytes, bytes, int], ParkAnswer]) -> None:
        self._ask_to_park = ask_to_park
        # Not followed: whom the broker signed for is whom we speak to.
        self._client = httpx.Client(timeout=_ANSWER_SECONDS, follow_redirects=False)

    def leave(self, kind: Kind, lane: str, shard_id: bytes, data: bytes, digest: bytes) -> tuple[str, str]:
        granted = self._ask_to_park(lane, shard_id, digest, len(data))
        if not granted.url:
            raise NoPlace("the broker has no place for it")
        try:
            # Azure asks for the kind of blob, and the other stores ignore it.
            answer = self._client.put(granted.url, content=data, headers={"x-ms-blob-type": "BlockBlob"})
        except httpx.HTTPError as error:
            raise StoreUnavailable(f"the payload was not stored: {type(error).__name__}") from error
        if not answer.is_success:
            raise StoreUnavailable(f"the payload was not stored: the store answers {answer.status_code}")
        return granted.path, ""

    def fetch(self, ticket: Ticket) -> bytes:
        if not ticket.url:
            raise PayloadMissing("the body is in a folder of the broker's that this worker was not given")
        found = bytearray()
        try:
            with self._client.stream("GET", ticket.url) as answer:
                if answer.status_code in {403, 404, 410}:
                    raise PayloadMissing(f"the store answers {answer.status_code}")
                if not answer.is_success:
                    raise StoreUnavailable(f"the store answers {answer.status_code}")
                for part in answer.iter_bytes():
                    found += part
                    if len(found) > ticket.size:
                        raise PayloadMissing("the body is larger than was announced")
        except httpx.HTTPError as error:
            raise StoreUnavailable(f"the payload can't be fetched: {type(error).__name__}") from error
        return bytes(found)
