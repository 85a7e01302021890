"""No module imports itself by way of others, also not for types alone."""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PEER = "infra.emulators.servicebus.peer"
FOLDERS = ("broker", "workers", "infra", "migrations", "tests")


def sources() -> dict[str, str]:
    """The text of each module, by its dotted name."""
    modules = {}
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path.read_text()
    return modules


def imported(name: str, text: str, modules: Collection[str]) -> Iterator[str]:
    """The modules among `modules` that this one imports: at its top, inside a function, or for a type checker."""
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.Import():
                targets = [alias.name for alias in node.names]
            case ast.ImportFrom(module=str(module), level=0):
                targets = [
                    f"{module}.{alias.name}" if f"{module}.{alias.name}" in modules else module for alias in node.names
                ]
            case _:
                continue
        yield from (target for target in targets if target in modules and target != name)


def circle(graph: Mapping[str, set[str]]) -> list[str]:
    """The modules of one circle, each importing the next, or nothing."""
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return list(reversed(error.args[1]))
    return []


SOURCES = sources()
GRAPH = {name: set(imported(name, text, SOURCES)) for name, text in SOURCES.items()}


def test_no_module_imports_itself_by_way_of_others():
    assert circle(GRAPH) == []


def test_all_folders_are_looked_at():
    for name in ("broker.stages.relay", "workers.runner", "infra.emulators.ociqueue.server", "tests.harness.stand"):
        assert name in GRAPH
    assert "workers.job_runners" in GRAPH["workers.runner"]


@pytest.mark.parametrize(
    ("planted", "imports"),
    [
        ("broker.domain.money", "import broker.rules.pricing"),
        ("workers.places", "def late():\n    from workers.runner import ShardRunner"),
        ("broker.signing", "if TYPE_CHECKING:\n    from broker.bus import envelope"),
        (f"{PEER}.links", f"if TYPE_CHECKING:\n    import {PEER}.session"),
    ],
    ids=["plain", "inside a function", "for types, by its package", "for types, in an emulator"],
)
def test_a_planted_circle_is_found(planted, imports):
    text = f"{SOURCES[planted]}\n{imports}\n"
    met = circle({**GRAPH, planted: set(imported(planted, text, SOURCES))})
    assert planted in met
    assert met[0] == met[-1]
