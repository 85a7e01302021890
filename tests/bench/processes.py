"""Processes of a benchmark, and the CPU that they and all they started have used, by the kernel's account."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

__all__ = ["Run", "cpu_seconds", "running", "timed", "wait_until"]

_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
_STOP_SECONDS = 20.0


class Run(msgspec.Struct):
    """One run of a command: wall seconds, CPU seconds of it and its children, peak resident memory."""

    wall_seconds: float
    cpu_seconds: float
    rss_mb: float


def timed(command: Sequence[str]) -> Run:
    """Run to the end; memory and CPU are the kernel's own account of the process."""
    started = time.monotonic()
    quiet = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
    process = os.posix_spawnp(command[0], command, os.environ, file_actions=quiet)
    _, status, usage = os.wait4(process, 0)
    wall = time.monotonic() - started
    if status:
        raise SystemExit(f"{' '.join(command)} ended with {os.waitstatus_to_exitcode(status)}")
    return Run(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def cpu_seconds(pids: Sequence[int]) -> float:
    """User and system time of these processes and their descendants, ended ones that were waited for included."""
    parents: dict[int, int] = {}
    used: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has just ended
        parents[int(entry.name)] = int(fields[1])
        used[int(entry.name)] = sum(int(ticks) for ticks in fields[11:15])
    return sum(ticks for pid, ticks in used.items() if _descends(pid, set(pids), parents)) / _TICKS_PER_SECOND


def _descends(pid: int, roots: set[int], parents: Mapping[int, int]) -> bool:
    while pid:
        if pid in roots:
            return True
        pid = parents.get(pid, 0)
    return False


@contextmanager
def running(arguments: Sequence[str], log: Path, variables: Mapping[str, str] = {}) -> Iterator[int]:
    """`python -m` with these arguments, its output in `log`, stopped with SIGTERM at the end; its process number."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", *arguments], stdout=output, stderr=output, env={**os.environ, **variables}
        )
    try:
        yield process.pid
    finally:
        process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_until(what: str, condition: Callable[[], bool], seconds: float) -> None:
    """Look ten times a second; SystemExit with `what` when the time is over."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit(f"{what} did not happen within {seconds:g} s")
        time.sleep(0.1)
