"""Whose stream a writer of the ledger appends to: that of the slot which it holds, found out anew for each flush."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from broker.clock import Clock
from broker.database.connection import Database
from broker.ledger.writing import open_stream

__all__ = ["FixedSlot", "OpenStream", "OwnStream", "StreamSlot"]


class StreamSlot(Protocol):
    """A durable place of its own for a writer. Used by one thread."""

    def hold(self) -> str:
        """The name of the place held now, such as recorder-0: another than before, where that was lost.

        Raises BrokerError where none can be had now.
        """


class FixedSlot:
    """The place of the only process that there is, as on SQLite."""

    def __init__(self, name: str) -> None:
        self._name = name

    def hold(self) -> str:
        """See `StreamSlot.hold`."""
        return self._name


class OpenStream(NamedTuple):
    """A stream, and the name of the slot that it belongs to."""

    slot: str
    stream_id: bytes


class OwnStream:
    """The stream of one writer. Opened when it is made, so that a writer that can't write fails at its start."""

    def __init__(self, database: Database, clock: Clock, slot: StreamSlot) -> None:
        self._database = database
        self._clock = clock
        self._slot = slot
        self._open = self._opened(slot.hold())

    def current(self) -> OpenStream:
        """The stream to append to now. Ask before each transaction, not inside: it may have to open another."""
        name = self._slot.hold()
        if name != self._open.slot:
            self._open = self._opened(name)
        return self._open

    def _opened(self, name: str) -> OpenStream:
        return OpenStream(name, self._database.write(lambda connection: open_stream(connection, name, self._clock())))
