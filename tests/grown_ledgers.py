"""A ledger that an earlier build began and this one goes on with: rows of both versions in one stream."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

from broker.database import submissions
from broker.database.connection import Connection, Database
from broker.domain.errors import ErrorCode
from broker.domain.job import Constraints, SingleJob
from broker.domain.lane import Lane, Market, PriceMeter, Provider
from broker.keys import read_trusted_bytes, trust_text
from broker.ledger.tables import cost_entry
from broker.ledger.writing import CostEntryRow, Flush, append, open_stream
from tests.ledger_rows import append_first_version
from tests.old_ledgers import FIRST
from tests.unit.builders import (
    DAY_SECONDS,
    ENDPOINT,
    SECOND_US,
    World,
    a_failure,
    a_job_ran,
    a_lane,
    a_price,
    some_lines,
)
from tests.unit.sealed_ledger import SIGNER, Ledger

__all__ = ["DOCUMENT", "LANES", "Grown", "script"]

DOCUMENT = Path(__file__).parents[1] / "docs/ledger.md"
_TOKENS = a_price(
    0,
    version="2026-02-01.tokens",
    meter=PriceMeter.TOKEN,
    instance_hour_pico_usd=0,
    input_token_pico_usd=150_000,
    output_token_pico_usd=600_000,
    as_of="2026-02-01",
    source="a list of tokens",
)
LANES: list[Lane] = [
    a_lane("spot-tpu", slots=4),
    a_lane(
        "vendor",
        provider=Provider.AZURE_GPU,
        region="westeurope",
        accelerator="h100",
        accelerator_count=8,
        market=Market.ON_DEMAND,
        price=_TOKENS,
        slots=4,
        stand_in=True,
    ),
]
"""As the earlier build had them."""

ENTRY: dict[str, Any] = {"entry_id": b"e" * 16, "kind": "idle", "lane": "vendor"}
ENTRY |= {"provider": "azure-gpu", "worker_id": "w", "stand_in": True, "period_start_us": 1, "period_end_us": 2}
ENTRY |= {"accelerator_us": 3, "price_version": "p", "cost_nano_usd": 4, "cost_basis": "billed", "reason": "ü"}
ENTRY |= {"tenant_id": None, "batch_id": None, "attempt_id": None}


def script(title: str, folder: Path) -> Path:
    """A program of docs/ledger.md as it is printed there, by the first words of its docstring."""
    [text] = re.findall(rf'```python\n("""{title}.*?)```', DOCUMENT.read_text(), re.DOTALL)
    path = folder / f"{title.split(maxsplit=1)[0].lower()}.py"
    path.write_text(text)
    return path


class Grown:
    """The world on such a ledger, its seals, and both builds' keys."""

    def __init__(self, database: Database, folder: Path, kind: str, tenants: tuple[str, ...]) -> None:
        self.folder = folder
        self.database = database
        self.world = World(database, LANES, folder)
        self.ledger = Ledger(database, folder)
        trusted = read_trusted_bytes(FIRST / kind / "broker.pub")
        self.keys = [*trusted.values(), SIGNER.public_bytes]
        self.public = folder / "broker.pub"
        self.public.write_text(trust_text([*trusted.items(), (SIGNER.key_id, SIGNER.public_bytes)]))
        self._grow(tenants)

    def _grow(self, tenants: tuple[str, ...]) -> None:
        world = self.world
        world.clock.advance(5 * DAY_SECONDS)
        for tenant in tenants:
            for lane in ("spot-tpu", "vendor"):
                world.take_in(
                    some_lines(4, f"{tenant}-{lane}-é"), tenant_id=tenant, constraints=Constraints(lanes=(lane,))
                )
            for shard in world.claimed():
                world.record(world.ran(shard, a_failure(0, ErrorCode.ENGINE_REFUSED), a_job_ran(1), a_failure(2)))
                world.record(world.ran(shard, a_job_ran(3), number=1))
            world.clock.advance(30)
            world.run_all()
            world.database.write(partial(self._append, tenant=tenant))
            world.run_all()
        self.ledger.clock = world.clock
        self.ledger.sealer = self.ledger.another()
        self.ledger.seal()

    def _append(self, connection: Connection, tenant: str) -> None:
        """Single jobs; and cost entries of both versions, which no stage writes today and no fixture has."""
        stream = open_stream(connection, "recorder-0", self.world.clock())
        append_first_version(connection, stream, {cost_entry: [ENTRY | {"recorded_us": self.world.clock()}]})
        more = {"tenant_id": tenant, "currency": "USD", "zone": "a"}
        append(connection, stream, Flush(cost_entries=[CostEntryRow(**ENTRY | more)]), self.world.clock())
        due_us = self.world.clock() + DAY_SECONDS * SECOND_US
        terms = {"endpoint": ENDPOINT, "model": "m", "constraints": "{}", "submitted_us": self.world.clock()}
        body = b'{"model":"m","messages":[]}'
        singles = [SingleJob(body=body, deadline_us=due_us, tags=tags, **terms) for tags in ('{"team":"blé"}', None)]
        submissions.insert(connection, tenant, singles, self.world.clock(), b"k" * 32)

    def notes(self) -> list[str]:
        return list(self.ledger.file.notes())


def check_proof(program: Path, proof: object, public: Path) -> subprocess.CompletedProcess[str]:
    """Run the document's program on a proof, where nothing of ours can be imported."""
    path = program.parent / "proof.json"
    path.write_text(json.dumps(proof))
    words = [sys.executable, "-I", program, path, public]
    return subprocess.run(words, capture_output=True, text=True, check=False)
