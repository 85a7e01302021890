"""The door's application: the gate, the submit door behind it, and the framework's routes for all else."""

from __future__ import annotations

from typing import Any, cast

import structlog
from litestar import Litestar, Request, Response, Router
from litestar.connection import ASGIConnection
from litestar.datastructures import State
from litestar.di import Provide
from litestar.exceptions import ClientException, HTTPException
from litestar.handlers import BaseRouteHandler

from broker.api import batches, jobs, lanes
from broker.api.desk import Desk
from broker.api.errors import Refused, error_body, passing
from broker.api.gate import Gate, require_scope
from broker.api.jobs import SubmitDoor
from broker.api.leases import LeaseCounter
from broker.api.routes import JOBS, LEASE_DOOR
from broker.api.tokens import Tokens
from broker.domain.errors import named
from broker.domain.identity import Identity
from broker.domain.paths import OWN

__all__ = ["LOOPBACK_NAMES", "make_app"]

LOOPBACK_NAMES = ("127.0.0.1", "localhost", "::1")
_BODY_BYTES_MAX = 1_000_000

_log = structlog.get_logger(__name__)


def make_app(
    desk: Desk, tokens: Tokens, hosts: tuple[str, ...] = LOOPBACK_NAMES, leases: LeaseCounter | None = None
) -> Gate:
    """The ASGI application; `hosts` are the names it answers to, `leases` is there where workers are elsewhere."""
    framework = Litestar(
        route_handlers=[Router(OWN, route_handlers=[*jobs.routes, *batches.routes, *lanes.routes])],
        dependencies={"identity": Provide(_identity, sync_to_thread=False)},
        state=State({"desk": desk}),
        guards=[_require_scope],
        exception_handlers={Refused: _refused, HTTPException: _http_error, Exception: _failed},
        openapi_config=None,
        request_max_body_size=_BODY_BYTES_MAX,
        logging_config=None,
    )
    signed = {LEASE_DOOR: leases} if leases else {}
    return Gate(framework, tokens=tokens, hosts=hosts, direct={JOBS: SubmitDoor(desk.jobs)}, signed=signed)


def _identity(request: Request[Any, Any, Any]) -> Identity:
    """Who asks, as the gate knows."""
    return cast("Identity", request.scope["identity"])  # type: ignore[typeddict-item] # (the gate's own entry)


def _require_scope(connection: ASGIConnection[Any, Any, Any, Any], _handler: BaseRouteHandler) -> None:
    scope = cast("dict[str, Any]", connection.scope)
    require_scope(scope["identity"], (scope["method"], scope["path_template"]))


def _answer(status: int, body: bytes, headers: dict[str, str]) -> Response[bytes]:
    return Response(body, status_code=status, media_type="application/json", headers=headers)


def _refused(_request: Request[Any, Any, Any], error: Refused) -> Response[bytes]:
    return _answer(error.status, error.body, error.headers)


def _http_error(request: Request[Any, Any, Any], error: HTTPException) -> Response[bytes]:
    """The framework's own refusals, in our shape."""
    headers = dict(error.headers or {})
    match error.status_code:
        case 404:
            body = error_body("unknown_route", f"there is no {request.method} {request.url.path[:200]}")
        case 405:
            body = error_body("method_not_allowed", f"{request.url.path[:200]} is not asked with {request.method}")
        case 413:
            body = error_body("request_too_large", f"the request is larger than {_BODY_BYTES_MAX:,} bytes")
        case _:
            body = error_body("invalid_request", _sentence(error))
    return _answer(error.status_code, body, headers)


def _sentence(error: HTTPException) -> str:
    """What is wrong with a parameter, without the framework's ornaments."""
    extra = error.extra if isinstance(error, ClientException) and isinstance(error.extra, list) else []
    faults = [f"{one.get('key', 'the request')}: {one.get('message', '')}" for one in extra if isinstance(one, dict)]
    return "; ".join(faults) or error.detail


def _failed(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    if refused := passing(error):
        _log.warning("request_put_off", path=request.url.path, error=named(error))
        return _answer(refused.status, refused.body, refused.headers)
    _log.error("request_failed", path=request.url.path, method=request.method, error=named(error))
    return _answer(500, error_body("internal", "the broker failed on this request; its log says more"), {})
