"""`broker batch rerun`, on a data folder: what did not succeed of a batch, worked off like a file."""

from __future__ import annotations

from pathlib import Path

import msgspec

from broker.bootstrap.batch_run import BatchRun, RunOptions, error_path_of
from broker.bootstrap.batch_source import open_source
from broker.bootstrap.embedded import Embedded
from broker.database import batches, reruns
from broker.database.batches import BatchRecord
from broker.domain.errors import UsageError
from broker.domain.identity import LOCAL, Identity
from broker.domain.ids import parse_id
from broker.domain.outcome import Outcome
from broker.intake.reruns import RerunTerms

__all__ = ["BatchRerun", "RerunOptions"]


class RerunOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What the command was given; None where it was not. `target`: a batch's id, or the file that it was made of."""

    target: str
    outcomes: tuple[Outcome, ...]
    output: Path | None = None
    window_seconds: int | None = None
    max_cost_nano_usd: int | None = None
    overwrite: bool = False


class BatchRerun(BatchRun):
    """As `BatchRun`. The files are those of the run before, with what it brings in, unless others are named."""

    def __init__(self, embedded: Embedded, options: RerunOptions, identity: Identity = LOCAL) -> None:
        self._rerun = options
        super().__init__(embedded, RunOptions(source=Path(options.target), overwrite=options.overwrite), None, identity)

    def _find_or_create(self) -> tuple[BatchRecord, bool]:
        given = self._rerun
        before = self._find_target()
        terms = RerunTerms(
            paths=self._paths,
            outcomes=given.outcomes,
            window_seconds=given.window_seconds,
            max_cost_nano_usd=given.max_cost_nano_usd,
        )
        output, errors = (Path(path) for path in self._paths(before))
        # What this one brings in holds what the run before had brought in.
        newest = self._embedded.database.read(lambda connection: reruns.newest_of(connection, self._tenant_id, before))
        is_ours = str(output) == newest.output_path and not self._is_others(newest)
        self._check_outputs(output, errors, is_ours=is_ours)
        self._check_window(given.window_seconds or before.window_seconds)
        if not is_ours:
            self._make_room(output, errors)
        made = self._embedded.front.reruns.create(self._identity, before, terms)
        return made, made.read_lines > 0

    def _paths(self, before: BatchRecord) -> tuple[str, str]:
        output = self._rerun.output
        if output is not None:
            return str(output.absolute()), str(error_path_of(output).absolute())
        if before.output_path is None or before.error_path is None:
            raise UsageError("the batch has no files: name one with --output")
        return before.output_path, before.error_path

    def _find_target(self) -> BatchRecord:
        target, tenant = self._rerun.target, self._tenant_id
        if Path(target).is_file():
            with open_source(Path(target), self._embedded.data) as source:
                digest = source.digest
            found = self._embedded.database.read(lambda connection: batches.find_latest(connection, tenant, digest))
            if found is None:
                raise UsageError(f"{target} has not been run with this data folder: `broker batch run` does that")
            return found
        try:
            batch_id = parse_id("batch", target)
        except ValueError:
            raise UsageError(f"{target} is neither a file nor a batch's id, which looks like batch_0197…") from None
        found = self._embedded.database.read(lambda connection: batches.find(connection, tenant, batch_id))
        if found is None:
            raise UsageError(f"there is no batch {target} in this data folder")
        return found
