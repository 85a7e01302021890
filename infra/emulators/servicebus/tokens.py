"""Who may do what: shared access signatures checked, JWTs looked into.

A SAS token is verified against the keys. Of a JWT only form and expiry are checked, never the signature: there is
no identity provider here.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

__all__ = ["Grant", "RefusedToken", "check_token", "path_of"]

SAS = "SharedAccessSignature "


class RefusedToken(Exception):
    """The text says what is wrong with the token, without repeating it."""


class Grant(NamedTuple):
    """Everything at or below `path` (lower case, "" for all) until a moment."""

    path: str
    until_ms: int

    def covers(self, path: str) -> bool:
        return not self.path or path == self.path or path.startswith(self.path + "/")


def path_of(address: str) -> str:
    """The path of an address with or without scheme and host: lower case, without outer slashes."""
    path = urlsplit(address).path if "://" in address else address
    return unquote(path).strip("/").lower()


def check_token(token: str, keys: Mapping[str, str], audience: str | None, now_ms: int) -> Grant:
    """What the token allows. `audience` narrows it to what was asked for; without keys any SAS token passes."""
    text = token.strip()
    if text.startswith(SAS):
        grant = _check_sas(text.removeprefix(SAS), keys, now_ms)
    else:
        grant = _check_jwt(text.removeprefix("Bearer ").strip(), now_ms)
    if audience is None:
        return grant
    wanted = path_of(audience)
    if not grant.covers(wanted):
        raise RefusedToken(f"InvalidAudience: the token is for '{grant.path}', not for '{wanted}'")
    return grant._replace(path=wanted)


def _check_sas(text: str, keys: Mapping[str, str], now_ms: int) -> Grant:
    raw = dict(part.partition("=")[::2] for part in text.split("&"))
    plain = dict(parse_qsl(text, keep_blank_values=True))
    if not {"sr", "sig", "se", "skn"} <= raw.keys() or not plain["se"].isdigit():
        raise RefusedToken("MalformedToken: a SAS token has sr, sig, se and skn")
    until_ms = int(plain["se"]) * 1000
    if keys:
        key = keys.get(plain["skn"])
        # What is signed is the address as it stands in the token, still encoded.
        signed = f"{raw['sr']}\n{raw['se']}".encode()
        expected = base64.b64encode(hmac.new((key or "").encode(), signed, hashlib.sha256).digest()).decode()
        given = unquote(raw["sig"])
        if key is None or not hmac.compare_digest(expected, given):
            raise RefusedToken("InvalidSignature: The token has an invalid signature.")
    if until_ms <= now_ms:
        raise RefusedToken("ExpiredToken: The token is expired.")
    return Grant(path_of(plain["sr"]), until_ms)


def _check_jwt(text: str, now_ms: int) -> Grant:
    parts = text.split(".")
    try:
        if len(parts) != 3:
            raise ValueError("not three parts")
        header, claims = (json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))) for part in parts[:2])
        until_ms = int(claims["exp"]) * 1000
    except (ValueError, KeyError, TypeError) as error:
        raise RefusedToken("MalformedToken: neither a SAS token nor a JWT with an expiry") from error
    if not isinstance(header, dict) or "alg" not in header:
        raise RefusedToken("MalformedToken: a JWT names its algorithm")
    if until_ms <= now_ms:
        raise RefusedToken("ExpiredToken: The token is expired.")
    return Grant("", until_ms)
