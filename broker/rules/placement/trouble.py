"""Which lanes get no work now, although they are there: they have work and bring nothing, or were at fault."""

from __future__ import annotations

__all__ = ["silence"]

_PATIENCE_S = 3.0
_JOB_TIMES = 3.0


def silence(waited_s: float, job_s: float) -> str | None:
    """Why a lane that has shards, and of which nothing was heard for so long, gets no more; None while that is normal.

    `job_s`: how long one job is believed to take there, on a busy instance. It is over with the lane's next word, or
    when what it had was taken back.
    """
    if waited_s <= max(_PATIENCE_S, _JOB_TIMES * job_s):
        return None
    return f"silent: it has work, and nothing was heard of it for {waited_s:.0f} s"
