"""Throughputs by CSV: what is refused in which words, which figure a lane starts from, and the figures that ship."""

from __future__ import annotations

from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from broker.catalog.lanes import load_lanes
from broker.catalog.throughputs import best_throughput, published_throughputs, read_throughputs
from broker.cli.throughputs import app
from broker.domain.errors import UsageError

TODAY = date(2026, 11, 23)
HEADER = (
    "model,accelerator,accelerator_count,precision,engine,concurrency,input_tokens,output_tokens,"
    "output_tokens_per_second,source,as_of,notes"
)
SHIPPED = published_throughputs()


def row(**changes: str) -> str:
    cells = {
        "model": "m-70b", "accelerator": "h100", "accelerator_count": "2", "precision": "fp8", "engine": "an engine",
        "input_tokens": "1000", "output_tokens": "500", "output_tokens_per_second": "2000", "source": "a table",
        "as_of": "2026-11-01",
    }  # fmt: skip
    return ",".join((cells | changes).get(name, "") for name in HEADER.split(","))


def read(*rows: str):
    return read_throughputs("speeds.csv", "\n".join([HEADER, *rows]).encode(), TODAY)


def best(figures, count=8, **terms):
    found = best_throughput(figures, "m-70b", "h100", count, **terms)
    return found and found[1]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"model": ""}, "model: is empty"),
        ({"accelerator": ""}, "accelerator: is empty"),
        ({"accelerator_count": "0"}, "accelerator_count: '0' is not a number of 1 or more"),
        ({"accelerator_count": "3"}, "accelerator_count: no instance with h100 has 3 or a multiple"),
        ({"accelerator_count": "16"}, "accelerator_count: no instance with h100 has 16 or a multiple"),
        ({"precision": "fp9"}, "precision: 'fp9' is unknown; it must be one of bf16, fp16, fp8, fp4, int8, int4"),
        ({"concurrency": "many"}, "concurrency: 'many' is not a number of 1 or more"),
        ({"input_tokens": "-1"}, "input_tokens: '-1' is not a number of 1 or more"),
        ({"output_tokens": ""}, "output_tokens: '' is not a number of 1 or more"),
        ({"output_tokens": "99000000"}, "output_tokens: 99000000 is above 10000000, which can't be"),
        ({"output_tokens_per_second": "0"}, "output_tokens_per_second: '0' is not a number above 0"),
        ({"output_tokens_per_second": "-5"}, "output_tokens_per_second: '-5' is not a number above 0"),
        ({"output_tokens_per_second": "nan"}, "output_tokens_per_second: 'nan' is not a number above 0"),
        ({"output_tokens_per_second": "fast"}, "output_tokens_per_second: 'fast' is not a number above 0"),
        ({"output_tokens_per_second": "2e6"},
         "output_tokens_per_second: 1,000,000 for each accelerator is above 500,000, which can't be"),
        ({"source": ""}, "source: is empty; every figure names where it was read"),
        ({"as_of": "2023-11-01"}, "as_of: 2023-11-01 is stale: 1118 days old; the limit is 1095"),
        ({"as_of": "2027-01-01"}, "as_of: 2027-01-01 lies ahead"),
        ({"as_of": "lately"}, "as_of: 'lately' is no date such as 2026-11-22"),
        ({"notes": "a,b"}, "row: has more or fewer cells than the header"),
        ({"model": "other/M-70B-Instruct", "accelerator": "H100-SXM", "notes": "again"},
         "row: is of the same thing as row 2: m-70b, h100, 2, fp8, an engine, 1000, 500"),
    ],
)  # fmt: skip
def test_what_can_not_be_is_refused_in_one_sentence(changes, sentence):
    with pytest.raises(UsageError) as caught:
        read(row(), row(**{"concurrency": "7"} | changes) if "again" not in changes.values() else row(**changes))
    assert str(caught.value) == f"speeds.csv, row 3, {sentence}"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"\xff", "speeds.csv is not a CSV file in UTF-8"),
        (b"model,colour\n", "speeds.csv has the column 'colour'; a file of throughputs has model, accelerator, "),
        (b"model,accelerator\n", "speeds.csv lacks the column accelerator_count; a file of throughputs has model, "),
    ],
)
def test_files_that_are_no_throughputs_are_refused(content, sentence):
    with pytest.raises(UsageError) as caught:
        read_throughputs("speeds.csv", content, TODAY)
    assert str(caught.value).startswith(sentence)


def test_a_figure_counts_as_often_as_it_fits():
    figures = read(row())  # two accelerators: 4 jobs a second
    assert [best(figures, count) for count in (1, 2, 3, 4, 8)] == [None, 4.0, None, 8.0, 16.0]
    exact = read(row(), row(accelerator_count="8", output_tokens_per_second="9000"))
    assert best(exact) == 18.0


def test_the_nearest_figure_counts_and_of_two_as_near_the_slower():
    figures = read(
        row(output_tokens="250", concurrency="64"),
        row(output_tokens="250", concurrency="256", output_tokens_per_second="4000"),
        row(output_tokens="8000"),
        row(precision="fp4", output_tokens="250", output_tokens_per_second="8000"),
        row(precision="fp4", engine="another", output_tokens="250", output_tokens_per_second="6000"),
    )
    assert best(figures, 2, precision="fp8", concurrency=80) == 8.0
    assert best(figures, 2, precision="fp8", concurrency=1_000) == 16.0
    assert best(figures, 2, precision="fp4") == 24.0
    assert best(figures, 2, precision="bf16") is None
    assert best_throughput(figures, "m-7b", "h100", 2) is None
    assert best_throughput(figures, "m-70b", "h200", 2) is None


