"""Lines sent through a throttle to a simulated server, as a broker would: what fails or comes back is sent again."""

from __future__ import annotations

import asyncio
from collections import deque

from broker.domain.errors import ErrorCode
from workers.engine import EngineError
from workers.job_runners import JobRunners
from workers.places import Places
from workers.throttle import Throttle

BUSY = ErrorCode.ENGINE_BUSY


class Server:
    """Takes any number at once. `calls` counts all, `refused` those that it didn't do."""

    def __init__(self, *, answer_s=0.05, refusal_s=0.002, retry_after_s=0.0, code=BUSY):
        self.calls = self.refused = self.done = self.inside = self.most_inside = 0
        self.answer_s, self.refusal_s, self.retry_after_s, self.code = answer_s, refusal_s, retry_after_s, code

    def takes(self, now_s):
        return True

    def asks_for(self, now_s):
        return self.retry_after_s

    async def call(self):
        loop = asyncio.get_running_loop()
        self.calls += 1
        await asyncio.sleep(self.refusal_s / 2)
        if not self.takes(loop.time()):
            self.refused += 1
            await asyncio.sleep(self.refusal_s / 2)
            raise EngineError(self.code, "no", retry_after_s=self.asks_for(loop.time()))
        self.inside += 1
        self.most_inside = max(self.most_inside, self.inside)
        try:
            await asyncio.sleep(self.answer_s)
        finally:
            self.inside -= 1
        self.done += 1


class AtOnce(Server):
    """So many at once."""

    def __init__(self, at_once, **options):
        super().__init__(**options)
        self.at_once = at_once

    def takes(self, now_s):
        return self.inside < self.at_once


class Window(Server):
    """So many in each window of time, which begin at full seconds and a part."""

    def __init__(self, rate, *, window_s=1.0, offset_s=0.0, **options):
        super().__init__(**options)
        self.rate, self.window_s, self.offset_s, self.window, self.taken = rate, window_s, offset_s, -1, 0

    def takes(self, now_s):
        window = (now_s + self.offset_s) // self.window_s
        if window != self.window:
            self.window, self.taken = window, 0
        self.taken += 1
        return self.taken <= self.rate


class Sliding(Server):
    """So many in any stretch of a second."""

    def __init__(self, rate, **options):
        super().__init__(**options)
        self.rate, self.taken = rate, deque()

    def takes(self, now_s):
        while self.taken and self.taken[0] <= now_s - 1.0:
            self.taken.popleft()
        if len(self.taken) >= self.rate:
            return False
        self.taken.append(now_s)
        return True


class Bucket(Server):
    """Tokens come back one by one."""

    def __init__(self, rate, *, size=10, **options):
        super().__init__(**options)
        self.rate, self.size, self.tokens, self.at_s = rate, size, float(size), None

    def takes(self, now_s):
        if self.at_s is not None:
            self.tokens = min(self.size, self.tokens + (now_s - self.at_s) * self.rate)
        self.at_s = now_s
        if self.tokens < 1.0:
            return False
        self.tokens -= 1.0
        return True


class Several(Server):
    """So many servers behind one address, asked in turn, of which one refuses all."""

    def __init__(self, count, **options):
        super().__init__(**options)
        self.count = count

    def takes(self, now_s):
        return self.calls % self.count != 0


class SickFor(Server):
    """Refuses everything until then."""

    def __init__(self, sick_s, **options):
        super().__init__(**options)
        self.sick_s, self.began_s = sick_s, None

    def takes(self, now_s):
        self.began_s = self.began_s if self.began_s is not None else now_s
        return now_s - self.began_s >= self.sick_s


class Hanging(SickFor):
    """Doesn't answer until then: each call times out."""

    async def call(self):
        if self.began_s is None:
            self.began_s = asyncio.get_running_loop().time()
        if asyncio.get_running_loop().time() - self.began_s < self.sick_s:
            self.calls += 1
            await asyncio.sleep(2.0)
            raise EngineError(ErrorCode.ENGINE_TIMEOUT, "no answer")
        await super().call()


class Lane:
    """A broker's lane with so many slots: shards go out, and what wasn't done waits for the next ones.

    After a shard that was handed back the lane rests, 1 s and twice as long each time, 4 s at most; then one job goes.
    """

    def __init__(self, server, *, places=256, slots=2, shard_jobs=128):
        self.server, self.slots, self.shard_jobs = server, slots, shard_jobs
        self.places = Places(places)
        self.throttle = Throttle(self.places, asyncio.get_running_loop().time)
        self.waiting, self.done, self.handed_back, self.rest_s, self.resting = deque(), 0, [], 0.0, 0.0

    async def work(self, lines):
        """Until all are done; how long that took."""
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        self.waiting.extend(range(lines))
        out = set()
        while self.done < lines:
            if self.waiting and len(out) < self.slots and loop.time() >= self.resting:
                size = self.shard_jobs if not self.rest_s else 1
                lines_now = [self.waiting.popleft() for _ in range(min(size, len(self.waiting)))]
                out.add(asyncio.ensure_future(self._shard(lines_now)))
            await asyncio.sleep(0.01)
            for one in [one for one in out if one.done()]:
                out.discard(one)
                one.result()  # a shard that failed would else be waited for without an end
        await asyncio.gather(*out)
        return loop.time() - began_s

    async def _shard(self, lines):
        loop, throttle, left = asyncio.get_running_loop(), self.throttle, dict(enumerate(lines))

        async def run(index):
            mark = throttle.begin()
            try:
                await self.server.call()
            except EngineError as error:
                throttle.failed(mark, error.code, error.retry_after_s)
                loop.call_later(0.5, self.waiting.append, left.pop(index))
            else:
                throttle.succeeded()
                left.pop(index)
                self.done += 1
                self.rest_s = 0.0

        runners = JobRunners(len(lines), run, self.places, throttle=throttle)
        await runners.run_all()
        self.waiting.extendleft(left.values())
        if runners.gave_up or throttle.trouble:
            self.handed_back.append(runners.gave_up)
            self.rest_s = min(max(1.0, 2 * self.rest_s), 4.0)
            self.resting = loop.time() + self.rest_s
