"""A Merkle tree that only grows, of which no more is kept than its next root needs (RFC 9162 section 2.1)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Self

from broker.rules.merkle import EMPTY_ROOT, merkle_root

__all__ = ["GrowingTree"]


class GrowingTree:
    """The roots of its full subtrees, largest first, each with how many leaves it has: one for each bit of the size."""

    def __init__(self, subtrees: Iterable[tuple[int, bytes]] = ()) -> None:
        self._subtrees = list(subtrees)

    @property
    def size(self) -> int:
        """How many leaves it has."""
        return sum(leaves_count for leaves_count, _ in self._subtrees)

    @property
    def root(self) -> bytes:
        """What `merkle_root` gives for all leaves."""
        found: bytes | None = None
        for _, subtree in reversed(self._subtrees):
            found = subtree if found is None else merkle_root([subtree, found])
        return EMPTY_ROOT if found is None else found

    def add(self, leaf: bytes) -> None:
        """One more leaf hash."""
        leaves_count, found = 1, leaf
        while self._subtrees and self._subtrees[-1][0] == leaves_count:
            found = merkle_root([self._subtrees.pop()[1], found])
            leaves_count *= 2
        self._subtrees.append((leaves_count, found))

    def copy(self) -> Self:
        """One that grows on its own."""
        return type(self)(self._subtrees)
