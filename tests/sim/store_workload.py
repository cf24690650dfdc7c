"""A random life of a store, drawn from a seed, with the history that decides what a crash may show.

Two volumes, `left` and `right`, share one `History`: each is a region of its address space. So the
check that an image is the state at one position is about the whole journal, not one volume. A third
volume, `guest`, comes and goes and has a history of its own in each of its lives.

Long writes become several journal records; each is a position of its own, since a power cut may
fall between them. A forced shrink is a trim of what is cut off; growing shows zeros there.
"""

import contextlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from native import FLAG_FUA, OP_FLUSH, OP_UNMAP, OP_WRITE, OP_WRITE_ZEROES, Request
from tests.sim.history import FlushAcked, History, Submitted, Verdict, bounds
from tests.sim.simclock import SimClock
from tests.sim.store_rig import KIB, MAX_PIECE, SMALL, MetaCommitted, StoreRig
from volume.errors import NoSuchVolume
from volume.kv import MemoryKeyValue
from volume.meta import Meta
from volume.options import StoreOptions
from volume.store import Store

PAGE = 4096


@dataclass(frozen=True, slots=True)
class Region:
    """Where a volume lies in the shared history."""

    name: str
    start: int
    length: int
    chunk_size: int


REGIONS = (Region("left", 0, 96 * KIB, 4 * KIB), Region("right", 96 * KIB, 64 * KIB, 16 * KIB))
GUEST_BYTES = 32 * KIB
MAX_WAITS = 3  # rounds after which a write that waited for journal space must be done


@dataclass(frozen=True, slots=True)
class GuestMark:
    """Mark for a trace: a mark about life number `life` of the guest."""

    life: int
    mark: object


def pieces(offset: int, length: int) -> list[tuple[int, int]]:
    """How the journal cuts a write into records (see native/src/batch.c)."""
    found = []
    while length > MAX_PIECE:
        step = MAX_PIECE - offset % PAGE
        found.append((offset, step))
        offset, length = offset + step, length - step
    return [*found, (offset, length)]


@dataclass(frozen=True, slots=True)
class WriteAcked:
    """Mark for a trace: everything up to `position` has been acked: kill -9 must not lose it."""

    position: int


def promised(marks: Sequence[object], *, killed: bool) -> tuple[int, int]:
    """(at_least, at_most) for `History.check` after a power cut, or after kill -9."""
    at_least, at_most = bounds(marks)
    if killed:
        at_least = max((m.position for m in marks if isinstance(m, WriteAcked)), default=0)
    return at_least, at_most


