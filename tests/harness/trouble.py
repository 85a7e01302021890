"""Servers in trouble as a plan: which there are, which cells of jobs they have, and what must hold of each.

A cell is some lines of one model and the lanes that run it; a lane is one server. What was seen comes from the output,
the ledger and the servers' own lists of calls.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import msgspec

from tests.flow.program import lane
from tests.harness.sick_server import RETRY_AFTER_S, UNSEEN, SickServer, Terms

__all__ = [
    "ALL_SICK",
    "ALONE",
    "ATTEMPTS",
    "BESIDE",
    "TIMEOUT_S",
    "Attempt",
    "Cell",
    "Plan",
    "Seen",
    "each_apart",
    "encoded",
    "few_lanes",
    "limited",
    "table",
]

ALONE, BESIDE, ALL_SICK = "one lane", "sick beside well", "all sick"
LINES = 10
LIMITED_LINES = 150
TIMEOUT_S = 2.0
"""Of the lanes whose server never answers."""
RECOVERY_S = 5.0
CALLS_A_LINE_MAX = 1.1
CALLS_A_JOB_MAX = 2
_SECOND_WELL_AFTER_S = 3.0  # so much later than the first
_APART_S = 0.125

_UNDER_WAY_S = 1.0
"""Of a call that was sent before the one before it was refused, on a busy machine."""

# As `rules.placement.health` has it for live lanes, at the shortest that chance makes of it.
_RESTS_S = (1.0, 2.0, 4.0)
_SHORTEST = 0.8

ATTEMPTS = """
    SELECT attempt.lane, job.custom_id, attempt.outcome, attempt.error_code, attempt.started_us, attempt.ended_us
    FROM attempt JOIN job ON job.job_id = attempt.job_id
