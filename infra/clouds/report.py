"""What the ledger says of the batch: by lane, with the queue that its work came over."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from urllib.parse import urlsplit

from broker.bootstrap.buses import bus_url_of
from broker.database.drivers.postgres.database import PostgresDatabase
from broker.domain.lane import Lane
from broker.ledger.questions import Filters, summary
from infra.clouds.buses import Buses
from infra.clouds.processes import Failed

__all__ = ["cloud_of", "print_report"]

_CLOUDS = {"lanepubsub": "Google Pub/Sub", "laneasb": "Azure Service Bus", "laneoci": "OCI Queue"}
_NANO = 1_000_000_000
_TITLES = ("lane", "its work came over", "jobs", "attempts", "cost USD", "waited ms", "ran ms")


def cloud_of(bus_url: str) -> str:
    """The cloud whose queues are at this URL."""
    return _CLOUDS[urlsplit(bus_url).scheme]


def print_report(buses: Buses, lanes: Sequence[Lane], jobs_count: int) -> None:
    """Raises Failed unless each job has exactly one success, and all three clouds had a part in it."""
    database = PostgresDatabase(buses.database_url)
    try:
        rows = {row["lane"]: row for row in database.read(lambda connection: summary(connection, ["lane"], Filters()))}
    finally:
        database.close()
    table, used = [_TITLES], set()
    for lane in lanes:
        if (row := rows.get(str(lane.name))) is not None:
            cloud = cloud_of(bus_url_of(lane, buses.variables))
            used.add(cloud)
            cost = f"{row['cost_nano_usd'] // _NANO}.{row['cost_nano_usd'] % _NANO:09}"
            counts = (f"{row['succeeded']:,}", f"{row['attempts']:,}", cost)
            times = (f"{row['queue_ms_p50']:,}", f"{row['run_ms_p50']:,}")
            table.append((str(lane.name), f"{cloud}, {lane.shards_queue}", *counts, *times))
    _print(table)
    sys.stdout.write(
        "Emulators and this machine's CPU stand in for the clouds: times are real, the dollars what\n"
        "these seconds would have cost there at list price.\n"
    )
    succeeded = sum(row["succeeded"] for row in rows.values())
    if succeeded != jobs_count:
        raise Failed(f"the ledger has {succeeded:,} of {jobs_count:,} jobs as succeeded")
    if len(used) < len(_CLOUDS):
        raise Failed(f"only {' and '.join(sorted(used))} had a part in it")


def _print(table: Sequence[tuple[str, ...]]) -> None:
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        words = [cell.ljust(width) for cell, width in zip(row[:2], widths[:2], strict=True)]
        numbers = [cell.rjust(width) for cell, width in zip(row[2:], widths[2:], strict=True)]
        sys.stdout.write("  ".join((*words, *numbers)).rstrip() + "\n")
