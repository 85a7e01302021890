"""OCI's request signatures: HTTP signatures with RSA and SHA-256, by the key of a user, an instance or a resource.

What is checked always: the form, which headers are covered, the date, the body's digest. The signature itself is
checked where the public key is known.
"""

from __future__ import annotations

import base64
import binascii
import email.utils
import hashlib
import re
import time
from collections.abc import Mapping
from typing import NamedTuple

from infra.emulators.ociqueue.http import HttpRequest
from infra.emulators.ociqueue.refusals import Refusal

__all__ = ["PublicKey", "check_signature", "public_key"]

SKEW_SECONDS_MAX = 300
COVERED = ("date", "(request-target)", "host")
COVERED_WITH_BODY = ("content-length", "content-type", "x-content-sha256")
SHA256_INFO = bytes.fromhex("3031300d060960864801650304020105000420")
RSA_OID = bytes.fromhex("06092a864886f70d010101")
PARAMETER = re.compile(r'(\w+)="([^"]*)"')


class PublicKey(NamedTuple):
    """An RSA key."""

    modulus: int
    exponent: int


def check_signature(request: HttpRequest, keys: Mapping[str, PublicKey]) -> None:
    """Raises Refusal. Without `keys` any key will do, and only what needs none is checked."""
    scheme, _, rest = request.headers.get("authorization", "").partition(" ")
    given = dict(PARAMETER.findall(rest))
    if scheme != "Signature" or not {"keyId", "algorithm", "headers", "signature"} <= given.keys():
        raise _refused("the Authorization header must be a Signature with keyId, algorithm, headers and signature")
    if given["algorithm"] != "rsa-sha256":
        raise _refused(f"the algorithm is {given['algorithm']}; it must be rsa-sha256")
    covered = given["headers"].lower().split()
    wanted = COVERED + (COVERED_WITH_BODY if request.method in {"POST", "PUT", "PATCH"} else ())
    left_out = [name for name in wanted if name not in covered and not (name == "date" and "x-date" in covered)]
    if left_out:
        raise _refused(f"the signature must cover {', '.join(left_out)}")
    _check_date(request)
    _check_body(request, covered)
    try:
        signature = base64.b64decode(given["signature"], validate=True)
    except binascii.Error:
        raise _refused("the signature is not base64") from None
    if not keys:
        return
    key = keys.get(given["keyId"])
    if key is None or not _verifies(key, _signed_text(request, covered), signature):
        raise _refused("the signature was made by no key that is known here")


def _refused(message: str) -> Refusal:
    return Refusal(401, "NotAuthenticated", f"The required information to complete authentication is wrong: {message}")


def _check_date(request: HttpRequest) -> None:
    text = request.headers.get("x-date") or request.headers.get("date") or ""
    try:
        age_seconds = time.time() - email.utils.parsedate_to_datetime(text).timestamp()
    except (TypeError, ValueError):
        raise _refused(f"the date {text!r} can't be read") from None
    if abs(age_seconds) > SKEW_SECONDS_MAX:
        raise _refused(f"the date is {age_seconds:.0f} seconds off; {SKEW_SECONDS_MAX} are borne")


def _check_body(request: HttpRequest, covered: list[str]) -> None:
    if "x-content-sha256" not in covered:
        return
    digest = base64.b64encode(hashlib.sha256(request.body).digest()).decode()
    if digest != request.headers.get("x-content-sha256"):
        raise _refused("x-content-sha256 is not the digest of the body")


def _signed_text(request: HttpRequest, covered: list[str]) -> bytes:
    lines = []
    for name in covered:
        target = f"{request.method.lower()} {request.target}"
        lines.append(f"{name}: {target if name == '(request-target)' else request.headers.get(name, '')}")
    return "\n".join(lines).encode()


def _verifies(key: PublicKey, text: bytes, signature: bytes) -> bool:
    """RSASSA-PKCS1-v1_5 (RFC 8017, 8.2.2): the padded digest is built and compared, nothing is parsed."""
    size = (key.modulus.bit_length() + 7) // 8
    info = SHA256_INFO + hashlib.sha256(text).digest()
    expected = b"\x00\x01" + b"\xff" * (size - len(info) - 3) + b"\x00" + info
    found = pow(int.from_bytes(signature), key.exponent, key.modulus)
    return len(signature) == size and found.to_bytes(size) == expected


def public_key(pem: str) -> PublicKey:
    """From a file that begins with BEGIN PUBLIC KEY. Raises ValueError."""
    lines = [line for line in pem.strip().splitlines() if not line.startswith("-----")]
    if "BEGIN PUBLIC KEY" not in pem:
        raise ValueError("a public key begins with -----BEGIN PUBLIC KEY-----")
    outer, _ = _part(base64.b64decode("".join(lines)), 0x30)
    algorithm, rest = _part(outer, 0x30)
    if not algorithm.startswith(RSA_OID):
        raise ValueError("the public key is not an RSA key")
    bits, _ = _part(rest, 0x03)
    numbers, _ = _part(bits[1:], 0x30)
    modulus, rest = _part(numbers, 0x02)
    exponent, _ = _part(rest, 0x02)
    return PublicKey(int.from_bytes(modulus), int.from_bytes(exponent))


def _part(data: bytes, tag: int) -> tuple[bytes, bytes]:
    """One element of DER and what follows it."""
    if len(data) < 2 or data[0] != tag:
        raise ValueError("the public key can't be read")
    length, start = data[1], 2
    if length & 0x80:
        count = length & 0x7F
        length, start = int.from_bytes(data[2 : 2 + count]), 2 + count
    return data[start : start + length], data[start + length :]
