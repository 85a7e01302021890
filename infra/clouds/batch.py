"""The demonstration's batch, and the check of what came of it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import msgspec

from infra.clouds.processes import Failed

__all__ = ["check_output", "write_batch"]

_QUESTIONS = (
    "Say in one sentence why the sky is blue.",
    "Name three rivers of Europe.",
    "Give a short word for very large.",
    "What is the opposite of late?",
    "Finish the sentence: Slow and steady",
)


class _Line(msgspec.Struct):
    custom_id: str


def write_batch(path: Path, echo_jobs: int, model_jobs: int) -> Path:
    """Lines for both models, the real one's spread over the file."""
    every = max(1, echo_jobs // model_jobs) if model_jobs else 0
    with path.open("wb") as file:
        asked = 0
        for number in range(echo_jobs):
            if every and number % every == 0 and asked < model_jobs:
                file.write(_line(f"model-{asked}", "smollm2-135m-instruct", _QUESTIONS[asked % len(_QUESTIONS)], 16))
                asked += 1
            file.write(_line(f"echo-{number}", "echo", f"job {number} of {echo_jobs}"))
        for late in range(asked, model_jobs):
            file.write(_line(f"model-{late}", "smollm2-135m-instruct", _QUESTIONS[late % len(_QUESTIONS)], 16))
    return path


def check_output(source: Path, output: Path) -> None:
    """Raises Failed unless each line of the batch has exactly one line in the output."""
    asked, answered = _names(source), _names(output)
    if asked != answered:
        missing, extra = asked - answered, answered - asked
        raise Failed(
            f"of {asked.total():,} lines {missing.total():,} have no reply, and {extra.total():,} have too many"
        )


def _names(path: Path) -> Counter[str]:
    decode = msgspec.json.Decoder(_Line).decode
    with path.open("rb") as lines:
        return Counter(decode(line).custom_id for line in lines)


def _line(custom_id: str, model: str, question: str, max_tokens: int | None = None) -> bytes:
    body: dict[str, object] = {"model": model, "messages": [{"role": "user", "content": question}]}
    if max_tokens is not None:
        body |= {"max_tokens": max_tokens, "temperature": 0}
    line = {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body}
    return msgspec.json.encode(line) + b"\n"
