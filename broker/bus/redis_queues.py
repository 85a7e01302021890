"""Queues in Redis that lose nothing between two commands: each step is one script, atomic on the server.

A queue is a list of items: one byte that counts deliveries, then the message. Taking an item moves it, in the same
script, into the hash of the unacknowledged, with the server's time in an index beside it; so a consumer that dies
loses nothing, and clocks of consumers don't matter. Consumers block on a second list, the bell, never on the queue:
a lost ring costs a second, a lost item would be a lost message. Needs Redis 6.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

__all__ = ["RedisQueues", "Taken", "bell_of"]

_BELL = "\x06bell"
DEAD_LETTERS_MAX = 10_000
PUSH_BYTES_MAX = 8_000_000

_NOW = "local time = redis.call('TIME'); local now = time[1] + time[2] / 1000000\n"
_RING = (
    "local function ring(queue) if redis.call('EXISTS', queue) == 1 and redis.call('EXISTS', queue .. '\\6bell') == 0 "
    "then redis.call('LPUSH', queue .. '\\6bell', '') end end\n"
)
_RESTORE = _RING + (
    "local function restore(tag) local saved = redis.call('HGET', KEYS[1], tag); redis.call('ZREM', KEYS[2], tag); "
    "if saved then local at = string.find(saved, '\\n', 1, true); local queue = string.sub(saved, 1, at - 1); "
    "redis.call('RPUSH', queue, string.sub(saved, at + 1)); redis.call('HDEL', KEYS[1], tag); ring(queue) end end\n"
)

# KEYS: queue. ARGV: the most the queue may hold, items. Answers how many were taken, from the first on.
_PUSH = (
    _RING
    + """
