"""Volumes of a cluster as the control API tells of them."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CopyInfo:
    """A volume at one of its members, as that one said a moment ago; None: not known now."""

    node: str
    """Id of the member."""
    name: str
    """Of the node; its id where nobody knows its name."""
    answered: bool
    why: str
    """Why it did not answer; empty when it did."""
    epoch: int | None
    """Newest one that it has seen begin."""
    promised: int | None
    """It takes nothing of an earlier epoch than this one."""
    received: int | None
    """Seq of its newest record..."""
    durable: int | None
    """...and of its newest synced one."""
    behind: int | None
    """Records that it lacked, of those that the primary had just before."""
    quiet_s: float | None
    """So long ago it last answered a primary."""
    serving: bool | None
    """Whether clients are let in there."""
    in_sync: bool | None
    """Whether it has all of the volume, in the epoch that is open."""
    behind_bytes: int | None = None
    """Of records that it has not acknowledged, says the primary; None: nobody can tell, here and
    below."""
    behind_s: float | None = None
    """So long ago the first of these was written."""
    left_s: float | None = None
    """Until it has caught up, at the rate at which it has done so far."""
    role: str = "member"
    """"member"; "coming": it is to be one, and counts for nothing yet; "leaving": it is none any
    more, and has not let its part go yet."""


@dataclass(frozen=True, slots=True)
class ClusterVolume:
    """A volume of the cluster: what the MetaStore has, and what its members said."""

    name: str
    volume: str
    """Its id, 32 hex digits."""
    epoch: int | None
    """As the MetaStore has it; None when it cannot be read."""
    state: str
    """open, sealing (somebody is taking it over), closed, or unknown."""
    primary: str | None
    """Name of the node that serves it, as that one said; None: nobody that could be asked."""
    mode: str
    copies: int | None
    """Members with all of it, as far as they could be asked; None: not without the primary."""
    wanted: int | None
    """R: how many there should be."""
    write_quorum: int | None
    members: tuple[CopyInfo, ...]
    """With who comes and who leaves."""
    doing: str
    """What this node does for it: "following", a step of a takeover, "serving", "" if nothing."""
    problem: str
    """What is wrong with it, in words; empty when all is well."""
    change: str = ""
    """Which node comes in the place of which, and how far that is; empty when none does."""


@dataclass(frozen=True, slots=True)
class Lag:
    """How far another member is behind; None where nobody can tell."""

    name: str
    behind_bytes: int | None
    behind_s: float | None
    """Since when it lacks the first of these."""
    left_s: float | None
    """Until it has caught up."""


@dataclass(frozen=True, slots=True)
class LocalVolume:
    """A volume of the cluster at one of its members, without asking the others."""

    name: str
    serving: bool
    """Whether clients are let in here."""
    copies: int
    """Members that have all of it, this one included; 0 where it is not the primary..."""
    wanted: int
    """...and how many members there are; 0 where it is not the primary."""
    behind: tuple[tuple[str, int], ...]
    """By name of each other member, how many records it lacks; empty likewise."""
    lags: tuple[Lag, ...] = ()


@dataclass(frozen=True, slots=True)
class ClusterNodeInfo:
    node: str
    name: str
    connected: bool
    """To the node that was asked, which is connected to itself."""
    since_s: float
    reason: str


@dataclass(frozen=True, slots=True)
class StripeCount:
    stripes: int
    bytes: int


@dataclass(frozen=True, slots=True)
class StripeNodeInfo:
    """What a node has to do for stripes, as it said a moment ago; None: not known."""

    node: str
    """Id of the node."""
    name: str
    answered: bool
    why: str
    """Why it did not answer; empty when it did."""
    listed_s: float | None
    """So long ago it read all rows of stripes."""
    doing: str | None
    """"join", "convert", "move", "repair"; empty: nothing at the moment."""
    cold_bytes: int | None
    """Of its cold packs that are to become stripes. Other nodes may have the same chunks: who comes
    later finds them in the stripe."""
    cold_left_s: float | None
    """Until they are, at the rate at which it went so far; pauses count."""
    coming_bytes: int | None
    """Of shards that are to come to its device: moved, or computed."""
    coming_left_s: float | None
    broken: int | None
    """Shards on its device that are damaged or not there..."""
    broken_bytes: int | None
    """...and bytes of those that are to be made again."""
    broken_left_s: float | None


@dataclass(frozen=True, slots=True)
class StripesInfo:
    """Stripes of the cluster: rows as the node that was asked has read them last, shards as the
    nodes that have them say now. None: nobody could tell."""

    listed_s: float | None
    """So long ago all rows were read; with None, there are no numbers."""
    all: StripeCount | None
    """But for those that are being made or removed."""
    shard_bytes: int | None
    """Bytes of all their shards."""
    degraded: StripeCount | None
    """With a shard that cannot be had now, and readable."""
    unreadable: StripeCount | None
    """Not readable before a node is back."""
    lost: StripeCount | None
    """With fewer shards left anywhere than it takes."""
    given_up: StripeCount | None
    """Of those two, the ones that were given up: what was in them is an I/O error until it is
    written again."""
    making: StripeCount | None
    """Being converted: not readable from shards yet."""
    removing: StripeCount | None
    moves: StripeCount | None
    """Shards, and bytes of them, that are to be copied to another device..."""
    rebuilds: StripeCount | None
    """...and those that are to be computed there, or again where they are damaged."""
    cold_bytes: int | None
    """That are to become stripes, at the node that has the most of them."""
    cold_left_s: float | None
    shards_left_s: float | None
    """Until all moves and rebuilds are done."""
    lost_packs: tuple[str, ...]
    """Ids of packs that are lost, 64 at most."""
    problems: tuple[str, ...]
    """What is in the way, in words, at the node that was asked."""
    nodes: tuple[StripeNodeInfo, ...]

    @property
    def well(self) -> bool:
        """Whether all can be read, and one more node may go; losses that were given up are known
        and do not count."""
        return (
            self.all is not None
            and self.degraded is not None
            and self.unreadable is not None
            and self.lost is not None
            and self.given_up is not None
            and self.degraded.stripes == 0
            and self.unreadable.stripes + self.lost.stripes == self.given_up.stripes
        )


@dataclass(frozen=True, slots=True)
class LostStripe:
    """A stripe with fewer shards left than it takes, or that was given up."""

    pack: str
    """Id of its pack."""
    bytes: int
    state: str
    """"lost"; of one that was given up also "unreadable", "degraded" or "whole" by now."""
    given_up: bool
    chunks: int
    """Of the volumes of the node that was asked, chunks that cannot be read."""
    users: tuple[str, ...]
    """Names of nodes that find chunks in it."""


@dataclass(frozen=True, slots=True)
class LostRange:
    """A range that is in chunks which cannot be read."""

    name: str
    """A volume, or volume@version."""
    offset: int
    length: int
    pack: str
    """Id of the first stripe that it is in."""


@dataclass(frozen=True, slots=True)
class LostStripes:
    stripes: tuple[LostStripe, ...]
    ranges: tuple[LostRange, ...]
    """In volumes of the node that was asked; what is in its journal only is not looked at."""
    more: bool
    """There are more ranges."""


@dataclass(frozen=True, slots=True)
class RebuiltRows:
    """Rows of stripes made again from shards."""

    dry_run: bool
    """Nothing was made."""
    made: int
    kept: int
    """Stripes that have a row: those were not changed."""
    unused: int
    """Stripes without a row in which nobody finds chunks: they need none."""
    damaged: int
    """Files of shards that cannot be used."""
    too_few_count: int
    """Stripes that are needed, and of which there are too few shards for a row."""
    too_few: tuple[str, ...]
    """Ids of their packs, the first of them."""
    away: tuple[str, ...]
    """Nodes that have told nothing, and why."""


@dataclass(frozen=True, slots=True)
class LocalStripes:
    """Stripes as one node knows them by itself, for its metrics."""

    states: Mapping[str, StripeCount]
    """By state: whole, degraded, unreadable, lost, given_up, making, removing. Empty before all
    rows were read."""
    listed_s: float | None
    shards: int
    """On the node's own device."""
    shard_bytes: int
    broken: int | None
    """Of these, damaged or not there."""
    left: Mapping[str, int]
    """Bytes by work: convert, move, repair."""
    done: Mapping[str, tuple[int, int]]
    """By work: how many there were since the start, and their bytes."""
    reads: int
    degraded_reads: int
    failed_reads: int
    failures: int
    """Of rounds: one stripe each."""


