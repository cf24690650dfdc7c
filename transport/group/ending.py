"""Ending: what the MetaStore is told when a node does without its part of a volume, for a while or
for good. Each of these waits for the MetaStore.

    closed    the node goes down: nobody serves the volume, so whoever goes on need not wait
    deleted   a tombstone, which names all that have a part to let go
    left      the row is without this node, which is neither a member nor to be one

**Letting go.** A row that was read may be old, and a node that was a member, then none, then one
again may read the row of the time between. So a part that finds itself without a place first stops
answering anybody, then commits the row as it read it: only if it is the row still is that `Done`,
and the part is let go. Whoever calls the node again does so in a later transaction, and then has it
make a part, which it refuses until it has let go of the old one.
"""

from dataclasses import replace

from transport.group.acks import NodeId
from volume.metastore import ClusterRecords, Done, Stored, Unknown
from volume.metastore_records import GroupState, VolumeGroup


def note_closed(store: ClusterRecords, volume: bytes, epoch: int, me: NodeId) -> None:
    """Unless another node is its primary by now."""
    found = store.volume(volume.hex())
    if found is None or (found.record.epoch, found.record.primary) != (epoch, me):
        return
    closed = replace(found.record, state=GroupState.CLOSED)
    store.commit(store.change_volume(found, closed))


def note_deleted(store: ClusterRecords, volume: bytes, epoch: int, me: NodeId) -> str | None:
    """What is wrong; None: it is deleted."""
    found = store.volume(volume.hex())
    if found is None or (found.record.epoch, found.record.primary) != (epoch, me):
        return "another node has taken it over; ask that one"
    outcome = store.settle(store.delete_volume(found))
    if isinstance(outcome, Done):
        return None
    if isinstance(outcome, Unknown):
        return "whether its record was changed is not known; try again"
    return f"its record was not changed: {outcome}"


def has_place(record: VolumeGroup, me: NodeId) -> bool:
    """Whether a node is a member, or is to be one."""
    return me in record.members or me == record.coming


def is_so(store: ClusterRecords, found: Stored[VolumeGroup]) -> bool:
    """Whether that is the volume's row: at some moment of this call, not only before it."""
    return isinstance(store.settle(store.confirm_volume(found)), Done)
