from __future__ import annotations

import time

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from broker.domain.errors import ErrorCode
from broker.domain.job import AcceptedLine, RefusedLine
from broker.rules.admission import CUSTOM_ID_CHARS_MAX, admit_line
from tests.unit.builders import ENDPOINT, MODEL, a_line

DEEP = b"[" * 100_000 + b"]" * 100_000


def _admit(line):
    return admit_line(7, line, {MODEL})


def test_a_good_line_is_accepted_with_its_body_as_it_came():
    line = (
        b'{"custom_id":"a","method":"POST","url":"/v1/chat/completions","body":{ "model":"m","messages":[{}], "x":1 }}'
    )
    assert _admit(line) == AcceptedLine(7, "a", ENDPOINT, MODEL, b'{ "model":"m","messages":[{}], "x":1 }')


@pytest.mark.parametrize(
    ("url", "body"),
    [
        ("/v1/completions", {"model": MODEL, "prompt": "hi"}),
        ("/v1/completions", {"model": MODEL, "prompt": [1, 2]}),
        ("/v1/embeddings", {"model": MODEL, "input": ["a", "b"]}),
        ("/v1/chat/completions", {"model": MODEL, "messages": ["anything"], "stream": False}),
        ("/v1/chat/completions", {"model": MODEL, "messages": [1], "stream": None}),
    ],
)
def test_each_endpoint_has_its_own_body(url, body):
    line = msgspec.json.encode({"custom_id": "é" * CUSTOM_ID_CHARS_MAX, "method": "POST", "url": url, "body": body})
    accepted = _admit(line)
    assert isinstance(accepted, AcceptedLine), accepted
    assert (accepted.endpoint, msgspec.json.decode(accepted.body)) == (url, body)


@pytest.mark.parametrize(
    ("url", "body", "endpoint"),
    [
        ("/chat/completions", {"messages": [1]}, "/v1/chat/completions"),
        ("/completions", {"prompt": "hi"}, "/v1/completions"),
        ("/embeddings", {"input": "hi"}, "/v1/embeddings"),
        ("/v1/embeddings", {"messages": [{"role": "user", "content": "hi"}]}, "/v1/embeddings"),
        ("/v1/completions", {"prompt_embeds": "AAAA"}, "/v1/completions"),
        ("/v1/completions", {"prompt": None, "prompt_embeds": ["AAAA"]}, "/v1/completions"),
    ],
)
def test_azures_urls_and_vllms_inputs_are_taken(url, body, endpoint):
    body |= {"model": MODEL}
    line = msgspec.json.encode({"custom_id": "a", "method": "POST", "url": url, "body": body})
    assert _admit(line) == AcceptedLine(7, "a", endpoint, MODEL, msgspec.json.encode(body))


@pytest.mark.parametrize(
    ("url", "body", "field"),
    [
        ("/v1/embeddings", {}, "input"),
        ("/v1/embeddings", {"input": None, "messages": []}, "input"),
        ("/embeddings", {"prompt": "hi"}, "input"),
        ("/v1/completions", {}, "prompt"),
        ("/v1/completions", {"prompt": None, "prompt_embeds": None}, "prompt"),
    ],
)
def test_a_body_that_asks_for_nothing_is_refused(url, body, field):
    line = {"custom_id": "a", "method": "POST", "url": url, "body": body | {"model": MODEL}}
    refused = _admit(msgspec.json.encode(line))
    assert isinstance(refused, RefusedLine)
    assert (refused.code, refused.message) == (
        ErrorCode.INVALID_BODY,
        f"body: Object missing required field `{field}`",
    )


