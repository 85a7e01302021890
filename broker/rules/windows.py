"""How long a job or batch may take: texts such as 90s, 15m, 24h or 2d, and moments in time."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

__all__ = ["WINDOW_SECONDS_MAX", "deadline_us_of", "window_seconds_of"]

WINDOW_SECONDS_MAX = 30 * 86_400
"""Nothing waits longer than 30 days."""

_UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def window_seconds_of(text: str) -> int:
    """Seconds of a window such as 90s, 15m, 1h or 2d. Raises ValueError, saying what is allowed."""
    match = re.fullmatch(r"([0-9]{1,9})([smhd])", text.strip().lower())
    found = int(match[1]) * _UNITS[match[2]] if match else 0
    if not 0 < found <= WINDOW_SECONDS_MAX:
        raise ValueError(f"{text[:40]!r}; it must be between 1s and 30d, such as 15m, 1h or 24h")
    return found


def deadline_us_of(text: str, now_us: int) -> int:
    """Unix microseconds of a moment such as 2026-11-22T10:00:00Z. Raises ValueError, saying what is allowed."""
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        raise ValueError(f"{text[:40]!r}; it must be a time such as 2026-11-22T10:00:00Z") from None
    if moment.tzinfo is None:
        raise ValueError(f"{text[:40]!r}; it must name its time zone, such as 2026-11-22T10:00:00Z")
    found = (moment - _EPOCH) // timedelta(microseconds=1)
    if not now_us < found <= now_us + WINDOW_SECONDS_MAX * 1_000_000:
        raise ValueError(f"{text[:40]!r}; it must lie ahead, by at most 30 days")
    return found
