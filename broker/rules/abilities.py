"""What a request needs that some lanes can do and others can't: told by its bytes, before any server is asked.

Lanes say in the catalog what they can't: `engine.pictures`, `engine.context_tokens`. Where none differs, nothing is
looked at. A need only ever leaves lanes out while another is left.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

import msgspec

from broker.domain.job import Constraints
from broker.domain.lane import EngineSettings
from broker.rules.grouping import canonical_constraints

__all__ = ["CHARS_PER_TOKEN_MAX", "Abilities", "Need", "constrained", "narrowed"]

CHARS_PER_TOKEN_MAX = 8
"""Of a whole prompt, white space left out: no tokenizer was seen to make less of one, in any script."""

_CHAT = "/v1/chat/completions"
_PICTURE = b'"image_url"'
_NOT_TEXT = (_PICTURE, b'"input_audio"', b'"file_data"', b'"file_id"')


class Need(msgspec.Struct, frozen=True):
    """What a request needs: pictures read, and a window of so many tokens."""

    pictures: bool = False
    context_tokens: int = 0


class Abilities(msgspec.Struct, frozen=True):
    """Where the lanes that may run a model differ: in reading pictures, and in the windows that some go beyond."""

    sorts_pictures: bool = False
    windows: tuple[int, ...] = ()

    @classmethod
    def of(cls, engines: Iterable[EngineSettings]) -> Abilities:
        """Those of the lanes that are allowed."""
        every = list(engines)
        stated = sorted({one.context_tokens for one in every if one.context_tokens})
        if stated and all(one.context_tokens for one in every):
            stated.pop()  # nothing goes beyond the largest
        return cls(len({one.pictures for one in every}) > 1, tuple(stated))

    def need(self, endpoint: str, body: bytes) -> Need | None:
        """What this request needs that not all of them can do; None for nothing."""
        if self.sorts_pictures and _PICTURE in body:
            return Need(pictures=True)
        if not self.windows or endpoint != _CHAT or len(body) <= CHARS_PER_TOKEN_MAX * self.windows[0]:
            return None
        if any(part in body for part in _NOT_TEXT):
            return None  # whose bytes say nothing of their tokens
        tokens = _chars(body) // CHARS_PER_TOKEN_MAX
        beyond = [window for window in self.windows if window < tokens]
        return Need(context_tokens=beyond[-1] + 1) if beyond else None


def _chars(body: bytes) -> int:
    """How many characters, but for white space; one that is written as an escape is one."""
    text = body.decode(errors="ignore")
    return sum(map(len, text.split())) - 5 * text.count("\\u") - 2 * text.count("\\n") - 2 * text.count("\\t")


def narrowed(constraints: Constraints, need: Need) -> Constraints:
    """These, and what is needed besides."""
    return msgspec.structs.replace(
        constraints,
        pictures=constraints.pictures or need.pictures,
        context_tokens=max(constraints.context_tokens, need.context_tokens),
    )


@lru_cache(maxsize=4_096)
def constrained(constraints: str, need: Need) -> str:
    """The same of their canonical text."""
    return canonical_constraints(narrowed(msgspec.json.decode(constraints, type=Constraints), need))
