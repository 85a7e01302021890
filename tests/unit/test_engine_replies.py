"""Replies as servers write them: the answer is delivered, whatever is odd around it, and its usage safe to count."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from broker.domain.errors import ErrorCode
from broker.domain.usage import Usage, UsageBasis
from workers.engine import EngineError, EngineReply, EngineRequest, TokensUpper
from workers.engines.mending import mended
from workers.engines.reply import read_reply, refusal

CHAT, TEXT, VECTOR = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
ANSWER = {"choices": [{"index": 0, "message": {"role": "assistant", "content": "hi"}}]}
BODY = b'{"model":"m","messages":[{"role":"user","content":"hello"}],"max_tokens":8}'
USAGE = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}
ENGINE, INCONSISTENT, IMPLAUSIBLE, NONE = (
    UsageBasis.ENGINE,
    UsageBasis.INCONSISTENT,
    UsageBasis.IMPLAUSIBLE,
    UsageBasis.NONE,
)


def read(reply: Any, *, endpoint: str = CHAT, body: bytes = BODY, **options: Any) -> EngineReply:
    content = reply if isinstance(reply, bytes) else json.dumps(reply).encode()
    return read_reply(EngineRequest("a", endpoint, body), 200, content, **options)


def fails(reply: Any, **options: Any) -> EngineError:
    with pytest.raises(EngineError) as caught:
        read(reply, **options)
    return caught.value


def of(prompt: Any, completion: Any, total: Any = None, cached: Any = None, reasoning: Any = None) -> dict[str, Any]:
    usage = {"prompt_tokens": prompt, "completion_tokens": completion}
    usage |= {} if total is None else {"total_tokens": total}
    usage |= {} if cached is None else {"prompt_tokens_details": {"cached_tokens": cached}}
    return usage | ({} if reasoning is None else {"completion_tokens_details": {"reasoning_tokens": reasoning}})


TOKENS = [
    # As OpenAI writes it, and as others do who mean the same.
    ("plain", of(7, 5, 12), ENGINE, Usage(7, 0, 5, 0), None),
    ("without a total", of(7, 5), ENGINE, Usage(7, 0, 5, 0), None),
    ("a total of 0", of(7, 5, 0), ENGINE, Usage(7, 0, 5, 0), None),
    ("parts", of(7, 5, 12, 6, 2), ENGINE, Usage(7, 6, 5, 2), None),
    (
        "parts of null",
        {**USAGE, "prompt_tokens_details": None, "completion_tokens_details": {}},
        ENGINE,
        Usage(7, 0, 5),
        None,
    ),
    ("DeepSeek's cache", {**USAGE, "prompt_cache_hit_tokens": 4}, ENGINE, Usage(7, 4, 5), None),
    ("Anthropic's names", {"input_tokens": 7, "output_tokens": 5}, ENGINE, Usage(7, 0, 5), None),
    (
        "unknown fields",
        {**USAGE, "cost": 0.1, "prompt_tokens_details": {"cached_tokens": 1, "x": []}},
        ENGINE,
        Usage(7, 1, 5),
        None,
    ),
    # Numbers that aren't written as whole ones.
    ("10.0", of(10.0, 5.0, 15.0), INCONSISTENT, Usage(10, 0, 5), None),
    ("text", of("7", "5", "12"), INCONSISTENT, Usage(7, 0, 5), None),
    # What is missing follows from the rest, or is unknown.
    ("null completion", of(7, None, 12), ENGINE, Usage(7, 0, 5), None),
    ("no prompt", {"completion_tokens": 5, "total_tokens": 12}, ENGINE, Usage(7, 0, 5), None),
    ("null completion, no total", of(7, None), NONE, Usage(), (7, None)),
    ("no prompt, no total", {"completion_tokens": 5}, NONE, Usage(), (None, 5)),
    ("negative", of(-1, 5), NONE, Usage(), (None, 5)),
    ("negative, with a total", of(-1, 5, 12), INCONSISTENT, Usage(7, 0, 5), None),
    ("broken", of(7.5, 5), NONE, Usage(), (None, 5)),
    ("flags", of(True, False), NONE, Usage(), (None, None)),
    ("words", of("seven", "five"), NONE, Usage(), (None, None)),
    ("null", None, NONE, Usage(), (None, None)),
    ("a list", [7, 5], NONE, Usage(), (None, None)),
    ("empty", {}, NONE, Usage(), (None, None)),
    # Reasoning beside completion, or within: the total says it; without one both are possible.
    ("beside, more", of(3110, 673, 4692, None, 909), INCONSISTENT, Usage(3110, 0, 1582, 909), None),
    ("beside, less", of(100, 50, 170, None, 20), INCONSISTENT, Usage(100, 0, 70, 20), None),
    ("beside nothing", of(21, 0, 81, None, 60), INCONSISTENT, Usage(21, 0, 60, 60), None),
    ("within, more", of(7, 5, 12, None, 6), INCONSISTENT, Usage(7, 0, 5, 5), None),
    ("no total, more", of(3110, 673, None, None, 909), INCONSISTENT, Usage(3110, 0, 673, 673), (None, 1582)),
    ("hidden thoughts", of(7, 5, 40), INCONSISTENT, Usage(7, 0, 5), (None, 33)),
    ("total below its parts", of(7, 5, 9), INCONSISTENT, Usage(7, 0, 5), None),
    # Cached beside the prompt, or within.
    ("cached beside", of(7, 5, 112, 100), INCONSISTENT, Usage(107, 100, 5), None),
    ("cached and reasoning beside", of(7, 5, 115, 100, 3), INCONSISTENT, Usage(107, 100, 8, 3), None),
    ("more cached than prompt", of(7, 5, 12, 100), INCONSISTENT, Usage(7, 7, 5), (7, None)),
    ("more cached, no total", of(7, 5, None, 100), INCONSISTENT, Usage(7, 7, 5), (107, None)),
    # More than there can have been.
    ("over all", of(7, 10**30), IMPLAUSIBLE, Usage(), (None, None)),
    ("an overflow", of(2**32 - 1, 5), IMPLAUSIBLE, Usage(), (None, None)),
    ("infinite", {"prompt_tokens": 7, "completion_tokens": float("inf")}, NONE, Usage(), (7, None)),
    ("no such window", of(11_000_000, 5), IMPLAUSIBLE, Usage(), (11_000_000, 5)),
    ("no such answer", of(7, 20_000), IMPLAUSIBLE, Usage(), (7, 20_000)),
    ("a long answer", of(7, 8_000), ENGINE, Usage(7, 0, 8_000), None),
    ("much cached", of(1_000_000, 5, 1_000_005, 900_000), ENGINE, Usage(1_000_000, 900_000, 5), None),
]


@pytest.mark.parametrize(
    ("usage", "basis", "known", "upper"), [row[1:] for row in TOKENS], ids=[row[0] for row in TOKENS]
)
def test_usage_is_counted_as_it_is_meant(usage: Any, basis: UsageBasis, known: Usage, upper: Any) -> None:
    reply = read({**ANSWER, "usage": usage})
    assert (reply.usage_basis, reply.usage) == (basis, known)
    assert reply.usage_upper == (None if upper is None else TokensUpper(*upper))


def test_a_reply_without_usage_is_a_reply() -> None:
    reply = read(ANSWER)
    assert (reply.usage_basis, reply.usage, reply.usage_upper) == (NONE, Usage(), TokensUpper(None, None))


@pytest.mark.parametrize(
    ("choice", "known"),
    [
        ({"message": {"content": ""}}, True),
        ({"message": {"content": None}}, True),
        ({"message": {"content": "x"}}, False),
        ({"message": {"content": None, "tool_calls": [{}]}}, False),
        ({"message": {"content": "", "reasoning_content": "h"}}, False),
    ],
)
def test_output_that_is_null_is_none_where_nothing_was_said(choice: Any, known: bool) -> None:
    reply = read({"choices": [choice], "usage": of(7, None)})
    assert (reply.usage_basis, reply.usage) == ((ENGINE, Usage(7)) if known else (NONE, Usage()))


def test_a_window_that_is_stated_rules_out_what_is_beyond_it() -> None:
    usage = {**ANSWER, "usage": of(9_000, 5)}
    assert read(usage, context_tokens=8_192).usage_basis is IMPLAUSIBLE
    assert read(usage, context_tokens=16_384).usage_basis is ENGINE
    two = b'{"model":"m","prompt":["a","b"],"max_tokens":8}'
    texts = {"choices": [{"text": "x"}, {"text": "y"}], "usage": of(9_000, 5)}
    assert read(texts, endpoint=TEXT, body=two, context_tokens=8_192).usage_basis is ENGINE


def test_a_server_that_counts_one_of_several_answers_is_bounded_by_all() -> None:
    three = {"choices": ANSWER["choices"] * 3, "usage": USAGE}
    body = b'{"model":"m","messages":[],"max_tokens":8,"n":3}'
    reply = read(three, body=body, counts_one_choice=True)
    assert (reply.usage_basis, reply.usage, reply.usage_upper) == (INCONSISTENT, Usage(7, 0, 5), TokensUpper(None, 21))
    assert read(three, body=body).usage_basis is ENGINE  # OpenAI, vLLM and SGLang count them all
    assert read({**ANSWER, "usage": USAGE}, counts_one_choice=True).usage_basis is ENGINE
    prompts = b'{"model":"m","prompt":["hello","you there"],"max_tokens":8}'
    two = {"choices": [{"text": "x"}, {"text": "y"}], "usage": of(2, 5)}
    upper = read(two, endpoint=TEXT, body=prompts, counts_one_choice=True).usage_upper
    assert upper is not None
    assert upper.output_tokens == 13
    assert upper.input_tokens is not None
    assert upper.input_tokens >= 14


@pytest.mark.parametrize(
    ("changes", "request_id"),
    [
        ({"id": 12345}, "12345"),
        ({"id": None}, ""),
        ({"id": {"a": 1}}, ""),
        ({"id": "x" * 300}, "x" * 200),
        ({"id": "naïve"}, ""),
        ({"error": {"message": "a word beside the answer"}}, ""),
        ({"error": None, "choices": [{"message": {"content": ""}, "error": None}]}, ""),
        ({"choices": [{"message": {"content": "cut"}, "error": {"message": "it broke", "code": 502}}]}, ""),
        ({"choices": [{"message": {"content": "hi"}}]}, ""),
        ({"choices": [{"message": {"role": None, "content": "hi"}}]}, ""),
        ({"choices": [{"message": {"role": 7, "content": ["hi"]}, "finish_reason": 3}], "object": 5}, ""),
    ],
)
def test_an_odd_envelope_costs_nothing(changes: Any, request_id: str) -> None:
    reply = read({**ANSWER, "usage": USAGE, **changes})
    assert (reply.usage, reply.usage_basis, reply.request_id) == (Usage(7, 0, 5), ENGINE, request_id)
    assert msgspec.json.decode(reply.body) == {**ANSWER, "usage": USAGE, **changes}


def body_of(content: bytes, more: bytes = b"") -> bytes:
    usage = json.dumps(USAGE).encode()
    return b'{"choices":[{"message":{"role":"assistant","content":%b}%b}],"usage":%b}' % (content, more, usage)


ODD_BYTES = [
    ("byte order mark", b"\xef\xbb\xbf" + body_of(b'"hi"'), body_of(b'"hi"')),
    ("half a character", body_of(rb'"so \ud83d"'), body_of(rb'"so \ufffd"')),
    ("the other half", body_of(rb'"\ude00 so"'), body_of(rb'"\ufffd so"')),
    ("a whole and a half", body_of(rb'"\ud83d\ude00\ud83d"'), body_of(rb'"\ud83d\ude00\ufffd"')),
    ("no escape at all", body_of(rb'"\\ud83d \ud83d"'), body_of(rb'"\\ud83d \ufffd"')),
    ("bytes cut amid a character", body_of(b'"so \xf0\x9f"'), body_of('"so \ufffd"'.encode())),
    (
        "NaN",
        body_of(b'"NaN"', b',"logprobs":[NaN, -Infinity,Infinity,-1.5]'),
        body_of(b'"NaN"', b',"logprobs":[null, null,null,-1.5]'),
    ),
    ("raw control characters", body_of(b'"a\nb\x00c"'), body_of(rb'"a\u000ab\u0000c"')),
    ("white space before it", b"\n \n" + body_of(b'"hi"'), b"\n \n" + body_of(b'"hi"')),
    ("twice the same key", body_of(b'"hi"')[:-1] + b',"usage":{"prompt_tokens":7,"completion_tokens":5}}', None),
]


@pytest.mark.parametrize(("sent", "delivered"), [row[1:] for row in ODD_BYTES], ids=[row[0] for row in ODD_BYTES])
def test_a_reply_that_is_nearly_json_is_delivered_as_json(sent: bytes, delivered: bytes | None) -> None:
    reply = read(sent)
    assert reply.body == (sent if delivered is None else delivered)
    assert reply.usage == Usage(7, 0, 5)
    msgspec.json.decode(reply.body)


def test_what_is_well_formed_is_left_as_it_came() -> None:
    plain = body_of(rb'"NaN \" \\ Infinity \ud83d\ude00"', b', "x": 1E-1,  "y": 12345678901234567890123')
    assert mended(plain) == plain
    assert mended(b'{"unfinished": "NaN') == b'{"unfinished": "null'  # no JSON either way
    assert len(mended(b'"' + b"\\" * 200_000)) >= 200_000  # and no way back that takes for ever


@pytest.mark.parametrize(
    ("reply", "code", "message"),
    [
        ({"error": {"message": "Slow down", "code": 429}}, ErrorCode.ENGINE_BUSY, "Slow down"),
        ({"error": {"message": "Not now", "code": "503"}, "choices": []}, ErrorCode.ENGINE_UNAVAILABLE, "Not now"),
        ({"error": "Loading model"}, ErrorCode.ENGINE_STARTING, "Loading model"),
        ({"object": "error", "message": "No such thing", "code": 400}, ErrorCode.ENGINE_REFUSED, "No such thing"),
        ({"choices": [{"error": {"message": "It went", "code": 502}}]}, ErrorCode.ENGINE_UNAVAILABLE, "It went"),
        ({"choices": [{"message": {"content": ""}, "error": {"message": "Later", "code": 429}}]},
         ErrorCode.ENGINE_BUSY, "Later"),
        ({"choices": [{"message": {"content": None}}], "error": {"message": "Later", "code": 429}},
         ErrorCode.ENGINE_BUSY, "Later"),
        ({"error": {"message": "What\u0000now"}}, ErrorCode.ENGINE_INVALID_REPLY, "What now"),
    ],
)  # fmt: skip
def test_an_error_in_a_2xx_is_what_it_says(reply: Any, code: ErrorCode, message: str) -> None:
    error = fails({**reply, "usage": USAGE})
    assert (error.code, error.status_code) == (code, 200)
    assert message in error.message
    assert "\x00" not in error.message
    assert (error.usage, error.usage_basis) == (Usage(7, 0, 5), ENGINE)  # which goes before that it may be free
    assert json.loads(error.body)["usage"] == USAGE
    unstated = fails(reply)
    assert (unstated.code, unstated.usage, unstated.usage_basis) == (code, None, NONE)
    assert unstated.is_free == (code not in {ErrorCode.ENGINE_UNAVAILABLE, ErrorCode.ENGINE_INVALID_REPLY})


@pytest.mark.parametrize(
    ("endpoint", "reply"),
    [
        (CHAT, {"choices": []}),
        (CHAT, {"choices": None}),
        (CHAT, {"choices": [{"text": "secret"}]}),
        (CHAT, {"choices": [{"message": "secret"}]}),
        (TEXT, {"choices": [{"message": {"content": "secret"}}]}),
        (VECTOR, {"data": []}),
        (VECTOR, {"data": [{"embedding": [None]}]}),
        (VECTOR, {"data": [{"embedding": [[0.5]]}]}),
        (VECTOR, {"data": [{"embedding": [float("nan")]}]}),
    ],
)  # fmt: skip
def test_only_what_lacks_the_answer_is_invalid_and_its_usage_is_kept(endpoint: str, reply: Any) -> None:
    error = fails({**reply, "usage": {**USAGE, "prompt_tokens": 3110, "total_tokens": 3115}}, endpoint=endpoint)
    assert (error.code, error.status_code, error.body) == (ErrorCode.ENGINE_INVALID_REPLY, 200, b"")
    assert (error.usage, error.usage_basis) == (Usage(3110, 0, 5), ENGINE)
    assert "secret" not in error.message
    assert endpoint in error.message


@pytest.mark.parametrize(
    "body", [b"", b"<html>", b"data: {}\n\n", b"[" * 100_000, body_of(b'"rate limit')[:60], b"7", b"null"]
)
def test_what_isnt_json_is_invalid_and_never_quoted(body: bytes) -> None:
    error = fails(body)
    assert (error.code, error.usage, error.body) == (ErrorCode.ENGINE_INVALID_REPLY, None, b"")
    assert "rate limit" not in error.message


@pytest.mark.parametrize(
    ("usage", "known", "basis"),
    [
        ({"prompt_tokens": 3, "total_tokens": 3}, Usage(3), ENGINE),
        ({"total_tokens": 3}, Usage(3), ENGINE),
        ({"prompt_tokens": 3, "completion_tokens": 0, "total_tokens": 3}, Usage(3), ENGINE),
        (None, Usage(), NONE),
    ],
)
def test_an_embedding_has_no_output(usage: Any, known: Usage, basis: UsageBasis) -> None:
    vectors = {"data": [{"embedding": [0.5, 1]}, {"embedding": "AAAA"}], "usage": usage}
    reply = read(vectors, endpoint=VECTOR, body=b'{"input":["a","b"]}')
    assert (reply.usage, reply.usage_basis) == (known, basis)


@pytest.mark.parametrize(
    ("status", "body", "is_free"),
    [
        (307, b"", True),
        (400, b'{"error":{"message":"no"}}', True),
        (400, b'{"error":{"message":"The response was filtered","code":"content_filter"}}', False),
        (408, b"", False),
        (429, b"", True),
        (499, b"", False),
        (500, b"", False),
        (502, b"<html>", False),
        (503, b"", True),
        (504, b"", False),
        (529, b"", True),
    ],
)
def test_which_refusals_are_free(status: int, body: bytes, is_free: bool) -> None:
    assert refusal(status, body).is_free is is_free


def test_a_500_that_states_its_usage_used_that() -> None:
    error = refusal(500, b'{"error":{"message":"it broke"},"usage":{"prompt_tokens":3110,"completion_tokens":673}}')
    assert (error.code, error.message) == (ErrorCode.ENGINE_FAILED, "the engine answered HTTP 500: it broke")
    assert (error.usage, error.usage_basis, error.is_free) == (Usage(3110, 0, 673), ENGINE, False)


@pytest.mark.parametrize(
    ("location", "shown"),
    [
        ("https://h.example:8443/v1/chat/completions?key=secret#x", "https://h.example:8443/v1/chat/completions"),
        ("https://user:secret@h.example/v2", "https://h.example/v2"),
        ("/v2/chat", "http://here:80/v2/chat"),
        ("//other/x", "http://other/x"),
        ("https://[::1]:9/x", "https://[::1]:9/x"),
    ],
)
def test_where_a_redirect_points_is_said_and_not_what_it_carries(location: str, shown: str) -> None:
    error = refusal(308, b"", {"location": location}, url="http://here:80/v1/chat/completions")
    assert error.message == f"the engine answered HTTP 308: it redirects to {shown}, which is never followed"
    assert error.code is ErrorCode.ENGINE_MOVED


@pytest.mark.parametrize("location", ["", "http://[", "mailto:x", "https://naïve/\n"])
def test_a_redirect_to_nowhere_is_still_one(location: str) -> None:
    assert refusal(308, b"", {"location": location}, url="").code is ErrorCode.ENGINE_MOVED
