"""What goes wrong at the door, in one shape: `{"error":{"code","message","field"}}`, one clear sentence each."""

from __future__ import annotations

import errno
from http import HTTPStatus

import msgspec

from broker.database.failures import is_disk_full, is_passing
from broker.domain.errors import BrokerError

__all__ = ["Refused", "error_body", "passing"]

_FULL = (errno.ENOSPC, errno.EDQUOT)


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


def passing(error: BaseException) -> Refused | None:
    """How to say that the same request may go well later; None where it is not so."""
    if is_disk_full(error) or (isinstance(error, OSError) and error.errno in _FULL):
        message = "the broker's disk is full: nothing of this request was kept; send it again once there is room"
        return Refused(507, "disk_full", message, retry_after_seconds=30)
    if isinstance(error, BrokerError):
        return Refused(503, "unavailable", str(error), retry_after_seconds=1)
    if is_passing(error):
        message = "the database can't be asked at the moment; nothing of this request was kept: send it again"
        return Refused(503, "unavailable", message, retry_after_seconds=1)
    return None
