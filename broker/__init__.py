"""Inference Broker: submit an inference job once; it ends at the lowest defensible cost, and the ledger proves it.

The flow, one file per step:

    intake      checks what a producer sends and commits it; from here nothing can lose it
    planner     decides which lanes may serve each group of jobs, in which order, and why
    dispatcher  cuts shards from the waiting jobs, earliest deadline first, for lanes with room
    relay       publishes committed shards on the lanes' queues (`bus`)
    workers     claim a shard at the lease door (`leasing`), run it on an engine, publish what happened
    recorder    turns those events into the ledger: attempts, costs, outcomes, proof
    rescuer     sends on what a worker will not finish; `closer` ends what waits in vain
    assembler   writes a finished batch's files
    ledger      answers what it cost, how long it took, and why it ran there
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from broker.sdk.desired import DesiredEvents
    from broker.sdk.http import Client
    from broker.sdk.jobs_bus import JobsPublisher, Replies

__all__ = ["Client", "DesiredEvents", "JobsPublisher", "Replies"]

_HOMES = {
    "Client": "broker.sdk.http",
    "DesiredEvents": "broker.sdk.desired",
    "JobsPublisher": "broker.sdk.jobs_bus",
    "Replies": "broker.sdk.jobs_bus",
}


def __getattr__(name: str) -> object:
    """The public names, each loaded when it is first asked for: a worker must not bring in a database."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'broker' has no attribute {name!r}")
