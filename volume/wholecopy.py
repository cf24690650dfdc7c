"""All of a volume, to another node and from one, for a replica that the log does not lead to.

What crosses, and how it is compared, is `volume.replicacopy`'s. Here is what is offered: the states
that have names, oldest first, then the newest one with the list of all names; and what has landed
becomes the volume (`adopt`), in one transaction.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace

from typing_extensions import Buffer

from volume import namedstates
from volume.errors import OtherRecords, ReplicaError
from volume.historyrows import SnapshotRow, VersionRow, state_put, versions_put
from volume.layout import ChunkId
from volume.namedstates import NamedState
from volume.replicacopy import Copies, Heard, Step, Target
from volume.replicarow import Row, row_name
from volume.replicastate import ReplicaState

log = logging.getLogger(__name__)


class WholeCopy:
    def __init__(self, state: ReplicaState) -> None:
        self._state = state
        self._copies = Copies(state.parts.transfers.offer)

    # -- to another node

    def copy(self, to: str, at: int, limit: int, heard: Heard = None, after: int = 0) -> Step:
        """As `Replica.copy`."""
        return self._copies.step(
            self._state.name, to, at, limit, heard, lambda: self._target(after)
        )

    def end_copy(self, to: str) -> None:
        """As `Replica.end_copy`."""
        self._copies.end_of(to)

    def _target(self, after: int) -> Target:
        state, parts = self._state, self._state.parts
        with state.lock, parts.catalog.lock, parts.catalog.naming:
            seq, start, ends = state.seq(), state.start, state.ends()
            number = state.volume.record.number
            names = namedstates.names_at(parts.history, number, seq)
        earlier = next((row.seq for row in names if row.seq > after), None)
        if earlier is not None:
            return Target(earlier, start, ends, None)
        states = []
        for row in names:
            version = parts.history.version(number, row.seq)
            if version is None:
                with parts.versions.settled(f"{state.name}@seq:{row.seq}") as (_, found):
                    version = found
            states.append(
                NamedState(
                    *(row.name, row.seq, row.created_ns, row.pinned, row.scheduled),
                    *(version.time_ns, version.size, version.root, version.height),
                )
            )
        data = namedstates.encode(states)
        if len(data) > namedstates.MAX_BYTES:
            raise ReplicaError(
                f"volume {state.name}: its {len(states)} snapshots are too many to be copied to "
                "another node; delete some of them"
            )
        return Target(seq, start, ends, data)

    def end(self) -> None:
        """Nobody goes on with any of them. Waits for nobody."""
        self._copies.end()

    # -- from another node

    def begin_copy(self, epoch: int) -> ChunkId:
        """As `Replica.begin_copy`."""
        state = self._state
        with state.lock:
            state.check_idle(epoch)
            return state.landing.begin()

    def unlike(
        self, epoch: int, nodes: Sequence[tuple[int, int, ChunkId]]
    ) -> tuple[ChunkId, tuple[int, ...]]:
        """As `Replica.unlike`."""
        state = self._state
        with state.lock:
            state.check_idle(epoch)
            return state.landing.base, tuple(state.landing.unlike(nodes))

    def lacking(self, epoch: int, chunk_ids: Sequence[ChunkId]) -> list[ChunkId]:
        """As `Replica.lacking`."""
        state = self._state
        with state.lock:
            state.check_idle(epoch)
            return state.landing.lacking(chunk_ids)

    def take_copy(self, epoch: int, at: int, data: Buffer, *, last: bool) -> int:
        """As `Replica.take_copy`."""
        state = self._state
        with state.lock:
            state.check_idle(epoch)
            taken = state.landing.take(at, data, last=last)
            if last and state.landing.landed:
                self._keep_landed()
            return taken

    def _keep_landed(self) -> None:
        """Nothing thins out what has landed before it is adopted: it has its tree's id as name."""
        state = self._state
        catalog = state.parts.catalog
        record = catalog.named(state.copy_name).record
        name = record.head.root.hex()
        if state.parts.history.snapshot(record.number, name) is None:
            with catalog.lock:
                catalog.add_points([state.copy_name], name)

    def adopt(
        self,
        epoch: int,
        keep: int,
        start: int,
        ends: tuple[tuple[int, int], ...],
        names: Buffer = b"",
    ) -> None:
        """As `Replica.adopt`."""
        state = self._state
        with state.lock:
            state.check_idle(epoch)
            if not ends or ends[-1][0] != epoch or keep > ends[-1][1]:
                raise OtherRecords(state.name, f"{ends} is not a chain of epoch {epoch}")
            seqs = (start, *(seq for _, seq in ends))
            begins = tuple((each, seq) for (each, _), seq in zip(ends, seqs, strict=False))
            row = Row(state.row.promised, begins)
            if row.begins == state.row.begins and state.seq() == ends[-1][1]:
                if state.landing.left:
                    state.landing.drop()
                return  # again
            state.check_late(epoch, ends[-1][1])
            if not state.landing.landed:
                raise OtherRecords(state.name, "no stream has come that it could be")
            if keep and keep != state.seq():
                raise OtherRecords(state.name, f"records up to {state.seq()} are here, not {keep}")
            try:
                states = namedstates.decode(names)
            except ValueError as error:
                raise OtherRecords(state.name, f"a list of names {error}") from error
            state.parts.between_rounds(lambda: self._adopt(ends[-1], keep or -1, row, states))
            state.landing.drop()

    def _adopt(self, end: tuple[int, int], keep: int, row: Row, states: list[NamedState]) -> None:
        state, parts = self._state, self._state.parts
        state.check_rounds()
        source = parts.catalog.named(state.copy_name).record
        epoch, seq = end
        version = VersionRow(
            *(state.volume.record.number, seq, epoch, parts.journal.state()[0]),
            *(parts.clock.now_ns(), source.size, 0),
            *(source.head.commit, source.head.root, source.head.height),
        )
        versions, names = self._named(states, version, keep)
        put = {**versions_put(versions), **state_put(row_name(state.uuid), row.encode())}
        volume = parts.catalog.heads.rewind(state.volume, version, epoch, put, keep, names)
        state.follow(volume, row)
        log.info("all of the volume came from another node volume=%s seq=%d", state.name, seq)

    def _named(
        self, states: list[NamedState], head: VersionRow, keep: int
    ) -> tuple[list[VersionRow], list[SnapshotRow]]:
        """Versions that came as streams for these names, and the names that there are then."""
        state = self._state
        history, number = state.parts.history, head.number
        copy = state.parts.catalog.named(state.copy_name).record.number
        versions: dict[int, VersionRow] = {}
        names = []
        for each in states:
            if each.seq > head.seq:
                what = f"{each.name} names record {each.seq}, behind the last one"
                raise OtherRecords(state.name, what)
            here = each.seq <= keep and (
                history.version(number, each.seq) or history.point(number, each.seq)
            )
            landed = history.snapshot(copy, each.root.hex())
            found = None if landed is None else history.version(copy, landed.seq)
            if not here and each.seq != head.seq:
                if found is None or found.height != each.height:
                    if each.seq > keep:
                        what = f"what {each.name} names has not come"
                        raise OtherRecords(state.name, what)
                    log.error("snapshot is lost snapshot=%s@%s", state.name, each.name)
                    continue
                versions[each.seq] = replace(
                    head,
                    seq=each.seq,
                    time_ns=each.time_ns,
                    size=each.size,
                    commit=found.commit,
                    root=found.root,
                    height=found.height,
                )
            names.append(each.row(number))
        return list(versions.values()), names
