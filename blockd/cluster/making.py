"""Making a volume that several nodes have: its row first, which says who they are, then their
parts, then the row says that it can be opened.

Until then its state is *sealing*, by the node that makes it, so that nobody opens it while one of
its members is still without a part: such a member would never get one. After a crash or an error
in between the same command goes on where it was, as long as nobody has opened the volume.
"""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from transport.errors import TransportError
from transport.group.around import outcome, text_of
from transport.group.watch import FIRST_EPOCH
from transport.peer import messages as m
from transport.sessions import Sessions
from volume.errors import VolumeError, VolumeExists
from volume.metastore import ClusterRecords, Done, Lost, Stored
from volume.metastore_records import GroupState, Mode, VolumeGroup
from volume.refs import check_new_volume_name
from volume.replicas import Replicas

CREATE_S: Final = 30.0


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
    wanted: Wanted, me: str, sessions: Sessions, records: ClusterRecords, replicas: Replicas
) -> VolumeGroup:
    """On a thread that may wait; durable on all members on return. CannotMake, VolumeExists,
    VolumeError, TransportError."""
    check_new_volume_name(wanted.name)
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
    replicas.create(create.volume, wanted.name, *sizes, FIRST_EPOCH)
    closed = replace(group, state=GroupState.CLOSED)
    result = records.settle(records.change_volume(found, closed))
    if not isinstance(result, Done):
        raise CannotMake(f"volume {wanted.name}: its row was not changed: {result}; try again")
    return closed


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
        return found
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


def choose_members(me: str, connected: Sequence[str], replicas: int) -> tuple[str, ...]:
    """This node, and others that can be reached, by id. CannotMake."""
    members = (me, *sorted(connected))[:replicas]
    if len(members) < replicas:
        raise CannotMake(
            f"{replicas} copies need {replicas} nodes; {len(members)} can be reached from here: "
            "see `blockd cluster show`, or ask for fewer with --replicas"
        )
    return members
