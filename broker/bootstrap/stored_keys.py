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
_UNKNOWN_SECONDS = 2.0
_UNKNOWN_MAX = 1_000


class StoredKeys:
    """`ring` holds the keys that are in force; `refresh` it now and then.

    Each look brings all keys, so that a new one is known half a second after it was asked for, whoever else asks.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lock = threading.Lock()
        self._looked_at = float("-inf")
        self._known_from = float("-inf")  # when the last look began that has ended
        self._unknown: dict[str, float] = {}
        self.ring = KeyRing({}, self._look_up, self._is_settled)

    def refresh(self) -> None:
        """Take in what has changed."""
        began = time.monotonic()
        self.ring.replace(self._load())
        with self._lock:
            self._known_from = max(self._known_from, began)

    def _look_up(self, key_id: str) -> PublicKey | None:
        """A key that was made a moment ago. Strangers' ids cost two looks a second, however many they send."""
        with self._lock:
            if time.monotonic() - self._looked_at < 1 / _LOOKS_PER_SECOND_MAX:
                return None
            self._looked_at = time.monotonic()
        self.refresh()  # with the lock let go: a slow look must not hold up who knows all keys
        return self.ring.known(key_id)

    def _is_settled(self, key_id: str, since: float) -> bool:
        """Whether the keys were read since then, or the id was a stranger's a moment ago."""
        with self._lock:
            if self._known_from < since:
                return time.monotonic() - self._unknown.get(key_id, float("-inf")) < _UNKNOWN_SECONDS
            if len(self._unknown) >= _UNKNOWN_MAX:
                self._unknown.clear()
            self._unknown[key_id] = self._known_from
            return True

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
