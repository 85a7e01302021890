"""Checkpoints: a signed word on all that the ledger held at a time, kept where who can change the database can't.

A checkpoint is a signed note as C2SP's `tlog-checkpoint` and `signed-note` describe it: the log's name, the number of
sealed batches, the root of their tree in base64 and the time, one to a line; an empty line; a line with the signature.
"""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Iterable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Protocol

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from broker.domain.errors import BrokerError
from broker.durable import sync_folder
from broker.signing import Signer

__all__ = ["CHECKPOINTS", "Checkpoint", "CheckpointFile", "CheckpointPlace", "sign_checkpoint", "verify_note"]

CHECKPOINTS = "checkpoints.jsonl"
"""The file of a data folder that they are published in."""

ORIGIN = "inference-broker.ledger"
_ED25519 = b"\x01"
_NAME = re.escape(ORIGIN)
_SIGNATURE = re.compile(rf"^\u2014 {_NAME} ([A-Za-z0-9+/]{{91}}=)$", re.MULTILINE)  # in base64: 4 bytes, and 64
_NOTE = re.compile(
    rf"{_NAME}\n(?P<size>[1-9]\d{{0,17}})\n(?P<root>[A-Za-z0-9+/]{{43}}=)\ntime (?P<time>\d{{1,18}})\n"
    r"\n(\u2014 \S+ [A-Za-z0-9+/=]+\n)+",
    re.ASCII,
)
_TAIL_BYTES = 64 * 1024


class Checkpoint(msgspec.Struct, frozen=True):
    """The first `tree_size` sealed batches, in the order of their sealing, have this root. `note` says so, signed."""

    tree_size: int
    root: bytes
    sealed_us: int
    note: str


def sign_checkpoint(signer: Signer, tree_size: int, root: bytes, sealed_us: int) -> Checkpoint:
    """The broker's word for it."""
    text = f"{ORIGIN}\n{tree_size}\n{base64.b64encode(root).decode()}\ntime {sealed_us}\n"
    signature = _key_hash(signer.public_bytes) + signer.sign_note(text.encode())
    note = f"{text}\n\N{EM DASH} {ORIGIN} {base64.b64encode(signature).decode()}\n"
    return Checkpoint(tree_size, root, sealed_us, note)


def read_note(note: str) -> Checkpoint:
    """What the note says, whoever signed it. Raises ValueError."""
    found = _NOTE.fullmatch(note)
    if not found:
        raise ValueError("it is no checkpoint of a ledger")
    return Checkpoint(int(found["size"]), base64.b64decode(found["root"]), int(found["time"]), note)


def verify_note(note: str, keys: Iterable[bytes]) -> Checkpoint:
    """What the note says, signed with one of these public keys. Raises ValueError, which says what is wrong."""
    checkpoint = read_note(note)
    text = note.partition("\n\n")[0] + "\n"
    for found in _SIGNATURE.finditer(note):
        signature = base64.b64decode(found[1])
        for key in keys:
            if signature[:4] == _key_hash(key) and _is_signed(text.encode(), signature[4:], key):
                return checkpoint
    raise ValueError("its signature is of no key of the broker, or does not match")


class CheckpointPlace(Protocol):
    """Somewhere outside the database where checkpoints are kept: a file, an object store with a lock, a log."""

    def last(self) -> Checkpoint | None:
        """The newest that is kept there."""

    def publish(self, checkpoint: Checkpoint) -> None:
        """Keep it; returns once it is durable."""


class _Line(msgspec.Struct):
    """What a line of the file holds; all but the note is there for people."""

    tree_size: int
    root: str
    sealed_us: int
    note: str


class CheckpointFile:
    """One JSON object a line, the newest last, only ever appended to. Copy it elsewhere as often as you like."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def last(self) -> Checkpoint | None:
        """The newest complete line's. Raises BrokerError where that is no checkpoint."""
        try:
            with self._path.open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
                lines = file.read().rpartition(b"\n")[0].splitlines()
        except FileNotFoundError:
            return None
        if not lines:
            return None
        try:
            return _read_line(lines[-1])
        except ValueError as error:
            raise BrokerError(f"the last line of {self._path} is no checkpoint: {error}") from None

    def publish(self, checkpoint: Checkpoint) -> None:
        """Append it, on the disk before this returns."""
        line = _Line(checkpoint.tree_size, checkpoint.root.hex(), checkpoint.sealed_us, checkpoint.note)
        is_new = not self._path.exists()
        with self._path.open("a+b") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _TAIL_BYTES))
            torn = len(file.read().rpartition(b"\n")[2])
            file.truncate(size - torn)  # a line that a crash left half written was never published
            file.write(msgspec.json.encode(line) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        if is_new:
            sync_folder(self._path.parent)

    def notes(self) -> Iterator[str]:
        """The note of each complete line; what isn't one is given as it stands, for who verifies to complain of."""
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    return
                try:
                    yield msgspec.json.decode(line, type=_Line).note
                except ValueError:
                    yield line.decode(errors="replace")


def _read_line(line: bytes) -> Checkpoint:
    return read_note(msgspec.json.decode(line, type=_Line).note)


def _key_hash(public_key: bytes) -> bytes:
    return sha256(ORIGIN.encode() + b"\n" + _ED25519 + public_key).digest()[:4]


def _is_signed(text: bytes, signature: bytes, key: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, text)
    except InvalidSignature:
        return False
    return True
