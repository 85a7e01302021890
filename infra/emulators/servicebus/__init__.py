"""An AMQP 1.0 peer of Azure Service Bus for tests and local development; see README.md beside this file."""

from infra.emulators.servicebus.emulator import KEY, KEY_NAME, Emulator, Options
from infra.emulators.servicebus.faults import Action, Fault, Point
from infra.emulators.servicebus.queues.description import QueueDescription, QueueStatus

__all__ = ["KEY", "KEY_NAME", "Action", "Emulator", "Fault", "Options", "Point", "QueueDescription", "QueueStatus"]
