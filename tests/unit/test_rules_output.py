from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.domain.errors import ErrorCode
from broker.domain.ids import new_id
from broker.domain.outcome import Outcome
from broker.rules.output import error_line, output_line, refusal_line

JOB = new_id()
_values = st.recursive(st.none() | st.integers(-9, 9) | st.text(max_size=9), lambda inner: st.lists(inner, max_size=3))


def _one_json_line(line):
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert b"\r" not in line
    return msgspec.json.decode(line.decode())


@given(st.text(max_size=20), st.text(max_size=20), _values)
def test_a_success_is_one_line_that_keeps_the_reply(custom_id, request_id, value):
    body = msgspec.json.encode({"a": value})
    line = output_line(JOB, custom_id, 200, request_id, body)
    assert body in line
    assert _one_json_line(line) == {
        "id": f"batch_req_{JOB.hex()}",
        "custom_id": custom_id,
        "response": {"status_code": 200, "request_id": request_id, "body": {"a": value}},
        "error": None,
    }


def test_a_reply_laid_out_over_lines_becomes_one():
    read = _one_json_line(output_line(JOB, "a", 200, "", b'{\r\n  "a": "x\\ny"\n}'))
    assert read["response"]["body"] == {"a": "x\ny"}


def test_a_failure_keeps_the_engines_answer():
    line = error_line(JOB, "a", Outcome.FAILED, ErrorCode.ENGINE_REFUSED, 400, "r", "no", b'{"error":\n1}')
    assert _one_json_line(line) == {
        "id": f"batch_req_{JOB.hex()}",
        "custom_id": "a",
        "response": {"status_code": 400, "request_id": "r", "body": {"error": 1}},
        "error": {"code": "engine_refused", "message": "no"},
    }


@pytest.mark.parametrize("body", [b"", b"<html>", b'{"a":', b'"\xff"', b"[" * 100_000 + b"]" * 100_000])
def test_an_answer_that_is_no_json_gives_way_to_ours(body):
    read = _one_json_line(error_line(JOB, "a", Outcome.FAILED, ErrorCode.ENGINE_FAILED, 502, "", "broke", body))
    assert (
        read["response"]["body"] == {"error": read["error"]} == {"error": {"code": "engine_failed", "message": "broke"}}
    )


@given(st.binary(max_size=40))
def test_whatever_the_engine_answered_the_line_is_json(body):
    _one_json_line(error_line(JOB, "a", Outcome.FAILED, ErrorCode.ENGINE_FAILED, 500, "", "", body))


@pytest.mark.parametrize(
    "code", [ErrorCode.BATCH_EXPIRED, ErrorCode.BATCH_CANCELLED, ErrorCode.BUDGET_EXCEEDED, ErrorCode.POISONED]
)
def test_a_job_that_never_answered_says_why(code):
    read = _one_json_line(error_line(JOB, "a", Outcome.EXPIRED, code, 0, "", "", b""))
    assert read["response"] is None
    assert read["error"]["code"] == code
    assert "This request was" in read["error"]["message"] or "could not be executed" in read["error"]["message"]


def test_an_outcome_without_a_code_is_its_own_code():
    read = _one_json_line(error_line(JOB, "a", Outcome.CANCELLED, None, 0, "", "", b""))
    assert read["error"] == {"code": "cancelled", "message": ""}


def test_a_refusal_names_its_line():
    read = _one_json_line(refusal_line(JOB, 7, None, ErrorCode.INVALID_LINE, 'bad "line"\n'))
    assert read["id"] == f"batch_req_{JOB.hex()}_line_7"
    assert (read["custom_id"], read["response"]) == (None, None)
    assert read["error"] == {"code": "invalid_line", "message": 'line 7: bad "line"\n', "line": 7}
