"""What a worker tells of each end of a call: what it used as far as that is known, and its bound."""

from __future__ import annotations

import pytest

from broker.domain.errors import ErrorCode
from broker.domain.lane import PriceMeter
from broker.domain.outcome import Outcome
from broker.domain.shard import Bitmap
from broker.domain.usage import Usage, UsageBasis
from tests.unit.builders import a_price, an_order
from tests.unit.hiring import Broken, Held, hiring, ran_jobs
from workers.engine import EngineError, EngineReply, TokensUpper

BY_TOKEN = a_price(0, meter=PriceMeter.TOKEN, input_token_pico_usd=1_000_000, output_token_pico_usd=4_000_000)


class Answers:
    """Gives every request this reply."""

    def __init__(self, reply):
        self.reply = reply

    async def run(self, request):
        return self.reply


@pytest.fixture
def hire():
    with hiring() as make:
        yield make


def told(worker, **more):
    (job,) = ran_jobs(worker.run(an_order(1, **more))).values()
    usage = Usage(*job.usage.__reduce__()[1][:4]) if job.usage.accelerator_us else job.usage
    return job, usage


@pytest.mark.parametrize("price", [BY_TOKEN, a_price()], ids=["token", "hour"])
@pytest.mark.parametrize(
    ("error", "basis", "is_open"),
    [
        (EngineError(ErrorCode.ENGINE_TIMEOUT, "late"), UsageBasis.NONE, True),
        (EngineError(ErrorCode.ENGINE_FAILED, "broke", status_code=500), UsageBasis.NONE, True),
        (EngineError(ErrorCode.ENGINE_UNREACHABLE, "gone", is_free=True), UsageBasis.COUNTED, False),
        (EngineError(ErrorCode.ENGINE_BUSY, "later", status_code=429, is_free=True), UsageBasis.COUNTED, False),
        (ZeroDivisionError("a bug"), UsageBasis.NONE, True),
    ],
)
def test_an_error_is_free_or_bounded(hire, price, error, basis, is_open):
    job, usage = told(hire(Broken(error), price=price))
    assert (usage, job.usage_basis) == (Usage(), basis)
    assert (job.usage_upper is not None) == (is_open and price is BY_TOKEN)
    if job.usage_upper is not None:
        assert job.usage_upper.output_tokens == 32_768
        assert 10 < job.usage_upper.input_tokens < 200


def test_what_a_thrown_away_reply_stated_is_kept_and_when_to_come_again_is_told(hire):
    error = EngineError(
        ErrorCode.ENGINE_INVALID_REPLY,
        "empty",
        usage=Usage(3110, 0, 673),
        usage_basis=UsageBasis.ENGINE,
        retry_after_s=1.2,
    )
    job, usage = told(hire(Broken(error), price=BY_TOKEN))
    assert (usage, job.usage_basis, job.usage_upper, job.retry_after_s) == (
        Usage(3110, 0, 673), UsageBasis.ENGINE, None, 2,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("usage", "basis", "open_", "upper"),
    [
        (Usage(7, 6, 5), UsageBasis.ENGINE, None, None),
        (Usage(7, 7, 5), UsageBasis.INCONSISTENT, TokensUpper(None, 9), Usage(7, 7, 9)),
        (Usage(7, 7, 5), UsageBasis.INCONSISTENT, TokensUpper(107, None), Usage(107, 0, 5)),
        (Usage(), UsageBasis.NONE, TokensUpper(7, None), Usage(7, 0, 32_768)),
        (Usage(), UsageBasis.IMPLAUSIBLE, TokensUpper(90_000_000, 5), Usage(90_000_000, 0, 32_768)),
    ],
)
def test_a_reply_is_bounded_by_what_it_can_mean(hire, usage, basis, open_, upper):
    reply = EngineReply(200, b"{}", usage, "r", basis, open_)
    job, counted = told(hire(Answers(reply), price=BY_TOKEN))
    assert (job.outcome, counted, job.usage_basis, job.usage_upper) == (Outcome.SUCCEEDED, usage, basis, upper)


def test_a_call_cancelled_amid_its_run_is_bounded(hire):
    engine = Held(1)
    worker = hire(engine, price=BY_TOKEN)
    thread = worker.in_background(an_order(1))
    assert engine.all_there.wait(5)
    worker.door.cancels = True
    thread.join(5)
    (job,) = ran_jobs(worker.events()).values()
    assert (job.outcome, job.error_code, job.usage_basis) == (
        Outcome.CANCELLED, ErrorCode.BATCH_CANCELLED, UsageBasis.NONE,
    )  # fmt: skip
    assert job.usage_upper is not None
    assert "while it ran" in job.message


def test_a_call_cancelled_before_it_began_is_free(hire):
    worker = hire(price=BY_TOKEN)
    worker.door.cancelled_jobs = Bitmap.of([0]).to_bytes()
    first, second = (job for _, job in sorted(ran_jobs(worker.run(an_order(2))).items()))
    assert (first.outcome, first.error_code, first.message) == (Outcome.CANCELLED, ErrorCode.JOB_CANCELLED, "")
    assert (first.usage_basis, first.usage_upper) == (UsageBasis.COUNTED, None)
    assert (second.outcome, second.usage_basis) == (Outcome.SUCCEEDED, UsageBasis.ENGINE)


def test_the_worker_learns_what_its_server_makes_of_text(hire):
    worker = hire(Answers(EngineReply(200, b"{}", Usage(300, 0, 5))), price=BY_TOKEN)
    words = "the answer to the question is here " * 30
    ran_jobs(worker.run(an_order(20, words=words)))
    worker.deployment.engine = Broken(EngineError(ErrorCode.ENGINE_TIMEOUT, "late"))
    job, _ = told(worker, words=words)
    assert 300 < job.usage_upper.input_tokens < 420  # of over a thousand bytes
