"""`broker jobs`: single jobs."""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from typing import Annotated

import msgspec
import typer

from broker.cli.options import DataOption, read_settings
from broker.cli.printing import OutputFormat, dollars, say, seconds
from broker.database.connection import Connection
from broker.domain.errors import UsageError
from broker.domain.ids import format_id, parse_id
from broker.domain.money import format_usd
from broker.ledger.explaining import AttemptStory, JobStory, explain, find_job, where_is
from broker.reading import open_reader

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="Single jobs.")

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@app.callback()
def group() -> None:
    """Single jobs."""


@app.command("explain")
def show_story(
    job: Annotated[str, typer.Argument(help="A job's id (job_… or batch_req_… of an output line), or its custom_id.")],
    shape: Annotated[OutputFormat, typer.Option("--format", help="Text for people, or JSON.")] = OutputFormat.TABLE,
    data: DataOption = None,
) -> None:
    """Every attempt of a job: where it ran and why there, at which price, what it used, cost and took."""
    with open_reader(read_settings(data).data) as connection:
        job_id = _find(connection, job)
        story = explain(connection, job_id)
        place = where_is(connection, job_id)
    if story is None:
        raise UsageError(f"there is no job {job}")
    if shape is OutputFormat.JSON:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(story)).decode() + "\n")
    else:
        _tell(story, place)


def _find(connection: Connection, text: str) -> bytes:
    named = find_job(connection, text)
    if len(named) == 1:
        return named[0]
    if named:
        ids = ", ".join(format_id("job", one) for one in named)
        raise UsageError(f"{text!r} is the custom_id of several jobs; name one by its id: {ids}")
    try:
        return parse_id("job", text.removeprefix("batch_req_"))
    except ValueError:
        raise UsageError(f"there is no job {text!r}: give its id, or its custom_id") from None


def _tell(story: JobStory, place: str) -> None:
    say(f"{story.job_id}" + (f"   custom_id {story.custom_id}" if story.custom_id else ""))
    if story.batch_id:
        say(f"  of {story.batch_id}, line {story.line_number}")
    say(f"  {story.model} at {story.endpoint}, tenant {story.tenant}, constraints {story.constraints}")
    say(f"  submitted {_time(story.submitted_us)}, due {_time(story.deadline_us)}")
    ended = story.outcome or place
    say(f"  {ended}" + (f" ({story.error_code})" if story.error_code else ""))
    wasted = f", of which wasted {dollars(story.wasted_nano_usd)}" if story.wasted_nano_usd else ""
    say(f"  cost {format_usd(story.cost_nano_usd)} over {len(story.attempts)} attempt(s){wasted}")
    for attempt in story.attempts:
        _tell_attempt(attempt)


def _tell_attempt(attempt: AttemptStory) -> None:
    code = f" ({attempt.error_code})" if attempt.error_code else ""
    say()
    say(f"Attempt {attempt.number}: {attempt.outcome}{code} on lane {attempt.lane}")
    stand_in = ", a CPU standing in" if attempt.stand_in else ""
    say(
        f"  where     {attempt.provider}, {attempt.region}, {attempt.accelerator}, {attempt.market}; "
        f"engine {attempt.engine}{stand_in}; worker {attempt.worker}"
    )
    say(f"  why       {attempt.why} (plan {attempt.plan_generation})")
    for candidate in attempt.candidates:
        mark = "->" if candidate.lane == attempt.lane else "  "
        expected = dollars(candidate.expected_job_cost_nano_usd)
        say(f"         {mark} {candidate.lane}: {expected} a job expected, price {candidate.price_version}")
    for removed in attempt.removed:
        say(f"          x {removed.lane}: {removed.filter}")
    say(
        f"  usage     {attempt.input_tokens:,} tokens in ({attempt.cached_input_tokens:,} cached), "
        f"{attempt.output_tokens:,} out; {attempt.accelerator_us / 1_000_000:,.6f} s of the accelerator"
    )
    upper = f", at most {format_usd(attempt.cost_upper_nano_usd)}" if attempt.cost_basis == "unknown" else ""
    say(f"  cost      {format_usd(attempt.cost_nano_usd)} ({attempt.cost_basis}{upper})")
    say(f"  price     {attempt.price_version}: {attempt.price_source}")
    say(
        f"  time      queued {seconds(attempt.queue_us // 1000)}, ran {seconds(attempt.run_us // 1000)}, "
        f"ended {_time(attempt.ended_us)}"
    )
    say(f"  ledger    {attempt.ledger_row}")


def _time(moment_us: int) -> str:
    return (_EPOCH + timedelta(microseconds=moment_us)).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3] + "Z"