@dataclass(frozen=True, slots=True)
class ClusterStatus:
    """As found out by asking, for this answer."""

    node: str
    """Name of the node that was asked."""
    metastore: str
    """Why it could not be read; empty when it was."""
    took_s: float
    """How long it took to ask: what is shown is not older than that."""
    nodes: tuple[ClusterNodeInfo, ...]
    volumes: tuple[ClusterVolume, ...]
    stripes: StripesInfo | None = None
    """None where that was not asked."""


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """A device of the cluster, and what rows of stripes say is on it."""

    device: str
    """Its id, 32 hex digits."""
    node: str
    """Name of the node that serves it; its id where nobody knows its name."""
    here: bool
    """Whether that is the node that was asked."""
    site: str
    rack: str
    host: str
    weight: int
    """Bytes: its share of shards."""
    state: str
    """in, draining, out or failed."""
    shards: int
    shard_bytes: int
    leaving: int
    """Of these, shards that move elsewhere, or are to be computed again there."""
    leaving_bytes: int


@dataclass(frozen=True, slots=True)
class DeviceList:
    """Devices as the map has them now; the rest is as the last round of the node that was asked has
    seen it."""

    epoch: int
    """Of the map."""
    problem: str
    """Why the map could not be read; empty when it was."""
    stripes: int
    unreadable: int
    """Stripes with fewer good shards than it takes."""
    moves: int
    """Shards that are not where they should be."""
    move_bytes: int
    problems: tuple[str, ...]
    """What is in the way, in words."""
    devices: tuple[DeviceInfo, ...]


