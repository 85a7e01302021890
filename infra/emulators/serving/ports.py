"""What an emulator must have to be served: a service with a clock and faults, and something that listens."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from infra.emulators.serving.faults import Faults

__all__ = ["Clock", "ManualClock", "Server", "Service", "manual_clock_of"]


class Clock(Protocol):
    """Where now comes from."""

    def now_ms(self) -> int:
        """Milliseconds since 1970, UTC."""


@runtime_checkable
class ManualClock(Protocol):
    """One that stands still until it is moved."""

    def now_ms(self) -> int: ...

    def advance(self, seconds: float) -> None:
        """Move on; on the event loop's thread."""


class Service(Protocol):
    """All that the emulator is while it runs, but for its sockets."""

    @property
    def clock(self) -> Clock: ...

    @property
    def faults(self) -> Faults[Any]: ...


class Server(Protocol):
    """What listens."""

    async def close(self) -> None:
        """Cut all connections and free the ports."""


def manual_clock_of(service: Service, wanted: str) -> ManualClock:
    """The service's clock, to be moved. Raises TypeError where it is the system's; `wanted` asks for another."""
    if not isinstance(service.clock, ManualClock):
        raise TypeError(f"the clock is the system's; start with {wanted}")
    return service.clock
