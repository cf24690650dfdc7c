"""Where a replica stands: its volume, its row of `meta/`, what of it is durable, what is allowed.

What a replica promises, appends and goes back to is decided elsewhere (`volume.replica`,
`volume.appending`, `volume.goingback`), each with the one lock of this held.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from native import Journal
from volume.catalog import Catalog
from volume.destager import HeldUp
from volume.disk import Clock
from volume.errors import (
    MissingRecords,
    NeedsAll,
    NoSuchVersion,
    OtherRecords,
    ReplicaError,
    StaleEpoch,
)
from volume.gate import Gate
from volume.history import History
from volume.noted import Notes
from volume.past import PastVersions
from volume.receive import Submit
from volume.refs import copy_name
from volume.replicacopy import Landing
from volume.replicarow import Row, row_name
from volume.scheduler import Scheduler
from volume.seal import Seal
from volume.transfers import Transfers
from volume.versions import Versions
from volume.volume import Volume

MAX_VOLUME_EPOCH: Final = (1 << 32) - 1  # of a record; those of the MetaStore may be larger
PATIENCE_S: Final = 30.0
"""With damage: the disk may read it yet, or another node give it."""
BEYOND: Final = "it is damaged here, all of it is needed"


@dataclass(frozen=True, slots=True)
class ReplicaParts:
    """What replicas work with; of the store."""

    catalog: Catalog
    history: History
    journal: Journal
    seal: Seal
    notes: Notes
    past: PastVersions
    versions: Versions
    clock: Clock
    scheduler: Scheduler
    transfers: Transfers
    between_rounds: Submit
    """Run a call while no destage round is under way."""
    round_stands: Callable[[], bool]
    """Whether a round has failed and is to be tried again."""
    held_up: Callable[[], Sequence[HeldUp]]
    """Volumes that rounds leave out, as they are damaged."""
    starving: Callable[[], None]
    """Somebody waits for journal space."""
    dropped: Callable[[], None]
    """Versions are gone."""


class ReplicaState:
    """The lock is held by whoever calls or looks, but for the volume."""

    def __init__(self, parts: ReplicaParts, volume: Volume, row: Row) -> None:
        self.parts = parts
        self.volume = volume
        self.row = row
        self.lock = threading.RLock()
        self.answered_ns = 0
        """When a plain APPEND was answered last, but for those of this moment."""
        self.hold(self.seq())  # the store has synced what it replayed
        self.serving: int | None = None
        self.landing = self._new_landing()
        self.gate = self.shut_out()
        self.set_epoch()

    def _new_landing(self) -> Landing:
        parts = self.parts
        return Landing(
            *(self.name, self.copy_name, self.volume.record.chunk_size),
            *(parts.transfers, parts.catalog),
            own=lambda: f"{self.name}@seq:{self.seq()}",
        )

    def rename(self, name: str) -> None:
        """As `Replica.rename`."""
        self.landing.drop()
        self.parts.catalog.rename_replica(self.volume, name)
        self.landing = self._new_landing()

    def follow(self, volume: Volume, row: Row) -> None:
        """The volume is another one, which nobody is let in to; all of it is durable."""
        self.volume = volume
        self.row = row
        self.gate = self.shut_out()
        self.set_epoch()
        self.hold(self.seq())

    @property
    def uuid(self) -> bytes:
        return self.volume.record.uuid

    @property
    def name(self) -> str:
        return self.volume.record.name

    @property
    def copy_name(self) -> str:
        """Of the volume that a stream lands in."""
        return copy_name(self.name, self.uuid)

    @property
    def start(self) -> int:
        """As `Replica.start`."""
        return self.row.begins[0][1]

    def ends(self) -> tuple[tuple[int, int], ...]:
        """As `Replica.ends`."""
        begins = self.row.begins
        seqs = [*(seq for _, seq in begins[1:]), self.seq()]
        return tuple((epoch, seq) for (epoch, _), seq in zip(begins, seqs, strict=True))

    def check_rounds(self) -> None:
        if self.parts.round_stands():
            raise ReplicaError(
                f"volume {self.name}: nothing can be undone before a destage round gets through; "
                "try again"
            )

    def shut_out(self) -> Gate:
        gate = Gate(self.volume.core, self.parts.scheduler, self.parts.clock)
        self.volume.gate = gate
        return gate

    def hold(self, durable: int) -> None:
        self.durable = durable
        self.volume.core.tell_durable(durable)

    def plain(self, written: int) -> None:
        """Records that follow those of that epoch are appended without a question, until
        `not_plain`: nothing is to be noted for them, and nobody else is at work on the volume."""
        newest = self.row.begins[-1][0]
        if written == newest >= self.volume.record.epoch and not self.landing.left:
            self.volume.core.take_plain(self.row.promised)

    def not_plain(self) -> None:
        """Before whatever else changes the volume, or its row: no record is appended now but by
        `append`."""
        core = self.volume.core
        core.take_plain(0)
        self.answered_ns = max(self.answered_ns, core.answered_ns())

    def seq(self) -> int:
        return self.volume.core.state()[0]

    def set_epoch(self) -> None:
        """Records that are appended from here on are of the newest epoch that has begun."""
        epoch = self.row.begins[-1][0]
        if epoch >= self.volume.record.epoch:
            self.volume.core.begin_epoch(epoch)

    def check(self, epoch: int) -> None:
        if epoch < self.row.promised:
            raise StaleEpoch(self.name, epoch, self.row.promised)
        if epoch > MAX_VOLUME_EPOCH:
            raise OtherRecords(self.name, f"epoch {epoch} does not fit into a record")

    def check_promised(self, epoch: int) -> None:
        self.check(epoch)
        if epoch != self.row.promised:
            raise OtherRecords(self.name, f"epoch {epoch} was not promised")

    def span(self, epoch: int) -> tuple[int, int]:
        """Records behind the first seq, up to the second, were written in that epoch."""
        begins = self.row.begins
        for at, (each, begin) in enumerate(begins):
            if each == epoch:
                return begin, begins[at + 1][1] if at + 1 < len(begins) else self.seq()
        told = ", ".join(str(each) for each, _ in begins)
        raise OtherRecords(self.name, f"epoch {epoch} is not one of those here ({told})")

    def check_point(self, epoch: int, seq: int) -> None:
        begin, end = self.span(epoch)
        if not begin <= seq <= end:
            raise OtherRecords(self.name, f"epoch {epoch} went from {begin} to {end}, not {seq}")

    def check_range(self, epoch: int, first: int, last: int) -> None:
        """Records from `first` on are those of that epoch here, and the others up to `last` can go
        on from them."""
        begin, end = self.span(epoch)
        newest = epoch == self.row.begins[-1][0]
        if first <= begin or (last > end and not newest):
            what = f"epoch {epoch} went from {begin} to {end}, not {first} to {last}"
            raise OtherRecords(self.name, what)

    def check_late(self, epoch: int, seq: int) -> None:
        """Whether the volume may be at that seq, in the name of `epoch`. Not before its newest
        record once the epoch has begun here: what is here is of the primary's chain then, and
        counted as this node's. Only what was asked for before can say so, carried out late."""
        if epoch == self.row.begins[-1][0] and seq < self.seq():
            raise OtherRecords(self.name, f"epoch {epoch} has gone on to {self.seq()} here")

    def check_idle(self, epoch: int) -> None:
        """That was promised, and this node is not the one that writes; what is done to the volume
        now is more than to append."""
        self.check_promised(epoch)
        self.not_plain()
        if self.serving is not None:
            raise OtherRecords(self.name, "this node serves it")

    def begin(self, epoch: int, seq: int) -> None:
        last, begun = self.row.begins[-1]
        if epoch == last:
            if seq != begun:
                raise OtherRecords(self.name, f"epoch {epoch} began at {begun}, not at {seq}")
            return
        self.not_plain()
        have = self.seq()
        if epoch < last or epoch < self.volume.record.epoch:
            raise OtherRecords(self.name, f"epoch {last} has begun, and {epoch} is before it")
        if seq > have:
            raise MissingRecords(self.name, have, seq + 1)
        if seq < have:
            raise OtherRecords(self.name, f"epoch {epoch} begins at {seq}, but {have} is here")
        self.sync()
        self.keep(self.row.begun(epoch, seq))
        self.set_epoch()

    def keep(self, row: Row) -> None:
        if row == self.row:
            return
        self.parts.seal.check()
        self.parts.history.save_state(row_name(self.uuid), row.encode())
        self.row = row

    def sync(self) -> None:
        seq = self.seq()
        self.parts.seal.check()
        if seq > self.durable:
            self.parts.seal.sync_journal()
            self.hold(seq)

    # -- damage

    @property
    def is_damaged(self) -> bool:
        """Whether damage has kept the volume from being destaged for so long that it will stay."""
        if not self.volume.frozen:
            return False  # nothing is frozen: it is another object now, perhaps
        parts, number = self.parts, self.volume.record.number
        longest = parts.clock.monotonic() - PATIENCE_S
        return any(each.number == number and each.since <= longest for each in parts.held_up())

    @property
    def has_all_names(self) -> bool:
        """Whether every state that has a name is in chunks: a copy that goes on from what is here
        brings none of those again."""
        history, number = self.parts.history, self.volume.record.number
        rows = history.snapshots(number)
        return all(history.version(number, row.seq) is not None for row in rows)

    def beyond(self, ref: str, why: object) -> NoSuchVersion:
        return NoSuchVersion(self.name, ref, f"{BEYOND}: {why}")

    def stuck(self, ref: str, why: object) -> NoSuchVersion:
        """The same for records that cannot be appended. NeedsAll: a copy that goes on from what is
        here would leave out a state that has a name, and is in the log only, over the damage."""
        if self.has_all_names:
            return self.beyond(ref, why)
        return NeedsAll(self.name, ref, f"{BEYOND}: {why}")