local count = math.min(#ARGV - 1, math.max(0, tonumber(ARGV[1]) - redis.call('LLEN', KEYS[1])))
for i = 2, count + 1 do redis.call('LPUSH', KEYS[1], ARGV[i]) end
ring(KEYS[1])
return count
"""
)

# KEYS: queue. ARGV: the most the queue keeps, items. What is oldest goes.
_PUSH_NEWEST = (
    _RING
    + """
for i = 2, #ARGV do redis.call('LPUSH', KEYS[1], ARGV[i]) end
redis.call('LTRIM', KEYS[1], 0, tonumber(ARGV[1]) - 1)
ring(KEYS[1])
return #ARGV - 1
"""
)

# KEYS: unacknowledged, index, queue, counter of tags. ARGV: how many.
_TAKE = (
    _NOW
    + _RING
    + """
local taken = {}
for _, item in ipairs(redis.call('RPOP', KEYS[3], ARGV[1]) or {}) do
  local count = string.byte(item, 1) or 0
  item = string.char(math.min(count + 1, 255)) .. string.sub(item, 2)
  local tag = tostring(redis.call('INCR', KEYS[4]))
  redis.call('HSET', KEYS[1], tag, KEYS[3] .. '\\n' .. item)
  redis.call('ZADD', KEYS[2], now, tag)
  taken[#taken + 1] = tag
  taken[#taken + 1] = item
end
ring(KEYS[3])
return taken
"""
)

# KEYS: unacknowledged, index. ARGV: tags, in the order in which they came.
_GIVE_BACK = _RESTORE + "for i = #ARGV, 1, -1 do restore(ARGV[i]) end"

# KEYS: unacknowledged, index. ARGV: tags.
_RENEW = _NOW + "for _, tag in ipairs(ARGV) do redis.call('ZADD', KEYS[2], 'XX', now, tag) end"

# KEYS: unacknowledged, index. ARGV: seconds after which an unrenewed one counts as abandoned.
_SWEEP = (
    _NOW
    + _RESTORE
    + """
local tags = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now - ARGV[1], 'LIMIT', 0, 100)
for i = #tags, 1, -1 do restore(tags[i]) end
return #tags
"""
)

# KEYS: unacknowledged, index. ARGV: the most dead letters to keep, reason, tags.
_DEAD_LETTER = """
for i = 3, #ARGV do
  local saved = redis.call('HGET', KEYS[1], ARGV[i])
  if saved then
    local at = string.find(saved, '\\n', 1, true)
    local dead = string.sub(saved, 1, at - 1) .. '-dead'
    redis.call('LPUSH', dead, ARGV[2] .. '\\n' .. string.sub(saved, at + 2))
    redis.call('LTRIM', dead, 0, tonumber(ARGV[1]) - 1)
    redis.call('HDEL', KEYS[1], ARGV[i])
  end
  redis.call('ZREM', KEYS[2], ARGV[i])
end
"""

# KEYS: queue.
_RING_IF_ANY = _RING + "ring(KEYS[1])"


class Taken(NamedTuple):
    """A message on its way: `attempts` counts its deliveries, this one included."""

    tag: str
    data: bytes
    attempts: int


class RedisQueues:
    """The queues behind one `redis.Redis`. Each call is one round trip, or a few where it carries megabytes."""

    def __init__(self, client: Any, prefix: str = "") -> None:
        self._client = client
        self._prefix = prefix
        self._unacked = [f"{prefix}lane-unacked", f"{prefix}lane-unacked-index"]
        self._push = client.register_script(_PUSH)
        self._push_newest = client.register_script(_PUSH_NEWEST)
        self._take = client.register_script(_TAKE)
        self._give_back = client.register_script(_GIVE_BACK)
        self._renew = client.register_script(_RENEW)
        self._sweep = client.register_script(_SWEEP)
        self._dead_letter = client.register_script(_DEAD_LETTER)
        self._ring = client.register_script(_RING_IF_ANY)

    def push(self, queue: str, items: Sequence[bytes], size_max: int) -> int:
        """Append until the queue holds `size_max`; how many of them, from the first on, are in."""
        done = 0
        for chunk in _chunks(items):
            count = int(self._push(keys=[self._prefix + queue], args=[size_max, *(b"\0" + item for item in chunk)]))
            done += count
            if count < len(chunk):
                break
        return done

    def push_newest(self, queue: str, items: Sequence[bytes], kept_max: int) -> int:
        """Append all of them, and keep the newest `kept_max`; how many were appended."""
        for chunk in _chunks(items):
            self._push_newest(keys=[self._prefix + queue], args=[kept_max, *(b"\0" + item for item in chunk)])
        return len(items)

    def take(self, queue: str, count: int) -> list[Taken]:
        """Up to so many messages, from now on unacknowledged; doesn't wait."""
        keys = [*self._unacked, self._prefix + queue, f"{self._prefix}lane-tags"]
        flat = self._take(keys=keys, args=[count])
        return [Taken(tag.decode(), item[1:], item[0]) for tag, item in zip(flat[::2], flat[1::2], strict=True)]

    def acknowledge(self, tags: Sequence[str]) -> None:
        """Remove messages for good; unknown tags are no error."""
        with self._client.pipeline(transaction=True) as pipe:
            pipe.zrem(self._unacked[1], *tags)
            pipe.hdel(self._unacked[0], *tags)
            pipe.execute()

    def give_back(self, tags: Sequence[str]) -> None:
        """Put messages back to where they were taken from, before all others; unknown tags are no error."""
        self._give_back(keys=self._unacked, args=list(tags))

    def renew(self, tags: Sequence[str]) -> None:
        """Hold messages for another while."""
        self._renew(keys=self._unacked, args=list(tags))

    def sweep(self, age_seconds: float) -> int:
        """Put back up to a hundred messages that nobody has renewed for so long; how many."""
        return int(self._sweep(keys=self._unacked, args=[age_seconds]))

    def dead_letter(self, tags: Sequence[str], reason: str) -> None:
        """Move messages into `<queue>-dead`, of which the newest ten thousand are kept."""
        self._dead_letter(keys=self._unacked, args=[DEAD_LETTERS_MAX, reason, *tags])

    def dead_letters(self, queue: str) -> list[tuple[bytes, str]]:
        """Data and reason of the dead letters, oldest first."""
        found = [letter.partition(b"\n") for letter in self._client.lrange(f"{self._prefix}{queue}-dead", 0, -1)]
        return [(data, reason.decode()) for reason, _, data in reversed(found)]

    def size(self, queue: str) -> int:
        """How many messages wait, not counting the unacknowledged."""
        return int(self._client.llen(self._prefix + queue))

    def purge(self, queue: str) -> int:
        """Drop what waits; how many."""
        with self._client.pipeline(transaction=True) as pipe:
            pipe.llen(self._prefix + queue)
            pipe.delete(self._prefix + queue, bell_of(self._prefix + queue))
            return int(pipe.execute()[0])

    def ring(self, queue: str) -> None:
        """Wake a consumer if there is anything for it."""
        self._ring(keys=[self._prefix + queue])


def bell_of(queue: str) -> str:
    """The list that consumers of the queue block on."""
    return queue + _BELL


def _chunks(items: Sequence[bytes]) -> list[list[bytes]]:
    chunks: list[list[bytes]] = []
    bytes_left = messages_left = 0
    for item in items:
        if len(item) > bytes_left or messages_left == 0:
            chunks.append([])
            bytes_left, messages_left = PUSH_BYTES_MAX, 1_000
        chunks[-1].append(item)
        bytes_left -= len(item)
        messages_left -= 1
    return chunks
