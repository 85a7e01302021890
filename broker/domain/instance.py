"""An instance: one machine of a lane, from its worker's first word to its last."""

from __future__ import annotations

from enum import StrEnum

__all__ = ["InstanceState", "instance_hours_us"]


class InstanceState(StrEnum):
    """As its worker says it, or doesn't. Only `lost` is taken back: by another word of the same worker."""

    STARTING = "starting"  # the process is there, the engine isn't yet
    RUNNING = "running"
    DRAINING = "draining"  # takes nothing more, hands back what it has
    STOPPED = "stopped"
    LOST = "lost"  # not a word for too long

    @property
    def is_live(self) -> bool:
        """Whether the machine is believed to be up, and paid for."""
        return self not in {InstanceState.STOPPED, InstanceState.LOST}


def instance_hours_us(
    state: InstanceState, started_us: int, stopped_us: int | None, last_seen_us: int, now_us: int
) -> int:
    """Microseconds that the instance is known to have been up: to its stop, to its last word if lost, else to now."""
    until_us = now_us if state.is_live else last_seen_us if stopped_us is None else stopped_us
    return max(0, until_us - started_us)
