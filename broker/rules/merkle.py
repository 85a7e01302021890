"""Merkle tree hashes as in RFC 6962 section 2.1: leaves under 0x00, inner nodes under 0x01."""

from __future__ import annotations

from hashlib import sha256

__all__ = ["EMPTY_ROOT", "inclusion_path", "leaf_hash", "merkle_root"]

EMPTY_ROOT = sha256(b"").digest()


def leaf_hash(data: bytes) -> bytes:
    """The hash of one leaf."""
    return sha256(b"\x00" + data).digest()


def _node(left: bytes, right: bytes) -> bytes:
    return sha256(b"\x01" + left + right).digest()


def merkle_root(leaves: list[bytes]) -> bytes:
    """The root over leaf hashes.

    An odd node at the end of a level moves up unchanged, which gives the tree of RFC 6962, whose left
    subtree is the largest power of two that fits.
    """
    if not leaves:
        return EMPTY_ROOT
    level = leaves
    while len(level) > 1:
        paired = [_node(level[i], level[i + 1]) for i in range(0, len(level) - 1, 2)]
        if len(level) % 2:
            paired.append(level[-1])
        level = paired
    return level[0]


def inclusion_path(leaves: list[bytes], index: int) -> list[bytes]:
    """The audit path of leaf `index`, from the leaf's sibling up (RFC 6962 section 2.1.1)."""
    path = []
    level = leaves
    while len(level) > 1:
        sibling = index ^ 1
        if sibling < len(level):
            path.append(level[sibling])
        level = [_node(level[i], level[i + 1]) if i + 1 < len(level) else level[i] for i in range(0, len(level), 2)]
        index //= 2
    return path
