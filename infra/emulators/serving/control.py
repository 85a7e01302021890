"""The control port's commands that every emulator has: faults and time, as JSON over HTTP."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias, TypeVar

from infra.emulators.serving.faults import Order
from infra.emulators.serving.ports import Service, manual_clock_of

__all__ = ["Answer", "Command", "Json", "answer_command", "shared_commands"]

Json: TypeAlias = Any
S = TypeVar("S", bound=Service)
Command: TypeAlias = Callable[[S, dict[str, Any]], Json]
"""Gets the service and the request's body; raises ValueError, TypeError, KeyError or AttributeError for a bad one."""


class Answer(NamedTuple):
    """What is answered, as JSON."""

    value: Json
    status: int = 200


def shared_commands(fault: type[Order]) -> dict[tuple[str, str], Command[Any]]:
    """By method and path; `fault` is what the emulator orders."""

    def clear(service: Service, _: dict[str, Any]) -> Json:
        service.faults.clear()
        return {}

    def advance(service: Service, body: dict[str, Any]) -> Json:
        clock = manual_clock_of(service, "--manual-clock")
        clock.advance(float(body["seconds"]))
        return {"now_ms": clock.now_ms()}

    return {
        ("GET", "faults"): lambda service, _: [each.plain() for each in service.faults.listed()],
        ("POST", "faults"): lambda service, body: {"number": service.faults.add(fault.of(body))},
        ("DELETE", "faults"): clear,
        ("POST", "clock/advance"): advance,
    }


def answer_command(
    commands: Mapping[tuple[str, str], Command[S]],
    service: S,
    method: str,
    path: str,
    body: Callable[[], dict[str, Any]],
    *,
    others: str = "",
    refusals: tuple[type[Exception], ...] = (),
) -> Answer:
    """One command; what isn't understood is answered 404 or 400 with the reason.

    `others` names what there is beside the commands; `refusals` are the emulator's own errors.
    """
    command = commands.get((method, path))
    if command is None:
        listed = ", ".join(f"{known_method} /{name}" for known_method, name in commands)
        return Answer({"error": f"no {method} /{path}; there are {listed}{others}"}, 404)
    expected: tuple[type[Exception], ...] = (*refusals, ValueError, TypeError, KeyError, AttributeError)
    try:
        return Answer(command(service, body()))
    except expected as error:
        return Answer({"error": f"{type(error).__name__}: {error}"}, 400)
