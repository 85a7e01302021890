"""The key ring of processes that share a database: whoever is told a new key knows it at once, a revoked one soon."""

from __future__ import annotations

import threading
import time
from pathlib import Path

from broker.clock import Clock
from broker.database.connection import Connection, Database
from broker.database.keys import all_keys, remember_key
from broker.keys import public_bytes, public_key, read_signer
from broker.signing import KeyRing, KeyRole, PublicKey, Signer

__all__ = ["StoredKeys", "remember_signer"]

_LOOKS_PER_SECOND_MAX = 2


class StoredKeys:
    """`ring` holds the keys that are in force; `refresh` it now and then."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lock = threading.Lock()
        self._looked_at = float("-inf")
        self.ring = KeyRing({}, self._look_up)

    def refresh(self) -> None:
        """Take in what has changed."""
        self.ring.replace(self._load())

    def _look_up(self, key_id: str) -> PublicKey | None:
        """A key that was made a moment ago. Strangers' ids cost two looks a second, however many they send."""
        with self._lock:
            if time.monotonic() - self._looked_at < 1 / _LOOKS_PER_SECOND_MAX:
                return None
            self._looked_at = time.monotonic()
        return self._load().get(key_id)  # with the lock let go: a slow look must not hold up who knows all keys

    def _load(self) -> dict[str, PublicKey]:
        return {
            key.key_id: public_key(KeyRole(key.role), key.owner, key.public_key)
            for key in self._database.read(all_keys)
            if key.revoked_us is None and key.role in set(KeyRole)
        }


def remember_signer(database: Database, path: Path, role: KeyRole, owner: str, clock: Clock) -> Signer:
    """The private key in this file, its public half known to all who share the database."""
    signer, private = read_signer(path)

    def work(connection: Connection) -> None:
        raw = public_bytes(private)
        remember_key(connection, key_id=signer.key_id, role=role, owner=owner, public_key=raw, now_us=clock())

    database.write(work)
    return signer
