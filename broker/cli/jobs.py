"""`broker jobs`: single jobs."""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from broker.cli.options import (
    DatabaseOption,
    DataOption,
    RequireOption,
    UrlOption,
    open_client,
    read_constraints,
    read_settings,
)
from broker.cli.printing import OutputFormat, cost_text, dollars, print_json, say, seconds, waste_text
from broker.domain.errors import BrokerError, UsageError
from broker.domain.ids import format_id, parse_id
from broker.domain.job import ENDPOINTS
from broker.domain.lane import LaneState
from broker.domain.money import format_usd, nano_from_usd

if TYPE_CHECKING:
    from broker.database.connection import Connection
    from broker.ledger.explaining import AttemptStory, JobStory
    from broker.sdk.http import Client, JobState

__all__ = ["app"]

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Single jobs.")

JobArgument = Annotated[str, typer.Argument(help="A job's id: job_…")]
ShapeOption = Annotated[OutputFormat, typer.Option("--format", help="Text for people, or JSON.")]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@app.callback()
def group() -> None:
    """Single jobs."""


@app.command("submit")
def submit(
    prompt: Annotated[str | None, typer.Argument(help="The user's message; with --model.")] = None,
    model: Annotated[str | None, typer.Option("--model", help="The model to ask.")] = None,
    body: Annotated[
        str | None, typer.Option("--body", help="A file with the request's whole JSON body, or - for standard input.")
    ] = None,
    endpoint: Annotated[str, typer.Option("--endpoint", help="OpenAI's path that the body is for.")] = ENDPOINTS[0],
    window: Annotated[
        str | None, typer.Option("--window", help="When it must be done: 90s, 15m, 1h, 2d [24h].")
    ] = None,
    budget: Annotated[
        str | None, typer.Option("--budget", help="The most it may be expected to cost, in dollars.")
    ] = None,
    lanes: Annotated[str | None, typer.Option("--lanes", help="Only these lanes, by name, with commas.")] = None,
    require: RequireOption = None,
    tags: Annotated[list[str] | None, typer.Option("--tag", help="name=value; may be given again.")] = None,
    key: Annotated[
        str | None, typer.Option("--key", help="Idempotency key: submitted again with it, it is the same job.")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the end, and print the answer.")] = False,
    shape: ShapeOption = OutputFormat.TABLE,
    url: UrlOption = None,
    data: DataOption = None,
) -> None:
    """Submit one job to a running broker; prints its id, or with --wait its answer."""
    content = _read_body(prompt, model, body)
    terms: dict[str, Any] = {
        "window": window,
        "budget_usd": budget,
        "idempotency_key": key,
        "tags": _read_tags(tags or []),
        "constraints": read_constraints(lanes, require),
    }
    with open_client(data, url) as client:
        job = client.submit(content, endpoint=endpoint, **terms)
        if wait:
            _print_answer(client, client.wait(job.id), shape)
        elif shape is OutputFormat.JSON:
            print_json(job)
        else:
            say(job.id)


@app.command("get")
def show(
    job: JobArgument, shape: ShapeOption = OutputFormat.TABLE, url: UrlOption = None, data: DataOption = None
) -> None:
    """How far a job is."""
    with open_client(data, url) as client:
        _print_state(client.job(job), shape)


@app.command("wait")
def wait_for(
    job: JobArgument,
    timeout: Annotated[float | None, typer.Option("--timeout", help="Give up after so many seconds.")] = None,
    shape: ShapeOption = OutputFormat.TABLE,
    url: UrlOption = None,
    data: DataOption = None,
) -> None:
    """Wait until a job has ended, and print its answer; exit code 1 if it did not succeed."""
    with open_client(data, url) as client:
        _print_answer(client, client.wait(job, timeout_seconds=timeout), shape)


@app.command("cancel")
def cancel(
    job: JobArgument, shape: ShapeOption = OutputFormat.TABLE, url: UrlOption = None, data: DataOption = None
) -> None:
    """Ask for a job's end; one that has ended stays as it is."""
    with open_client(data, url) as client:
        _print_state(client.cancel(job), shape)


@app.command("redrive")
def redrive(
    job: JobArgument, shape: ShapeOption = OutputFormat.TABLE, url: UrlOption = None, data: DataOption = None
) -> None:
    """Run a job that failed, expired or was cancelled again, as a new job."""
    with open_client(data, url) as client:
        _print_state(client.redrive(job), shape)


def _read_body(prompt: str | None, model: str | None, body: str | None) -> bytes:
    if body is not None:
        if prompt is not None or model is not None:
            raise UsageError("--body is the whole request: leave out the prompt and --model")
        try:
            return sys.stdin.buffer.read() if body == "-" else Path(body).read_bytes()
        except OSError as error:
            raise UsageError(f"can't read {body}: {error.strerror}") from None
    if prompt is None or model is None:
        raise UsageError('give --model NAME "prompt", or --body FILE')
    return msgspec.json.encode({"model": model, "messages": [{"role": "user", "content": prompt}]})


def _read_tags(given: list[str]) -> dict[str, str] | None:
    found = dict(tag.partition("=")[::2] for tag in given)
    if any("=" not in tag for tag in given):
        raise UsageError("--tag is name=value")
    return found or None


def _print_answer(client: Client, job: JobState, shape: OutputFormat) -> None:
    if job.status != "succeeded":
        error = job.error
        reason = ": ".join(part for part in (error.code, error.message) if part) if error else ""
        raise BrokerError(f"{job.id} ended as {job.status}" + (f" ({reason})" if reason else ""))
    reply = client.result(job.id)
    if shape is OutputFormat.JSON:
        sys.stdout.write(reply.decode(errors="replace").rstrip("\n") + "\n")
    else:
        say(_text_of(reply))


def _text_of(reply: bytes) -> str:
    """The answer's text where it is a chat or a completion, else all of it."""
    try:
        choice = msgspec.json.decode(reply)["choices"][0]
        return str(choice["message"]["content"] if "message" in choice else choice["text"])
    except (msgspec.MsgspecError, LookupError, TypeError):
        return reply.decode(errors="replace")


def _print_state(job: JobState, shape: OutputFormat) -> None:
    if shape is OutputFormat.JSON:
        print_json(job)
        return
    asked = ", to be cancelled" if job.cancel_requested and not job.has_ended else ""
    say(f"{job.id}  {job.status}{asked}" + (f" on lane {job.lane}" if job.lane else ""))
    if job.redrive_of:
        say(f"  runs {job.redrive_of} again")
    say(f"  {job.model} at {job.endpoint}; submitted {job.submitted_at}, due {job.deadline}")
    for lane in job.lanes_out:
        rest = f"{lane.reason} since {lane.since}, next try at {lane.until}" if lane.reason else None
        held = f"it is {lane.state}" if lane.state != LaneState.OPEN else None
        say(f"  lane {lane.lane} gets no work: {'; '.join(filter(None, (held, rest)))}")
    if job.error:
        say(f"  {job.error.code or 'error'}: {job.error.message or 'no more is known'}")
    cost = cost_text(nano_from_usd(job.cost_usd), nano_from_usd(job.unknown_usd), format_usd)
    say(f"  {job.attempts} attempt(s), cost {cost}")


@app.command("explain")
def show_story(
    job: Annotated[str, typer.Argument(help="A job's id (job_… or batch_req_… of an output line), or its custom_id.")],
    tenant: Annotated[str | None, typer.Option("--tenant", help="Only this tenant's jobs.")] = None,
    shape: Annotated[OutputFormat, typer.Option("--format", help="Text for people, or JSON.")] = OutputFormat.TABLE,
    data: DataOption = None,
    database_url: DatabaseOption = None,
) -> None:
    """Every attempt of a job: where it ran and why there, at which price, what it used, cost and took."""
    from broker.bootstrap.ledger_reader import read_ledger
    from broker.clock import utc_now_us
    from broker.ledger.explaining import explain, where_is

    def look(connection: Connection) -> tuple[JobStory | None, str]:
        job_id = _find(connection, tenant, job)
        return explain(connection, tenant, job_id), where_is(connection, tenant, job_id, utc_now_us())

    settings = read_settings(data)
    story, place = read_ledger(settings.data, database_url or settings.database_url, look)
    if story is None:
        raise UsageError(f"there is no job {job}")
    if shape is OutputFormat.JSON:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(story)).decode() + "\n")
    else:
        _tell(story, place)


