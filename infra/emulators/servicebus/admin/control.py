"""The control port: faults, cuts, state and time, as JSON over HTTP. For tests; open on loopback alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any, TypeAlias

from infra.emulators.servicebus.admin.http import HttpRequest, HttpResponse
from infra.emulators.servicebus.clock import ManualClock
from infra.emulators.servicebus.faults import Fault
from infra.emulators.servicebus.queues.description import QueueDescription, QueueStatus
from infra.emulators.servicebus.service import Service

__all__ = ["answer_control", "state"]

Json: TypeAlias = Any

FORCED = "amqp:connection:forced"
DETACHED = "amqp:link:detach-forced"


def answer_control(service: Service, request: HttpRequest) -> HttpResponse:
    """One command; what isn't understood is answered 400 with the reason."""
    path = request.path.strip("/")
    try:
        body = json.loads(request.body) if request.body else {}
        if request.method == "PUT" and path.startswith("queues/"):
            return _json(_create(service, path.removeprefix("queues/"), body))
        command = _COMMANDS.get((request.method, path))
        if command is None:
            listed = ", ".join(f"{method} /{name}" for method, name in _COMMANDS)
            return _json({"error": f"no {request.method} /{path}; there are {listed}, PUT /queues/NAME"}, 404)
        return _json(command(service, body))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        return _json({"error": f"{type(error).__name__}: {error}"}, 400)


def _json(value: Json, status: int = 200) -> HttpResponse:
    return HttpResponse(status, json.dumps(value).encode(), "application/json")


def state(service: Service) -> dict[str, Any]:
    """How many of what is where."""
    now_ms = service.clock.now_ms()
    queues = {entry.queue.name: entry.queue.counts(now_ms)._asdict() for entry in service.namespace.entries()}
    return {"queues": queues, "connections": len(service.peers), "now_ms": now_ms}


def _create(service: Service, name: str, body: dict[str, Any]) -> dict[str, Any]:
    if "status" in body:
        body = {**body, "status": QueueStatus(body["status"])}
    now_ms = service.clock.now_ms()
    present = service.namespace.entry(name)
    if present is None:
        entry = service.namespace.create(now_ms, name, QueueDescription(**body))
    else:
        entry = service.namespace.update(now_ms, name, replace(present.queue.description, **body))
    described = asdict(entry.queue.description)
    return {**described, "status": entry.queue.description.status.value}


def _add_fault(service: Service, body: dict[str, Any]) -> Json:
    return {"number": service.faults.add(Fault.of(body))}


def _faults(service: Service, _: dict[str, Any]) -> Json:
    return [fault.plain() for fault in service.faults.listed()]


def _clear(service: Service, _: dict[str, Any]) -> Json:
    service.faults.clear()
    return {}


def _drop(service: Service, _: dict[str, Any]) -> Json:
    peers = list(service.peers)
    for peer in peers:
        peer.abort()
    return {"count": len(peers)}


def _close(service: Service, body: dict[str, Any]) -> Json:
    peers = list(service.peers)
    for peer in peers:
        peer.close(body.get("condition", FORCED), body.get("description", "The connection was closed on order."))
    return {"count": len(peers)}


def _detach(service: Service, body: dict[str, Any]) -> Json:
    condition, text = body.get("condition", DETACHED), body.get("description", "The link was detached on order.")
    return {"count": sum(peer.detach_links(body.get("entity", "*"), condition, text) for peer in list(service.peers))}


def _advance(service: Service, body: dict[str, Any]) -> Json:
    if not isinstance(service.clock, ManualClock):
        raise TypeError("the clock is the system's; start with --manual-clock")
    service.clock.advance(float(body["seconds"]))
    return {"now_ms": service.clock.now_ms()}


_COMMANDS: dict[tuple[str, str], Callable[[Service, dict[str, Any]], Json]] = {
    ("GET", "state"): lambda service, _: state(service),
    ("GET", "faults"): _faults,
    ("POST", "faults"): _add_fault,
    ("DELETE", "faults"): _clear,
    ("POST", "connections/drop"): _drop,
    ("POST", "connections/close"): _close,
    ("POST", "links/detach"): _detach,
    ("POST", "clock/advance"): _advance,
}
