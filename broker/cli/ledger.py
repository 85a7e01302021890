"""`broker ledger`: what it cost, how long it took, and whether the ledger is as it was written."""

from __future__ import annotations

import os
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from broker.cli.options import DatabaseOption, DataOption, FormatOption, read_settings
from broker.cli.printing import OutputFormat, cost_text, dollars, print_json, print_rows, say
from broker.domain.errors import BrokerError, UsageError
from broker.domain.ids import parse_id

if TYPE_CHECKING:
    from broker.ledger.quoting import Quoted
    from broker.ledger.verifying import Verification

__all__ = ["app"]

_GROUP_KEYS = (
    "provider, lane, region, accelerator, market, model, engine, endpoint, outcome, error_code, tenant, worker,"
    " stand_in, price_version, cost_basis, usage_basis, day"
)
"""The names of `broker.ledger.questions.GROUP_KEYS`, for a help text that needs no database; a test compares them."""

app = typer.Typer(add_completion=False, no_args_is_help=True, help="What it cost, how long it took, where it ran.")


@app.command("summary")
def show_summary(
    by: Annotated[
        str, typer.Option("--by", help=f"Keys to group by, with commas: {_GROUP_KEYS}, tag:NAME.")
    ] = "provider",
    batch: Annotated[str | None, typer.Option("--batch", help="Only this batch.")] = None,
    tenant: Annotated[str | None, typer.Option("--tenant", help="Only this tenant.")] = None,
    since: Annotated[
        str | None, typer.Option("--since", help="Only from this UTC time on, as 2026-11-22[T10:00].")
    ] = None,
    until: Annotated[str | None, typer.Option("--until", help="Only before this UTC time.")] = None,
    tags: Annotated[
        list[str] | None, typer.Option("--tag", help="Only jobs with this tag, as name=value; may be given again.")
    ] = None,
    shape: FormatOption = OutputFormat.TABLE,
    data: DataOption = None,
    database_url: DatabaseOption = None,
) -> None:
    """Jobs, attempts, tokens, cost, waste and latencies by provider, model, day, or whatever you ask for."""
    from broker.bootstrap.ledger_reader import read_ledger
    from broker.ledger.questions import Filters, summary
    from broker.ledger.quoting import quoted

    keys = [key.strip() for key in by.split(",") if key.strip()]
    filters = Filters(
        tenant_id=tenant,
        batch_id=_batch_id(batch),
        since_us=_time_us("--since", since),
        until_us=_time_us("--until", until),
        tags=tuple(map(_tag, tags or ())),
    )
    settings = read_settings(data)
    url = database_url or settings.database_url
    rows = read_ledger(settings.data, url, lambda connection: summary(connection, keys, filters))
    print_rows(rows, shape, keys=len(keys))
    if filters.batch_id is not None and shape is OutputFormat.TABLE:
        batch_id = filters.batch_id
        _compare(read_ledger(settings.data, url, lambda connection: quoted(connection, batch_id)))


def _compare(found: Quoted | None) -> None:
    """The quote beside what came of it."""
    if found is None or not found.quoted_nano_usd:
        return
    change = (found.cost_nano_usd / found.quoted_nano_usd - 1) * 100
    if found.unknown_nano_usd:
        cost = cost_text(found.cost_nano_usd, found.unknown_nano_usd)
    else:
        cost = f"{dollars(found.cost_nano_usd)} ({change:+.0f} %)"
    say(
        f"Quoted when it was first planned: {dollars(found.quoted_nano_usd)} for {found.jobs:,} jobs;"
        f" {found.ended:,} have ended for {cost}."
    )


@app.command("verify")
def show_verification(
    data: DataOption = None,
    database_url: DatabaseOption = None,
    checkpoints: Annotated[
        Path | None, typer.Option("--checkpoints", help="Published checkpoints [the data folder's checkpoints.jsonl].")
    ] = None,
    trusted: Annotated[
        Path | None, typer.Option("--trusted", help="The broker's public keys, instead of those the database names.")
    ] = None,
) -> None:
    """Recompute every row's hash, each stream's chain and all seals; exit code 1 if one is not as it was written."""
    from broker.bootstrap.ledger_reader import read_ledger
    from broker.keys import read_trusted_bytes
    from broker.ledger.checkpoints import CHECKPOINTS, CheckpointFile
    from broker.ledger.verifying import verify

    settings = read_settings(data)
    if checkpoints and not checkpoints.exists():
        raise UsageError(f"there is no file {checkpoints}")
    file = CheckpointFile(checkpoints or settings.data / CHECKPOINTS)
    notes = list(file.notes())  # before the database is read, which had each of them earlier than the file
    keys = list(read_trusted_bytes(trusted).values()) if trusted else None
    url = database_url or settings.database_url
    found = read_ledger(settings.data, url, lambda connection: verify(connection, notes, keys))
    size = f"{found.rows:,} rows in {found.batches:,} batches of {found.streams} streams"
    say(f"{size}, {dollars(found.cost_nano_usd)} in all.")
    _say_seals(found)
    for fault in found.faults:
        say(f"FAULT  {fault}")
    if found.faults:
        raise BrokerError(f"the ledger is not as it was written: {len(found.faults)} faults")
    say("Every row is as it was written.")