@given(
    count=st.sampled_from([1, 2, 4, 8]),
    times=st.sampled_from([1, 2, 4]),
    model=st.sampled_from(sorted({one.model for one in SHIPPED})),
    accelerator=st.sampled_from(sorted({one.accelerator for one in SHIPPED})),
)
def test_more_of_the_same_hardware_is_never_believed_slower(count, times, model, accelerator):
    few = best_throughput(SHIPPED, model, accelerator, count)
    many = best_throughput(SHIPPED, model, accelerator, count * times)
    if few is not None:
        assert many is not None
        assert many[0].model == few[0].model
        if many[0] == few[0]:
            assert many[1] == pytest.approx(times * few[1])


def test_what_ships_is_as_it_was_read():
    assert len(SHIPPED) > 100
    assert all(one.source and one.as_of <= "2026-11-23" for one in SHIPPED)

    def known(model, accelerator, count, **terms):
        return best_throughput(SHIPPED, model, accelerator, count, **terms)[0].output_tokens_per_second

    assert known("meta-llama/Llama-3.3-70B-Instruct", "tpu-v6e", 8, concurrency=64) == 2_494.8
    assert known("meta-llama/Llama-3.3-70B-Instruct", "tpu-v6e", 8, concurrency=128) == 3_544.46
    assert known("openai/gpt-oss-120b", "H100-SXM", 8) == 4 * 4_685  # published for one of four that work together
    assert known("llama-2-70b", "mi300x", 8) == 24_593.8


CATALOG = """
{top}
[[lane]]
name = "gpu"
provider = "azure-gpu"
region = "eastus"
accelerator = "{accelerator}"
accelerator_count = 8
market = "on-demand"
slots = 4
{more}
price.source = "a list"
price.as_of = "2026-06-18"

[lane.engine]
driver = "echo"
models = {models}
"""
HOURLY = 'price.instance_hour_usd = "98.32"'


def catalog(folder, top="", accelerator="h100", more="", price=HOURLY, models='["meta-llama/Llama-3.3-70B-Instruct"]'):
    path = folder / "lanes.toml"
    path.write_text(CATALOG.format(top=top, accelerator=accelerator, more=f"{more}\n{price}", models=models))
    return path


def test_a_lane_without_a_speed_starts_from_what_is_published(tmp_path):
    (lane,) = load_lanes(catalog(tmp_path))
    assert lane.jobs_per_second * lane.slots == pytest.approx(4 * 4_205 / 1_000)
    (said,) = load_lanes(catalog(tmp_path, more="jobs_per_second = 2.5"))
    assert said.jobs_per_second == 2.5
    (slowest,) = load_lanes(catalog(tmp_path, models='["llama-3.3-70b", "llama-3.1-405b"]'))
    assert slowest.jobs_per_second * 4 == pytest.approx(2.919)


def test_a_file_of_ones_own_comes_along_with_what_ships(tmp_path):
    own = row(model="mine", accelerator_count="8", as_of="2026-11-20")
    (tmp_path / "mine.csv").write_text(f"{HEADER}\n{own}\n")
    top = 'throughputs = "mine.csv"'
    assert load_lanes(catalog(tmp_path, top, models='["mine"]'))[0].jobs_per_second == 1.0
    assert load_lanes(catalog(tmp_path, top))[0].jobs_per_second == pytest.approx(4.205)
    # One that goes stale must not keep a broker from starting; `broker throughputs list --file` says so.
    (tmp_path / "mine.csv").write_text(f"{HEADER}\n{own.replace('2026-11-20', '2020-11-20')}\n")
    assert load_lanes(catalog(tmp_path, top, models='["mine"]'))[0].jobs_per_second == 1.0
    with pytest.raises(UsageError, match=r"throughputs names .*gone.csv, which can't be read: No such file"):
        load_lanes(catalog(tmp_path, 'throughputs = "gone.csv"'))


LEFT_OUT = "lanes.toml, lane 'gpu': jobs_per_second is left out, and "


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"models": '["mine"]'}, "no throughput of mine on h100 x 8 is known; say how fast one slot is"),
        ({"accelerator": "abacus"},
         "no throughput of meta-llama/Llama-3.3-70B-Instruct on abacus x 8 is known; say how fast one slot is"),
        ({"more": "stand_in = true"},
         "no published throughput applies, as its hardware is a stand-in; say how fast one slot is"),
        ({"price": 'price.input_mtok_usd = "1"\nprice.output_mtok_usd = "2"'},
         "no published throughput applies, as it is paid by the token; say how fast one slot is"),
    ],
)  # fmt: skip
def test_a_lane_of_which_nothing_is_known_is_refused_in_one_sentence(tmp_path, changes, reason):
    with pytest.raises(UsageError) as caught:
        load_lanes(catalog(tmp_path, **changes))
    assert str(caught.value) == f"{tmp_path}/{LEFT_OUT}{reason}"


def test_the_command_lists_what_ships_and_checks_what_is_brought(tmp_path):
    listed = CliRunner().invoke(app, ["list", "--model", "LLAMA-3.3", "--accelerator", "tpu-v6e", "--format", "csv"])
    assert listed.exit_code == 0
    assert listed.stdout.splitlines()[1].startswith("Llama-3.3-70B,tpu-v6e x 8,bf16,vLLM-TPU 0.12.0,")
    path = tmp_path / "mine.csv"
    path.write_text(f"{HEADER}\n{row(source='')}\n")
    refused = CliRunner().invoke(app, ["list", "--file", str(path)])
    assert str(refused.exception) == f"{path}, row 2, source: is empty; every figure names where it was read"
