"""The history of the schema: the revisions in the installed package `migrations`, one for SQLite and PostgreSQL."""

from __future__ import annotations

import logging
from importlib.resources import files
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple

from broker.rules.schema_fit import CONTRACT, Build, phase_of

if TYPE_CHECKING:
    from alembic.config import Config
    from alembic.script import ScriptDirectory
    from sqlalchemy import Connection

__all__ = ["INSTALLED", "History", "Revision"]


class Revision(NamedTuple):
    """One step of the history. `title` is the first line of its file, `module` what is written there."""

    number: str
    phase: str
    title: str
    module: ModuleType

    @property
    def is_contract(self) -> bool:
        """Whether it takes away what an older build needs."""
        return self.phase == CONTRACT


class History:
    """The revisions in a folder, which looks like `migrations`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @property
    def build(self) -> Build:
        """What a program with this history knows. Its files are not loaded for it, for each start asks this."""
        return Build.of_files(path.name for path in (self._folder / "versions").iterdir())

    def after(self, revision: str | None) -> list[Revision]:
        """What follows a revision, in order; all where there is none yet."""
        scripts = self._scripts()
        found = []
        for number in self.build.revisions:
            if revision is None or number > revision:
                script = scripts.get_revision(number)
                title = Path(script.path).stem.partition("_")[2]
                found.append(Revision(number, phase_of(title), script.doc.rstrip("."), script.module))
        return found

    def run(self, connection: Connection, target: str = "head") -> None:
        """Run what is missing up to `target`, in the connection's transaction."""
        config = self._config()
        from alembic import command  # noqa: PLC0415 (after its logger is quiet, and only where there is work for it)

        config.attributes["connection"] = connection
        command.upgrade(config, target)

    def _scripts(self) -> ScriptDirectory:
        config = self._config()
        from alembic.script import ScriptDirectory  # noqa: PLC0415 (as above)

        return ScriptDirectory.from_config(config)

    def _config(self) -> Config:
        # Alembic logs its steps, and from its import on, at INFO; the people who run the broker need not read that.
        logging.getLogger("alembic").setLevel(logging.WARNING)
        from alembic.config import Config  # noqa: PLC0415 (as above)

        config = Config()
        # The configuration's parser takes % for the start of a substitution.
        config.set_main_option("script_location", str(self._folder).replace("%", "%%"))
        config.set_main_option("path_separator", "os")
        return config


INSTALLED = History(Path(str(files("migrations"))))
