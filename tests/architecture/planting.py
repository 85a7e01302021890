"""Import-linter on one copy of the tree, again and again: each time with some lines planted, which are then taken out.

Run in the copy, with a list on standard input: of each check the lines to plant as `[path, line]`, and the contract
to check, null for all. Answers with a list of exit code and report. One process for all of them, as starting one and
loading the linter takes longer than a check.
"""

from __future__ import annotations

import io
import json
import sys
from contextlib import redirect_stdout
from pathlib import Path

from importlinter.cli import lint_imports


def check(plants: list[tuple[str, str]], contract: str | None) -> tuple[int, str]:
    before = {path: Path(path).read_text() if Path(path).exists() else None for path, _ in plants}
    for path, line in plants:
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(f"\n{line}\n")
    report = io.StringIO()
    with redirect_stdout(report):
        code = lint_imports(no_cache=True, limit_to_contracts=(contract,) if contract else ())
    for path, text in before.items():
        if text is None:
            Path(path).unlink()
        else:
            Path(path).write_text(text)
    return code, report.getvalue()


if __name__ == "__main__":
    sys.path.insert(0, str(Path.cwd()))
    json.dump([check(*asked) for asked in json.load(sys.stdin)], sys.stdout)
