"""A reply that is JSON but for a detail, made JSON that every reader takes; what is well formed stays as it came.

Servers cut an answer amid a character, write NaN where a probability is none, and put a byte order mark before it all.
The answer was paid for, and none of that is the answer.
"""

from __future__ import annotations

import re

__all__ = ["mended"]

_BOM = b"\xef\xbb\xbf"
# Possessive, so that a long text costs no way back. A string that doesn't end is left to the decoder.
_STRING_OR_CONSTANT = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|-?\b(?:NaN|Infinity)\b', re.DOTALL)
_ESCAPE = re.compile(
    rb"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"  # a pair: one character
    rb"|(\\u[dD][89a-fA-F][0-9a-fA-F]{2})"  # half of one
    rb"|\\.",
    re.DOTALL,
)
_CONTROL = re.compile(rb"[\x00-\x1f]")
_REPLACEMENT = rb"\ufffd"


def mended(body: bytes) -> bytes:
    """The body in UTF-8, without a byte order mark; null for NaN and Infinity, U+FFFD for halves of characters."""
    whole = body.removeprefix(_BOM).decode("utf-8", "replace").encode()
    return _STRING_OR_CONSTANT.sub(_mend, whole)


def _mend(found: re.Match[bytes]) -> bytes:
    text = found[0]
    if not text.startswith(b'"'):
        return b"null"
    if b"\\u" in text:
        text = _ESCAPE.sub(lambda escape: _REPLACEMENT if escape[1] else escape[0], text)
    return _CONTROL.sub(lambda control: rb"\u%04x" % ord(control[0]), text)