"""


class Cell(msgspec.Struct, frozen=True, kw_only=True):
    """`trouble` and `arrangement` are for people. `well_s`: when the first of its lanes is well, 0 if one always is."""

    name: str
    trouble: str
    arrangement: str
    lanes: tuple[str, ...]
    well_s: float
    lines: int = LINES

    @property
    def ids(self) -> list[str]:
        """The custom_id of each of its lines."""
        return [f"{self.name}/{number}" for number in range(self.lines)]

    def requests(self) -> Iterator[dict[str, Any]]:
        """Its lines."""
        for custom_id in self.ids:
            body = {"model": self.name, "messages": [{"role": "user", "content": f"say {custom_id}"}]}
            yield {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body}


class Attempt(NamedTuple):
    """A row of ATTEMPTS."""

    lane: str
    custom_id: str
    outcome: str
    error_code: str | None
    started_us: int
    ended_us: int


class Plan(NamedTuple):
    """The servers and the cells. Lanes that are nowhere the first are three times as dear as the others."""

    servers: list[Terms]
    cells: list[Cell]

    def catalog(self, urls: dict[str, str], **fields: Any) -> str:
        """Its lanes, with `fields` for each."""
        return "\n".join(self._lane(place, terms, urls[terms.name], fields) for place, terms in enumerate(self.servers))

    def _lane(self, place: int, terms: Terms, url: str, fields: dict[str, Any]) -> str:
        options = {"base_url": url, "use_proxy": True}
        settings = {"jobs_per_second": 20.0, "shard_jobs_max": 8, **fields}
        if terms.at_once or terms.per_second:
            settings |= {"jobs_per_second": 200.0, "shard_jobs_max": 64}
        return lane(
            terms.name,
            ("oracle-gpu", "google-tpu")[place % 2],
            price="1.00" if any(terms.name == cell.lanes[0] for cell in self.cells) else "3.00",
            driver="openai_http",
            models=[cell.name for cell in self.cells if terms.name in cell.lanes],
            options=options,
            request_timeout_seconds=TIMEOUT_S if terms.trouble == "no answer" else 20.0,
            **settings,
        )

    def requests(self) -> Iterator[dict[str, Any]]:
        """All cells' lines, taken in turn, so that no cell waits for another's."""
        left = [cell.requests() for cell in self.cells]
        while left:
            for lines in list(left):
                if (line := next(lines, None)) is None:
                    left.remove(lines)
                else:
                    yield line


def _short(trouble: str) -> str:
    return re.sub("[^a-z0-9]+", "-", trouble.lower())


def each_apart(troubles: Sequence[str], longer: Sequence[str], *, sick_s: float = 8.0, longer_s: float = 20.0) -> Plan:
    """Each cell with lanes of its own: each trouble in all three arrangements, `longer` ones also for `longer_s`."""
    plan = Plan([], [])
    for place, trouble in enumerate(troubles):
        for arrangement in (ALONE, BESIDE, ALL_SICK):
            # Not all at the same moment, which would be a trial of the machine.
            _add(plan, trouble, arrangement, sick_s + _APART_S * place)
    for trouble in longer:
        _add(plan, trouble, ALONE, longer_s)
    return plan


def _add(plan: Plan, trouble: str, arrangement: str, sick_s: float) -> None:
    name = f"{_short(trouble)}-{_short(arrangement)}-{int(sick_s)}s"
    first = Terms(name=f"{name}-a", trouble=trouble, well_after_s=math.inf if arrangement == BESIDE else sick_s)
    servers = {
        ALONE: [first],
        BESIDE: [first, Terms(name=f"{name}-b")],
        ALL_SICK: [first, Terms(name=f"{name}-b", trouble=trouble, well_after_s=sick_s + _SECOND_WELL_AFTER_S)],
    }[arrangement]
    plan.servers.extend(servers)
    lanes = tuple(one.name for one in servers)
    well_s = 0.0 if arrangement == BESIDE else sick_s
    plan.cells.append(Cell(name=name, trouble=trouble, arrangement=arrangement, lanes=lanes, well_s=well_s))


def few_lanes(alone: Sequence[str], beside: Sequence[str], prefix: str, *, sick_s: float = 8.0) -> Plan:
    """For what has a process to each lane: one for each trouble alone, one for each beside the same well one.

    All lanes with a trouble alone have another cell together.
    """
    plan = Plan([], [])
    well = Terms(name=f"{prefix}well")
    for arrangement, troubles in ((ALONE, alone), (BESIDE, beside)):
        for trouble in troubles:
            name = f"{prefix}{_short(trouble)}-{_short(arrangement)}"
            is_alone = arrangement == ALONE
            plan.servers.append(Terms(name=name, trouble=trouble, well_after_s=sick_s if is_alone else math.inf))
            lanes, well_s = ((name,), sick_s) if is_alone else ((name, well.name), 0.0)
            plan.cells.append(Cell(name=name, trouble=trouble, arrangement=arrangement, lanes=lanes, well_s=well_s))
    sick = tuple(one.name for one in plan.servers if one.well_after_s == sick_s)
    plan.cells.append(
        Cell(name=f"{prefix}all", trouble="each another", arrangement=ALL_SICK, lanes=sick, well_s=sick_s)
    )
    plan.servers.append(well)
    return plan


def limited() -> Plan:
    """A server that allows 10 requests a second, and one that allows 4 at once."""
    servers = [Terms(name="rate10", per_second=10), Terms(name="atonce4", at_once=4)]
    cells = [
        Cell(name=one.name, trouble=trouble, arrangement=ALONE, lanes=(one.name,), well_s=0.0, lines=LIMITED_LINES)
        for one, trouble in zip(servers, ("10 requests a second", "4 at once"), strict=True)
    ]
    return Plan(servers, cells)


class Found(NamedTuple):
    """A cell's row. `first_s`: from when a lane could do it to its first success.

    That is from the health of the first of its lanes, or when its server wanted to be asked again; where one is always
    well, from its first call. `last_s`: its last success, of the whole run's time.
    """

    cell: Cell
    succeeded: int
    failed: int
    calls: int
    sick_calls: int
    first_s: float
    last_s: float
    faults: list[str]


class Seen:
    """What became of a plan: `good` and `bad` are the custom_ids in the two files."""

    def __init__(
        self,
        plan: Plan,
        servers: dict[str, SickServer],
        attempts: Iterable[Sequence[Any]],
        good: Iterable[str],
        bad: Iterable[str],
    ) -> None:
        self._servers = servers
        self._attempts = [Attempt(*row) for row in attempts]
        self._good, self._bad = Counter(good), Counter(bad)
        self.plan = plan

    def found(self, cell: Cell) -> Found:
        """All that is wrong with a cell, in words, and its numbers."""
        ids = set(cell.ids)
        calls = [(name, call) for name in cell.lanes for call in self._servers[name].calls if call.job in ids]
        good_s = sorted(call.second for _, call in calls if call.is_good)
        first_s, last_s = (good_s[0], good_s[-1]) if good_s else (math.inf, math.inf)
        attempts = [one for one in self._attempts if one.custom_id in ids]
        waited_s = _after_its_first_call_s(attempts) if cell.well_s == 0 else first_s - self._due_s(cell)
        sick = Counter((one.lane, one.custom_id) for one in attempts if one.outcome != "succeeded")
        faults = [*self._ends(cell), *(fault for name in cell.lanes for fault in self._of_server(name))]
        if waited_s > RECOVERY_S:
            faults.append(f"its first success came {waited_s:.1f} s after a lane could do it")
        if cell.lines == LIMITED_LINES and len(calls) > CALLS_A_LINE_MAX * cell.lines:
            faults.append(f"{len(calls)} calls for {cell.lines} lines")
        return Found(
            cell,
            sum(self._good[one] for one in ids),
            sum(self._bad[one] for one in ids),
            len(attempts),
            sum(sick.values()),
            max(0.0, waited_s),
            last_s,
            faults,
        )

    def _ends(self, cell: Cell) -> Iterator[str]:
        for one in cell.ids:
            if self._good[one] + self._bad[one] != 1:
                yield f"{one} stands {self._good[one]} times in the output and {self._bad[one]} times among the errors"
            elif self._bad[one]:
                last = [(row.lane, row.error_code) for row in self._attempts if row.custom_id == one]
                yield f"{one} ended though a lane could do it, after {last}"

    def _due_s(self, cell: Cell) -> float:
        """From when on one of its lanes can be expected to do its jobs."""
        return min(self._due_of(self._servers[name]) for name in cell.lanes)

    def _due_of(self, server: SickServer) -> float:
        due_s = server.terms.well_after_s
        if "Retry-After" in server.terms.trouble:
            asked = RETRY_AFTER_S + ("date" in server.terms.trouble)  # a date is rounded up
            due_s = max([due_s, *(call.second + asked for call in server.calls if not call.is_good)])
        return due_s + (TIMEOUT_S if server.terms.trouble == "no answer" else 0.0)

    def _of_server(self, name: str) -> Iterator[str]:
        """Its calls are the ledger's attempts, and while it was sick it got few."""
        server = self._servers[name]
        rows = [one for one in self._attempts if one.lane == name]
        # With little time to answer, that may be over before the call is there.
        unseen = len(rows) - len(server.calls) if server.terms.trouble == "no answer" else 0
        if server.terms.trouble not in UNSEEN and len(rows) != len(server.calls) + max(0, unseen):
            yield f"{name} got {len(server.calls)} calls and has {len(rows)} attempts in the ledger"
        failed = Counter(one.custom_id for one in rows if one.outcome != "succeeded")
        if server.terms.at_once or server.terms.per_second:
            return
        until_s = min(server.terms.well_after_s, self._needed_until_s(name))
        too_many = sum(max(0, count - CALLS_A_JOB_MAX) for count in failed.values())
        if too_many > back_offs(until_s):
            most = failed.most_common(5)
            yield f"{name} got {too_many} calls beyond {CALLS_A_JOB_MAX} a job in {until_s:.0f} s: {most}"
        if not server.terms.trouble and failed:
            yield f"{name} was well, and failed {failed.most_common(5)}"
        if "Retry-After" in server.terms.trouble:
            yield from _left_alone(server)

    def _needed_until_s(self, name: str) -> float:
        """When the last job that it may do was done, by whomever."""
        ids = {one for cell in self.plan.cells if name in cell.lanes for one in cell.ids}
        seconds = (call.second for server in self._servers.values() for call in server.calls if call.job in ids)
        return max(seconds, default=math.inf)


