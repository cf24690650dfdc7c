"""What the control API needs from the daemon around it.

`volume.store.Store` satisfies `Store`; its calls wait for disks, so routers make them in threads.
`blockd.daemon.Daemon` satisfies `Node`; its calls are quick and belong to the event loop's thread.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import IO, Protocol

from blockd.access.book import AccessBook
from blockd.accounts import Accounts
from blockd.api.cluster_types import (
    ClusterStatus,
    ClusterVolume,
    DeviceList,
    Draining,
    LocalStripes,
    LocalVolume,
    LostStripes,
    MovedVolume,
    RebuiltRows,
    ReplacedMember,
)
from blockd.api.iscsi_types import SessionInfo
from blockd.api.types import ClusterInfo, ConnectionInfo, NoCluster, NodeStatus, TokenInfo
from blockd.api.volume_settings import Change
from blockd.certificates import Certificate
from blockd.device import Exports, LastingDevice
from blockd.limits import RateLimits
from blockd.paths import Paths
from blockd.registry.targets import TargetRegistry
from volume.damage import Damage
from volume.gc import GcReport, GcStatus
from volume.locate import Location
from volume.metastore_records import Mode
from volume.model import (
    DiffInfo,
    HistoryPolicy,
    ReceiveInfo,
    RestoreInfo,
    ScheduleInfo,
    SnapshotInfo,
    SpaceReport,
    StoreCounters,
    StoreStatus,
    VersionLog,
    VolumeInfo,
)
from volume.scrub import ScrubStatus
from volume.states import Damaged


class Snapshots(Protocol):
    """Named versions, and the schedules that make some of them."""

    def create(
        self,
        name: str,
        volumes: Sequence[str],
        *,
        pinned: bool = False,
        sync: bool = False,
        wait: bool = True,
    ) -> list[SnapshotInfo]:
        """The state of all `volumes` at one instant, with every write acknowledged before. Without
        `wait` it is quick, or raises WouldWait."""

    def all(
        self, volume: str | None = None, *, prefix: str = "", limit: int | None = None
    ) -> list[SnapshotInfo]:
        """By volume, then oldest first; the newest `limit` of those whose names begin so."""

    def get(self, volume: str, name: str) -> SnapshotInfo: ...
    def delete(self, volume: str, name: str, *, force: bool = False) -> None: ...
    def pin(self, volume: str, name: str, pinned: bool) -> SnapshotInfo: ...
    def schedule(self, volume: str) -> ScheduleInfo | None: ...
    def set_schedule(self, volume: str, every_s: int, keep: str) -> ScheduleInfo: ...
    def clear_schedule(self, volume: str) -> None: ...


class Versions(Protocol):
    """Every recoverable state of the volumes. Refs are explained in `volume.refs`."""

    def log(self, volume: str, *, limit: int = ..., writes: bool = False) -> VersionLog: ...
    def cut_with(self, cut: Callable[[str, str], None]) -> None:
        """Call this with a volume's name, and why, when its clients have to go. Any thread."""

    def restore(self, volume: str, ref: str, *, force: bool = False) -> RestoreInfo: ...
    def clone(self, source: str, name: str) -> VolumeInfo: ...
    def sizes(self, source: str) -> tuple[int, int, int]:
        """Of a version, its blocks and its chunks."""

    def begin_as(self, name: str, source: str) -> VolumeInfo:
        """Have an empty volume of several nodes be what a version is."""

    def diff(self, old: str, new: str, *, limit: int | None = None) -> DiffInfo:
        """The first `limit` extents; the others are only counted."""

    def policy(self, volume: str) -> HistoryPolicy: ...
    def set_policy(
        self, volume: str, *, window_s: int | None = None, keep: str | None = None
    ) -> HistoryPolicy:
        """None leaves that part as it is."""


class Incoming(Protocol):
    """A version stream that is being received; see `volume.receive.Receiver`."""

    def feed(self, data: bytes) -> None:
        """The next bytes; waits until there is room for more."""

    def end(self) -> VolumeInfo:
        """No more bytes come. StreamInterrupted, unless that was the end."""

    def close(self) -> None:
        """Let go of it, whether it has ended or not. From any thread, any number of times."""


class Store(Exports, Protocol):
    """A data directory with its volumes. Changes are durable on return; raises VolumeError."""

    def get(self, name: str) -> LastingDevice | None: ...
    def open_version(self, name: str) -> LastingDevice: ...
    def kept(self, prefix: str, damaged: Damaged | None = None) -> dict[str, bytes]:
        """What `keep` was given, under names that start with `prefix`; see `volume.states`."""

    def keep(self, name: str, value: bytes | None) -> None:
        """Keep opaque bytes under a name, as "iscsi/..."; None forgets them."""

    @property
    def snapshots(self) -> Snapshots: ...
    @property
    def versions(self) -> Versions: ...
    def volumes(self) -> list[VolumeInfo]: ...
    def info(self, name: str) -> VolumeInfo: ...
    def create_volume(
        self,
        name: str,
        size: int,
        *,
        block_size: int = ...,
        chunk_size: int = ...,
        compression: str | None = None,
    ) -> VolumeInfo:
        """`compression` names a codec of `volume.codecs`; None: the store's default."""

    def delete_volume(self, name: str, *, force: bool = False) -> None: ...
    def rename_volume(self, name: str, new_name: str) -> VolumeInfo: ...
    def resize_volume(self, name: str, size: int, *, force: bool = False) -> VolumeInfo: ...
    def status(self) -> StoreStatus: ...
    def counters(self) -> StoreCounters: ...
    def space(self) -> SpaceReport:
        """Walks every tree: takes long."""

    def gc_status(self) -> GcStatus: ...
    def collect(self, *, dry_run: bool = False) -> GcReport:
        """One whole run of gc, or what it would do. Waits for its end: takes long."""

    def scrub_status(self) -> ScrubStatus: ...
    def start_scrub(self) -> None:
        """Check everything once, from the beginning; returns at once."""

    def stop_scrub(self) -> None:
        """No more hurry: what is being checked goes on at its usual pace."""

    def damage_locations(self, damages: Iterable[Damage] | None = None) -> Iterable[Location]:
        """What of which volumes and versions damage hits; without `damages`, what scrub knows of.
        Lazy: walks trees as it is asked for more."""

    def send(
        self, source: str, base: str | None = None, resume: str | None = None
    ) -> Iterator[bytes]:
        """The stream of version `source` (vol@ref; vol for its head) as a difference to version
        `base`, from where token `resume` says, which names both and needs no base. Versions that
        are in the journal only are destaged first. To be closed when not used up."""

    def receive(self, name: str) -> Incoming:
        """Begin to receive a stream into volume `name`."""

    def receives(self) -> list[ReceiveInfo]:
        """Streams that are coming in, or were cut off and can be gone on with."""

    def abort_receive(self, name: str) -> None:
        """Forget a stream that was cut off."""

    def backup_meta(self) -> IO[bytes]:
        """A copy of meta/ of this moment (`volume.metabackup`), at its start; the caller closes
        it. Waits for disks."""

    def close(self) -> None: ...


