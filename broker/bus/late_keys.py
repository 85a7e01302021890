"""Deliveries that are signed with a key which may have been made a moment ago."""

from __future__ import annotations

import time
from typing import NamedTuple

from broker.signing import KeyRing

__all__ = ["LateKeys"]

_PUT_OFF_MAX = 32
"""Strangers may send any number; so many at once hold up a part of what an inbox has in hand."""

_FORGOTTEN_SECONDS = 2.0
"""A look is half a second away; what is older has got its key, or its inbox was given up."""


class _PutOff(NamedTuple):
    delivery: object
    since: float


class LateKeys:
    """Says of each delivery with an unknown key whether to try it again: until the ring has looked since it came."""

    def __init__(self, ring: KeyRing) -> None:
        self._ring = ring
        self._put_off: dict[int, _PutOff] = {}

    def may_come(self, delivery: object, key_id: str, since: float) -> bool:
        """Whether the key may still come; `since`, on the monotonic clock, is from before it was asked for."""
        first = self._put_off.get(id(delivery))
        if self._ring.is_settled(key_id, first.since if first else since):
            self._put_off.pop(id(delivery), None)
            return False
        if first is None:
            if len(self._put_off) >= _PUT_OFF_MAX:
                self._forget_old()
            if len(self._put_off) >= _PUT_OFF_MAX:
                return False
            self._put_off[id(delivery)] = _PutOff(delivery, since)
        return True

    def _forget_old(self) -> None:
        before = time.monotonic() - _FORGOTTEN_SECONDS
        self._put_off = {key: one for key, one in self._put_off.items() if one.since > before}