@dataclass(frozen=True, slots=True)
class WayInfo:
    """A node that has a volume, as clients see it."""

    node: str
    """Its name; empty where the node that was asked is by itself."""
    here: bool
    """Whether it is the node that was asked."""
    state: str
    """serving; standby; changing: it is taking the volume over, or is not sure any more that it
    serves it; unreachable, from the node that was asked."""
    nbd: tuple[str, ...]
    """HOST:PORT, or the path of a unix socket."""
    iscsi: tuple[str, ...]
    """HOST:PORT; of a volume of several nodes with ,TAG of the portal group."""


@dataclass(frozen=True, slots=True)
class AttachInfo:
    """How clients attach a volume."""

    volume: str
    target: str
    """The IQN that it has by itself, on every node; empty when there is none here."""
    tls: bool
    """Whether NBD clients need TLS."""
    ways: tuple[WayInfo, ...]


@dataclass(frozen=True, slots=True)
class MovedVolume:
    name: str
    node: str
    """Name of the node that is its primary now."""
    took_s: float
    """From asking to being told that it is."""


@dataclass(frozen=True, slots=True)
class ReplacedMember:
    """What was noted: it is done by the volume's primary, see the cluster's status."""

    name: str
    """Of the volume."""
    goes: str
    comes: str
    """Names of nodes."""


@dataclass(frozen=True, slots=True)
class Draining:
    """What is left of a node's volumes. Each is a name."""

    node: str
    draining: bool
    member_of: tuple[str, ...]
    """Volumes that have it as a member still..."""
    under_way: tuple[str, ...]
    """...those of them to which another node comes in its place..."""
    letting_go: tuple[str, ...]
    """...and those that have another one, and whose part it has not let go yet."""
