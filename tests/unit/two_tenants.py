"""Two tenants at one door, each with several of everything, of other sizes."""

from __future__ import annotations

import threading

import msgspec

from broker.api.app import make_app
from broker.api.desk import Desk
from broker.api.tokens import FixedTokens
from broker.domain.errors import ErrorCode
from broker.domain.paths import OWN
from broker.front import Front
from broker.intake.uploads import UploadReader
from broker.stages.assembler import Assembler
from tests.unit.asking import ask
from tests.unit.builders import MODEL, World, a_failure, a_job_ran, a_line, an_identity

KEY = "the same in both"


class Tenant:
    """What one tenant has, by the door's ids."""

    def __init__(self, name: str, size: int) -> None:
        self.identity, self.token, self.size = an_identity(name), f"ib_{name}", size
        self.jobs: dict[str, str] = {}  # by what became of them
        self.batches: dict[str, str] = {}


class TwoTenants:
    """`blue` and `red`: jobs of theirs failed, succeeded, run and wait; batches are finished, half done and unread."""

    def __init__(self, world: World) -> None:
        self.world = world
        parts = {"database": world.database, "lanes": world.lanes, "clock": world.clock, "wakeups": world.wakeups}
        self.front = Front(health=world.health, folder=world.folder, **parts)
        self.blue, self.red = Tenant("blue", 2), Tenant("red", 5)
        tokens = FixedTokens({one.token: one.identity for one in (self.blue, self.red)})
        self.desk = Desk(self.front, None, 1_000_000)
        self.app = make_app(self.desk, tokens)
        self._submitting = threading.Thread(target=self.front.submitting.run, daemon=True)
        self._submitting.start()
        self._reader = UploadReader(world.database, self.front.uploads, self.front.intake.read_batch, lambda: False)
        self._fill()

    def close(self) -> None:
        self.front.submitting.close()
        self._submitting.join(10)

    def ask(self, tenant: Tenant, method: str, path: str, body=b""):
        return ask(self.app, method, path, body, token=tenant.token)

    def answer(self, tenant: Tenant, method: str, path: str, body=b""):
        """What must be an answer and no refusal."""
        status, content = self.ask(tenant, method, f"{OWN}/{path}", body)
        assert status < 300, content
        return msgspec.json.decode(content)

    def submit(self, tenant: Tenant, kind: str, **terms) -> None:
        request = {"body": {"model": MODEL, "messages": [{}]}, "tags": {"whose": tenant.identity.tenant}} | terms
        submitted = self.answer(tenant, "POST", "jobs", msgspec.json.encode(request))
        assert submitted["new"]
        tenant.jobs[kind] = submitted["id"]

    def upload(self, tenant: Tenant, kind: str) -> None:
        name = tenant.identity.tenant
        lines = [a_line(f"{name}-{number}") for number in range(tenant.size)]
        refused = b'{"custom_id": "%s-bad", "method": "POST"}' % name.encode()
        content = b"\n".join([*lines, refused]) + b"\n"
        made = self.answer(tenant, "POST", f"batches?name={name}-{kind}", content)
        tenant.batches[kind] = made["id"]

    def _fill(self) -> None:
        world, both = self.world, (self.blue, self.red)
        for tenant in both:
            self.submit(tenant, "failed")
        while shards := world.claimed():  # one lane after the other
            world.record(*(world.ran(shard, a_failure(0, ErrorCode.ENGINE_REFUSED)) for shard in shards))
        for tenant in both:
            self.submit(tenant, "succeeded", idempotency_key=KEY)
            self.upload(tenant, "finished")
        self.read_uploads()
        world.run_all()
        assert len(Assembler(world.database, world.clock).step()) == len(both)
        for tenant in both:
            self.submit(tenant, "running")
            self.upload(tenant, "half")
        self.read_uploads()
        of_batches = [shard for shard in world.claimed() if shard.batch_id]
        world.record(*(world.ran(shard, a_job_ran(0)) for shard in of_batches))
        for tenant in both:
            self.submit(tenant, "waiting")
            self.upload(tenant, "unread")

    def read_uploads(self) -> None:
        while self._reader.step():
            pass
