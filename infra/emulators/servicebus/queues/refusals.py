"""Why the queues said no, each with the AMQP error condition and the HTTP-like code the service uses for it."""

from __future__ import annotations

__all__ = [
    "ArgumentError",
    "EntityDisabled",
    "LockLost",
    "MessageNotFound",
    "MessageTooLarge",
    "NotAllowed",
    "QueueFull",
    "Refusal",
]


class Refusal(Exception):
    """Any of them: `condition` and `status` say on the wire what the text says to a person."""

    condition = "amqp:internal-error"
    status = 500


class LockLost(Refusal):
    condition = "com.microsoft:message-lock-lost"
    status = 410


class MessageNotFound(Refusal):
    condition = "com.microsoft:message-not-found"
    status = 404


class MessageTooLarge(Refusal):
    condition = "amqp:link:message-size-exceeded"
    status = 413


class QueueFull(Refusal):
    condition = "amqp:resource-limit-exceeded"
    status = 403


class EntityDisabled(Refusal):
    condition = "com.microsoft:entity-disabled"
    status = 403


class NotAllowed(Refusal):
    condition = "amqp:not-allowed"
    status = 400


class ArgumentError(Refusal):
    condition = "com.microsoft:argument-error"
    status = 400
