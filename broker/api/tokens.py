"""Who has which token: the port that the gate asks, and its driver for tokens that are known from the start."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from hashlib import blake2b
from typing import Protocol

from broker.domain.identity import LOCAL, Identity

__all__ = ["FixedTokens", "Tokens", "local_token"]


class Tokens(Protocol):
    """The table of tokens."""

    def find(self, token: bytes) -> Identity | None:
        """Whose token this is, None for nobody's; in a time that tells nothing of how near it came to one."""


class FixedTokens:
    """Tokens in memory.

    Looked up by a digest under a key of this process, so that nobody outside can tell how far a digest of theirs
    matched: however long the look-up takes says nothing of any token.
    """

    def __init__(self, identities: Mapping[str, Identity]) -> None:
        self._key = secrets.token_bytes(32)
        self._identities = {self._digest(token.encode()): identity for token, identity in identities.items()}

    def find(self, token: bytes) -> Identity | None:
        """See `Tokens.find`."""
        return self._identities.get(self._digest(token))

    def _digest(self, token: bytes) -> bytes:
        return blake2b(token, digest_size=32, key=self._key).digest()


def local_token(token: str) -> FixedTokens:
    """The table with the data folder's token alone: who has it may do everything, for the local tenant."""
    return FixedTokens({token: LOCAL})
