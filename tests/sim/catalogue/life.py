"""What a workload of the catalogue is made of: a store, its model, and steps done to both.

`CatalogueLife` adds to `VersionsLife` the steps that need a trace which goes on: a store that is
closed and opened again on the same disk, batches that are one write of the journal, streams. Its
first part (`Workload.before`) is not cut short: when it ends everything is durable, and the trace
begins.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from unittest import mock

from native import OP_FLUSH, OP_WRITE, Request
from tests.sim.faults import Fault, Stall
from tests.sim.store_rig import KIB, SEGMENT_BYTES, SMALL
from tests.sim.trace import Trace
from tests.sim.versions_life import Known, VersionsLife
from tests.sim.versions_model import Pending, VolumeModel, stamped
from volume.builder import BuildInput, Built
from volume.errors import CorruptManifest
from volume.options import StoreOptions
from volume.store import Store

CHUNK = 4 * KIB

PLAIN = replace(SMALL, compression="none", cache_bytes=64 * KIB)
SMALL_PACKS = replace(PLAIN, pack_bytes=12 * KIB)
KEEPING = replace(
    PLAIN,
    pack_bytes=24 * KIB,
    window_bytes=4 * SEGMENT_BYTES,
    window_s=600,
    history_keep="60m",
)
"""With a window: every version can be opened for a while."""
SHORT_JOURNAL = replace(PLAIN, journal_limit=4 * SEGMENT_BYTES)


class CatalogueLife(VersionsLife):
    """Steps of a workload. `v` is its volume; some have more."""

    def __init__(self, options: StoreOptions) -> None:
        super().__init__(options, marks=True)

    @property
    def v(self) -> VolumeModel:
        return self.model.named("v")

    @property
    def has_room(self) -> bool:
        """The journal takes a chunk without waiting for a round."""
        return self.rig.store._journal.state()[3] > 1

    def begin(self) -> None:
        """What was done so far is durable and not looked at; the trace begins here."""
        self.tend()
        if self.model.volumes:
            self.flush(next(iter(self.model.volumes.values())))
        rig = self.rig
        rig.store.tend()
        rig.disk.restart_trace()
        rig.base_meta, rig.base_index = rig.meta.snapshot(), {}
        self._mark()

    def blocks(self, first: int, count: int, *, length: int = 4 * KIB) -> None:
        """`count` writes of `length` bytes, each by itself, one after the other from block `first`
        (of `length` bytes) of the volume on."""
        for number in range(first, first + count):
            self.write(self.v, number * length, length)

    def batch(
        self, volume: VolumeModel, extents: Sequence[tuple[int, int]], *, flush: bool = False
    ) -> None:
        """Writes (offset, length) that come at once, and so are one write of the journal; then
        perhaps a flush, in the same batch."""
        now_ns = self._later()
        requests = []
        for offset, length in extents:
            self.written += 1
            data = stamped(self.written, offset, length)
            self.model.write(volume, offset, data, now_ns)
            requests.append(Request(OP_WRITE, offset, length, data))
        if flush:
            requests.append(Request(OP_FLUSH))
        self._begin()
        done = self.rig.submit(volume.name, *requests)
        self._check_power()
        assert len(done) == len(requests), "a batch waits: the workload has filled the journal"
        assert not any(request.error for request in done)
        if flush:
            self._flushed()
        else:
            self._done()
        self._check_seq(volume)

    def reopen_here(self, *, clean: bool = True) -> None:
        """Close the store (or let it be killed) and open it again on the same disk."""
        rig = self.rig
        if clean:
            self._begin()
            rig.store.close()
            self._flushed()
        rig.store = Store(
            *(rig.disk, rig.clock, rig.meta, rig._open_index),
            *(rig.store._scheduler, rig.options),
            boot_id=rig.boot,
        )
        self.model.recovered(rig, killed=True)
        self._mark()
        self.tend()

    def destage_beside(self, meanwhile: Callable[[], None]) -> None:
        """A round, and what clients and upkeep do while it syncs its pack: all of it is in chunks,
        and no head has moved. The journal must have room for what they write."""
        faults = self.rig.disk.faults
        faults.add(Fault("sync", Stall(meanwhile), "packs/*"))
        fired = len(faults.fired)
        try:
            self.destage()
        finally:
            faults.clear()
        assert len(faults.fired) == fired + 1, "the round has synced no pack"

    @contextlib.contextmanager
    def stuck(self, volume: VolumeModel) -> Iterator[None]:
        """Until the block ends, the tree of a volume cannot be built upon."""
        builder = self.rig.store._destager._builder
        build = builder.build

        def refuse(given: BuildInput) -> Built:
            if given.name == volume.name:
                raise CorruptManifest("a node is damaged")
            return build(given)

        with mock.patch.object(builder, "build", refuse):
            yield

    def wait(self, seconds: float) -> None:
        """Let time go on, and upkeep look at it."""
        self.rig.clock.advance(seconds)
        self.tend()

    # -- streams

    def receive(self, name: str, stream: bytes, data: bytes, *, piece: int = 4096) -> None:
        """Take a whole stream, which makes volume `name` with these bytes."""
        self._later()
        self._begin(Pending("clone", name, data=data))
        with self.rig.store.receive(name) as receiver:
            for start in range(0, len(stream), piece):
                receiver.feed(stream[start : start + piece])
            info = receiver.end()
        self.model.add_volume(info, data)
        self._done()

    def receive_part(self, name: str, stream: bytes, length: int) -> None:
        """Take the first `length` bytes of a stream, whose sender then goes away."""
        self._begin()
        with self.rig.store.receive(name) as receiver:
            receiver.feed(stream[:length])
        self._done()

    def abort_receive(self, name: str) -> None:
        self._begin()
        self.rig.store.abort_receive(name)
        self._done()


@cache
def sent(writes: int, chunks: int = 8) -> tuple[bytes, bytes]:
    """A stream of another store, and the bytes of the version in it."""
    life = VersionsLife(PLAIN)
    life.create("origin", chunks * CHUNK, CHUNK)
    life.tend()
    volume = life.model.named("origin")
    life.written = 1000  # bytes that no other store has
    for number in range(writes):
        life.write(volume, number % chunks * CHUNK, CHUNK)
    life.settle()
    stream = b"".join(life.rig.store.send(f"origin@seq:{volume.seq}"))
    return stream, volume.head.data


@dataclass(frozen=True, slots=True)
class Workload:
    """A short life whose every moment is a crash point."""

    name: str
    act: Callable[[CatalogueLife], None]
    before: Callable[[CatalogueLife], None]
    options: StoreOptions
    states: int
    """Distinct states that the commit gate tries, at least."""
    sampled: bool
    """There are many more: the gate takes a sample, drawn by the name. Otherwise it tries all."""

    @property
    def gate(self) -> int | None:
        """Limit of the states tried in the commit gate; None: all there are."""
        return self.states if self.sampled else None

    def lived(self) -> "Lived":
        """Live it."""
        life = CatalogueLife(self.options)
        self.before(life)
        life.begin()
        return self._acted(life)

    def _acted(self, life: CatalogueLife) -> "Lived":
        self.act(life)
        disk = life.rig.disk
        return Lived(self, disk.trace, life.rig.base_meta)


@dataclass(frozen=True, slots=True)
class Birth(Workload):
    """A workload whose crash points begin before there is a store."""

    def lived(self) -> "Lived":
        return self._acted(CatalogueLife(self.options))


@dataclass(frozen=True, slots=True)
class Lived:
    """A workload that has been lived: what crashes are made from."""

    workload: Workload
    trace: Trace
    base_meta: Mapping[bytes, bytes]


def one_volume(life: CatalogueLife) -> None:
    """A volume of eight chunks, in which nothing was written."""
    life.create("v", 8 * CHUNK, CHUNK)


def written(life: CatalogueLife) -> None:
    """A volume of eight chunks: five are in packs, one of them is rewritten in the journal."""
    one_volume(life)
    life.tend()
    life.blocks(0, 5)
    life.settle()
    life.write(life.v, CHUNK, 2048)


def two_volumes(life: CatalogueLife) -> None:
    """`v` as `written`, and `w` with two chunks in packs."""
    written(life)
    life.create("w", 4 * CHUNK, CHUNK)
    other = life.model.named("w")
    life.write(other, 0, 2 * CHUNK)
    life.settle()
    life.write(life.v, 0, 512)


def snapshotted(life: CatalogueLife) -> None:
    """`v` with a snapshot `s0`, which is in packs, and writes after it."""
    written(life)
    life.snapshot("s0", [life.v])
    life.settle()
    life.blocks(2, 2)


class Catalogue:
    """Workloads by name. Modules of this folder each fill one."""

    def __init__(self) -> None:
        self.workloads: dict[str, Workload] = {}

    def add(
        self,
        states: int,
        before: Callable[[CatalogueLife], None] | None = one_volume,
        options: StoreOptions = PLAIN,
        *,
        sampled: bool = False,
    ) -> Callable[[Callable[[CatalogueLife], None]], Callable[[CatalogueLife], None]]:
        """Decorator: a workload, named after its function; see `Workload`. `before`: what is done
        first, which no crash falls into; None: the crashes begin on an empty disk."""

        def added(act: Callable[[CatalogueLife], None]) -> Callable[[CatalogueLife], None]:
            name = act.__name__.replace("_", "-")
            assert name not in self.workloads
            kind = Workload if before is not None else Birth
            self.workloads[name] = kind(name, act, before or _nothing, options, states, sampled)
            return act

        return added


def _nothing(life: CatalogueLife) -> None:
    pass


__all__ = ["CHUNK", "KEEPING", "PLAIN", "CatalogueLife", "Known", "Workload"]
