"""The tree stays small, well named and free of dead ends. Each check is a function, run on the tree and on a plant."""

from __future__ import annotations

import ast
import io
import re
import subprocess
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).parents[2]
PYTHON_FOLDERS = {"broker", "workers", "migrations", "infra", "tests"}
FILE_LINES_MAX = 399
FUNCTION_LINES_MAX = 59
BANNED_WORDS = {"util", "utils", "helper", "helpers", "manager", "managers", "common", "misc", "base"}

# Modules that nobody in broker or workers imports, and why they are alive all the same.
ENTRANCES = {
    "broker.__main__": "python -m broker",
    "broker.bootstrap": "its modules are imported one by one",
    "broker.cli": "the console script",
    "broker.sdk.http": "imported by producers",
    "broker.sdk.jobs_bus": "imported by producers",
    "workers.__main__": "python -m workers",
}

# Written in pieces, so that this file is not its own first finding.
FORBIDDEN_TEXT = [
    re.compile(r"(?<![\w./-])/" + "work/"),
    re.compile("/tmp/" + "bash_jobs"),
    re.compile("/opt/" + r"(wheels|pypi)"),
    re.compile(r"(?<![\w.])/" + r"(Users|home)/(?!(app|broker|nonroot)\b)\w+"),
    re.compile("python" + "hosted"),
    re.compile(r"pypi\." + "org"),
    re.compile(r"registry\." + "npmjs"),
    re.compile(r"deb\." + r"debian\.org"),
]

NOQA = re.compile(r"#\s*(ruff: )?noqa: [A-Z]+\d+(, ?[A-Z]+\d+)*[\s:(#-]+\w+.*\w")
TYPE_IGNORE = re.compile(r"#\s*type: ignore\[[a-z-]+(, ?[a-z-]+)*\][\s:(#-]+\w+.*\w")
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)(?: \"[^\"]*\")?\)")


