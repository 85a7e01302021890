"""What goes wrong at the door, in one shape: `{"error":{"code","message","field"}}`, one clear sentence each."""

from __future__ import annotations

from http import HTTPStatus

import msgspec

from broker.domain.errors import BrokerError

__all__ = ["Refused", "error_body"]


class Refused(BrokerError):
    """The request is answered with `status`; `field` is the part of it that says so."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        field: str | None = None,
        retry_after_seconds: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = HTTPStatus(status)
        self.code = code
        self.message = message
        self.field = field
        self.headers = {} if retry_after_seconds is None else {"Retry-After": str(retry_after_seconds)}

    @property
    def body(self) -> bytes:
        """The answer's JSON."""
        return error_body(self.code, self.message, self.field)


def error_body(code: str, message: str, field: str | None = None) -> bytes:
    """The JSON of an error."""
    return msgspec.json.encode({"error": {"code": code, "message": message, "field": field}})
