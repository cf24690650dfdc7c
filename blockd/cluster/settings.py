"""Names, limits, schedules and history policies of volumes that several nodes have: one row of the
MetaStore for each volume, the same for all of them.

As with access lists (`blockd.cluster.lists`), a node that changes a setting has the row changed
first, and keeps it after that where it keeps those of its own volumes; the others look at the rows
of the volumes that they have every `LOOK_S`, and at once when they begin to serve one. So the
settings hold while the MetaStore does not answer. A volume without a row has what the node itself
has for it: its first row begins with that. A row that cannot be read changes nothing.

A new name is in the row of the volume, in that of the name, which keeps it unique, and in this one,
by which nodes hear of it: one transaction. A node on which a volume of its own has that name keeps
the old one until that is gone, and says so.
"""

import json
import threading
from typing import Final, Protocol

from blockd.api.limit_types import LimitsStatus, VolumeLimits, decode, encode
from blockd.api.volume_settings import Change, VolumeSettings
from blockd.cluster.lists import LOOK_S, PAGE
from blockd.cluster.rounds import Rounds
from volume.errors import InvalidName, NotPrimary, StoreSealed, VolumeError, VolumeExists
from volume.metastore import (
    TRIES,
    ClusterRecords,
    Done,
    Lost,
    MetaStoreUnavailable,
    Row,
    Stored,
)
from volume.metastore_records import CorruptRecord, SettingsRecord
from volume.model import HistoryPolicy, ScheduleInfo
from volume.refs import check_new_volume_name, check_volume_name
from volume.replica import Replica
from volume.replicas import Replicas


class Versions(Protocol):
    def policy(self, volume: str) -> HistoryPolicy: ...
    def set_policy(
        self, volume: str, *, window_s: int | None = None, keep: str | None = None
    ) -> HistoryPolicy: ...


class Snapshots(Protocol):
    def schedule(self, volume: str) -> ScheduleInfo | None: ...
    def set_schedule(self, volume: str, every_s: int, keep: str) -> ScheduleInfo: ...
    def clear_schedule(self, volume: str) -> None: ...


class Limits(Protocol):
    def get(self, volume: str) -> LimitsStatus: ...
    def set(self, volume: str, limits: VolumeLimits) -> None: ...


class Store(Protocol):
    """Where a node keeps its own settings; all of it waits for disks."""

    def names(self) -> list[str]: ...
    @property
    def versions(self) -> Versions: ...
    @property
    def snapshots(self) -> Snapshots: ...


