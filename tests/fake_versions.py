"""Snapshots and versions of the store in memory (tests.fake_store): the API with its errors.

There is no history behind it: a test says what a log or a diff shows (`logs`, `extents`).
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from volume import refs, retention
from volume.errors import (
    NoSuchVersion,
    NotPrimary,
    SnapshotExists,
    SnapshotPinned,
    VolumeBusy,
    WouldWait,
)
from volume.model import (
    DiffInfo,
    HistoryPolicy,
    RestoreInfo,
    ScheduleInfo,
    SnapshotInfo,
    VersionInfo,
    VersionLog,
    VolumeInfo,
)

if TYPE_CHECKING:
    from tests.fake_store import FakeStore

NOW_NS = 1_795_343_465_250_000_000  # 2026-11-22T10:31:05.250Z: when the first snapshot is made
SECOND_NS = 1_000_000_000
RECORDS = ("write", "unmap", "zero")


class FakeSnapshots:
    """Satisfies blockd.api.node.Snapshots. One is made each second."""

    def __init__(self, store: "FakeStore") -> None:
        self._store = store
        self._snapshots: dict[tuple[str, str], SnapshotInfo] = {}
        self._schedules: dict[str, ScheduleInfo] = {}
        self.busy = False
        """Whether `create` would have to wait."""
        self._now_ns = NOW_NS

    def create(
        self,
        name: str,
        volumes: Sequence[str],
        *,
        pinned: bool = False,
        sync: bool = False,
        wait: bool = True,
    ) -> list[SnapshotInfo]:
        if not wait and self.busy:
            raise WouldWait()
        refs.check_snapshot_name(name)
        infos = [self._store.info(volume) for volume in volumes]
        for volume in volumes:
            if (volume, name) in self._snapshots:
                raise SnapshotExists(volume, name)
        made = [self._made(info, name, pinned) for info in infos]
        self._now_ns += SECOND_NS
        return made

    def _made(self, info: VolumeInfo, name: str, pinned: bool) -> SnapshotInfo:
        return self.put(
            SnapshotInfo(
                volume=info.name,
                name=name,
                seq=info.seq,
                epoch=info.epoch,
                size=info.size,
                created_ns=self._now_ns,
                commit=None,
                pinned=pinned,
                scheduled=False,
            )
        )

    def put(self, snapshot: SnapshotInfo) -> SnapshotInfo:
        self._snapshots[snapshot.volume, snapshot.name] = snapshot
        return snapshot

    def all(
        self, volume: str | None = None, *, prefix: str = "", limit: int | None = None
    ) -> list[SnapshotInfo]:
        if volume is not None:
            self._store.info(volume)
        found = [
            each
            for each in self._snapshots.values()
            if volume in (None, each.volume) and each.name.startswith(prefix)
        ]
        newest = sorted(found, key=lambda each: each.created_ns, reverse=True)[:limit]
        return sorted(newest, key=lambda each: (each.volume, each.created_ns, each.name))

    def get(self, volume: str, name: str) -> SnapshotInfo:
        self._store.info(volume)
        try:
            return self._snapshots[volume, name]
        except KeyError:
            raise NoSuchVersion(volume, name) from None

    def delete(self, volume: str, name: str, *, force: bool = False) -> None:
        if self.get(volume, name).pinned and not force:
            raise SnapshotPinned(volume, name)
        del self._snapshots[volume, name]

    def pin(self, volume: str, name: str, pinned: bool) -> SnapshotInfo:
        return self.put(replace(self.get(volume, name), pinned=pinned))

    def schedule(self, volume: str) -> ScheduleInfo | None:
        self._store.info(volume)
        return self._schedules.get(volume)

    def set_schedule(self, volume: str, every_s: int, keep: str) -> ScheduleInfo:
        self._store.info(volume)
        policy = str(retention.parse(keep))
        next_ns = self._now_ns + every_s * SECOND_NS
        self._schedules[volume] = ScheduleInfo(volume, every_s, policy, next_ns)
        return self._schedules[volume]

    def clear_schedule(self, volume: str) -> None:
        self._store.info(volume)
        self._schedules.pop(volume, None)


class FakeVersions:
    """Satisfies blockd.api.node.Versions. `logs` and `extents` are set by the test."""

    def __init__(self, store: "FakeStore") -> None:
        self._store = store
        self._policies: dict[str, HistoryPolicy] = {}
        self.logs: dict[str, list[VersionInfo]] = {}
        self.window_start_ns: int | None = None
        self.extents: tuple[tuple[int, int], ...] = ()

    def log(self, volume: str, *, limit: int = 50, writes: bool = False) -> VersionLog:
        self._store.info(volume)
        found = [
            version
            for version in self.logs.get(volume, [])
            if writes or version.kind not in RECORDS
        ]
        more = len(found) > limit
        return VersionLog(volume, tuple(found[:limit]), more, self.window_start_ns)

    def sizes(self, source: str) -> tuple[int, int, int]:
        info = self._store.info(source.partition("@")[0])
        return info.size, info.block_size, info.chunk_size

    def begin_as(self, name: str, source: str) -> VolumeInfo:
        raise NotPrimary(name)

    def cut_with(self, cut: Callable[[str, str], None]) -> None:
        """No volume here is one that several nodes have."""

    def restore(self, volume: str, ref: str, *, force: bool = False) -> RestoreInfo:
        info = self._store.info(volume)
        seq = self._seq(refs.parse_version(volume, ref, NOW_NS))
        if info.clients and not force:
            raise VolumeBusy(volume, list(info.clients))
        kept = f"before-restore-{info.seq}"
        self._store.snapshots.create(kept, [volume])
        restored = self._store.put(info, epoch=info.epoch + 1)
        return RestoreInfo(restored, seq, kept)

    def clone(self, source: str, name: str) -> VolumeInfo:
        ref = refs.parse(source, NOW_NS)
        self._seq(ref)
        parent = self._store.info(ref.volume)
        return self._store.create_volume(
            name,
            parent.size,
            block_size=parent.block_size,
            chunk_size=parent.chunk_size,
            compression=parent.compression,
        )

    def diff(self, old: str, new: str, *, limit: int | None = None) -> DiffInfo:
        sizes = []
        for text in (old, new):
            ref = refs.parse(text, NOW_NS)
            self._seq(ref)
            sizes.append(self._store.info(ref.volume).size)
        changed = sum(length for _, length in self.extents)
        return DiffInfo(
            old, new, sizes[0], sizes[1], self.extents[:limit], changed, len(self.extents)
        )

    def policy(self, volume: str) -> HistoryPolicy:
        self._store.info(volume)
        return self._policies.get(volume, HistoryPolicy(600, "60m,24h,7d"))

    def set_policy(
        self, volume: str, *, window_s: int | None = None, keep: str | None = None
    ) -> HistoryPolicy:
        policy = self.policy(volume)
        if window_s is not None:
            policy = replace(policy, window_s=window_s)
        if keep is not None:
            policy = replace(policy, keep=str(retention.parse(keep)))
        self._policies[volume] = policy
        return policy

    def _seq(self, ref: refs.Ref) -> int:
        """The seq of a version that there is: the head, a snapshot, or any seq up to the head's."""
        info = self._store.info(ref.volume)
        match ref:
            case refs.HeadRef():
                return info.seq
            case refs.SnapshotRef(name=name):
                return self._store.snapshots.get(ref.volume, name).seq
            case refs.SeqRef(seq=seq) if seq <= info.seq:
                return seq
            case _:
                raise NoSuchVersion(ref.volume, str(ref).partition("@")[2])
