"""Bytes as the text that the service takes, at most 128 KiB of it.

Base64 makes 128 KiB of 96 KiB and costs next to nothing. Base85 makes it of 102 KiB and costs milliseconds, so only
messages that base64 would make too long pay for it. A point, which neither has, marks it.
"""

from __future__ import annotations

import base64
import binascii

__all__ = ["as_bytes", "as_text"]

BASE64_BYTES_MAX = 96_000
BASE85_MARK = "."


def as_text(data: bytes) -> str:
    if len(data) <= BASE64_BYTES_MAX:
        return base64.b64encode(data).decode()
    return BASE85_MARK + base64.b85encode(data).decode()


def as_bytes(text: str) -> bytes:
    """What we put, or the bytes of a text that is not ours."""
    try:
        if text.startswith(BASE85_MARK):
            return base64.b85decode(text.removeprefix(BASE85_MARK))
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return text.encode()
