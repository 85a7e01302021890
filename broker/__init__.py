"""Inference Broker: submit an inference job once; it ends at the lowest defensible cost, and the ledger proves it.

The flow, one file per step:

    intake/       takes work in: batch files, uploads, single jobs, jobs from the bus; from here nothing can lose it
    stages/       the loops that work it off, and what single ones are made of (`watching`, `dealing`, `output_files`):
        planner       decides which lanes may serve each group of jobs, in which order, and why
        dispatcher    cuts shards from the waiting jobs, earliest deadline first, for lanes with room
        relay         publishes committed shards on the lanes' queues (`bus`)
        recorder      turns the workers' events into the ledger: attempts, costs, outcomes, proof
        rescuer       sends on what a worker will not finish; `closer` ends what waits in vain
        assembler     writes a finished batch's files
        notifier      tells producers on the bus; `announcer` what lanes should hold
        sealer        signs the ledger's state; `keeper` makes partitions and removes what nobody needs
    leasing       the fence: `workers` claim a shard, run it on an engine, publish what happened
    ledger/       answers what it cost, how long it took, and why it ran there

and what they stand on: `rules` decide (pure), `domain` names things, `database` and `bus` are ports with their drivers,
`catalog` reads lanes and prices, `simulation` replays placement, `front` is what the doors `api` and `cli` work with,
`bootstrap` alone picks drivers and starts threads, `sdk` is what other people's programs import.
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
