"""The only place that picks drivers and wires roles: one module for each form of process.

`embedded` is everything in one process, `served` any set of the broker's roles, `lane_worker` one lane's
worker. They are imported one by one, so that a worker never loads a database.
"""

from __future__ import annotations

__all__: list[str] = []
