"""Draining: a node is to be no member of any volume any more. A mark in its row; nodes that serve
volumes see it and replace it there (blockd/cluster/replacing.py), in those that it serves itself
last. What is left is counted in the rows each time that somebody asks."""

from dataclasses import replace

from blockd.api.cluster_types import Draining
from transport.errors import NoSuchNode
from volume.metastore import ClusterRecords, Done, MetaStoreUnavailable, Stored
from volume.metastore_records import GroupState, NodeRecord


def drained(records: ClusterRecords, name: str, *, drain: bool) -> Draining:
    """Set the mark, or take it away; durable. NoSuchNode, MetaStoreUnavailable."""
    found = _node(records, name)
    if found.record.draining != drain:
        changed = records.change_node(found, replace(found.record, draining=drain))
        if not isinstance(records.settle(changed), Done):
            raise MetaStoreUnavailable(f"node {name} was not marked; say it again")
    return draining(records, name)


def draining(records: ClusterRecords, name: str) -> Draining:
    """NoSuchNode, MetaStoreUnavailable."""
    node = _node(records, name).record
    groups = [each.record for each in records.volumes()]
    groups = [each for each in groups if each.state is not GroupState.DELETED]
    me = node.node_id
    return Draining(
        node=node.name,
        draining=node.draining,
        member_of=tuple(sorted(each.name for each in groups if me in (*each.members, each.coming))),
        under_way=tuple(sorted(each.name for each in groups if each.replaces == me)),
        letting_go=tuple(sorted(each.name for each in groups if me in each.leaving)),
    )


def _node(records: ClusterRecords, name: str) -> Stored[NodeRecord]:
    for found in records.nodes():
        if name in (found.record.name, found.record.node_id):
            return found
    raise NoSuchNode(name)
