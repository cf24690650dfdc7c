"""A store in memory: the facade that the daemon and the control API use, with its errors.

Its devices are in memory; versions are in tests.fake_versions. `clients` of a volume is set by the
test; everything else follows the calls.
"""

import io
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import IO

from blockd.api.node import Incoming
from tests.fake_streams import FakeStreams
from tests.fake_versions import NOW_NS, FakeSnapshots, FakeVersions
from tests.fakes import MemoryDevice
from volume import refs
from volume.damage import Damage
from volume.errors import (
    CorruptData,
    InvalidName,
    InvalidSize,
    NoSuchVolume,
    ShrinkRefused,
    VolumeBusy,
    VolumeExists,
    VolumeHasSnapshots,
)
from volume.gc import GcReport, GcStatus
from volume.locate import Location
from volume.model import (
    MAX_VOLUME_SIZE,
    ReceiveInfo,
    SpaceReport,
    StoreCounters,
    StoreStatus,
    VolumeInfo,
)
from volume.scrub import ScrubStatus
from volume.states import Damaged

NO_SPACE_USED = SpaceReport((), (), 0, 0, 0, 0, 0)
NO_SCRUB_YET = ScrubStatus(
    running=False,
    requested=False,
    progress=1.0,
    scanned_bytes=0,
    total_bytes=1 << 26,
    started_ns=None,
    finished_ns=None,
    next_ns=None,
    damage_count=0,
    damages=(),
)
NO_GC_YET = GcStatus(
    running=False,
    phase="idle",
    progress=0.0,
    last=None,
    ended_s=None,
    next_run_s=None,
    condemned_bytes=0,
)


