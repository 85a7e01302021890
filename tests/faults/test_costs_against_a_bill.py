"""What is known of a call's cost, and its bound, against the bill of a vendor that has every oddity."""

from __future__ import annotations

import asyncio
import json
import random
import statistics
from typing import Any

import pytest

from broker.domain.errors import ErrorCode
from broker.domain.lane import EngineSettings, PriceMeter
from broker.rules.pricing import Costs, costs_of
from tests.harness.vendor import CACHED_USD, INPUT_USD, ODDITIES, OUTPUT_USD, Vendor
from tests.unit.builders import a_lane, a_price
from workers.engine import EngineError, EngineReply, EngineRequest
from workers.engines.openai_http import OpenAIHttpEngine
from workers.spending import Spending

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
CALLS = 5_000
PRICE = a_price(
    meter=PriceMeter.TOKEN,
    instance_hour_pico_usd=0,
    input_token_pico_usd=int(INPUT_USD * 1_000_000),
    output_token_pico_usd=int(OUTPUT_USD * 1_000_000),
    cached_input_token_pico_usd=int(CACHED_USD * 1_000_000),
)
LANE = a_lane(price=PRICE, engine=EngineSettings(driver="openai_http", models=("m",)))
WORDS = ("the", "of", "model", "answer", "through", "government", "people", "a", "or", "question")
CODE = "for (int i = 0; i < n; ++i) { sum[i] += f(x_%d, 0x%04x); }\n"
OTHERS = ("推論の要求を一度だけ送る。", "😀🎉👩‍🔬", "Übergrößenträger ", "3.14159265,2.71828183;", "Привет, мир! ")
MOST_ODD = ("plain", "no total", "silent", "hung up on", "no usage", "cut")
SILENT = {"silent", "hung up on"}


def a_text(dice: random.Random) -> str:
    length = int(dice.paretovariate(0.9) * 4)
    match dice.randrange(8):
        case 0:
            return "".join(CODE % (dice.randrange(100), dice.randrange(2**16)) for _ in range(min(length, 60)))
        case 1:
            return dice.choice(OTHERS) * min(length, 200)
        case _:
            return " ".join(dice.choices(WORDS, k=min(length * 4, 3_000))).capitalize() + "."


def a_request(number: int, dice: random.Random) -> tuple[str, str, dict[str, Any]]:
    """Oddity, endpoint and body."""
    names = list(ODDITIES)
    oddity = dice.choice(MOST_ODD) if dice.random() < 0.4 else names[number % len(names)]
    body: dict[str, Any] = {"model": "m", "user": f"{oddity}:{number}"}
    body["max_completion_tokens" if dice.random() < 0.3 else "max_tokens"] = (
        int(dice.paretovariate(0.8) * 16) % 4_000 + 1
    )
    if dice.random() < 0.25:
        body["n"] = dice.randint(2, 4)
    if dice.random() < 0.8:
        texts = [a_text(dice) for _ in range(dice.choice((1, 1, 2, 5)))]
        return oddity, CHAT, {**body, "messages": [{"role": "user", "content": text} for text in texts]}
    prompts = [a_text(dice) for _ in range(dice.choice((1, 1, 1, 3)))]
    return oddity, TEXT, {**body, "prompt": prompts[0] if len(prompts) == 1 else prompts}


class _Calls:
    """Calls of one lane's worker, each with what its cost is taken for."""

    def __init__(self, address: str) -> None:
        options: dict[str, Any] = {"concurrency": 32, "use_proxy": False}
        self._engine = OpenAIHttpEngine(address, request_timeout_seconds=20, **options)
        self._impatient = OpenAIHttpEngine(address, request_timeout_seconds=0.05, **options)
        self._counts_one = OpenAIHttpEngine(address, request_timeout_seconds=20, counts_one_choice=True, **options)
        self._spending = Spending(LANE)
        self.codes: set[ErrorCode] = set()

    async def make(self, oddity: str, endpoint: str, body: dict[str, Any]) -> Costs:
        request = EngineRequest(body["user"], endpoint, json.dumps(body).encode())
        engine = {"silent": self._impatient, "one counted": self._counts_one}.get(oddity, self._engine)
        ended: EngineReply | EngineError | None
        try:
            async with asyncio.timeout(0.05 if oddity == "hung up on" else None):
                ended = await engine.run(request)
        except EngineError as error:
            ended = error
            self.codes.add(error.code)
        except TimeoutError:
            ended = None  # cancelled, as by a person
        spent = self._spending.of(endpoint, request.body, ended)
        return costs_of(PRICE, spent.usage, spent.basis, spent.upper)

    async def stop(self) -> None:
        for engine in (self._engine, self._impatient, self._counts_one):
            await engine.stop()


async def _all_calls(seed: int, count: int) -> tuple[list[tuple[str, Costs, int]], set[ErrorCode]]:
    dice = random.Random(seed)
    vendor, found = Vendor(seed), []
    async with vendor.serving() as address:
        calls, places = _Calls(address), asyncio.Semaphore(48)

        async def one(number: int) -> None:
            oddity, endpoint, body = a_request(number, dice)
            async with places:
                cost = await calls.make(oddity, endpoint, body)
            found.append((oddity, cost, vendor.bills.get(body["user"], 0)))

        await asyncio.gather(*map(one, range(count)))
        await calls.stop()
    return found, calls.codes


def test_the_bill_is_never_below_what_is_known_nor_above_its_bound() -> None:
    found, codes = asyncio.run(_all_calls(seed=7, count=CALLS))
    wrong = [(oddity, cost, bill) for oddity, cost, bill in found if not cost.known <= bill <= cost.upper]
    assert not wrong, (len(wrong), wrong[:20])
    assert {oddity for oddity, _, _ in found} == set(ODDITIES)
    assert {ErrorCode.ENGINE_TIMEOUT, ErrorCode.ENGINE_FAILED, ErrorCode.ENGINE_INVALID_REPLY} <= codes
    unknown = [cost.upper / bill for _, cost, bill in found if not cost.is_known and bill]
    known = sum(cost.is_known for _, cost, _ in found)
    median = statistics.median(unknown)
    print(f"{known} of {CALLS} known; the others are bounded at {median:.2f} x the bill in the median")
    assert median <= 1.5
    assert known > CALLS / 3


def test_a_call_that_never_got_there_is_known_to_be_free() -> None:
    async def run() -> Costs:
        calls = _Calls("http://127.0.0.1:9")
        cost = await calls.make("plain", CHAT, {"model": "m", "user": "plain:1", "messages": [], "max_tokens": 8})
        await calls.stop()
        return cost

    assert asyncio.run(run()) == Costs(0, 0)


@pytest.mark.parametrize("oddity", ["silent", "500", "no usage"])
def test_what_is_unknown_is_never_free(oddity: str) -> None:
    async def run() -> Costs:
        async with Vendor(1).serving() as address:
            calls = _Calls(address)
            body = {
                "model": "m",
                "user": f"{oddity}:1",
                "messages": [{"role": "user", "content": "hi"}],
                "max_tokens": 8,
            }
            cost = await calls.make(oddity, CHAT, body)
            await calls.stop()
            return cost

    cost = asyncio.run(run())
    assert not cost.is_known
    assert (cost.known, cost.upper) == (0, pytest.approx(8 * 4_000 + 100 * 500, rel=0.3))
