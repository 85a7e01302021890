"""`broker batch run` on a lane that is paid by the token: what it says a batch cost, against the vendor's own bill."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator

import pytest

from tests.flow.program import Program, lines_of
from tests.harness.vendor import CACHED_USD, INPUT_USD, OUTPUT_USD, Vendor

ANSWERED = ("plain", "cached", "thinking beside", "no usage", "NaN", "too much", "null completion, no total")
TRIED_AGAIN = ("empty choices once", "error in a 200, billed once", "500, billed once", "cut once")
FAILED = ("400", "filtered")
TEXT = "How many tokens does a request have, of which nobody ever said what they came to? " * 4


@pytest.fixture
def vendor() -> Iterator[tuple[Vendor, str]]:
    """A vendor at work on a thread of its own, and its address."""
    vendor, loop, address = Vendor(3), asyncio.new_event_loop(), ""
    ready, done = threading.Event(), asyncio.Event()

    async def serve() -> None:
        nonlocal address
        async with vendor.serving() as address:
            ready.set()
            await done.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=[serve()])
    thread.start()
    assert ready.wait(10)
    yield vendor, address
    loop.call_soon_threadsafe(done.set)
    thread.join(10)
    loop.close()


def a_line(number: int, oddity: str) -> dict[str, object]:
    body = {
        "model": "m",
        "user": f"{oddity}:{number}",
        "max_tokens": 50,
        "messages": [{"role": "user", "content": TEXT}],
    }
    return {"custom_id": f"{oddity} {number}", "method": "POST", "url": "/v1/chat/completions", "body": body}


def test_the_bill_is_between_what_is_known_and_its_bound(tmp_path, vendor):
    (server, address), program = vendor, Program(tmp_path)
    prices = {
        "input_mtok_usd": INPUT_USD,
        "output_mtok_usd": OUTPUT_USD,
        "cached_input_mtok_usd": CACHED_USD,
    }
    program.catalog.write_text(
        '[[lane]]\nname = "vendor"\nprovider = "azure-gpu"\nregion = "r"\naccelerator = "a"\naccelerator_count = 1\n'
        'market = "on-demand"\njobs_per_second = 20.0\nprice.source = "the test"\nprice.as_of = "2026-11-22"\n'
        + "".join(f'price.{name} = "{float(usd)}"\n' for name, usd in prices.items())
        + '[lane.engine]\ndriver = "openai_http"\nmodels = ["m"]\nconcurrency = 8\ncontext_tokens = 8192\n'
        f"options.base_url = {json.dumps(address)}\noptions.use_proxy = false\n"
    )
    oddities = [*ANSWERED, *TRIED_AGAIN, *FAILED, *["plain"] * 9]
    program.give(a_line(number, oddity) for number, oddity in enumerate(oddities))
    ran = program.finish()

    errors = {line["custom_id"].rsplit(" ", 1)[0]: line for line in lines_of(program.errors)}
    assert set(errors) == set(FAILED)
    assert len(lines_of(program.output)) == len(ANSWERED) + len(TRIED_AGAIN) + 9
    [(message,)] = {(line["error"]["message"],) for line in errors.values() if "400" in line["custom_id"]}
    assert message.startswith("the engine answered HTTP 400: it broke")

    bill = sum(server.bills.values())
    [(known, upper)] = program.query("SELECT sum(cost_nano_usd), sum(cost_upper_nano_usd) FROM attempt")
    assert 0 < known <= bill <= upper
    assert program.query("SELECT sum(cost_nano_usd), sum(unknown_nano_usd) FROM batch_count") == [
        (known, upper - known)
    ]
    assert f"Cost ${known / 1e9:.6f} and an unknown part of at most ${(upper - known) / 1e9:.6f}" in ran.said
    # Job by job: what is known to the last nano-dollar where the server said it, and never nothing where it didn't.
    rows = program.query(
        "SELECT j.custom_id, sum(a.cost_nano_usd), sum(a.cost_upper_nano_usd), max(a.cost_basis = 'unknown')"
        " FROM attempt a JOIN job j ON j.job_id = a.job_id GROUP BY j.custom_id"
    )
    assert len(rows) == len(oddities)
    for custom_id, cost, at_most, is_unknown in rows:
        oddity, _, number = custom_id.rpartition(" ")
        its_bill = server.bills[f"{oddity}:{number}"]
        assert cost <= its_bill <= at_most, custom_id
        assert (cost == its_bill) or is_unknown, custom_id
        assert at_most > 0 or oddity == "400", custom_id
    program.verify()


def test_a_job_of_unknown_cost_is_said_to_be_so(tmp_path, vendor):
    (_, address), program = vendor, Program(tmp_path)
    program.catalog.write_text(
        '[[lane]]\nname = "vendor"\nprovider = "azure-gpu"\nregion = "r"\naccelerator = "a"\naccelerator_count = 1\n'
        'market = "on-demand"\njobs_per_second = 20.0\nprice.source = "the test"\nprice.as_of = "2026-11-22"\n'
        'price.input_mtok_usd = "0.5"\nprice.output_mtok_usd = "4"\n'
        '[lane.engine]\ndriver = "openai_http"\nmodels = ["m"]\n'
        f"options.base_url = {json.dumps(address)}\noptions.use_proxy = false\n"
    )
    program.give([a_line(0, "no usage")])
    ran = program.finish()
    assert "Cost unknown, at most $0.000" in ran.said
    table = ran.said.partition("By provider")[2].partition("lines:")[0]
    assert "unknown" in table
    assert "$0.000000" not in table
    story = program.broker("jobs", "explain", "no usage 0", "--data", str(program.data)).said
    assert "cost unknown, at most $0.000" in story
    assert "cost      unknown, at most $0.000" in story
    assert "$0.00\n" not in story
    assert "charged nothing as far as is known" in story