def _after_its_first_call_s(attempts: list[Attempt]) -> float:
    """How long a cell with a well lane waited for its first success, but for a call that was not answered."""
    ended = [one.ended_us for one in attempts if one.outcome == "succeeded"]
    if not ended:
        return math.inf
    timed_out = any(one.error_code == "engine_timeout" for one in attempts)
    return (min(ended) - min(one.started_us for one in attempts)) / 1e6 - TIMEOUT_S * timed_out


def back_offs(seconds: float) -> int:
    """How many rests may end within so long."""
    count, until_s = 0, _RESTS_S[0] * _SHORTEST
    while until_s <= seconds and count < 1_000:
        count += 1
        until_s += _RESTS_S[min(count, len(_RESTS_S) - 1)] * _SHORTEST
    return count


def _left_alone(server: SickServer) -> Iterator[str]:
    """Whether calls came while it wanted none; those under way when it first said so don't count."""
    refused_s = [call.second for call in server.calls if not call.is_good]
    for before_s, call in zip(refused_s, server.calls[1:], strict=False):
        if _UNDER_WAY_S < call.second - before_s < RETRY_AFTER_S - 0.1:
            yield f"{server.terms.name} was called {call.second - before_s:.1f} s after it asked for {RETRY_AFTER_S} s"


def table(rows: Iterable[Found]) -> str:
    """The rows, for people."""
    head = f"{'trouble':28} {'arrangement':18} succeeded failed calls sick first s  last s"
    return "\n".join([head, *map(_line, rows)])


def _line(one: Found) -> str:
    return (
        f"{one.cell.trouble:28} {one.cell.arrangement:18} {one.succeeded:9} {one.failed:6} {one.calls:5} "
        f"{one.sick_calls:4} {one.first_s:7.1f} {one.last_s:7.1f} {'; '.join(one.faults)}"
    )


def encoded(requests: Iterable[dict[str, Any]]) -> bytes:
    """As JSONL."""
    return b"".join(json.dumps(line).encode() + b"\n" for line in requests)
