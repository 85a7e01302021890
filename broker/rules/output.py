"""Output and error lines in OpenAI's batch format, put together as bytes: a reply is never decoded to be written."""

from __future__ import annotations

import msgspec

from broker.domain.errors import ErrorCode
from broker.domain.outcome import Outcome

__all__ = ["error_line", "output_line", "refusal_line", "tried_in_vain"]

_MESSAGES = {
    ErrorCode.BATCH_EXPIRED: "This request could not be executed before the completion window expired.",
    ErrorCode.BATCH_CANCELLED: "This request was cancelled with its batch.",
    ErrorCode.JOB_CANCELLED: "This request was cancelled.",
    ErrorCode.BUDGET_EXCEEDED: "This request was ended because the batch's budget is spent.",
    ErrorCode.POISONED: "This request was given up: its worker crashed each time it ran alone.",
}

_JOB_EXPIRED = "This request could not be executed before its deadline."

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(msgspec.Raw).decode


def output_line(job_id: bytes, custom_id: str, status_code: int, request_id: str, body: bytes) -> bytes:
    """The line of a job that succeeded. `body` is the engine's JSON, kept as it came but for line breaks."""
    return (
        b'{"id":"batch_req_%b","custom_id":%b,"response":{"status_code":%d,"request_id":%b,"body":%b},"error":null}\n'
        % (job_id.hex().encode(), _encode(custom_id), status_code, _encode(request_id), _one_line(body))
    )


def error_line(
    job_id: bytes,
    custom_id: str,
    outcome: Outcome,
    code: ErrorCode | None,
    status_code: int,
    request_id: str,
    message: str,
    body: bytes,
) -> bytes:
    """The line of a job that did not succeed.

    `response` holds the engine's HTTP answer if there was one; `error` always says what happened, by our code.
    """
    error = {"code": code or str(outcome), "message": message or (_MESSAGES.get(code, "") if code else "")}
    response = b"null"
    if status_code:
        answer = body if _is_json(body) else _encode({"error": error})
        response = b'{"status_code":%d,"request_id":%b,"body":%b}' % (
            status_code,
            _encode(request_id),
            _one_line(answer),
        )
    return b'{"id":"batch_req_%b","custom_id":%b,"response":%b,"error":%b}\n' % (
        job_id.hex().encode(),
        _encode(custom_id),
        response,
        _encode(error),
    )


def tried_in_vain(code: ErrorCode, tries: int, lane: str, last_code: str) -> str:
    """Why a job ended that waited to be tried again."""
    why = _JOB_EXPIRED if code is ErrorCode.JOB_EXPIRED else _MESSAGES[code]
    often = "once" if tries == 1 else f"{tries:,} times, the last time"
    return f"{why} It was tried {often} on lane {lane}, which ended as {last_code}."


def refusal_line(batch_id: bytes, line_number: int, custom_id: str | None, code: ErrorCode, message: str) -> bytes:
    """The line of an input line that never became a job."""
    return b'{"id":"batch_req_%b_line_%d","custom_id":%b,"response":null,"error":%b}\n' % (
        batch_id.hex().encode(),
        line_number,
        _encode(custom_id),
        _encode({"code": code, "message": f"line {line_number}: {message}", "line": line_number}),
    )


def _is_json(body: bytes) -> bool:
    try:
        body.decode()  # what the decoder skips, it does not check
        _decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return True


def _one_line(body: bytes) -> bytes:
    """JSON without line breaks: outside strings they are only layout, and inside they can't stand unescaped."""
    if b"\n" in body or b"\r" in body:
        return body.replace(b"\r", b" ").replace(b"\n", b" ")
    return body
