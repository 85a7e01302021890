"""Constraints as people write them: region=europe-west4, provider!=oracle-gpu, max-cost=0.01; and their checks."""

from __future__ import annotations

import re
from collections.abc import Iterable
from decimal import Decimal
from typing import Any

import msgspec

from broker.domain.job import Constraints
from broker.domain.money import nano_from_usd

__all__ = ["check_constraints", "constraints_of"]

_FIELDS = {
    ("lane", "="): "lanes",
    ("provider", "="): "providers",
    ("provider", "!="): "denied_providers",
    ("region", "="): "regions",
    ("region", "!="): "denied_regions",
    ("market", "="): "markets",
    ("precision", "="): "precisions",
}
_WRITTEN = re.compile(r"([a-z-]+)(!?=)(.+)")
_EXAMPLES = (
    "lane=NAME, provider=NAME, provider!=NAME, region=NAME, region!=NAME, market=NAME, precision=NAME,"
    " interruptible=no, pictures=yes, context-tokens=N, max-cost=USD"
)
_NAMES_MAX = 100
_NAME_CHARS_MAX = 128
_CONTEXT_TOKENS_MAX = 1_000_000_000
_DIGITS_MAX = 18


def constraints_of(texts: Iterable[str]) -> Constraints:
    """What these demand together; names of one kind may be given with commas or one by one. Raises ValueError."""
    fields: dict[str, Any] = {}
    for text in texts:
        match = _WRITTEN.fullmatch(text.strip())
        if match is None:
            raise ValueError(f"{text[:60]!r}; it must be one of {_EXAMPLES}")
        name, sign, value = match[1], match[2], match[3].strip()
        if (name, sign) in _FIELDS:
            field = _FIELDS[name, sign]
            names = [part.strip() for part in value.split(",") if part.strip()]
            if not names:
                raise ValueError(f"{text[:60]!r}, which names none; it must be one of {_EXAMPLES}")
            fields[field] = (*fields.get(field, ()), *names)
        elif (name, sign) == ("interruptible", "=") and value in {"yes", "no"}:
            fields["interruptible"] = value == "yes"
        elif (name, sign) == ("pictures", "=") and value in {"yes", "no"}:
            fields["pictures"] = value == "yes"
        elif (name, sign) == ("context-tokens", "=") and value.isascii() and value.isdigit():
            fields["context_tokens"] = int(value[:_DIGITS_MAX])
        elif (name, sign) == ("max-cost", "="):
            fields["max_cost_usd"] = Decimal(nano_from_usd(value.removeprefix("$"))) / 1_000_000_000
        else:
            raise ValueError(f"{text[:60]!r}; it must be one of {_EXAMPLES}")
    return Constraints(**fields)


def check_constraints(constraints: Constraints) -> Constraints:
    """The same, if its values are of the kind that they must be. Raises ValueError naming field, value and limit."""
    for name in constraints.__struct_fields__:
        found = getattr(constraints, name)
        if isinstance(found, tuple):
            if len(found) > _NAMES_MAX:
                raise ValueError(f"constraints.{name} has {len(found)} names; the limit is {_NAMES_MAX}")
            wrong = next((one for one in found if not 0 < len(one) <= _NAME_CHARS_MAX or "\0" in one), None)
            if wrong is not None:
                raise ValueError(
                    f"constraints.{name} holds {wrong[:40]!r}; a name has 1 to {_NAME_CHARS_MAX} characters, none NUL"
                )
    if not 0 <= constraints.context_tokens <= _CONTEXT_TOKENS_MAX:
        raise ValueError(
            f"constraints.context_tokens is {constraints.context_tokens}; it must be 0 to {_CONTEXT_TOKENS_MAX:,}"
        )
    if constraints.max_cost_usd is not None:
        try:
            nano = nano_from_usd(str(constraints.max_cost_usd))
        except ValueError as error:
            raise ValueError(f"constraints.max_cost_usd: {error}") from None
        return msgspec.structs.replace(constraints, max_cost_usd=Decimal(nano) / 1_000_000_000)
    return constraints
