"""A certificate for this machine, made on the spot by the `openssl` program."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from pathlib import Path

__all__ = ["NoOpenssl", "make_certificate", "server_context"]


class NoOpenssl(Exception):
    """There is no `openssl` program, or it failed; give a certificate instead."""


def make_certificate(folder: Path, names: tuple[str, ...] = ("localhost",)) -> tuple[Path, Path]:
    """Write `cert.pem`, which is its own authority, and `key.pem`; their paths. Kept if they are there already."""
    certificate, key = folder / "cert.pem", folder / "key.pem"
    if certificate.exists() and key.exists():
        return certificate, key
    program = shutil.which("openssl")
    if program is None:
        raise NoOpenssl("no openssl program is on the PATH; give --cert and --key, or --no-tls")
    folder.mkdir(parents=True, exist_ok=True)
    alternatives = ",".join([*(f"DNS:{name}" for name in names), "IP:127.0.0.1", "IP:0:0:0:0:0:0:0:1"])
    command = [
        *(
            program,
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-days",
            "30",
        ),
        *("-subj", f"/CN={names[0]}", "-addext", f"subjectAltName={alternatives}"),
        *("-addext", "keyUsage=critical,digitalSignature,keyCertSign", "-addext", "extendedKeyUsage=serverAuth"),
        *("-keyout", str(key), "-out", str(certificate)),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 (the program and all words are ours)
    if done.returncode != 0:
        raise NoOpenssl(f"openssl failed: {done.stderr.strip().splitlines()[-1:]}")
    key.chmod(0o600)
    return certificate, key


def server_context(certificate: Path, key: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context
