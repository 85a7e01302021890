"""Files that may come packed with gzip: whoever takes them in sees plain bytes, and never more at once than a piece."""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterable, Iterator

from broker.domain.errors import UsageError

__all__ = ["Unpacking", "reader_of", "unpacked"]

_GZIP = b"\x1f\x8b"
_PIECE_BYTES = 1 << 18
_GZIP_WINDOW = 31  # zlib's number for: with gzip's header, and the largest window


class Unpacking:
    """Bytes in, plain bytes out. What is packed is known by its first two bytes, whatever its name or header says."""

    def __init__(self) -> None:
        self._begun: bytes | None = b""
        self._inflater: zlib._Decompress | None = None
        self._is_packed = False

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """What the next bytes are when unpacked. Raises UsageError where they can't be."""
        if self._begun is not None:
            chunk = self._begun + chunk
            if len(chunk) < len(_GZIP):
                self._begun = chunk
                return
            self._begun = None
            self._is_packed = chunk.startswith(_GZIP)
        if self._is_packed:
            yield from self._unpack(chunk)
        else:
            yield chunk

    def _unpack(self, chunk: bytes) -> Iterator[bytes]:
        """Several packed files in one are the files one after the other."""
        while True:
            if self._inflater is None:
                chunk = chunk.lstrip(b"\0")  # with which tapes fill up their blocks
                if not chunk:
                    return
                self._inflater = zlib.decompressobj(_GZIP_WINDOW)
            try:
                piece = self._inflater.decompress(chunk, _PIECE_BYTES)
            except zlib.error:
                raise UsageError("the file is packed with gzip, but can't be unpacked: it is damaged") from None
            chunk = self._inflater.unconsumed_tail
            if self._inflater.eof:
                chunk, self._inflater = self._inflater.unused_data, None
            if piece:
                yield piece
            if not chunk and len(piece) < _PIECE_BYTES:  # a full piece may have left something within
                return

    def end(self) -> bytes:
        """What was held back. Raises UsageError where the packed file isn't complete."""
        if self._inflater is not None:
            raise UsageError("the file is packed with gzip, and its end is missing")
        return self._begun or b""


def unpacked(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The plain bytes of a whole file."""
    unpacking = Unpacking()
    for chunk in chunks:
        yield from unpacking.feed(chunk)
    yield unpacking.end()


class _Pieces(io.RawIOBase):
    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override] # (any writable buffer)
        while not self._rest:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._rest = memoryview(piece)
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count


def reader_of(pieces: Iterator[bytes]) -> io.BufferedReader:
    """The pieces as a file that is read once, from its beginning to its end."""
    return io.BufferedReader(_Pieces(pieces))