def _find(connection: Connection, tenant: str | None, text: str) -> bytes:
    from broker.ledger.explaining import find_job

    named = find_job(connection, tenant, text)
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
    if story.tags:
        say(f"  tags {', '.join(f'{name}={value}' for name, value in story.tags.items())}")
    ended = story.outcome or place
    say(f"  {ended}" + (f" ({story.error_code})" if story.error_code else ""))
    unknown = story.unknown_upper_nano_usd
    cost = cost_text(story.cost_nano_usd, unknown, format_usd)
    wasted = waste_text(story.wasted_nano_usd, unknown) if story.wasted_nano_usd else ""
    say(f"  cost {cost} over {len(story.attempts)} attempt(s){wasted}{_charged(story)}")
    for attempt in story.attempts:
        _tell_attempt(attempt)


def _charged(story: JobStory) -> str:
    if story.charged_nano_usd is None:
        return ""
    if not story.charged_nano_usd and any(
        one.outcome == "succeeded" and one.cost_basis == "unknown" for one in story.attempts
    ):
        return ", charged nothing as far as is known"
    return f", charged {format_usd(story.charged_nano_usd)}"


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
    if attempt.decision_proven is False:
        say("            this is not the decision that the ledger has the digest of")
    for candidate in attempt.candidates:
        mark = "->" if candidate.lane == attempt.lane else "  "
        expected = dollars(candidate.expected_job_cost_nano_usd)
        say(f"         {mark} {candidate.lane}: {expected} a job expected, price {candidate.price_version}")
    for removed in attempt.removed:
        say(f"          x {removed.lane}: {removed.filter}")
    say(f"  usage     {_tokens(attempt)}; {attempt.accelerator_us / 1_000_000:,.6f} s of the accelerator")
    open_nano_usd = attempt.cost_upper_nano_usd - attempt.cost_nano_usd
    cost = cost_text(attempt.cost_nano_usd, open_nano_usd, format_usd)
    is_known = attempt.cost_basis != "unknown"
    say(f"  cost      {f'{cost} ({attempt.cost_basis})' if is_known else cost if open_nano_usd else 'unknown'}")
    say(f"  price     {attempt.price_version}: {attempt.price_source}")
    say(
        f"  time      queued {seconds(attempt.queue_us // 1000)}, ran {seconds(attempt.run_us // 1000)}, "
        f"ended {_time(attempt.ended_us)}"
    )
    say(f"  ledger    {attempt.ledger_row}")


def _tokens(attempt: AttemptStory) -> str:
    if attempt.input_tokens is None:
        return "tokens unknown"
    cached = "unknown" if attempt.cached_input_tokens is None else f"{attempt.cached_input_tokens:,}"
    out = "unknown" if attempt.output_tokens is None else f"{attempt.output_tokens:,}"
    return f"{attempt.input_tokens:,} tokens in ({cached} cached), {out} out"


def _time(moment_us: int) -> str:
    return (_EPOCH + timedelta(microseconds=moment_us)).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3] + "Z"
