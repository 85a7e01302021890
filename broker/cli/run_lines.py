"""What a run says where nobody watches: in a log file, under cron, in CI."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from broker.cli.printing import resting_words

if TYPE_CHECKING:
    from broker.health import Rest

__all__ = ["RunLines"]

_AGAIN_SECONDS = 30.0


class RunLines:
    """A line at the start and every 30 s, and one at once where a lane begins to rest, for another reason, or is back.

    A lane that comes and goes is told of once in 30 s. `now_s` is any clock's, from `look` to `look`.
    """

    def __init__(self) -> None:
        self._told_s: float | None = None
        self._resting: dict[str, str] = {}
        self._lane_told_s: dict[str, float] = {}

    def look(self, now_s: float, state: str, resting: Mapping[str, Rest], on_trial: Collection[str]) -> list[str]:
        """The lines to print now. `state`: how far it is; `on_trial`: lanes that are tried after a rest."""
        if self._told_s is None or now_s - self._told_s >= _AGAIN_SECONDS:
            self._told_s = now_s
            tried = {lane: code for lane, code in self._resting.items() if lane in on_trial}
            self._resting = tried | {lane: rest.code for lane, rest in resting.items()}
            self._lane_told_s |= dict.fromkeys(resting, now_s)
            words = ", ".join(resting_words(lane, rest) for lane, rest in sorted(resting.items()))
            return [f"{state}; resting: {words}" if words else state]
        return [*self._newly_resting(now_s, resting), *self._back(resting, on_trial)]

    def _newly_resting(self, now_s: float, resting: Mapping[str, Rest]) -> list[str]:
        lines = []
        for lane, rest in sorted(resting.items()):
            is_new = self._resting.get(lane) != rest.code
            if is_new and now_s - self._lane_told_s.get(lane, float("-inf")) >= _AGAIN_SECONDS:
                self._resting[lane], self._lane_told_s[lane] = rest.code, now_s
                lines.append(f"Resting: {resting_words(lane, rest)}")
        return lines

    def _back(self, resting: Mapping[str, Rest], on_trial: Collection[str]) -> list[str]:
        back = sorted(lane for lane in self._resting if lane not in resting and lane not in on_trial)
        for lane in back:
            del self._resting[lane]
        return [f"Back at work: {lane}" for lane in back]
