"""Our planner beside the bound and the peers, on the same workload and faults."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from broker.rules.placement.lanes import LaneFacts
from broker.rules.placement.policy import Policy
from broker.simulation.bound import bound_usd
from broker.simulation.faults import Outage
from broker.simulation.peers import Peer, peer_lanes, run_peer, single_clouds
from broker.simulation.replay import replay
from broker.simulation.result import Result
from broker.simulation.workload import Workload

__all__ = ["OURS", "Compared", "compare_ours", "compare_peers"]

OURS = "EDF merit + cap"


class Compared(msgspec.Struct, frozen=True, kw_only=True):
    """One policy's run beside the bound."""

    name: str
    result: Result
    bound_usd: float
    providers: tuple[str, ...]

    @property
    def ratio(self) -> float:
        return self.result.cost_usd / self.bound_usd

    def cells(self) -> tuple[str, ...]:
        """The row for a person, without the name."""
        one = self.result
        return (
            f"{one.cost_usd:,.0f}",
            f"{self.ratio:.3f}",
            f"{one.missed:,.0f}",
            f"{100 * one.missed / max(one.jobs, 1.0):.2f}",
            "/".join(f"{each.wait_p95_s:.0f}" for each in one.classes),
            f"{one.wasted_usd:,.0f}",
            "/".join(f"{100 * share:.0f}" for _, share in sorted(one.shares.items())),
        )


def compare_ours(
    lanes: tuple[LaneFacts, ...],
    workload: Workload,
    outages: tuple[Outage, ...],
    policy: Policy | None = None,
    seed: int = 0,
) -> Compared:
    """Our planner by this policy and the bound, both under the policy's limits on shares."""
    chosen = policy or Policy()
    limits = {name: chosen.share_of(name) for name in _providers(lanes)} if chosen.limits_shares else {}
    least = bound_usd(lanes, workload, outages, limits)
    result = replay(lanes, workload, outages, chosen, seed)
    return Compared(name=OURS, result=result, bound_usd=least, providers=_providers(lanes))


def compare_peers(
    lanes: tuple[LaneFacts, ...], workload: Workload, outages: tuple[Outage, ...], least: float, seed: int = 0
) -> Iterator[Compared]:
    """Each single cloud, then the peers that spread work; none of them knows limits on shares."""
    for provider, lane in single_clouds(lanes).items():
        own = tuple(one for one in peer_lanes(Peer.SINGLE, lanes) if one.name == lane.name)
        result = run_peer(Peer.SINGLE, own, workload, outages, seed)
        yield Compared(name=f"single cloud {provider}", result=result, bound_usd=least, providers=_providers(lanes))
    for peer in (Peer.ROUND_ROBIN, Peer.LEAST_LOADED, Peer.CHEAPEST_FIRST):
        # What is bound to a spot lane is stranded when that goes for good, so these two keep theirs in the drain.
        kept = outages if peer is Peer.ROUND_ROBIN else tuple(one for one in outages if not one.is_drain)
        result = run_peer(peer, peer_lanes(peer, lanes), workload, kept, seed)
        yield Compared(name=str(peer), result=result, bound_usd=least, providers=_providers(lanes))


def _providers(lanes: tuple[LaneFacts, ...]) -> tuple[str, ...]:
    return tuple(sorted({lane.provider for lane in lanes}))
