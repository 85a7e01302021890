"""What a call can have used at most: read from its request, and from what its engine counted before."""

from __future__ import annotations

import json
from typing import Any

import pytest

from broker.domain.usage import Usage
from broker.rules.bounds import OUTPUT_TOKENS_DEFAULT, Asked, TokenRatios, asked_of, tokens_upper

CHAT, TEXT, VECTOR = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
PROSE = "The answer to the question is that people of the government go through the water, and no further. "


def asked(endpoint: str = CHAT, **body: Any) -> Asked:
    return asked_of(endpoint, json.dumps({"model": "m", **body}).encode())


def chat(*texts: str, **body: Any) -> Asked:
    return asked(messages=[{"role": "user", "content": text} for text in texts], **body)


def output(given: Asked, context_tokens: int = 0) -> int:
    return tokens_upper(given, TokenRatios(), context_tokens).output_tokens


@pytest.mark.parametrize(
    ("endpoint", "body", "tokens"),
    [
        (CHAT, {"max_tokens": 8}, 8),
        (CHAT, {"max_completion_tokens": 8}, 8),
        (CHAT, {"max_tokens": 8, "max_completion_tokens": 9}, 9),  # whichever the server heeds
        (CHAT, {"max_tokens": 8, "n": 3}, 24),
        (TEXT, {"max_tokens": 8, "best_of": 5, "n": 2}, 40),
        (TEXT, {"max_tokens": 8, "prompt": ["a", "b"], "n": 3}, 48),
        (TEXT, {"max_tokens": 8, "prompt": [1, 2, 3]}, 8),
        (TEXT, {"max_tokens": 8, "prompt": [[1, 2], [3]]}, 16),
        (CHAT, {}, OUTPUT_TOKENS_DEFAULT),
        (CHAT, {"max_tokens": None, "n": None}, OUTPUT_TOKENS_DEFAULT),
        (CHAT, {"max_tokens": -1, "n": True}, OUTPUT_TOKENS_DEFAULT),
        (CHAT, {"max_tokens": "8"}, OUTPUT_TOKENS_DEFAULT),
        (CHAT, {"max_tokens": 10**30}, OUTPUT_TOKENS_DEFAULT),
        (CHAT, {"max_tokens": 10**12, "n": 5}, 100_000_000),
        (VECTOR, {"input": ["a", "b"], "max_tokens": 8}, 0),
    ],
)
def test_output_is_what_the_request_allows(endpoint: str, body: dict[str, Any], tokens: int) -> None:
    assert output(asked(endpoint, **body)) == tokens


def test_a_lanes_window_is_for_what_the_request_leaves_open() -> None:
    assert output(chat("hi"), 4_096) == 4_096
    assert output(chat("hi", n=2), 4_096) == 8_192
    assert output(chat("hi", max_tokens=8), 4_096) == 8
    assert output(chat("hi", max_tokens=9_999), 4_096) == 4_096
    assert tokens_upper(chat("x" * 99_999), TokenRatios(), 4_096).input_tokens == 4_096


def test_before_anything_is_known_each_byte_is_a_token() -> None:
    text = "😀推論" * 100
    known = tokens_upper(chat(text), TokenRatios()).input_tokens
    assert len(text.encode()) < known < len(text.encode()) + 200
    assert tokens_upper(asked_of(CHAT, b"no JSON at all"), TokenRatios()).input_tokens > 14
    assert tokens_upper(asked_of(CHAT, b"[" * 100_000), TokenRatios()).input_tokens > 100_000


def test_ratios_are_of_the_most_that_was_counted_of_their_kind_of_text() -> None:
    ratios, prose, code = TokenRatios(), chat(PROSE * 20), chat("x = {y[0]: 1};" * 100)
    before = ratios.input_upper(prose)
    for tokens in (400, *[380] * 14):
        ratios.learn(prose, tokens)
        assert ratios.input_upper(prose) == pytest.approx(before, abs=100)  # so few say little
    ratios.learn(prose, 390)
    assert ratios.input_upper(prose) == pytest.approx(400 * 1.25, abs=30)
    assert ratios.input_upper(code) >= 1_400  # of that nothing was seen
    ratios.learn(prose, 800)
    assert ratios.input_upper(prose) == pytest.approx(800 * 1.25, abs=30)


def test_short_requests_have_the_template_that_was_seen() -> None:
    ratios = TokenRatios()
    for _ in range(20):
        ratios.learn(chat("hi"), 40)
    assert 40 <= ratios.input_upper(chat("hi")) < 70
    assert 300 <= ratios.input_upper(chat("x" * 250)) < 350
    ratios.learn(chat("hi"), 500)  # a server with a text of its own
    assert ratios.input_upper(chat("hi")) >= 500


def test_tokens_are_counted_and_pictures_are_taken_for_the_largest() -> None:
    assert asked(TEXT, prompt=list(range(500))).tokens_beside == 500
    url = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 100_000}}
    picture = asked(messages=[{"role": "user", "content": [url, {"type": "text", "text": "what?"}]}])
    assert picture.text_bytes < 200
    assert 16_384 <= tokens_upper(picture, TokenRatios()).input_tokens < 17_000
    ratios = TokenRatios()
    ratios.learn(picture, 9_000)
    assert ratios.input_upper(chat("hi")) < 200  # what a picture took says nothing of text


def test_bounds_are_usage_like_any_other() -> None:
    assert tokens_upper(Asked(text_bytes=10**12, answers=10**9), TokenRatios()) == Usage(100_000_000, 0, 100_000_000)
