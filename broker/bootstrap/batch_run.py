"""`broker batch run`: one file worked off from its first line to its last, over as many starts as that takes.

The file's own bytes name it: started again with the same file, the batch goes on where it stands, and a
finished one prints its result.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import msgspec

from broker.bootstrap.batch_source import Source, default_output, sees_as_file
from broker.bootstrap.embedded import Embedded
from broker.database import batches, reruns
from broker.database.batches import BatchRecord, Counts
from broker.database.connection import Connection
from broker.database.failures import is_disk_full
from broker.domain.errors import BrokerError, UsageError, reason_of
from broker.domain.identity import LOCAL, Identity
from broker.domain.job import BatchStatus, Constraints
from broker.domain.lane import Lane
from broker.domain.rerun import Rerun
from broker.health import Rest
from broker.intake.batch_files import BatchRequest
from broker.ledger.questions import Filters, summary
from broker.ledger.speeds import learned_speeds
from broker.output_paths import check_apart, check_free, check_writable, holds_anything, set_aside, stat_of_input
from broker.rules.grouping import canonical_constraints
from broker.rules.placement.feasible import Prospect
from broker.rules.submission import check_batch

__all__ = [
    "BatchRun",
    "Progress",
    "RunOptions",
    "Whole",
    "allowed_lanes",
    "error_path_of",
]

_PROGRESS_SECONDS = 0.2
_WINDOW_SECONDS_DEFAULT = 86_400


class RunOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What the command was given; None where it was not."""

    source: Path
    output: Path | None = None
    window_seconds: int | None = None
    max_cost_nano_usd: int | None = None
    lanes: tuple[str, ...] = ()
    new: bool = False
    overwrite: bool = False


class Progress(msgspec.Struct, frozen=True):
    """How far a batch is."""

    record: BatchRecord
    counts: Counts

    @property
    def ended(self) -> int:
        """Lines that need nothing more."""
        return self.counts.ended + self.record.refused_lines

    @property
    def failed(self) -> int:
        """Lines that will stand in the error file."""
        return self.ended - self.counts.succeeded


class Whole(msgspec.Struct, frozen=True):
    """The lines of a batch's source, and those that succeeded in any run of it."""

    lines: int
    succeeded: int


