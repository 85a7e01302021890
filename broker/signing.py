"""Ed25519 keys in use: a signer that holds a private key, and a ring of public keys to verify with.

What is signed is either an envelope's content (`broker.bus.envelope`) or a checkpoint's text
(`broker.ledger.checkpoints`). Content is signed as its SHA-256 under a prefix that no other use of the key shares.
(Ed25519 over the bytes themselves would hash them twice with SHA-512: three times the price for a shard of 64 jobs.)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import StrEnum
from hashlib import sha256
from typing import NamedTuple

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

__all__ = ["KeyRing", "KeyRole", "PublicKey", "Signer"]

_CONTENT_PREFIX = b"inference-broker envelope v2\0"


class KeyRole(StrEnum):
    """Whose key it is."""

    BROKER = "broker"
    LANE = "lane"
    PRODUCER = "producer"


class Signer:
    """Signs with one private key."""

    def __init__(self, key_id: str, private_key: Ed25519PrivateKey) -> None:
        self.key_id = key_id
        self._private_key = private_key

    def sign_content(self, content: bytes) -> bytes:
        """The signature of an envelope's content."""
        return self._private_key.sign(_signed(content))

    def sign_note(self, text: bytes) -> bytes:
        """The signature of a checkpoint's text as it is, which must not begin with the prefix of contents."""
        if text.startswith(_CONTENT_PREFIX):
            raise ValueError("a note can't begin as an envelope's signed bytes do")
        return self._private_key.sign(text)

    @property
    def public_bytes(self) -> bytes:
        """The 32 bytes that others verify with."""
        return self._private_key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)


class PublicKey(NamedTuple):
    """A key to verify with. `owner`: a lane's name, a producer's tenant, or `broker`."""

    role: KeyRole
    owner: str
    key: Ed25519PublicKey

    def has_signed(self, content: bytes, signature: bytes) -> bool:
        """Whether this is the key's signature of an envelope's content."""
        try:
            self.key.verify(signature, _signed(content))
        except InvalidSignature:
            return False
        return True


class KeyRing:
    """Public keys by id. `look_up` is asked about ids that it doesn't have yet, and may know none.

    It need not look each time: `is_settled` then says whether it did since a moment on the monotonic clock.
    """

    def __init__(
        self,
        keys: Mapping[str, PublicKey],
        look_up: Callable[[str], PublicKey | None] = lambda _key_id: None,
        is_settled: Callable[[str, float], bool] = lambda _key_id, _since: True,
    ) -> None:
        self._keys = dict(keys)
        self._look_up = look_up
        self._is_settled = is_settled

    def replace(self, keys: Mapping[str, PublicKey]) -> None:
        """From now on these keys, and no others: one that was revoked is gone with it."""
        self._keys = dict(keys)

    def known(self, key_id: str) -> PublicKey | None:
        """The key of this id, if it is here, without a look."""
        return self._keys.get(key_id)

    def find(self, key_id: str) -> PublicKey | None:
        """The key of this id, or None where nobody knows it."""
        key = self._keys.get(key_id)
        if key is None and (key := self._look_up(key_id)) is not None:
            self._keys = {**self._keys, key_id: key}
        return key

    def is_settled(self, key_id: str, since: float) -> bool:
        """Whether an id that was not found is unknown for good, or may be a key that was made a moment ago."""
        return self._is_settled(key_id, since)


def _signed(content: bytes) -> bytes:
    return _CONTENT_PREFIX + sha256(content).digest()
