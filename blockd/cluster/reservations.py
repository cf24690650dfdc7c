"""What all nodes of a volume keep of its SCSI unit: one row of the MetaStore for each volume.

A node that begins to serve a volume *claims* its row: by compare-and-swap the row gets the epoch in
which it serves, and by that, since the swap is guarded, what the node has read is known to be the
newest. Until that has happened the unit is in transition. A node that has been taken over finds a
later epoch in the row, or loses its swap to the one who claimed it, and changes nothing.

    step of a takeover              a crash after it leaves
    the node has become the primary  a row with an earlier epoch: the next primary claims it
    the row is claimed               a row with all that was answered; the next primary claims it
    commands are served              the same

A claim that fails is tried again each `CLAIM_S`. Rows are made when a volume is served first, so
that "there is none" is never believed of a read that may be old. A row that has something in it, or
that a change may have come into whose answer was lost, is read every `LOOK_S` by the node that
serves the volume: initiators may have registered at another node. While the MetaStore is silent
what is known holds, and changes fail; nobody takes over then either.

A change whose answer is lost may have happened, or may happen yet, as its request may be anywhere
(`Unsettled`). The next look therefore writes the row once more as it is, where nobody else has: by
its new revision the guard of a request that is still on its way fails, and what is read is final.

Any thread; what waits says so.
"""

import base64
import binascii
import errno
import threading
import time
from collections.abc import Callable
from typing import Final

from blockd.cluster.lists import LOOK_S
from blockd.cluster.rounds import Rounds
from blockd.shared_state import Held, NotServing, Now, T, Unsettled
from volume.errors import VolumeError
from volume.metastore import (
    TRIES,
    ClusterRecords,
    Done,
    Lost,
    MetaStoreUnavailable,
    Outcome,
    Stored,
    Transaction,
    Unavailable,
    Unknown,
)
from volume.metastore_records import CorruptRecord, ReservationsRecord

CLAIM_S: Final = 1.0  # the unit serves nobody meanwhile
PUT_S: Final = 10.0  # no try begins after so long: initiators wait 30 s for a command as a rule


