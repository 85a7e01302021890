"""The custom_id of a line that can't be read as JSON: whoever sent it knows it by that, not by its number.

A line is read as far as it makes sense: strings and brackets, and nothing of what stands between them. So neither a
NaN, nor a lone surrogate elsewhere, nor an end amid the line hides its name.
"""

from __future__ import annotations

import re
from itertools import islice

import msgspec

__all__ = ["written_name"]

# A string that the line's end cuts off is one token too: else each quote within it would be tried as a beginning.
_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)|[{}\[\]]', re.DOTALL)
_TOKENS_MAX = 10_000
"""A line of nothing but brackets must not keep intake from the others."""

_COLON = re.compile(rb"[ \t]*:[ \t]*")
_KEY = b'"custom_id"'

_decode_text = msgspec.json.Decoder(str).decode


def written_name(line: bytes) -> str | None:
    """What the outermost object calls itself, as far as `line` goes; None where that can't be read."""
    if not line.lstrip().startswith(b"{"):
        return None
    depth = 0
    for token in islice(_TOKEN.finditer(line), _TOKENS_MAX):
        text = token[0]
        if text in b"{[":
            depth += 1
        elif text in b"}]":
            depth -= 1
            if depth <= 0:
                return None
        elif depth == 1 and text == _KEY and (colon := _COLON.match(line, token.end())):
            value = _TOKEN.match(line, colon.end())
            return _decoded(value[0]) if value else None
    return None


def _decoded(text: bytes) -> str | None:
    try:
        text.decode()  # which msgspec leaves to whoever looks at the text
        return _decode_text(text)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