def tracked() -> dict[str, str]:
    """Every text file that git tracks or would track, by its path from the root."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listing = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    texts = {}
    for name in filter(None, listing.split("\0")):
        path = ROOT / name
        content = path.read_bytes() if path.is_file() else b"\0"
        if b"\0" not in content:
            texts[name] = content.decode(errors="replace")
    return texts


TEXTS = tracked()
SOURCES = {name: t for name, t in TEXTS.items() if name.endswith(".py") and name.split("/")[0] in PYTHON_FOLDERS}


def long_files(sources: dict[str, str]) -> list[str]:
    return [f"{name}: {n} lines" for name, text in sources.items() if (n := text.count("\n")) > FILE_LINES_MAX]


def nodes(sources: dict[str, str], *kinds: type) -> Iterator[tuple[str, ast.AST]]:
    for name, text in sources.items():
        yield from ((name, node) for node in tree(name, text) if isinstance(node, kinds))


@cache
def tree(name: str, text: str) -> list[ast.AST]:
    """Every node of a file; five of the checks look at all of them."""
    return list(ast.walk(ast.parse(text, name)))


def long_functions(sources: dict[str, str]) -> list[str]:
    return [
        f"{name}:{node.lineno} {node.name}: {lines} lines"
        for name, node in nodes(sources, ast.FunctionDef, ast.AsyncFunctionDef)
        if (lines := node.end_lineno - node.lineno + 1) > FUNCTION_LINES_MAX
    ]


def words_of(name: str) -> set[str]:
    """The words of a snake_case or CamelCase name, in lower case."""
    return {word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z0-9]+", name)}


def banned_names(sources: dict[str, str]) -> list[str]:
    parts = [(name, part) for name in sources for part in PurePosixPath(name).with_suffix("").parts]
    classes = [(name, node.name) for name, node in nodes(sources, ast.ClassDef)]
    return sorted({f"{name}: {word}" for name, word in parts + classes if words_of(word) & BANNED_WORDS})


def module_of(name: str) -> str:
    return name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def imported_names(sources: dict[str, str]) -> set[str]:
    """All that is imported, and all strings that could name a module to one that imports by name."""
    found: set[str] = set()
    for name, node in nodes(sources, ast.Import, ast.ImportFrom, ast.Constant):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = PurePosixPath(name).parts[: -node.level] if node.level else ()
            origin = ".".join([*package, *([node.module] if node.module else [])])
            found |= {origin} | {f"{origin}.{alias.name}" for alias in node.names}
        elif isinstance(node.value, str):
            found.add(node.value.split(":")[0])
    return found


def orphans(sources: dict[str, str]) -> list[str]:
    product = {name: text for name, text in sources.items() if not name.startswith("tests/")}
    # Commands are loaded by name when they are called.
    commands = re.findall(r'^    "\w+": \(\s*"(\w+)",', product.get("broker/cli/app.py", ""), re.MULTILINE)
    imported = imported_names(product) | {f"broker.cli.{name}" for name in commands}
    return [
        module
        for name, text in product.items()
        if name.startswith(("broker/", "workers/")) and text.strip()
        if (module := module_of(name)) not in imported | ENTRANCES.keys() | {"broker", "workers"}
    ]


def imports_of_tests(sources: dict[str, str]) -> list[str]:
    """What people run must not need what only developers have."""
    return sorted(
        {
            name
            for name, node in nodes(sources, ast.Import, ast.ImportFrom)
            for module in (
                [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            )
            if not name.startswith("tests/") and module.split(".")[0] in {"tests", "pytest"}
        }
    )


def bare_ignores(sources: dict[str, str]) -> list[str]:
    return [
        f"{name}:{token.start[0]} {token.string}"
        for name, text in sources.items()
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
        if token.type == tokenize.COMMENT
        if ("noqa" in token.string and not NOQA.search(token.string))
        or (re.search(r"#\s*type:\s*ignore", token.string) and not TYPE_IGNORE.search(token.string))
    ]


def faceless(sources: dict[str, str]) -> list[str]:
    public = {n: t for n, t in sources.items() if n.startswith(("broker/", "workers/")) and t.strip()}
    return [
        name
        for name, text in public.items()
        if not PurePosixPath(name).name.startswith("_") or name.endswith("/__init__.py")
        if not re.search(r"^__all__(: [\w\[\], .]+)? = ", text, re.MULTILINE)
    ]


def foreign_text(texts: dict[str, str]) -> list[str]:
    return [
        f"{name}:{number} {found.group()}"
        for name, text in texts.items()
        for number, line in enumerate(text.splitlines(), 1)
        for pattern in FORBIDDEN_TEXT
        if (found := pattern.search(line))
    ]


def broken_links(texts: dict[str, str], root: Path) -> list[str]:
    broken = []
    for name, text in texts.items():
        prose = re.sub(r"^```.*?^```|`[^`\n]*`", "", text, flags=re.MULTILINE | re.DOTALL)
        for target in LINK.findall(prose):
            path = target.split("#")[0]
            if path and not re.match(r"[a-z]+:", path) and not (root / name).parent.joinpath(path).exists():
                broken.append(f"{name}: {target}")
    return broken


def test_files_are_short():
    assert long_files(SOURCES) == []
    assert long_files({"a.py": "\n" * 400}) == ["a.py: 400 lines"]


def test_functions_are_short():
    assert long_functions(SOURCES) == []
    assert long_functions({"a.py": "async def f():\n" + "    pass\n" * 59}) == ["a.py:1 f: 60 lines"]


def test_names_say_something():
    assert banned_names(SOURCES) == []
    planted = {"broker/json_utils.py": "class LaneManager: ...\nclass Database: ...\n"}
    assert banned_names(planted) == ["broker/json_utils.py: LaneManager", "broker/json_utils.py: json_utils"]


def test_no_module_is_an_orphan():
    assert orphans(SOURCES) == []
    assert orphans(
        {"broker/a.py": "x = 1", "broker/b.py": "from broker import a", "tests/t.py": "import broker.b"}
    ) == ["broker.b"]


def test_nothing_but_tests_imports_tests():
    assert imports_of_tests(SOURCES) == []
    planted = {
        "infra/a.py": "from tests.services import x",
        "infra/b.py": "import pytest",
        "tests/c.py": "import tests.a",
    }
    assert imports_of_tests(planted) == ["infra/a.py", "infra/b.py"]


def test_every_ignore_has_its_code_and_its_reason():
    assert bare_ignores(SOURCES) == []
    good = "x = 1  # noqa: S608 (the names are constants)\ny = 2  # type: ignore[misc]  # untyped base\n"
    bad = ["x = 1  # " + "noqa\n", "x = 1  # " + "noqa: S608\n", "x = 1  # type: " + "ignore[misc]\n"]
    assert bare_ignores({"a.py": good}) == []
    assert [len(bare_ignores({"a.py": text})) for text in bad] == [1, 1, 1]


def test_public_modules_name_their_face():
    assert faceless(SOURCES) == []
    assert faceless({"broker/a.py": "x = 1", "broker/_b.py": "x = 1", "broker/c.py": '__all__ = ["x"]'}) == [
        "broker/a.py"
    ]


def test_no_text_names_a_machine_or_a_registry():
    assert foreign_text(TEXTS) == []
    planted = {"a.md": "see /" + "work/x\nhttps://files.python" + "hosted.example\nhttps://our.example/" + "work/y\n"}
    assert [line.split()[0] for line in foreign_text(planted)] == ["a.md:1", "a.md:2"]


def test_links_between_documents_resolve(tmp_path):
    assert broken_links({name: text for name, text in TEXTS.items() if name.endswith(".md")}, ROOT) == []
    (tmp_path / "there.md").touch()
    text = "[a](there.md#part) [b](https://x.example) [c](#here) [d](gone.md) `[e](code.md)`"
    assert broken_links({"a.md": text}, tmp_path) == ["a.md: gone.md"]
