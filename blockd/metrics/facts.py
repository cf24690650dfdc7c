"""What one scrape tells about a node, read at one moment or nearly."""

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from blockd.accounts import Accounts
from blockd.api.cluster_types import LocalStripes, LocalVolume
from blockd.api.node import Cluster, Node, Store
from blockd.api.types import ClusterInfo, NodeStatus
from blockd.certificates import Certificate
from blockd.limits import RateLimits
from transport.errors import TransportError
from volume.gc import GcStatus
from volume.model import StoreCounters, StoreStatus, VolumeInfo
from volume.scrub import ScrubStatus

OpCounts = tuple[int, int, int, int, tuple[int, ...]]
"""(requests, payload bytes, errors, sum of nanoseconds, requests in each bucket)."""


@dataclass(frozen=True, slots=True)
class VolumeCounts:
    """One account."""

    volume: str
    protocol: str
    ops: tuple[OpCounts, ...]
    """In the order of native.ACCOUNT_OPS."""
    in_flight: int
    in_flight_bytes: int


@dataclass(frozen=True, slots=True)
class Facts:
    node: NodeStatus
    connections: Mapping[str, int]
    """NBD connections by volume; those to its past versions count as well."""
    certificates: Mapping[str, Sequence[Certificate]]
    """Those in use, by listener."""
    volumes: list[VolumeInfo]
    counters: StoreCounters
    gc: GcStatus
    scrub: ScrubStatus
    counts: list[VolumeCounts]
    held: list[tuple[str, int, int, int]]
    """As `blockd.limits.RateLimits.held`."""
    cluster: ClusterInfo | None
    """None for a node by itself, and for one whose sessions have ended."""
    shared: list[LocalVolume]
    """Volumes that this node and others have; none without a cluster."""
    stripes: LocalStripes | None
    """None without a cluster."""

    @property
    def store(self) -> StoreStatus:
        return self.node.store


@dataclass(frozen=True, slots=True)
class _StoreFacts:
    status: StoreStatus
    volumes: list[VolumeInfo]
    counters: StoreCounters
    gc: GcStatus
    scrub: ScrubStatus
    counts: list[VolumeCounts]
    held: list[tuple[str, int, int, int]]
    cluster: ClusterInfo | None
    shared: list[LocalVolume]
    stripes: LocalStripes | None


async def gather(node: Node) -> Facts:
    """On the event loop's thread; what may wait for the store is asked on another one."""
    connections = Counter(
        each.export.partition("@")[0] for each in node.connections() if each.export is not None
    )
    asked = (node.store, node.accounts, node.rate_limits, node.cluster)
    found = await asyncio.to_thread(_ask, *asked)
    return Facts(
        node=node.node_status(found.status),
        connections=connections,
        certificates=node.certificates(),
        volumes=found.volumes,
        counters=found.counters,
        gc=found.gc,
        scrub=found.scrub,
        counts=found.counts,
        held=found.held,
        cluster=found.cluster,
        shared=found.shared,
        stripes=found.stripes,
    )


def _ask(
    store: Store, accounts: Accounts, rate_limits: RateLimits, cluster: Cluster | None
) -> _StoreFacts:
    counts = []
    for volume, protocol, account in accounts.all():
        requests, length = account.in_flight()
        counts.append(VolumeCounts(volume, protocol, account.snapshot(), requests, length))
    info, shared, stripes = _cluster(cluster)
    return _StoreFacts(
        status=store.status(),
        volumes=store.volumes(),
        counters=store.counters(),
        gc=store.gc_status(),
        scrub=store.scrub_status(),
        counts=counts,
        held=rate_limits.held(),
        cluster=info,
        shared=shared,
        stripes=stripes,
    )


def _cluster(
    cluster: Cluster | None,
) -> tuple[ClusterInfo | None, list[LocalVolume], LocalStripes | None]:
    if cluster is None:
        return None, [], None
    try:
        return cluster.info(), cluster.volumes.here(), cluster.stripes_here()
    except (TransportError, TimeoutError):  # it ends
        return None, [], None