class FakeStore:
    """Satisfies blockd.api.node.Store. `fail_with` is raised by the next call, whatever it is."""

    def __init__(self) -> None:
        self._volumes: dict[str, VolumeInfo] = {}
        self.devices: dict[str, MemoryDevice] = {}
        """By uuid of the volume."""
        self.states: dict[str, bytes] = {}
        """What `keep` was given."""
        self.meta_copy = b""
        """What `backup_meta` gives."""
        self._numbers = 0
        self.snapshots = FakeSnapshots(self)
        self.versions = FakeVersions(self)
        self.streams = FakeStreams()
        self.space_report = NO_SPACE_USED
        self.gc = NO_GC_YET
        self.gc_report = GcReport()
        self.scrub = NO_SCRUB_YET
        self.locations: list[Location] = []
        self.fail_with: Exception | None = None
        self.held_up: str | None = None
        self.state = "ok"
        self.closed = False

    def reset(self) -> None:
        """No volumes, no versions, no planned failure."""
        self._volumes.clear()
        self.devices.clear()
        self.states.clear()
        self.snapshots = FakeSnapshots(self)
        self.versions = FakeVersions(self)
        self.streams = FakeStreams()
        self.space_report = NO_SPACE_USED
        self.gc = NO_GC_YET
        self.gc_report = GcReport()
        self.scrub = NO_SCRUB_YET
        self.locations = []
        self.fail_with = self.held_up = None
        self.state = "ok"

    def names(self) -> list[str]:
        return sorted(self._volumes)

    def get(self, name: str) -> MemoryDevice | None:
        info = self._volumes.get(name)
        if info is None:
            return None
        device = self.devices.setdefault(info.uuid, MemoryDevice(name, block_size=info.block_size))
        device.name, device.size = name, info.size
        device.uuid = device.volume_uuid = bytes.fromhex(info.uuid)
        return device

    def open_version(self, name: str) -> MemoryDevice:
        """Each snapshot is a version, and so is whatever is called by a seq or a time."""
        self._fail()
        volume, _, ref = name.partition("@")
        device = self.get(volume)
        if device is None:
            raise NoSuchVolume(volume)
        if isinstance(refs.parse(name, NOW_NS), refs.SnapshotRef):
            self.snapshots.get(volume, ref)
        version = device.copy(name, read_only=True)
        version.volume_uuid = device.uuid
        return version

    def put_back(self, name: str) -> None:
        """As a restore does: another device takes the place of the volume's."""
        old = self.get(name)
        assert old is not None
        old.retired = True
        self.devices[old.uuid.hex()] = MemoryDevice(name)

    def kept(self, prefix: str, damaged: Damaged | None = None) -> dict[str, bytes]:
        """A value that is "damaged" is, for who wants to know."""
        found = {name: value for name, value in self.states.items() if name.startswith(prefix)}
        for name in [name for name, value in found.items() if damaged and value == b"damaged"]:
            assert damaged is not None
            damaged(name, CorruptData(name))
            del found[name]
        return found

    def keep(self, name: str, value: bytes | None) -> None:
        self._fail()
        if value is None:
            self.states.pop(name, None)
        else:
            self.states[name] = value

    def volumes(self) -> list[VolumeInfo]:
        self._fail()
        return [self._counted(self._volumes[name]) for name in self.names()]

    def info(self, name: str) -> VolumeInfo:
        self._fail()
        try:
            return self._counted(self._volumes[name])
        except KeyError:
            raise NoSuchVolume(name) from None

    def _counted(self, info: VolumeInfo) -> VolumeInfo:
        count = sum(snapshot.volume == info.name for snapshot in self.snapshots.all())
        return replace(info, snapshot_count=count)

    def create_volume(
        self,
        name: str,
        size: int,
        *,
        block_size: int = 4096,
        chunk_size: int = 65536,
        compression: str | None = None,
    ) -> VolumeInfo:
        self._fail()
        _check_name(name)
        if name in self._volumes:
            raise VolumeExists(name)
        _check_size(size, block_size)
        self._numbers += 1
        info = VolumeInfo(
            name=name,
            uuid=f"{self._numbers:032x}",
            number=self._numbers,
            size=size,
            block_size=block_size,
            chunk_size=chunk_size,
            created_ns=1_790_000_000_000_000_000,
            epoch=1,
            seq=0,
            commit=None,
            commit_seq=0,
            hot_bytes=0,
            clients=(),
            compression=compression or "lz4",
        )
        self._volumes[name] = info
        return info

    def delete_volume(self, name: str, *, force: bool = False) -> None:
        info = self.info(name)
        if info.clients and not force:
            raise VolumeBusy(name, list(info.clients))
        if info.snapshot_count and not force:
            raise VolumeHasSnapshots(name, info.snapshot_count)
        device = self.get(name)
        assert device is not None
        device.retired = True
        del self._volumes[name]
        del self.devices[info.uuid]

    def rename_volume(self, name: str, new_name: str) -> VolumeInfo:
        info = self.info(name)
        _check_name(new_name)
        if new_name in self._volumes:
            raise VolumeExists(new_name)
        del self._volumes[name]
        renamed = self.put(info, name=new_name)
        self.get(new_name)  # the device knows its name
        return renamed

    def resize_volume(self, name: str, size: int, *, force: bool = False) -> VolumeInfo:
        info = self.info(name)
        _check_size(size, info.block_size)
        if size < info.size and not force:
            raise ShrinkRefused(name, info.size, size)
        return self.put(info, size=size)

    def attach(self, name: str, *clients: str) -> None:
        """Let `clients` be those that have volume `name` attached."""
        self.put(self._volumes[name], clients=clients)

    def put(self, info: VolumeInfo, **changes: object) -> VolumeInfo:
        """Store `info` with `changes`."""
        fields = {name: getattr(info, name) for name in VolumeInfo.__slots__}
        changed = VolumeInfo(**(fields | changes))
        self._volumes[changed.name] = changed
        return changed

    def send(
        self, source: str, base: str | None = None, resume: str | None = None
    ) -> Iterator[bytes]:
        self._fail()
        return self.streams.send(source, base, resume)

    def receive(self, name: str) -> Incoming:
        self._fail()
        return self.streams.receive(name)

    def receives(self) -> list[ReceiveInfo]:
        return self.streams.receives()

    def abort_receive(self, name: str) -> None:
        self.streams.abort_receive(name)

    def backup_meta(self) -> IO[bytes]:
        self._fail()
        return io.BytesIO(self.meta_copy)

    def counters(self) -> StoreCounters:
        self._fail()
        return StoreCounters(3, 1000, 100, 200, 700, 350, 9, 1, 8, 2, 5, 1)

    def status(self) -> StoreStatus:
        self._fail()
        return StoreStatus(
            path="/data",
            uuid="00" * 16,
            state=self.state,
            reason=None if self.state == "ok" else "a sync of journal/00000001.seg failed",
            node_epoch=1,
            volume_count=len(self._volumes),
            lsn=7,
            synced_lsn=7,
            checkpoint_lsn=5,
            journal_bytes=8192,
            journal_limit=1 << 32,
            hot_bytes=4096,
            oldest_hot_age_s=1.5,
            pack_count=1,
            pack_bytes=1 << 26,
            cache_bytes=0,
            cache_limit=1 << 28,
            disk_free_bytes=1 << 36,
            disk_total_bytes=1 << 37,
            space_left_bytes=1 << 35,
            space_short_bytes=(1 << 37) // 10,
            destage_held_up=self.held_up,
        )

    def space(self) -> SpaceReport:
        self._fail()
        return self.space_report

    def gc_status(self) -> GcStatus:
        self._fail()
        return self.gc

    def collect(self, *, dry_run: bool = False) -> GcReport:
        self._fail()
        return replace(self.gc_report, dry=dry_run)

    def scrub_status(self) -> ScrubStatus:
        """A pass that somebody asked for has ended when it is looked at for the second time."""
        self._fail()
        found = self.scrub
        if found.requested and found.progress >= 0.5:
            self.scrub = replace(found, running=False, requested=False, finished_ns=NOW_NS + 1)
        elif found.requested:
            self.scrub = replace(found, progress=0.5)
        return found

    def start_scrub(self) -> None:
        self._fail()
        self.scrub = replace(
            self.scrub, running=True, requested=True, progress=0.0, started_ns=NOW_NS, next_ns=None
        )

    def stop_scrub(self) -> None:
        self._fail()
        self.scrub = replace(self.scrub, requested=False)

    def damage_locations(self, damages: Iterable[Damage] | None = None) -> Iterable[Location]:
        self._fail()
        return self.locations

    def close(self) -> None:
        self.closed = True

    def _fail(self) -> None:
        if self.fail_with:
            error, self.fail_with = self.fail_with, None
            raise error


def _check_name(name: str) -> None:
    if not name or not name[0].isalnum():
        raise InvalidName(name, "starts with the wrong character")


def _check_size(size: int, block_size: int) -> None:
    if not 0 < size <= MAX_VOLUME_SIZE or size % block_size:
        raise InvalidSize("volume size", size, f"not a multiple of {block_size} up to 1 EiB")
