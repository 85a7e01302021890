"""Limits on suppliers' shares of the work."""

from __future__ import annotations

import msgspec

__all__ = ["ShareRoom"]


class ShareRoom(msgspec.Struct):
    """How many instances of a lane soft work may have."""

    ceilings: dict[int, int] = {}

    def allowed(self, place: int, limit: int) -> int:
        return min(limit, self.ceilings.get(place, limit))
