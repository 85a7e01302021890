"""`make bench`: figures measured here and now, peers beside us in the same run; `ONLY=group` for one group.

Prints a table and writes one flat object to build/bench.json. Rates on small shared machines wander, so CPU
microseconds per job stand beside them; compare figures of one run only.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec

from tests.bench import buses, clouds, embedded, engines, placement

__all__ = ["main"]

GROUPS: dict[str, Callable[[Path], dict[str, float]]] = {
    "embedded": embedded.measure,
    "engine": engines.measure,
    "buses": buses.measure,
    "clouds": clouds.measure,
    "placement": placement.measure,
}


def main() -> int:
    """Run the groups asked for."""
    only = os.environ.get("ONLY", "")
    if only and only not in GROUPS:
        sys.stderr.write(f"ONLY is {only!r}; there are: {', '.join(GROUPS)}\n")
        return 2
    build = Path("build")
    build.mkdir(exist_ok=True)
    figures: dict[str, float] = {}
    for name, measure in GROUPS.items():
        if not only or name == only:
            figures |= measure(build)
    (build / "bench.json").write_bytes(msgspec.json.format(msgspec.json.encode(figures)) + b"\n")
    sys.stdout.write(f"\nwritten: {build / 'bench.json'}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
