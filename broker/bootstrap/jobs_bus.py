"""The bus that producers publish on: where their jobs come in, and replies go out."""

from __future__ import annotations

from broker.bus.claim_check import envelope_bytes_max
from broker.bus.inbox import Inbox
from broker.bus.publisher import Publisher
from broker.domain.bus_jobs import JOBS_QUEUE
from broker.intake.bus_jobs import MESSAGES_PER_STEP

__all__ = ["JobsBus"]


class JobsBus:
    """Its two ends. They connect on first use."""

    def __init__(self, url: str) -> None:
        self.inbox = Inbox(url, [JOBS_QUEUE], MESSAGES_PER_STEP)
        self.publisher = Publisher(url)
        self.message_bytes_max = envelope_bytes_max(url)

    def close(self) -> None:
        """Disconnect; what was not acknowledged comes again."""
        self.inbox.close()
        self.publisher.close()