class Volumes(Protocol):
    """Volumes that several nodes have; calls wait. VolumeError, TransportError."""

    def status(self) -> ClusterStatus: ...
    def here(self) -> list[LocalVolume]:
        """Those of which this node is a member; nobody is asked."""

    def create(
        self, name: str, sizes: tuple[int, int, int], replicas: int, quorum: int, mode: Mode
    ) -> ClusterVolume: ...
    def create_like(self, source: str, name: str, sizes: tuple[int, int, int]) -> bool:
        """Make one on the nodes that have `source`; False: that is none of several nodes."""

    def move(self, name: str, node: str) -> MovedVolume: ...
    def replace_member(self, name: str, old: str, new: str | None) -> ReplacedMember: ...
    def delete(self, name: str, *, force: bool) -> bool:
        """Whether it is one that several nodes have, and was deleted on all of them."""


class Devices(Protocol):
    """The devices of the cluster. VolumeError, TransportError."""

    def list(self) -> DeviceList: ...
    def act(self, action: str, device: str, other: str | None = None) -> DeviceList:
        """Drain, return, fail, remove or replace one; durable on return."""


class StripeOrders(Protocol):
    """What is ordered about stripes. VolumeError, TransportError, OSError."""

    def rebuild_rows(self, *, force: bool, dry_run: bool) -> RebuiltRows:
        """Make rows that etcd has lost again; `force`: although nodes are away."""

    def lost(self) -> LostStripes: ...
    def give_up(self, packs: Collection[str] | None, *, dry_run: bool = False) -> LostStripes:
        """Those that are lost, by id; None: all. Durable on return. `dry_run`: which would be."""


class Settings(Protocol):
    """Settings that nodes share."""

    def share(self, name: str, change: Change) -> bool:
        """Change those of a volume that other nodes have as well, there and here; False: none has
        it. Waits. VolumeError, OSError."""

    def rename(self, name: str, new_name: str) -> bool:
        """The same, of its name."""


class Cluster(Protocol):
    """The cluster as its node knows it; calls wait, for other threads or for etcd."""

    @property
    def volumes(self) -> Volumes: ...
    @property
    def devices(self) -> Devices: ...
    @property
    def stripe_orders(self) -> StripeOrders: ...
    @property
    def settings(self) -> Settings: ...
    @property
    def paths(self) -> Paths: ...
    def info(self) -> ClusterInfo: ...
    def stripes_here(self) -> LocalStripes:
        """Stripes as this node knows them by itself."""

    def make_token(self, ttl_s: int) -> TokenInfo:
        """For one node. VolumeError, TransportError."""

    def remove(self, name: str, *, lost: bool = False) -> None:
        """Take a node out of the cluster; `lost`: although volumes have it as a member.
        VolumeError, TransportError."""

    def drain(self, name: str, *, drain: bool) -> Draining:
        """Have other nodes come in its place, or not any more. VolumeError, TransportError."""

    def draining(self, name: str) -> Draining:
        """What is left of that. VolumeError, TransportError."""


class Node(Protocol):
    """The daemon as its control API sees it."""

    @property
    def cluster(self) -> Cluster | None:
        """None for a node by itself."""

    @property
    def store(self) -> Store: ...
    @property
    def targets(self) -> TargetRegistry: ...
    @property
    def rate_limits(self) -> RateLimits: ...

    @property
    def access(self) -> AccessBook: ...
    @property
    def accounts(self) -> Accounts: ...

    def node_status(self, store: StoreStatus) -> NodeStatus:
        """The node with `store`, which the caller fetched in a thread."""

    def connections(self) -> list[ConnectionInfo]:
        """The NBD connections that are open now."""

    def sessions(self) -> list[SessionInfo]:
        """The iSCSI sessions that are open now."""

    def certificates(self) -> Mapping[str, Sequence[Certificate]]:
        """Those in use, by listener."""

    async def disconnect(self, client_id: str) -> bool | None:
        """End the connection or session that has this id there: what is in flight is finished
        first. False: it took too long, and was cut. None: there is none of that id."""


def cluster_of(node: Node) -> Cluster:
    """NoCluster: it is a node by itself."""
    if node.cluster is None:
        raise NoCluster
    return node.cluster
