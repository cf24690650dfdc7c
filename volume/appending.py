"""Appending: what another node sends, record by record, checked, appended, and done as it says.

Records go into the journal as the bytes that they are. A NOTE among them is done before the next
one is looked at (`volume.noted`); a RESTORE once the state that it names is in chunks here.

Records that were undone stay in the log, below the lowest epoch that counts. Others of such an
epoch cannot be appended any more, as no replay would take them; and they may come: what was undone
by a takeover that nobody has heard of since, or more of its epoch, can be what the next one
chooses. All of the volume is copied then, from what is shared on (NoSuchVersion), and ends in an
epoch above all that was undone.
"""

from errno import EAGAIN, EBADMSG, EBUSY, EFBIG, EINVAL, ENOMSG, ENOSPC, EPROTO, ESTALE
from os import strerror
from typing import Final

from typing_extensions import Buffer

from volume.catalog import check_sizes
from volume.errors import (
    BadRecords,
    CorruptData,
    CorruptJournal,
    InvalidSize,
    MissingRecords,
    NoSuchVersion,
    OtherRecords,
    ReplicaError,
)
from volume.notes import Note, Source
from volume.notes import decode as decode_note
from volume.replicastate import ReplicaState

MAX_NOTES: Final = 256  # of one request: what follows is taken with the next
_NOT_NOW: Final = frozenset((EAGAIN, ENOSPC))  # the rest is taken later
_BAD: Final = frozenset((EINVAL, EFBIG, EPROTO, EBADMSG))


class Appending:
    def __init__(self, state: ReplicaState) -> None:
        self._state = state

    def append(
        self, epoch: int, written: int, first: int, last: int, data: Buffer, *, may_wait: bool
    ) -> bool:
        """As `Replica.append`."""
        state = self._state
        with state.lock:
            state.check_promised(epoch)
            if not first <= last or written > epoch:
                raise BadRecords(state.name, f"{first} to {last} of epoch {written} in {epoch}")
            have = state.seq()
            if first > have + 1:
                raise MissingRecords(state.name, have, first)
            if state.serving is not None:
                raise OtherRecords(state.name, "this node is the one that appends")
            if written > state.row.begins[-1][0]:
                if written < state.volume.record.epoch:
                    raise _undone(state.name, written, first)
                if not may_wait:
                    return False
                state.begin(written, first - 1)
            state.check_range(written, first, last)
            if last <= have:
                return True
            if written < state.volume.record.epoch:
                raise _undone(state.name, written, first)
            if state.landing.left:  # the log leads to it after all
                if not may_wait:
                    return False
                state.landing.drop()
            now_ns = state.parts.clock.now_ns()
            bytes_of_them = memoryview(data).cast("B")
            error, seq = self._append(written, bytes_of_them, now_ns, notes=may_wait)
            if error == ENOMSG and not may_wait:
                return False
            if error in _BAD:
                raise BadRecords(state.name, strerror(error))
            if error == ESTALE:
                raise BadRecords(state.name, f"they are not of epoch {written}")
            if error == EBUSY:  # it is stuck, on damage
                stays = f"volume {state.name}: it cannot go back while it is not destaged"
                if state.is_damaged:
                    raise state.stuck(f"seq:{first}", stays)
                raise ReplicaError(stays)
            if error in _NOT_NOW:
                state.parts.starving()
                if seq <= have and state.is_damaged:
                    raise state.stuck(f"seq:{first}", "there is no journal space")
            elif error:
                raise OSError(error, strerror(error))
            elif seq < last:
                raise BadRecords(state.name, f"end at {seq}, before {last}")
            else:
                state.plain(written)
            return True

    def _append(
        self, written: int, data: memoryview, now_ns: int, *, notes: bool
    ) -> tuple[int, int]:
        """Append records, and do what NOTEs among them say; (errno or 0, newest seq). ENOMSG: one
        of them is next, where nothing is to be done for `notes`."""
        state = self._state
        for _ in range(MAX_NOTES):
            error, seq, note = state.volume.core.append_records(written, data, now_ns)
            if error != ENOMSG or note is None or not notes:
                return error, seq
            state.not_plain()  # nothing comes behind the NOTE before what it says is done
            _, noted, at, payload = note
            try:
                told = decode_note(f"record {noted} of another node", payload)
                record = state.volume.record
                check_sizes(told.size, record.block_size, record.chunk_size)
            except (CorruptJournal, InvalidSize) as unknown:
                raise BadRecords(state.name, str(unknown)) from unknown
            data = data[at:]
            if told.source is None:
                error, seq = state.parts.notes.take(state.volume, written, data)
            else:
                error, seq = self._go_back(written, told, told.source, data)
            if error:
                return error, seq
        return EAGAIN, state.seq()

    def _go_back(
        self, written: int, told: Note, source: Source, data: memoryview
    ) -> tuple[int, int]:
        """Append a RESTORE and do what it says, once the state that it names is in chunks here.
        NoSuchVersion: it is not here, or damage is in the way and stays, so all of the volume has
        to be sent."""
        state = self._state
        parts, ref = state.parts, f"seq:{told.up_to}"
        origin = parts.catalog.of_uuid(source.volume)
        if origin is None:
            raise NoSuchVersion(state.name, ref, f"volume {source.volume.hex()} is not here")

        def take() -> tuple[int, int]:
            state.check_rounds()
            return parts.notes.take(state.volume, written, data, told)

        try:
            with parts.versions.settled(f"{origin.name}@{ref}"):
                return parts.between_rounds(take)
        except (CorruptData, ReplicaError) as error:
            if state.is_damaged:
                raise state.stuck(ref, error) from error
            raise


def _undone(name: str, epoch: int, first: int) -> NoSuchVersion:
    why = f"records of epoch {epoch}, or a later one, were undone here: all of it is needed"
    return NoSuchVersion(name, f"seq:{first}", why)
