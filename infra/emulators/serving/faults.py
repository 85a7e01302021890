"""Faults on order: how often, and where. What goes wrong is each emulator's own."""

from __future__ import annotations

import fnmatch
import itertools
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from enum import Enum
from typing import Any, ClassVar, Generic, Self, TypeVar

__all__ = ["Faults", "Order"]


@dataclass
class Order:
    """Strikes `times` times, after `skip` occasions that it lets pass. Each emulator adds what goes wrong, and how.

    Of the fields that it adds, `point` says where it may strike and `action` what happens.
    """

    POINTS: ClassVar[type[Enum]]
    ACTIONS: ClassVar[type[Enum]]

    point: Any
    action: Any
    _: KW_ONLY
    delay_seconds: float = 0.0
    times: int = 1
    skip: int = 0
    number: int = field(default=0, compare=False)

    @property
    def pattern(self) -> str:
        """The names that it strikes at."""
        raise NotImplementedError

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> Self:
        """From JSON. Raises ValueError, TypeError or KeyError for what makes no fault."""
        return cls(**{**plain, "point": cls.POINTS(plain["point"]), "action": cls.ACTIONS(plain["action"])})

    def plain(self) -> dict[str, Any]:
        """As JSON."""
        return {**vars(self), "point": self.point.value, "action": self.action.value}


F = TypeVar("F", bound=Order)


class Faults(Generic[F]):
    """The orders in force; the first that fits strikes."""

    def __init__(self) -> None:
        self._orders: list[F] = []
        self._numbers = itertools.count(1)

    def add(self, fault: F) -> int:
        """Its number."""
        fault.number = next(self._numbers)
        self._orders.append(fault)
        return fault.number

    def clear(self) -> None:
        self._orders.clear()

    def listed(self) -> list[F]:
        """Those that will still strike."""
        return list(self._orders)

    def strike(self, point: Enum, name: str) -> F | None:
        """The fault that happens now, if any."""
        for fault in self._orders:
            if fault.point is point and fnmatch.fnmatch(name.lower(), fault.pattern.lower()):
                if fault.skip > 0:
                    fault.skip -= 1
                    continue
                fault.times -= 1
                if fault.times <= 0:
                    self._orders.remove(fault)
                return fault
        return None
