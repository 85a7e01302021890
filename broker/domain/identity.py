"""Who asks. A door makes it of a token or a signature, and hands it to whatever it asks for, as the first argument."""

from __future__ import annotations

from enum import StrEnum

import msgspec

__all__ = ["LOCAL", "Identity", "Scope", "producer_identity"]


class Scope(StrEnum):
    """What an identity may do; every route names one."""

    HEALTH = "health"
    JOBS_READ = "jobs:read"
    JOBS_WRITE = "jobs:write"
    BATCHES_READ = "batches:read"
    BATCHES_WRITE = "batches:write"
    LANES_READ = "lanes:read"
    LANES_WRITE = "lanes:write"
    LEDGER_READ = "ledger:read"
    LEASES = "leases"  # given by the signature of a lane's key, and by no token


class Identity(msgspec.Struct, frozen=True):
    """`tenant`: whose jobs, batches and files it sees, and no others. `subject`: who it is, for logs."""

    tenant: str
    subject: str
    scopes: frozenset[Scope]


LOCAL = Identity("default", "local", frozenset(Scope) - {Scope.LEASES})
"""Who has the data folder: its commands, and whoever has its token. The one place that names the default tenant."""


def producer_identity(tenant: str) -> Identity:
    """Who signs with a producer's key of this tenant; on the bus jobs can be submitted, and nothing else be done."""
    return Identity(tenant, f"producer {tenant}", frozenset({Scope.JOBS_WRITE}))
