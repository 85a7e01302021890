"""What the service answers when it does not do as asked: a status, a code and a sentence, as OCI's APIs have them."""

from __future__ import annotations

__all__ = ["Refusal", "incorrect_state", "invalid", "missing", "over_limit", "too_large"]


class Refusal(Exception):
    """An error answer. `retry_after_seconds` becomes the header of that name."""

    def __init__(self, status: int, code: str, message: str, retry_after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.retry_after_seconds = retry_after_seconds


def invalid(message: str) -> Refusal:
    return Refusal(400, "InvalidParameter", message)


def missing(what: str) -> Refusal:
    """The service doesn't tell what isn't there from what one may not see."""
    return Refusal(404, "NotAuthorizedOrNotFound", f"Authorization failed or requested resource not found: {what}")


def too_large(message: str) -> Refusal:
    return Refusal(413, "RequestEntityTooLarge", message)


def over_limit(message: str) -> Refusal:
    return Refusal(400, "LimitExceeded", message)


def incorrect_state(message: str) -> Refusal:
    return Refusal(409, "IncorrectState", message)
