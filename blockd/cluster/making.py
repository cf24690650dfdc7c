"""Making a volume that several nodes have: its row first, which says who they are, then their
parts, then the row says that it can be opened.

Until then its state is *sealing*, by the node that makes it, so that nobody opens it while one of
its members is still without a part: such a member would never get one. After a crash or an error
in between the same command goes on where it was, as long as nobody has opened the volume; where it
is to be on other nodes by then, what was begun is deleted, and it is made anew.

A name is free again when the row of who had it says that it is deleted; its members let their parts
go a moment later. A part that is in the way is looked after at once, and waited for, NAME_S at
most: here as on other members (`ClusterVolumes`).
"""

import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from transport.errors import TransportError
from transport.group.around import outcome, text_of
from transport.group.watch import FIRST_EPOCH
from transport.peer import messages as m
from transport.sessions import Sessions
from volume.catalog import check_sizes
from volume.errors import VolumeError, VolumeExists
from volume.metastore import ClusterRecords, Done, Lost, Stored
from volume.metastore_records import GroupState, Mode, VolumeGroup
from volume.refs import check_new_volume_name
from volume.replicas import Replicas

CREATE_S: Final = 30.0
NAME_S: Final = 10.0
"""For a part of a deleted volume of the same name to be let go. A member that has not heard of it
reads the row within 5 s by itself; to let go takes a read of etcd and a sync."""
NAME_LOOK_S: Final = 0.1  # between looks whether it is gone


class CannotMake(VolumeError):
    """A volume of several nodes that cannot be made like that, or not now."""

    code = "cannot_make_volume"


@dataclass(frozen=True, slots=True)
class Wanted:
    name: str
    size: int
    block_size: int
    chunk_size: int
    members: tuple[str, ...]
    """Node ids, this one's among them."""
    write_quorum: int
    mode: Mode


def make(
    wanted: Wanted,
    me: str,
    sessions: Sessions,
    records: ClusterRecords,
    replicas: Replicas,
    in_the_way: Callable[[bytes], None] = lambda volume: None,
) -> VolumeGroup:
    """On a thread that may wait; durable on all members on return. `in_the_way`: see whether that
    volume, which has a part here, is deleted. CannotMake, VolumeExists, VolumeError,
    TransportError."""
    check_new_volume_name(wanted.name)
    check_sizes(wanted.size, wanted.block_size, wanted.chunk_size)  # before a row holds the name
    found = _row(wanted, me, records)
    group = found.record
    sizes = (wanted.size, wanted.block_size, wanted.chunk_size)
    create = m.Create(bytes.fromhex(group.volume_id), FIRST_EPOCH, wanted.name, *sizes)
    problems = []
    for node in group.members:
        if node != me and (problem := _ask(sessions, node, create)) is not None:
            problems.append(f"node {node}: {problem}")
    if problems:
        raise CannotMake(
            f"volume {wanted.name} is not on all of its members yet ({'; '.join(problems)}); run "
            "the same command again when they can be reached"
        )
    _make_here(create, replicas, in_the_way)
    closed = replace(group, state=GroupState.CLOSED)
    result = records.settle(records.change_volume(found, closed))
    if not isinstance(result, Done):
        raise CannotMake(f"volume {wanted.name}: its row was not changed: {result}; try again")
    return closed


def _make_here(create: m.Create, replicas: Replicas, in_the_way: Callable[[bytes], None]) -> None:
    """This node's own part. VolumeExists, VolumeError."""
    sizes = (create.size, create.block_size, create.chunk_size)
    until = time.monotonic() + NAME_S
    while True:
        try:
            replicas.create(create.volume, create.name, *sizes, create.epoch)
            return
        except VolumeExists:
            other = named_so(replicas, create)
            if other is None or time.monotonic() >= until:
                raise
        in_the_way(other)
        time.sleep(NAME_LOOK_S)


def named_so(replicas: Replicas, create: m.Create) -> bytes | None:
    """Another volume of several nodes whose part has the name here that a new one is to have."""
    ids = [each.uuid for each in replicas if each.name == create.name]
    return next((each for each in ids if each != create.volume), None)


def _ask(sessions: Sessions, node: str, create: m.Create) -> str | None:
    """What is wrong; None: the node has its part."""
    try:
        result = outcome(sessions.ask_and_wait(bytes.fromhex(node), create, CREATE_S))
    except TransportError as error:
        return str(error)
    return None if isinstance(result, m.Ack) else text_of(result)


def _row(wanted: Wanted, me: str, records: ClusterRecords) -> Stored[VolumeGroup]:
    """The volume's row: the one of an earlier try by this node, or a new one."""
    found = records.volume_named(wanted.name)
    if found is not None:
        begun = (found.record.epoch, found.record.state, found.record.primary)
        as_before = (found.record.replicas, found.record.write_quorum, found.record.mode)
        as_wanted = (len(wanted.members), wanted.write_quorum, wanted.mode)
        if begun != (FIRST_EPOCH, GroupState.SEALING, me) or as_before != as_wanted:
            raise VolumeExists(wanted.name)
        if set(found.record.members) == set(wanted.members):
            return found
        _give_up(found, records)
    group = VolumeGroup(
        *(uuid.uuid4().hex, wanted.name, FIRST_EPOCH, me, wanted.members, len(wanted.members)),
        *(wanted.write_quorum, wanted.mode, None, "main", GroupState.SEALING),
    )
    result = records.settle(records.create_volume(group))
    if isinstance(result, Lost):
        raise VolumeExists(wanted.name)
    if not isinstance(result, Done):
        raise CannotMake(f"volume {wanted.name}: the metastore: {result.reason}")
    made = records.stored(VolumeGroup, result.rows[0])
    assert made is not None
    return made


def _give_up(found: Stored[VolumeGroup], records: ClusterRecords) -> None:
    """A volume that this node began to make, and that is to be on other nodes now: one of them may
    never be reached again. Nobody has opened it, as its row says, which guards this. CannotMake."""
    result = records.settle(records.delete_volume(found))
    if not isinstance(result, Done):
        raise CannotMake(
            f"volume {found.record.name}: it was begun on other nodes, and its row was not "
            f"changed: {result}; try again"
        )


def choose_members(me: str, connected: Sequence[str], replicas: int) -> tuple[str, ...]:
    """This node, and others that can be reached, by id. CannotMake."""
    members = (me, *sorted(connected))[:replicas]
    if len(members) < replicas:
        raise CannotMake(
            f"{replicas} copies need {replicas} nodes; {len(members)} can be reached from here: "
            "see `blockd cluster show`, or ask for fewer with --replicas"
        )
    return members
