"""Where the nodes of a cluster export volumes: one row of the MetaStore, `exports`.

Each node has a number there, from the first time that it says where it is, and keeps it: portal
group tags and target port groups are made of it (`blockd.paths`), and initiators know paths again
by these. One row for all nodes makes numbers unique without more: it changes by compare-and-swap. A
number of a node that was removed is given to another one only after all others were used.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final

from blockd.attach import split
from blockd.config.addresses import TcpAddress
from blockd.config.cluster import ClusterConfig
from blockd.paths import MAX_LOCAL_TAG, MAX_NODES
from volume.errors import VolumeError
from volume.metastore import TRIES, ClusterRecords, Done, Stored
from volume.metastore_records import MAX_ADDRESS_CHARS, MAX_ADDRESSES, CorruptRecord, Fields

_ID: Final = re.compile(r"[0-9a-f]{32}")
_ADDRESS: Final = re.compile(rf"[!-~]{{1,{MAX_ADDRESS_CHARS}}}:[0-9]{{1,5}}")
_PORTAL: Final = re.compile(rf"[!-~]{{1,{MAX_ADDRESS_CHARS}}}:[0-9]{{1,5}},[0-9]{{1,3}}")


class NoNumberLeft(VolumeError):
    """A cluster has more nodes that export volumes than numbers."""

    code = "no_number_left"


@dataclass(frozen=True, slots=True)
class NodeExports:
    """Where one node exports."""

    number: int
    nbd: tuple[str, ...] = ()
    """HOST:PORT."""
    iscsi: tuple[str, ...] = ()
    """HOST:PORT,TAG with the node's own tag of the portal group, 1 to 255."""


@dataclass(frozen=True, slots=True)
class ExportsRecord:
    """Of all nodes, by id."""

    nodes: Mapping[str, NodeExports] = field(default_factory=dict)
    next_number: int = 1
    """Below it are the numbers that were given; above MAX_NODES when all were."""
    token: str = ""

    prefix: ClassVar[str] = "exports"
    max_bytes: ClassVar[int] = 1 << 20

    @property
    def key(self) -> str:
        return self.prefix

    def fields(self) -> dict[str, Any]:
        nodes = {
            node: {"number": each.number, "nbd": list(each.nbd), "iscsi": list(each.iscsi)}
            for node, each in self.nodes.items()
        }
        return {"nodes": nodes, "next": self.next_number}

    @classmethod
    def parse(cls, fields: Fields) -> "ExportsRecord":
        found = fields.values.get("nodes")
        if not isinstance(found, dict) or len(found) > MAX_NODES:
            raise CorruptRecord(fields.key, f"has not up to {MAX_NODES} nodes")
        nodes = {node: _node(fields, node, each) for node, each in found.items()}
        if len({each.number for each in nodes.values()}) != len(nodes):
            raise CorruptRecord(fields.key, "has a number twice")
        return cls(nodes, fields.number("next", 1, MAX_NODES + 1), fields.id("token"))

    def with_node(
        self, node: str, nbd: tuple[str, ...], iscsi: tuple[str, ...], known: Collection[str]
    ) -> "ExportsRecord":
        """What it is to be when a node exports there; nodes that are not `known` any more are
        forgotten. NoNumberLeft."""
        kept = {each: what for each, what in self.nodes.items() if each in known or each == node}
        number, following = self.next_number, self.next_number
        if node in kept:
            number = kept[node].number
        elif number <= MAX_NODES:
            following = number + 1
        else:
            taken = {each.number for each in kept.values()}
            free = (each for each in range(1, MAX_NODES + 1) if each not in taken)
            number = next(free, 0)
            if not number:
                raise NoNumberLeft(f"{MAX_NODES} nodes export volumes; remove one of them")
        kept[node] = NodeExports(number, nbd, iscsi)
        return ExportsRecord(kept, following)


def _node(fields: Fields, node: str, found: object) -> NodeExports:
    if _ID.fullmatch(node) is None or not isinstance(found, dict):
        raise CorruptRecord(fields.key, f"has a bad node {node[:64]!r}")
    own = Fields(fields.key, found)
    exports = NodeExports(
        own.number("number", 1, MAX_NODES),
        own.texts("nbd", _ADDRESS, 0, MAX_ADDRESSES),
        own.texts("iscsi", _PORTAL, 0, MAX_ADDRESSES),
    )
    for each in exports.iscsi:
        if not 1 <= int(each.rpartition(",")[2]) <= MAX_LOCAL_TAG:
            raise CorruptRecord(fields.key, f"has a bad portal {each!r}")
    return exports


def advertised(
    config: ClusterConfig, nbd: Sequence[str], portals: Sequence[tuple[str, int]]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What other nodes are told of the addresses that are listened on: those of NBD, and those of
    iSCSI with their portal group's number. Without a word in the configuration, all that can be
    reached from where the node itself is."""
    own = [split(each)[0] for each in config.addresses]
    if config.nbd:
        shown = [str(each) for each in config.nbd]
    else:
        shown = [each for address in nbd if (each := _reached(address, own)) is not None]
    if config.iscsi:
        named = [(str(each.address), each.group or 1) for each in config.iscsi]
    else:
        named = [
            (each, group)
            for address, group in portals
            if (each := _reached(address, own)) is not None and group <= MAX_LOCAL_TAG
        ]
    tagged = [f"{address},{group}" for address, group in named]
    return tuple(shown[:MAX_ADDRESSES]), tuple(tagged[:MAX_ADDRESSES])


def _reached(address: str, own: Sequence[str]) -> str | None:
    """A bound address as others reach it; None: they do not."""
    if address.startswith("/"):
        return None
    host, port = split(address)
    if TcpAddress(host, 0).everywhere:
        return str(TcpAddress(own[0], int(port)))
    alone = TcpAddress(host, 0).loopback and not all(TcpAddress(e, 0).loopback for e in own)
    return None if alone else address


def read_exports(records: ClusterRecords) -> Stored[ExportsRecord] | None:
    """MetaStoreUnavailable, CorruptRecord."""
    return records.stored(ExportsRecord, records.store.read(ExportsRecord.prefix))


def write_exports(
    records: ClusterRecords, node: str, nbd: tuple[str, ...], iscsi: tuple[str, ...]
) -> Stored[ExportsRecord] | None:
    """Say where a node exports; None: it could not be said, and nothing is known of the row.
    MetaStoreUnavailable, CorruptRecord, NoNumberLeft."""
    for _ in range(TRIES):
        old = read_exports(records)
        known = {each.record.node_id for each in records.nodes()}
        before = ExportsRecord() if old is None else old.record
        new = before.with_node(node, nbd, iscsi, known)
        if old is not None and new.fields() == before.fields():
            return old
        outcome = records.settle(records.put(old, new))
        if isinstance(outcome, Done):
            return records.stored(ExportsRecord, outcome.rows[0])
    return None