class SharedReservations:
    """Of all volumes of this node."""

    def __init__(
        self, records: ClusterRecords, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._records = records
        self._clock = clock
        self._reads_due = 0.0
        self._volumes: dict[bytes, VolumeState] = {}
        self._lock = threading.Lock()
        self._told: Callable[[], None] = lambda: None
        trouble = "reservations of volumes not read"
        self._rounds = Rounds("blockd-reserved", self.step, trouble, CLAIM_S)

    def start(self, told: Callable[[], None]) -> None:
        """`told()`: something else is known of a volume."""
        self._told = told
        self._rounds.start()

    def stop(self) -> None:
        """Waits for calls to the MetaStore that are under way. Idempotent."""
        self._rounds.stop()

    def of(self, volume: bytes) -> "VolumeState":
        """Quick."""
        state = self._volumes.get(volume)
        if state is None:
            with self._lock:
                state = self._volumes.setdefault(
                    volume, VolumeState(self._records, volume, self._clock)
                )
        return state

    def opened(self, volume: bytes, epoch: int) -> None:
        """This node is its primary. Quick."""
        self.of(volume).begin(epoch)
        self._rounds.look()

    def closed(self, volume: bytes) -> None:
        """It is no more. Quick."""
        self.of(volume).begin(0)

    def forget(self, volume: bytes) -> None:
        """This node has no part of it any more. Quick."""
        with self._lock:
            self._volumes.pop(volume, None)

    def step(self) -> None:
        """Claim what is served anew, and read what may have changed. Waits. VolumeError: of some,
        after all were tried."""
        with self._lock:
            volumes = list(self._volumes.values())
        now = self._clock()
        reading = now >= self._reads_due
        if reading:
            self._reads_due = now + LOOK_S
        bad: list[VolumeError | OSError] = []
        for each in volumes:
            if self._rounds.stopping:
                return
            try:
                if each.claim() or (reading and each.refresh()):
                    self._told()
            except (VolumeError, OSError) as error:
                bad.append(error)
        if bad:
            raise bad[0]


class VolumeState:
    """Of one volume; satisfies `blockd.shared_state.SharedState`."""

    def __init__(
        self, records: ClusterRecords, volume: bytes, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._records = records
        self._clock = clock
        self._volume = volume.hex()
        self._term = 0
        self._known: Held | None = None
        self._unsure: int | None = None
        """The revision that a change of this node may have replaced, whose answer was lost."""
        self._lock = threading.Lock()

    @property
    def term(self) -> int:
        return self._term

    @property
    def known(self) -> Held | None:
        return self._known

    @property
    def now(self) -> Now:
        return Now(self._term, self._known)

    def begin(self, term: int) -> None:
        self._term = term

    def note(self, held: Held) -> None:
        with self._lock:
            if self._known is None or held.revision > self._known.revision:
                self._known = held
            if self._unsure is not None and held.revision > self._unsure:
                self._unsure = None

    def claim(self) -> bool:
        """Claim the row, if that is due; whether it was. Waits. OSError."""
        term, known = self._term, self._known
        if not term or (known is not None and known.term == term):
            return False
        self.note(self.change(term, lambda value: (value, None))[0])
        return True

    def refresh(self) -> bool:
        """Read the row, if something may be in it and this node serves the volume; whether anything
        else is known now. Waits. OSError."""
        before, term, unsure = self._known, self._term, self._unsure
        if not term or before is None or not (before.value or unsure is not None):
            return False
        held = self.read()
        if unsure is not None and held.revision <= unsure:
            held, _ = self.change(term, lambda value: (value, None), always=True)
        self.note(held)
        return self._known is not before

    def read(self) -> Held:
        try:
            return _held(self._records.reservations(self._volume))
        except VolumeError as error:
            raise OSError(errno.EIO, str(error)) from error

    def change(
        self, term: int, apply: Callable[[bytes], tuple[bytes, T]], *, always: bool = False
    ) -> tuple[Held, T]:
        """`always`: the row is written also where nothing in it is to be another."""
        try:
            return self._change(term, apply, always=always)
        except VolumeError as error:
            raise OSError(errno.EIO, str(error)) from error

    def _change(
        self, term: int, apply: Callable[[bytes], tuple[bytes, T]], *, always: bool
    ) -> tuple[Held, T]:
        old = self._records.reservations(self._volume)
        for _ in range(TRIES):
            held = _held(old)
            if term and (held.term > term or self._term != term):
                text = (
                    f"volume {self._volume}: another node serves it, in a later epoch than {term}"
                )
                raise NotServing(errno.ESHUTDOWN, text)
            value, result = apply(held.value)
            known = 0 if self._known is None else self._known.revision
            claimed = not term or term == held.term
            same = old is not None and value == held.value and claimed
            if same and held.revision >= known and not always:
                return held, result
            text = base64.b64encode(value).decode()
            new = ReservationsRecord(self._volume, max(term, held.term), text)
            outcome, doubtful = self._put(self._records.put(old, new))
            if isinstance(outcome, Done):
                return _held(self._records.stored(ReservationsRecord, outcome.rows[0])), result
            if doubtful:
                self._note_doubt(held.revision)
                why = "others changed them since" if isinstance(outcome, Lost) else outcome.reason
                raise Unsettled(
                    f"reservations of volume {self._volume}: the metastore could not be told "
                    f"({why}); look whether they are as they should be, and try again",
                    *(held.revision, value, result),
                )
            if not isinstance(outcome, Lost):
                raise MetaStoreUnavailable(
                    f"reservations of volume {self._volume}: the metastore could not be told "
                    f"({outcome.reason}); nothing was changed, try again"
                )
            old = self._records.stored(ReservationsRecord, outcome.rows[0])
        raise MetaStoreUnavailable(
            f"reservations of volume {self._volume}: others changed them {TRIES} times meanwhile; "
            "try again"
        )

    def _put(self, transaction: Transaction) -> tuple[Outcome, bool]:
        """The outcome; and, of another than `Done`, whether it may have happened all the same: by a
        try whose answer was lost, and be undone by somebody else's change by now."""
        doubtful = False
        outcome: Outcome = Unknown("not tried")
        until = self._clock() + PUT_S
        for tried in range(TRIES):
            if tried and self._clock() >= until:
                break
            outcome = self._records.commit(transaction)
            if isinstance(outcome, Unknown):
                doubtful = True
            elif not (doubtful and isinstance(outcome, Unavailable)):
                break
        return outcome, doubtful

    def _note_doubt(self, revision: int) -> None:
        with self._lock:
            known = 0 if self._known is None else self._known.revision
            if revision >= known and (self._unsure is None or revision > self._unsure):
                self._unsure = revision


def _held(stored: Stored[ReservationsRecord] | None) -> Held:
    """What a row holds. CorruptRecord: its state cannot be decoded."""
    if stored is None:
        return Held(0, 0, b"")
    try:
        value = base64.b64decode(stored.record.state, validate=True)
    except (binascii.Error, ValueError) as error:
        raise CorruptRecord(stored.row.key, f"has a state that is not base64 ({error})") from error
    return Held(stored.record.term, stored.row.revision, value)
