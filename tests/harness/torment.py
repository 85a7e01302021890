"""Faults at random moments, by a seed: what is hit, when and how, one after the other."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Sequence

from tests.harness.recovery import Blow
from tests.harness.stand import Stand
from tests.harness.supervised import Supervised

__all__ = ["Torment"]


class Torment:
    """Deals blows; `blows` are those that hit workers, `counts` all of them by name."""

    def __init__(self, stand: Stand, seed: int, say: Callable[[str], object] = print) -> None:
        self.random = random.Random(seed)
        self.counts: Counter[str] = Counter()
        self.blows: list[Blow] = []
        self._stand = stand
        self._say = say
        say(f"seed {seed}")

    def kill_some(self, times: int, pause_seconds: float) -> None:
        """kill -9 to roles and workers in turn, each chosen at random; every one of both is hit before any twice."""
        order = [self._shuffled(self._stand.workers, times), self._shuffled(self._stand.roles, times)]
        for number in range(times):
            self.kill(order[number % 2][number // 2])
            time.sleep(self.random.uniform(0.5, 1.5) * pause_seconds)

    def roll(self, times: int, pause_seconds: float) -> None:
        """SIGTERM to one after another, each waited for until another runs in its place."""
        for victim in self._shuffled(self._stand.everything(), times):
            pid = victim.terminate()
            self.counts[f"SIGTERM {_kind(victim)}"] += pid is not None
            victim.wait_for_another(pid)
            time.sleep(self.random.uniform(0.5, 1.5) * pause_seconds)

    def kill(self, victim: Supervised) -> None:
        victim.wait_for_another(None)
        at, pid = time.time(), victim.kill()
        self.counts[f"kill -9 {_kind(victim)}"] += pid is not None
        if victim in self._stand.workers and pid is not None:
            self.blows.append(Blow(at, pid))

    def _shuffled(self, whom: Sequence[Supervised], count: int) -> list[Supervised]:
        order: list[Supervised] = []
        while len(order) < count:
            order += self.random.sample(list(whom), len(whom))
        return order[:count]


def _kind(victim: Supervised) -> str:
    return "worker" if victim.name.startswith("worker-") else f"role {victim.name.split('-', 2)[2]}"
