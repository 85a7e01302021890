"""Where the door's routes are. Its clients and the workers know them too."""

from __future__ import annotations

__all__ = ["LEASES", "LEASES_BEFORE", "OWN"]

OWN = "/broker/v1"
"""Before the broker's own routes; `/v1` is for OpenAI's."""

LEASES = f"{OWN}/leases"

LEASES_BEFORE = "/v1/leases"
"""Where a broker of the version before has its lease door; this version answers there too."""
