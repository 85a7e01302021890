"""The REST API: which request is which operation, and what every answer has in common."""

from __future__ import annotations

import re
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import NamedTuple, TypeAlias

from infra.emulators.ociqueue import admin_api, message_api
from infra.emulators.ociqueue.faults import Action, Fault, Point
from infra.emulators.ociqueue.http import HttpRequest, HttpResponse, json_response
from infra.emulators.ociqueue.refusals import Refusal, missing
from infra.emulators.ociqueue.service import Call, Service
from infra.emulators.ociqueue.signatures import check_signature

__all__ = ["Answer", "answer"]

BASE = "/20210201"

Operation: TypeAlias = Callable[..., Awaitable[HttpResponse]]


class Answer(NamedTuple):
    """A response, and the fault that is to befall it."""

    response: HttpResponse
    fault: Fault | None


_QUEUE, _RECEIPT = r"/queues/(?P<queue>[^/]+)", r"/messages/(?P<receipt>[^/]+)"
_ROUTES: list[tuple[str, str, Point, Operation]] = [
    ("POST", f"{_QUEUE}/messages", Point.PUT, message_api.put),
    ("GET", f"{_QUEUE}/messages", Point.GET, message_api.get),
    ("POST", f"{_QUEUE}/messages/actions/deleteMessages", Point.DELETE, message_api.delete_many),
    ("POST", f"{_QUEUE}/messages/actions/updateMessages", Point.UPDATE, message_api.update_many),
    ("DELETE", f"{_QUEUE}{_RECEIPT}", Point.DELETE, message_api.delete_one),
    ("PUT", f"{_QUEUE}{_RECEIPT}", Point.UPDATE, message_api.update_one),
    ("GET", f"{_QUEUE}/stats", Point.STATS, message_api.stats),
    ("GET", f"{_QUEUE}/channels", Point.STATS, message_api.channels),
    ("GET", "/queues", Point.ADMIN, admin_api.list_queues),
    ("POST", "/queues", Point.ADMIN, admin_api.create_queue),
    ("GET", _QUEUE, Point.ADMIN, admin_api.get_queue),
    ("PUT", _QUEUE, Point.ADMIN, admin_api.update_queue),
    ("DELETE", _QUEUE, Point.ADMIN, admin_api.delete_queue),
    ("POST", f"{_QUEUE}/actions/purge", Point.ADMIN, admin_api.purge_queue),
    ("GET", "/workRequests", Point.ADMIN, admin_api.list_requests),
    ("GET", "/workRequests/(?P<request_id>[^/]+)", Point.ADMIN, admin_api.get_request),
    ("GET", "/workRequests/(?P<request_id>[^/]+)/(errors|logs)", Point.ADMIN, admin_api.request_trail),
]
ROUTES = [(method, re.compile(BASE + path), point, operation) for method, path, point, operation in _ROUTES]


async def answer(service: Service, request: HttpRequest) -> Answer:
    """Carry the request out. A fault that refuses or cuts before comes instead of that."""
    service.requests += 1
    request_id = request.headers.get("opc-request-id") or secrets.token_hex(16).upper()
    fault: Fault | None = None
    try:
        if service.authenticates:
            check_signature(request, service.keys)
        point, operation, names = _route(request)
        fault = service.faults.strike(point, service.queues.name_of(names.get("queue", "")))
        if fault is not None and fault.action is Action.REFUSE:
            raise fault.refusal()
        if fault is not None and fault.action is Action.DROP_BEFORE:
            return Answer(HttpResponse(), fault)
        if fault is not None and fault.action is Action.SPOIL:
            response = await operation(Call(service, request), **names, spoilt=fault)
        else:
            response = await operation(Call(service, request), **names)
    except Refusal as error:
        response = _error(error)
    return Answer(replace(response, headers={**response.headers, "opc-request-id": request_id}), fault)


def _route(request: HttpRequest) -> tuple[Point, Operation, dict[str, str]]:
    other_methods = []
    for method, pattern, point, operation in ROUTES:
        found = pattern.fullmatch(request.path)
        if found is None:
            continue
        if method == request.method:
            return point, operation, found.groupdict()
        other_methods.append(method)
    if other_methods:
        raise Refusal(405, "MethodNotAllowed", f"{request.path} takes {', '.join(other_methods)}")
    raise missing(f"{request.method} {request.path} is not part of this emulator")


def _error(error: Refusal) -> HttpResponse:
    headers = {}
    if error.retry_after_seconds is not None:
        headers["retry-after"] = f"{error.retry_after_seconds:g}"
    return json_response({"code": error.code, "message": error.message}, error.status, headers)