class Workload:
    """Lives on `rig`, which it replaces when the store is closed and opened again."""

    def __init__(self, seed: int, options: StoreOptions = SMALL) -> None:
        self.rng = random.Random(seed)
        self.rig = StoreRig(options=options)
        self.shared = History(sum(region.length for region in REGIONS))
        self.guests: list[History] = []
        for region in REGIONS:
            self.rig.store.create_volume(
                region.name, region.length, block_size=512, chunk_size=region.chunk_size
            )
        self.rig.tend()

    def live(self, steps: int) -> None:
        """Do `steps` random things."""
        choices: dict[Callable[[], object], int] = {
            self.write_batch: 40,
            self.flush: 8,
            self.destage: 9,
            self.collect: 3,
            self.resize: 3,
            self.rename: 2,
            self.come_or_go: 4,
            self.reopen: 1,
            self.tend: 8,
        }
        for step in self.rng.choices(list(choices), list(choices.values()), k=steps):
            step()

    # -- steps

    def write_batch(self) -> None:
        """A batch of changes to one volume; now and then with FUA, or a flush behind them."""
        guest = self.rig.store.get("guest")
        if guest is not None and self.rng.random() < 0.2:
            self._submit("guest", 0, guest.size, self.guests[-1])
            return
        region = self.rng.choice(REGIONS)
        self._submit(region.name, region.start, self.rig.volume(region.name).size, self.shared)

    def _submit(self, name: str, start: int, size: int, history: History) -> None:
        batch: list[Request] = []
        fua_at: list[int] = []
        room = self._room()
        for _ in range(self.rng.choice((1, 1, 1, 2, 5))):
            offset, length = self._range(size)
            room -= length + PAGE
            if batch and room < 0:
                break  # one that waits for space would be overtaken by the next
            kind = self.rng.random()
            flags = FLAG_FUA if self.rng.random() < 0.05 else 0
            if kind < 0.75:
                data = b"".join(history.write(start + o, n) for o, n in pieces(offset, length))
                batch.append(Request(OP_WRITE, offset, length, data, flags))
            else:
                history.zero(start + offset, length)
                op = OP_UNMAP if kind < 0.9 else OP_WRITE_ZEROES
                batch.append(Request(op, offset, length, None, flags))
            if flags:
                fua_at.append(history.position)
        if room > 0 and self.rng.random() < 0.05:  # what waits is not covered by it
            batch.append(Request(OP_FLUSH))
            fua_at.append(history.position)
        self._mark(history, Submitted(history.position))
        done = self.rig.submit(name, *batch)
        for _ in range(MAX_WAITS):
            if len(done) < len(batch):  # the journal is full: destage, and those that wait go on
                self.rig.settle()
                self.rig.store.tend()
        assert len(done) == len(batch), "a request waits for ever"
        assert not any(request.error for request in done), [r.error for r in done]
        self._mark(history, WriteAcked(history.position))
        if fua_at:
            self._mark(history, FlushAcked(fua_at[-1]))

    def _room(self) -> int:
        """Bytes that surely fit the journal's ready segments, but for the reserve."""
        ready = self.rig.store._journal.state()[3]
        return (ready - 1) * MAX_PIECE

    def _range(self, size: int) -> tuple[int, int]:
        length = min(self.rng.choice((512, 512, 1024, 4096, 4096, 4096, 8192, 20480)), size)
        step = 4096 if length >= 4096 and self.rng.random() < 0.6 else 512
        return self.rng.randrange(0, size - length + 1, step), length

    def _mark(self, history: History, mark: object) -> None:
        if history is not self.shared:
            mark = GuestMark(len(self.guests) - 1, mark)
        self.rig.disk.mark(mark)

    def flush(self) -> None:
        """A flush on any volume covers all of them: there is one journal."""
        assert self.rig.flush(self.rng.choice(REGIONS).name) == 0
        self.acked()

    def acked(self) -> None:
        self._mark(self.shared, FlushAcked(self.shared.position))
        if self.rig.store.get("guest") is not None:
            self._mark(self.guests[-1], FlushAcked(self.guests[-1].position))

    def destage(self) -> None:
        self.rig.store.destage()

    def collect(self) -> None:
        self.rig.store.collect()

    def tend(self) -> None:
        self.rig.tend()

    def resize(self) -> None:
        region = self.rng.choice(REGIONS)
        size = self.rig.volume(region.name).size
        wanted = self.rng.randrange(region.length // 4, region.length + 1, 512)
        if wanted < size:
            self.shared.zero(region.start + wanted, size - wanted)
            self._mark(self.shared, Submitted(self.shared.position))
        self.rig.store.resize_volume(region.name, wanted, force=True)
        if wanted < size:
            self._mark(self.shared, WriteAcked(self.shared.position))
            self._mark(self.shared, FlushAcked(self.shared.position))

    def rename(self) -> None:
        """There and back, with a crash point in between."""
        region = self.rng.choice(REGIONS)
        self.rig.store.rename_volume(region.name, "passing")
        self.rig.store.rename_volume("passing", region.name)

    def come_or_go(self) -> None:
        store = self.rig.store
        if store.get("guest") is None:
            self.guests.append(History(GUEST_BYTES))
            store.create_volume("guest", GUEST_BYTES, block_size=512, chunk_size=4096)
        else:
            store.delete_volume("guest")

    def reopen(self) -> None:
        """Close and open again on the same disk, so that the trace goes on."""
        rig = self.rig
        rig.store.close()
        self.acked()
        rig.store = Store(
            *(rig.disk, rig.clock, rig.meta, rig._open_index),
            *(rig.store._scheduler, rig.options),
            boot_id=rig.boot,
        )
        rig.tend()

    # -- the verdict on a recovered store

    def check(self, rig: StoreRig, marks: Sequence[object], *, killed: bool = False) -> None:
        """Raise unless `rig`, recovered after these marks, keeps every promise."""
        at_least, at_most = promised(marks, killed=killed)
        verdict = self.shared.check(shared_image(rig), at_least=at_least, at_most=at_most)
        assert verdict.ok, str(verdict)
        if rig.store.get("guest") is not None:
            verdict = self._check_guest(rig, marks, killed)
            assert verdict.ok, f"guest: {verdict}"

    def _check_guest(self, rig: StoreRig, marks: Sequence[object], killed: bool) -> Verdict:
        life = _guest_lives(marks).index(rig.volume("guest").record.uuid)
        own = [m.mark for m in marks if isinstance(m, GuestMark) and m.life == life]
        at_least, at_most = promised(own, killed=killed)
        return self.guests[life].check(rig.read("guest"), at_least=at_least, at_most=at_most)


def _guest_lives(marks: Sequence[object]) -> list[bytes]:
    """Identities of the guest in the order of its lives: each first shows in a commit of meta/."""
    lives: list[bytes] = []
    for mark in marks:
        if isinstance(mark, MetaCommitted):
            record = Meta(MemoryKeyValue(mark.items), SimClock())
            with contextlib.suppress(NoSuchVolume):
                lives += {record.volume("guest").uuid} - set(lives)
    return lives


def is_whole(rig: StoreRig) -> bool:
    """Whether the crash came after the volumes were made."""
    return len(set(rig.store.names()) - {"guest"}) == len(REGIONS)


def shared_image(rig: StoreRig) -> bytes:
    """The shared address space as the store shows it, with zeros where a volume has shrunk."""
    parts = []
    for region in REGIONS:
        name = region.name if rig.store.get(region.name) is not None else "passing"
        parts.append(rig.read(name).ljust(region.length, b"\0"))
    return b"".join(parts)
