"""Signing keys on disk: Ed25519, one file each, readable by the owner only, never printed."""

from __future__ import annotations

import os
from hashlib import sha256
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from broker.bus.envelope import Signer
from broker.domain.errors import BrokerError

__all__ = ["load_or_create_signer", "public_bytes"]


def load_or_create_signer(folder: Path, name: str) -> tuple[Signer, Ed25519PrivateKey]:
    """The key `name` of this folder, made on first use. Its id is the start of its public key's SHA-256."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = folder / f"{name}.key"
    try:
        private = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(path.read_text().strip()))
    except FileNotFoundError:
        private = Ed25519PrivateKey.generate()
        _write_private(path, private)
    except ValueError:
        raise BrokerError(f"{path} is not a signing key: it must hold 64 hexadecimal digits") from None
    key_id = sha256(public_bytes(private)).hexdigest()[:16]
    return Signer(key_id, private), private


def public_bytes(private: Ed25519PrivateKey) -> bytes:
    """The 32 bytes that others verify with."""
    return private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)


def _write_private(path: Path, private: Ed25519PrivateKey) -> None:
    raw = private.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption())
    temporary = path.with_suffix(".new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(raw.hex() + "\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
