"""This project's emulators of clouds' queues, each a process of a test's own. They need no program to be installed."""

from __future__ import annotations

from infra.servers.emulators import PrivateOciQueue, PrivateServiceBus

__all__ = ["PrivateOciQueue", "PrivateServiceBus"]
