"""Settings from the environment: read once, checked once, frozen. Command-line options stand above them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from broker.domain.errors import UsageError
from broker.domain.presence import RESOURCE_ID_CHARS_MAX

__all__ = ["Settings", "load_settings"]


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """`data`: the folder of the embedded form. `catalog`: a TOML file of lanes, or `demo`.

    `batch_lines_max`: the most lines that a batch file may have; None for no limit. `log_level`: of the log
    file in the data folder. `url` and `token`: of the broker that commands speak to, where not the data folder's.
    `database_url`: of the PostgreSQL database that `broker serve` works on. `lane_key` and `trusted`: a worker's
    signing key, and the file of the broker's public keys that it takes orders from. `jobs_bus_url`: of the bus that
    producers publish their jobs on. `payloads_url`: of the object store or shared folder for bodies that a lane's bus
    can't carry. `resource_id`: what a worker's cloud calls its machine.
    """

    data: Path = Path("broker-data")
    catalog: str = "demo"
    batch_lines_max: int | None = None
    log_level: str = "info"
    url: str | None = None
    token: str | None = None
    database_url: str | None = None
    lane_key: Path | None = None
    trusted: Path | None = None
    jobs_bus_url: str | None = None
    payloads_url: str | None = None
    resource_id: str | None = None


_LEVELS = ("debug", "info", "warning", "error")


def load_settings(environment: Mapping[str, str]) -> Settings:
    """The settings of these variables (BROKER_DATA and so on). Raises UsageError naming variable, value and limit."""
    lines_max = environment.get("BROKER_BATCH_LINES_MAX")
    if lines_max is not None and not (lines_max.isascii() and lines_max.isdigit() and int(lines_max) > 0):
        raise UsageError(f"BROKER_BATCH_LINES_MAX is {lines_max!r}; it must be a whole number above 0")
    level = environment.get("BROKER_LOG_LEVEL", "info").lower()
    if level not in _LEVELS:
        raise UsageError(f"BROKER_LOG_LEVEL is {level!r}; it must be one of {', '.join(_LEVELS)}")
    resource_id = environment.get("BROKER_RESOURCE_ID") or None
    if resource_id is not None and not (resource_id.isprintable() and len(resource_id) <= RESOURCE_ID_CHARS_MAX):
        raise UsageError(
            f"BROKER_RESOURCE_ID is {resource_id[:40]!r};"
            f" it must be at most {RESOURCE_ID_CHARS_MAX} printable characters"
        )
    return Settings(
        data=Path(environment.get("BROKER_DATA") or "broker-data"),
        catalog=environment.get("BROKER_CATALOG") or "demo",
        batch_lines_max=int(lines_max) if lines_max else None,
        log_level=level,
        url=environment.get("BROKER_URL") or None,
        token=environment.get("BROKER_TOKEN") or None,
        database_url=environment.get("BROKER_DATABASE_URL") or None,
        lane_key=_path(environment.get("BROKER_LANE_KEY")),
        trusted=_path(environment.get("BROKER_TRUSTED")),
        jobs_bus_url=environment.get("BROKER_JOBS_BUS_URL") or None,
        payloads_url=environment.get("BROKER_PAYLOADS_URL") or None,
        resource_id=resource_id,
    )


def _path(text: str | None) -> Path | None:
    return Path(text) if text else None