class SharedSettings:
    """See the module's text. `look` and `share` are for any thread; `share` waits."""

    def __init__(
        self, records: ClusterRecords, replicas: Replicas, store: Store, look_s: float = LOOK_S
    ) -> None:
        self._records = records
        self._replicas = replicas
        self._store = store
        self._limits: Limits | None = None
        self._taking = threading.Lock()
        self._taken: dict[bytes, int] = {}
        """Volume -> revision of the row that is kept here."""
        trouble = "settings of other nodes not read"  # what was found before holds
        self._rounds = Rounds("blockd-settings", self._look, trouble, look_s)

    def start(self, limits: Limits) -> None:
        self._limits = limits
        self._rounds.start()

    def stop(self) -> None:
        self._rounds.stop()

    def look(self) -> None:
        """Soon."""
        self._rounds.look()

    def share(self, name: str, change: Change) -> bool:
        """Change settings of a volume on all nodes that have it, and keep them here; False: no
        other node has it, and nothing was done. MetaStoreUnavailable, VolumeError, OSError."""
        volume = next((each.uuid for each in self._replicas if each.name == name), None)
        if volume is None:
            return False
        for _ in range(TRIES):
            old = self._records.settings(volume.hex())
            named, settings = (name, self._own(name)) if old is None else _decoded(old.record)
            settings = change(settings)
            wanted = SettingsRecord(volume.hex(), _encoded(named, settings))
            outcome = self._records.settle(self._records.put(old, wanted), TRIES)
            if isinstance(outcome, Done):
                [row] = outcome.rows
                assert row is not None
                self._take(volume, name, settings, row.revision)
                return True
        raise MetaStoreUnavailable(
            f"settings of volume {name}: the metastore could not be told, and other nodes would "
            "not know of them; try again"
        )

    def rename(self, name: str, new_name: str) -> bool:
        """As `share`: give a volume that this node is the primary of another name. VolumeExists,
        NotPrimary."""
        replica = next((each for each in self._replicas if each.name == name), None)
        if replica is None:
            return False
        if replica.gate.shut:
            raise NotPrimary(name)
        check_new_volume_name(new_name)
        volume = replica.uuid.hex()
        for _ in range(TRIES):
            found, old = self._records.volume(volume), self._records.settings(volume)
            if new_name in self._store.names() or found is None or new_name == name:
                raise VolumeExists(new_name)
            settings = self._own(name) if old is None else _decoded(old.record)[1]
            row = (old, SettingsRecord(volume, _encoded(new_name, settings)))
            outcome = self._records.settle(self._records.rename_volume(found, new_name, row), TRIES)
            if isinstance(outcome, Done):
                replica.rename(new_name)
                return True
            if isinstance(outcome, Lost) and outcome.rows[2] is not None:
                raise VolumeExists(new_name)
        raise MetaStoreUnavailable(
            f"volume {name}: the metastore could not be told of its new name; look whether it has "
            "it, and try again"
        )

    def _own(self, name: str) -> VolumeSettings:
        """What this node has for the volume."""
        assert self._limits is not None
        policy = self._store.versions.policy(name)
        schedule = self._store.snapshots.schedule(name)
        every_s, keep = (0, "") if schedule is None else (schedule.every_s, schedule.keep)
        limits = self._limits.get(name).limits
        return VolumeSettings(limits, policy.window_s, policy.keep, every_s, keep)

    def _take(self, volume: bytes, name: str, settings: VolumeSettings, revision: int) -> None:
        """Keep what a row says, unless a newer one is kept."""
        with self._taking:
            if revision <= self._taken.get(volume, 0):
                return
            assert self._limits is not None
            own, store = self._own(name), self._store
            if own.limits != settings.limits or self._limits.get(name).problem is not None:
                self._limits.set(name, settings.limits)
            if (own.window_s, own.keep) != (settings.window_s, settings.keep):
                store.versions.set_policy(name, window_s=settings.window_s, keep=settings.keep)
            wanted = (settings.schedule_s, settings.schedule_keep)
            if (own.schedule_s, own.schedule_keep) != wanted and settings.schedule_s:
                store.snapshots.set_schedule(name, *wanted)
            elif own.schedule_s and not settings.schedule_s:
                store.snapshots.clear_schedule(name)
            self._taken[volume] = revision

    # -- looking

    def _look(self) -> None:
        volumes = {SettingsRecord.prefix + each.uuid.hex(): each for each in self._replicas}
        bad: list[VolumeError] = []
        for row in self._records.rows(SettingsRecord, PAGE) if volumes else ():
            replica = volumes.get(row.key)
            if replica is None:
                continue
            try:
                self._keep(replica, row)
            except StoreSealed:
                raise
            except VolumeError as error:  # the rows behind it hold all the same
                bad.append(error)
        if bad:
            raise bad[0]

    def _keep(self, replica: Replica, row: Row) -> None:
        """What the row of a volume says. CorruptRecord, InvalidPolicy, VolumeExists."""
        found: Stored[SettingsRecord] | None = self._records.stored(SettingsRecord, row)
        assert found is not None
        name, settings = _decoded(found.record)
        self._take(replica.uuid, replica.name, settings, row.revision)
        if name != replica.name:
            replica.rename(name)


_POLICY: Final = ("window_s", "keep", "schedule_s", "schedule_keep")


def _encoded(name: str, settings: VolumeSettings) -> str:
    policy = {name: getattr(settings, name) for name in _POLICY}
    return json.dumps({"name": name, "limits": encode(settings.limits).decode(), **policy})


def _decoded(record: SettingsRecord) -> tuple[str, VolumeSettings]:
    """The volume's name, and the rest. CorruptRecord."""
    try:
        fields = json.loads(record.settings)
        name = fields.pop("name")
        check_volume_name(name)
        limits = decode(fields.pop("limits").encode())
        settings = VolumeSettings(limits, **fields)
        seconds = (settings.window_s, settings.schedule_s)
        texts = (settings.keep, settings.schedule_keep)
        if not all(type(each) is int and 0 <= each < 1 << 32 for each in seconds):
            raise ValueError(f"times {seconds}")
        if not all(type(each) is str for each in texts):
            raise ValueError(f"policies {texts}")
    except (
        *(ValueError, TypeError, AttributeError, KeyError, IndexError),
        *(RecursionError, InvalidName),
    ) as error:
        raise CorruptRecord(record.key, f"has settings that make no sense ({error})") from error
    return name, settings
