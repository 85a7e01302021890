"""The control port: faults, cuts, state and time, as JSON over HTTP. For tests; open on loopback alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from infra.emulators.ociqueue.clock import ManualClock
from infra.emulators.ociqueue.faults import Fault
from infra.emulators.ociqueue.http import HttpRequest, HttpResponse, json_response
from infra.emulators.ociqueue.refusals import Refusal
from infra.emulators.ociqueue.service import Service

__all__ = ["answer_control", "state"]

Json: TypeAlias = Any


def answer_control(service: Service, request: HttpRequest) -> HttpResponse:
    """One command; what isn't understood is answered 400 with the reason."""
    command = _COMMANDS.get((request.method, request.path.strip("/")))
    if command is None:
        listed = ", ".join(f"{method} /{name}" for method, name in _COMMANDS)
        return json_response({"error": f"no {request.method} {request.path}; there are {listed}"}, 404)
    try:
        return json_response(command(service, request.json()))
    except (Refusal, ValueError, TypeError, KeyError, AttributeError) as error:
        return json_response({"error": f"{type(error).__name__}: {error}"}, 400)


def state(service: Service) -> dict[str, Any]:
    """How many of what is where, by display name."""
    now_ms = service.clock.now_ms()
    queues = {
        queue.description.display_name: {
            **queue.messages.counts(now_ms)._asdict(),
            "dead": queue.dead.counts(now_ms).visible,
            "id": queue.ocid,
        }
        for queue in service.queues.listed(now_ms)
    }
    connections = len(service.connections)
    return {"queues": queues, "connections": connections, "requests": service.requests, "now_ms": now_ms}


def _add_fault(service: Service, body: dict[str, Any]) -> Json:
    return {"number": service.faults.add(Fault.of(body))}


def _faults(service: Service, _: dict[str, Any]) -> Json:
    return [fault.plain() for fault in service.faults.listed()]


def _clear(service: Service, _: dict[str, Any]) -> Json:
    service.faults.clear()
    return {}


def _drop(service: Service, _: dict[str, Any]) -> Json:
    return {"count": service.drop_connections()}


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
    ("POST", "clock/advance"): _advance,
}