class BatchRun:
    """One run of the command on an open `Embedded`, for whoever has its data folder."""

    def __init__(
        self, embedded: Embedded, options: RunOptions, source: Source | None, identity: Identity = LOCAL
    ) -> None:
        self._tenant_id = identity.tenant
        self._identity = identity
        self._embedded = embedded
        self._options = options
        self._given_source = source
        self._reader: threading.Thread | None = None
        self._reading_failure: BrokerError | None = None
        self._stop = threading.Event()
        self._interrupted = False
        self._must_write = False
        self.set_aside: list[tuple[Path, Path]] = []
        """Files of earlier runs that were where this one's go, and where they are now."""
        self.record, self.is_resumed = self._find_or_create()

    @property
    def _source(self) -> Source:
        assert self._given_source is not None  # noqa: S101 (only a rerun has none, which reads no file)
        return self._given_source

    @property
    def is_finished(self) -> bool:
        """Whether there is nothing left to do; its files may still have to be written again."""
        return (
            self.record.finished_us is not None
            and not self._must_write
            and all(path is None or Path(path).exists() for path in (self.record.output_path, self.record.error_path))
        )

    def work(self) -> Iterator[Progress]:
        """Work the batch off, saying five times a second how far it is. Raises BrokerError when it can't go on."""
        if self.record.finished_us is not None:
            self._reopen()
        self._reader = threading.Thread(target=self._read, name="intake", daemon=True)
        self._reader.start()
        while True:
            progress = self._embedded.database.read(self._progress)
            yield progress
            if progress.record.finished_us is not None:
                self.record = progress.record
                return
            if self._interrupted:
                raise KeyboardInterrupt
            failure = self._reading_failure or self._embedded.failure
            if failure:
                raise failure
            self._stop.wait(_PROGRESS_SECONDS)

    def interrupt(self) -> None:
        """Have `work` raise KeyboardInterrupt at its next look, within a fifth of a second. For a signal's handler.

        An exception raised by the handler itself would land anywhere, also where Python can only ignore it.
        """
        self._interrupted = True

    def stop_reading(self) -> None:
        """Take in no more lines; returns when the reader has committed what it had."""
        self._stop.set()
        if self._reader:
            self._reader.join()

    def result(self) -> list[dict[str, Any]]:
        """What each provider did for this batch, from the ledger."""
        filters = Filters(tenant_id=self._tenant_id, batch_id=self.record.batch_id)
        return self._embedded.database.read(lambda connection: summary(connection, ["provider"], filters))

    def resting_lanes(self) -> list[tuple[str, Rest]]:
        """Lanes that get no work just now, each with why and for how long."""
        return sorted(self._embedded.health.resting().items())

    def lanes_on_trial(self) -> Collection[str]:
        """Lanes that are tried after a rest, and have not succeeded since."""
        return self._embedded.health.on_trial().keys()

    def progress(self) -> Progress:
        """How far it is now."""
        return self._embedded.database.read(self._progress)

    def whole(self) -> Whole | None:
        """All runs of its lines together, where it runs those of another again."""
        if not Rerun.parse(self.record.source_name):
            return None

        def work(connection: Connection) -> Whole:
            runs = reruns.chain(connection, self._tenant_id, self.record)
            counts = batches.progress_of(connection, self._tenant_id, [run.batch_id for run in runs])
            lines = runs[-1].accepted_jobs + runs[-1].refused_lines
            return Whole(lines, sum(one.succeeded for one in counts.values()))

        return self._embedded.database.read(work)

    def _find_or_create(self) -> tuple[BatchRecord, bool]:
        digest = self._source.digest
        known = self._embedded.database.read(
            lambda connection: batches.find_latest(connection, self._tenant_id, digest)
        )
        if known and not self._options.new:
            self._check_same_terms(known)
            return self._follow_output(known), True
        source = self._options.source
        output = self._options.output or default_output(source)
        self._check_outputs(output, error_path_of(output))
        self._check_window(self._window_seconds)
        self._make_room(output, error_path_of(output))
        request = BatchRequest(
            source_name=str(source.absolute()) if sees_as_file(source) else self._source.name,
            source_digest=digest,
            source_bytes=self._source.size_bytes,
            output_path=str(output.absolute()),
            error_path=str(error_path_of(output).absolute()),
            window_seconds=self._window_seconds,
            max_cost_nano_usd=self._options.max_cost_nano_usd,
            constraints=Constraints(lanes=self._options.lanes),
        )
        return self._embedded.front.intake.create_batch(self._identity, request), False

    @property
    def _window_seconds(self) -> int:
        return self._options.window_seconds or _WINDOW_SECONDS_DEFAULT

    def _check_window(self, window_seconds: int) -> None:
        """Raises UsageError where no lane, each with one instance here, can do a single job in time.

        The ledger must have shown how fast they are: what the catalog guesses refuses nobody's file.
        """
        lanes = self._embedded.front.lanes
        speeds = self._embedded.database.read(lambda connection: learned_speeds(connection, lanes))
        prospects = {
            name: Prospect(1, {model: speed.job_s for model, speed in of_lane.items()})
            for name, of_lane in speeds.items()
            if all(speed.jobs for speed in of_lane.values())
        }
        refusal = check_batch(lanes, prospects, "{}", window_seconds)
        if refusal:
            raise UsageError(f"--{refusal.message}")

    def _check_same_terms(self, known: BatchRecord) -> None:
        """Terms are fixed when a batch is made; other ones are another batch. A budget may be raised or lowered."""
        given = self._options
        lanes = canonical_constraints(Constraints(lanes=given.lanes)) if given.lanes else None
        for name, asked, agreed in (
            ("--window", given.window_seconds, known.window_seconds),
            ("--lanes", lanes, known.constraints),
        ):
            if asked is not None and asked != agreed:
                raise UsageError(
                    f"this file's batch was made with another {name}: leave it out to go on, or add --new to run anew"
                )
        if given.max_cost_nano_usd is not None and given.max_cost_nano_usd != known.max_cost_nano_usd:
            if known.finished_us is not None:
                raise UsageError("this file's batch has ended under another --max-cost: add --new to run anew")
            budget = given.max_cost_nano_usd
            self._embedded.database.write(
                lambda connection: batches.set_budget(connection, self._tenant_id, known.batch_id, budget)
            )
            known.max_cost_nano_usd = budget

    def _check_outputs(self, output: Path, errors: Path, *, is_ours: bool = False) -> None:
        """Nothing is read there, nothing is lost there, and all can be written. Raises UsageError."""
        named = {"--output": output, "the error file beside --output": errors}
        own = {f"the broker's {path.name}": stat_of_input(path) for path in self._embedded.own_files()}
        read = {"the input": self._given_source.stat} if self._given_source else {}
        check_apart(named, read | own)
        if not is_ours and not self._options.overwrite:
            check_free([output, errors])
        check_writable([output, errors])

    def _make_room(self, output: Path, errors: Path) -> None:
        if not self._options.overwrite:
            self.set_aside = set_aside([output, errors])

    def _follow_output(self, known: BatchRecord) -> BatchRecord:
        """The files may be wanted elsewhere than at first; and since then others may have come where they were."""
        if known.output_path is None or known.error_path is None:
            return known
        output, errors = Path(known.output_path), Path(known.error_path)
        asked = output if self._options.output is None else self._options.output.absolute()
        if asked == output:
            self._must_write = is_others = self._is_others(known)
            if known.finished_us is None or is_others or not (output.exists() and errors.exists()):
                self._check_outputs(output, errors, is_ours=not is_others)
            if is_others:
                self._make_room(output, errors)
            return known
        errors = error_path_of(asked)
        self._check_outputs(asked, errors)
        self._make_room(asked, errors)
        self._must_write = True

        def work(connection: Connection) -> BatchRecord:
            batches.set_paths(connection, self._tenant_id, known.batch_id, str(asked), str(errors))
            return msgspec.structs.replace(known, output_path=str(asked), error_path=str(errors))

        return self._embedded.database.write(work)

    def _is_others(self, known: BatchRecord) -> bool:
        """Whether what stands where this batch's files go was written by someone else.

        A batch and those that run its lines again make one output: what one wrote, the next replaces.
        """
        is_open = known.finished_us is None
        places = [Path(path) for path in (known.output_path, known.error_path) if path is not None]
        if is_open and (known.status is BatchStatus.FINALIZING or not any(map(holds_anything, places))):
            return False

        def work(connection: Connection) -> bool:
            last = batches.last_written(connection, self._tenant_id, known.output_path or "")
            if last is None:
                return is_open
            return last not in {one.batch_id for one in reruns.chain(connection, self._tenant_id, known)}

        return self._embedded.database.read(work)

    def _reopen(self) -> None:
        """All its results are kept; only the files are gone, or wanted elsewhere."""
        batch_id = self.record.batch_id
        self._embedded.database.write(lambda connection: batches.reopen(connection, self._tenant_id, batch_id))

    def _read(self) -> None:
        if Rerun.parse(self.record.source_name):
            return  # the stage takes its lines in
        try:
            for _ in self._embedded.front.intake.read_batch(self.record, self._source.file):
                if self._stop.is_set():
                    return
        except BrokerError as error:
            self._reading_failure = error
        except OSError as error:
            self._reading_failure = BrokerError(f"can't read {self._source.name}: {reason_of(error)}")
        except Exception as error:  # noqa: BLE001 (whatever stops the reader must be said, or the run waits for ever)
            why = "the disk is full" if is_disk_full(error) else f"the database failed ({type(error).__name__})"
            self._reading_failure = BrokerError(
                f"the file could not be read on because {why}; what was taken in is kept: run again to go on"
            )

    def _progress(self, connection: Connection) -> Progress:
        batch_id = self.record.batch_id
        record = batches.find(connection, self._tenant_id, batch_id)
        if record is None:
            raise BrokerError(f"batch {batch_id.hex()} is gone from the database")
        counts = batches.progress_of(connection, self._tenant_id, [batch_id])
        return Progress(record, counts.get(batch_id, Counts()))


def error_path_of(output: Path) -> Path:
    """Beside the output: `x.output.jsonl` gives `x.errors.jsonl`."""
    return output.with_name(f"{output.stem.removesuffix('.output')}.errors.jsonl")


def allowed_lanes(lanes: list[Lane], names: tuple[str, ...]) -> list[Lane]:
    """The lanes of these names, all where none is named. Raises UsageError for a name that no lane has."""
    known = {str(lane.name) for lane in lanes}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UsageError(f"--lanes names {unknown[0]!r}; the catalog has {', '.join(sorted(known))}")
    return [lane for lane in lanes if not names or lane.name in names]