@pytest.mark.parametrize(
    ("line", "code", "custom_id"),
    [
        (b"nonsense", ErrorCode.INVALID_LINE, None),
        (a_line()[:-2], ErrorCode.INVALID_LINE, "a"),
        (b"\xff" + a_line(), ErrorCode.INVALID_LINE, None),
        (a_line().replace(b"hi", b"h\xff"), ErrorCode.INVALID_LINE, "a"),
        (a_line().replace(b"hi", b"\\ud800"), ErrorCode.INVALID_LINE, "a"),
        (a_line("a").replace(b'"a"', b'"\\ud800"'), ErrorCode.INVALID_LINE, None),
        (DEEP, ErrorCode.INVALID_CUSTOM_ID, None),
        (b'{"extra":' + DEEP + b"," + a_line()[1:], ErrorCode.INVALID_LINE, None),
        (a_line().replace(b'"hi"', DEEP), ErrorCode.INVALID_LINE, "a"),
        (b'{"body":{"custom_id":"no","x":NaN},"custom_id" : "\xc3\xa9"}', ErrorCode.INVALID_LINE, "é"),
        (b'{"custom_id":"x\\u0000y","x":NaN}', ErrorCode.INVALID_LINE, None),
        (b'{"custom_id":"' + b"x" * (CUSTOM_ID_CHARS_MAX + 1) + b'","x":NaN}', ErrorCode.INVALID_LINE, None),
        (b'{"custom_id":7,"x":NaN}', ErrorCode.INVALID_CUSTOM_ID, None),
        (b'{"custom_id":"cut', ErrorCode.INVALID_LINE, None),
        (b'{"text":"\\"custom_id\\":\\"no\\"', ErrorCode.INVALID_LINE, None),
        (b'{"custom_id":"\xff","x":NaN}', ErrorCode.INVALID_LINE, None),
        (b"[]", ErrorCode.INVALID_CUSTOM_ID, None),
        (b"{}", ErrorCode.INVALID_CUSTOM_ID, None),
        (b'{"custom_id":7}', ErrorCode.INVALID_CUSTOM_ID, None),
        (b'{"custom_id":"a"}', ErrorCode.INVALID_LINE, "a"),
        (b'{"custom_id":"a","method":"POST","url":"/v1/chat/completions"}', ErrorCode.INVALID_LINE, "a"),
        (a_line(url=7), ErrorCode.INVALID_LINE, "a"),
        (a_line(method="GET"), ErrorCode.INVALID_LINE, "a"),
        (a_line("x\0y", url=7), ErrorCode.INVALID_CUSTOM_ID, None),
        (a_line("", url=7), ErrorCode.INVALID_CUSTOM_ID, None),
        (a_line("x" * (CUSTOM_ID_CHARS_MAX + 1), url=7), ErrorCode.INVALID_CUSTOM_ID, None),
        (a_line(""), ErrorCode.INVALID_CUSTOM_ID, None),
        (a_line("x\0y"), ErrorCode.INVALID_CUSTOM_ID, None),
        (a_line("x" * (CUSTOM_ID_CHARS_MAX + 1)), ErrorCode.INVALID_CUSTOM_ID, None),
        (a_line(url="/v1/images"), ErrorCode.INVALID_URL, "a"),
        (a_line(body={"model": 7}), ErrorCode.INVALID_BODY, "a"),
        (a_line(body={"messages": []}), ErrorCode.INVALID_BODY, "a"),
        (a_line(body={"messages": "hi"}), ErrorCode.INVALID_BODY, "a"),
        (a_line(body={"stream": "yes"}), ErrorCode.INVALID_BODY, "a"),
        (a_line(body={"stream": True}), ErrorCode.STREAMING_UNSUPPORTED, "a"),
        (a_line(body={"model": "other"}), ErrorCode.UNKNOWN_MODEL, "a"),
    ],
)
def test_a_bad_line_is_refused_with_its_code(line, code, custom_id):
    refused = _admit(line)
    assert isinstance(refused, RefusedLine), refused
    assert (refused.line_number, refused.code, refused.custom_id) == (7, code, custom_id)
    assert refused.message


def test_a_refusal_names_what_would_be_right():
    assert "must be one of /v1/chat/completions" in _admit(a_line(url="/v1/images")).message
    assert f"the lanes run {MODEL}" in _admit(a_line(body={"model": "other"})).message
    assert "600 characters" in _admit(a_line("x" * 600)).message


def test_a_refusal_never_repeats_a_long_value_whole():
    for line in (a_line(url="u" * 9_000), a_line(body={"model": "m" * 9_000}), a_line(method="M" * 9_000)):
        assert len(_admit(line).message) < 300


@given(st.binary(max_size=200))
@example(b"\xff")
@example(b'"')
def test_whatever_the_bytes_are_it_answers(line):
    assert isinstance(_admit(line), AcceptedLine | RefusedLine)


@pytest.mark.parametrize("rest", [b"[" * 4_000_000, b'"a' * 2_000_000, b'"' + b'\\"' * 2_000_000, b'"' * 4_000_000])
def test_looking_for_a_name_takes_no_longer_than_reading_does(rest):
    began = time.process_time()
    assert _admit(b'{"x":' + rest).custom_id is None
    assert time.process_time() - began < 1  # tried from each quote on, it would take minutes


@given(st.data())
def test_a_good_line_with_a_wound_is_answered_too(data):
    line = bytearray(a_line())
    for _ in range(data.draw(st.integers(1, 4))):
        line[data.draw(st.integers(0, len(line) - 1))] = data.draw(st.integers(0, 255))
    found = _admit(bytes(line))
    assert isinstance(found, AcceptedLine | RefusedLine)
    if isinstance(found, AcceptedLine):
        msgspec.json.decode(found.body)


_json = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["model", "messages", "x"]), inner),
    max_leaves=8,
)


@given(st.fixed_dictionaries({}, optional=dict.fromkeys(["custom_id", "method", "url", "body"], _json)))
def test_wrong_types_anywhere_are_answered(fields):
    assert isinstance(_admit(msgspec.json.encode(fields)), RefusedLine)
