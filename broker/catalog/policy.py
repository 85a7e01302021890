"""What the catalog of lanes sets of placement: providers' shares, tenants' weights, and the table `placement`."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from broker.catalog.lanes import DEMO_CATALOG
from broker.catalog.shares import EVERYONE, load_shares
from broker.domain.errors import UsageError
from broker.domain.lane import Lane
from broker.domain.money import nano_from_usd
from broker.rules.placement.policy import Policy

__all__ = ["load_policy", "policy_of"]

_WEIGHT_MIN, _WEIGHT_MAX = 0.01, 100.0
_STANDBY_MAX = 100.0


class _Placement(msgspec.Struct, forbid_unknown_fields=True):
    preemptions_max: int | None = None
    standby: float | None = None
    missed_job_usd: str | None = None


def load_policy(catalog: str | Path, lanes: Sequence[Lane]) -> Policy:
    """The policy of planner and dispatcher; what the catalog leaves out is as by default.

    `catalog` has been loaded before, and `lanes` are all of its lanes. Raises UsageError with one sentence naming
    file, field, value and limit.
    """
    if catalog == DEMO_CATALOG:
        return Policy()
    tables = tomllib.loads(Path(catalog).read_text())
    weights = _weights(catalog, tables.get("tenant_weights", {}))
    try:
        chosen = msgspec.convert(tables.get("placement", {}), _Placement)
    except msgspec.ValidationError as error:
        raise UsageError(f"{catalog}, placement: {error}") from None
    return policy_of(
        load_shares(catalog, lanes),
        tenant_weights=weights,
        preemptions_max=_preemptions_max(catalog, chosen.preemptions_max),
        standby=_standby(catalog, chosen.standby),
        missed_job_nano_usd=_missed_job(catalog, chosen.missed_job_usd),
    )


def policy_of(
    shares: Mapping[str, float] | None = None,
    *,
    tenant_weights: Mapping[str, float] | None = None,
    preemptions_max: int | None = None,
    standby: float | None = None,
    missed_job_nano_usd: int | None = None,
) -> Policy:
    """The policy with these changes. `shares`: each provider's part of the work; `*` for all others."""
    named = dict(shares or {})
    return Policy(
        share_all=named.pop(EVERYONE, 1.0),
        shares=named,
        tenant_weights=dict(tenant_weights or {}),
        preemptions_max=Policy().preemptions_max if preemptions_max is None else preemptions_max,
        standby=standby,
        missed_job_nano_usd=missed_job_nano_usd,
    )


def _weights(catalog: str | Path, weights: Mapping[str, object]) -> dict[str, float]:
    checked: dict[str, float] = {}
    for tenant, weight in weights.items():
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not _WEIGHT_MIN <= weight <= _WEIGHT_MAX:
            raise UsageError(
                f"{catalog}, tenant_weights.{tenant} is {weight!r};"
                f" it must be a number from {_WEIGHT_MIN:g} to {_WEIGHT_MAX:g}"
            )
        checked[tenant] = float(weight)
    return checked


def _preemptions_max(catalog: str | Path, count: int | None) -> int | None:
    if count is not None and not 1 <= count <= 100:
        raise UsageError(f"{catalog}, placement.preemptions_max is {count}; it must be from 1 to 100")
    return count


def _standby(catalog: str | Path, standby: float | None) -> float | None:
    if standby is not None and not 0 <= standby <= _STANDBY_MAX:
        raise UsageError(f"{catalog}, placement.standby is {standby:g}; it must be from 0 to {_STANDBY_MAX:g}")
    return standby


def _missed_job(catalog: str | Path, text: str | None) -> int | None:
    if text is None:
        return None
    try:
        nano_usd = int(nano_from_usd(text))
    except ValueError:
        nano_usd = 0
    if nano_usd <= 0:
        raise UsageError(f"{catalog}, placement.missed_job_usd is {text!r}; it must be an amount above 0, as a text")
    return nano_usd
