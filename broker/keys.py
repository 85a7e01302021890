"""Signing keys on disk: Ed25519, one file each, readable by the owner only, never printed."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from broker.domain.errors import BrokerError
from broker.signing import KeyRing, KeyRole, PublicKey, Signer

__all__ = [
    "load_or_create_signer",
    "public_bytes",
    "public_key",
    "read_signer",
    "read_trusted",
    "read_trusted_bytes",
    "trust_text",
    "write_secret_once",
]

_KEY_BYTES = 32


def load_or_create_signer(folder: Path, name: str) -> tuple[Signer, Ed25519PrivateKey]:
    """The key `name` of this folder, made on first use. Its id is the start of its public key's SHA-256."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = folder / f"{name}.key"
    if not path.exists():
        raw = Ed25519PrivateKey.generate().private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption())
        write_secret_once(path, raw.hex() + "\n")
    return read_signer(path)


def read_signer(path: Path) -> tuple[Signer, Ed25519PrivateKey]:
    """The key in this file. Raises BrokerError where there is none."""
    try:
        private = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(path.read_text().strip()))
    except OSError as error:
        raise BrokerError(f"can't read the signing key {path}: {error.strerror}") from None
    except ValueError:
        raise BrokerError(f"{path} is not a signing key: it must hold 64 hexadecimal digits") from None
    key_id = sha256(public_bytes(private)).hexdigest()[:16]
    return Signer(key_id, private), private


def trust_text(keys: Iterable[tuple[str, bytes]]) -> str:
    """What `read_trusted` reads: one key a line, its id and its 32 bytes."""
    return "".join(f"{key_id} {raw.hex()}\n" for key_id, raw in keys)


def read_trusted(path: Path) -> KeyRing:
    """The broker's public keys in this file, which a worker takes orders from. Raises BrokerError."""
    keys = read_trusted_bytes(path)
    return KeyRing({key_id: public_key(KeyRole.BROKER, "broker", raw) for key_id, raw in keys.items()})


def read_trusted_bytes(path: Path) -> dict[str, bytes]:
    """The same keys as their 32 bytes each, by id. Raises BrokerError."""
    try:
        pairs = [line.split() for line in path.read_text().splitlines() if line.strip()]
        keys = {key_id: bytes.fromhex(raw) for key_id, raw in pairs}
        if any(len(raw) != _KEY_BYTES for raw in keys.values()):
            raise ValueError("a key of another length")
    except OSError as error:
        raise BrokerError(f"can't read the broker's public keys {path}: {error.strerror}") from None
    except ValueError:
        raise BrokerError(f"{path} holds no public keys: each line is a key's id and 64 hexadecimal digits") from None
    if not keys:
        raise BrokerError(f"{path} is empty: `broker keys lane create` writes it")
    return keys


def public_key(role: KeyRole, owner: str, raw: bytes) -> PublicKey:
    """A key of 32 bytes, to verify with."""
    return PublicKey(role, owner, Ed25519PublicKey.from_public_bytes(raw))


def public_bytes(private: Ed25519PrivateKey) -> bytes:
    """The 32 bytes that others verify with."""
    return private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)


def write_secret_once(path: Path, text: str) -> None:
    """Make this file, whole and on disk, for its owner alone; where another process was faster, its file stays."""
    descriptor, draft = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileExistsError):
            path.hardlink_to(draft)
    finally:
        Path(draft).unlink()