@app.command("prove")
def prove(
    job: Annotated[str, typer.Option("--job", help="A job that has ended.")],
    data: DataOption = None,
    database_url: DatabaseOption = None,
) -> None:
    """Print one job's proof as JSON: its rows, and the way from each to a signed checkpoint."""
    from broker.bootstrap.ledger_reader import read_ledger
    from broker.ledger.proving import prove_job

    try:
        job_id = parse_id("job", job)
    except ValueError as error:
        raise UsageError(f"--job: {error}") from None
    settings = read_settings(data)
    url = database_url or settings.database_url
    print_json(read_ledger(settings.data, url, lambda connection: prove_job(connection, job_id)))


@app.command("seal")
def seal(data: DataOption = None, database_url: DatabaseOption = None) -> None:
    """Seal what the ledger holds now, where no broker is at work that does."""
    from broker.bootstrap.data_folder import DATABASE_FILE, open_database
    from broker.bootstrap.roles import Role
    from broker.bootstrap.stored_keys import remember_signer
    from broker.clock import utc_now_us
    from broker.database.drivers.postgres.database import open_postgres
    from broker.database.drivers.postgres.leadership import Leadership
    from broker.database.drivers.sqlite.database import lock_folder
    from broker.keys import load_or_create_signer
    from broker.ledger.checkpoints import CHECKPOINTS, CheckpointFile
    from broker.logs import log_to_stderr
    from broker.signing import KeyRole
    from broker.stages.sealer import SEAL_SECONDS, Sealer

    settings = read_settings(data)
    log_to_stderr("warning")
    url = database_url or settings.database_url
    if not url and not (settings.data / DATABASE_FILE).exists():
        raise BrokerError(f"{settings.data} holds no ledger yet: run a batch first, or name its folder with --data")
    with ExitStack() as stack:
        if url:
            leadership = Leadership(url, Role.SEALER)
            stack.callback(leadership.close)
            if not leadership.is_leader():
                raise BrokerError(f"a sealer is at work on this database: it seals every {SEAL_SECONDS:g} seconds")
        else:
            stack.callback(os.close, lock_folder(settings.data))
        database = open_postgres(url, name="broker ledger") if url else open_database(settings.data)
        stack.callback(database.close)
        keys = settings.data / "keys"
        load_or_create_signer(keys, "broker")
        signer = remember_signer(database, keys / "broker.key", KeyRole.BROKER, "broker", utc_now_us)
        file = CheckpointFile(settings.data / CHECKPOINTS)
        sealer = Sealer(database=database, places=[file], signer=signer, clock=utc_now_us)
        while sealer.step():
            pass
        last = file.last()
    say(f"{last.tree_size:,} batches are sealed." if last else "There is nothing to seal yet.")


def _say_seals(found: Verification) -> None:
    if found.seals.sealed_us is None:
        return
    last = datetime.fromtimestamp(found.seals.sealed_us // 1_000_000, UTC)
    size = f"{found.seals.batches:,} of these batches are sealed, by {found.seals.checkpoints:,} checkpoints"
    say(f"{size}, the last of {last:%Y-%m-%d %H:%M:%S}Z; {found.seals.published:,} of them published.")


def _batch_id(text: str | None) -> bytes | None:
    if text is None:
        return None
    try:
        return parse_id("batch", text)
    except ValueError as error:
        raise UsageError(f"--batch: {error}") from None


def _tag(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise UsageError(f"--tag is {text!r}; it must be name=value")
    return name, value


def _time_us(option: str, text: str | None) -> int | None:
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(
            f"{option} is {text!r}; it must be a date or time such as 2026-11-22 or 2026-11-22T10:00"
        ) from None
    moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
    return int(moment.timestamp() * 1_000_000)
