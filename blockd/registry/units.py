"""One SCSI unit for each device: reservations and mode pages are the volume's, whatever target and
portal leads to it.

A unit lasts as long as its device. When a volume is put back to an older version it is another
device, with the same uuid: it gets another unit, which finds again what the one before had kept.
The unit of a retired device stays with those who are logged in to it, and keeps nothing any more,
as that would be in the way of its successor.

What units keep is under `iscsi/unit/<uuid of the volume>/<uuid of the unit>/`. It is read when the
server starts; what belongs to volumes that are gone is forgotten then and when they go.
"""

import errno
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable
from typing import Final, Protocol

from blockd.device import LastingDevice
from blockd.iscsi.node import Node
from blockd.iscsi.targets import Target
from blockd.paths import ALONE, Paths, mirrored, went_back
from blockd.registry.steps import Background, DoWork
from blockd.registry.ways import NodeGroups, UnitState
from blockd.scsi import sanitize
from blockd.scsi.alua import PortGroups
from blockd.scsi.opcodes import TABLE
from blockd.scsi.task import Steps
from blockd.scsi.unit import Identity, LogicalUnit, SpaceFacts
from blockd.scsi.vpd import naa
from volume.model import StoreStatus

log = logging.getLogger(__name__)

PREFIX: Final = "iscsi/unit/"
SPACE_AGE_S: Final = 5.0
"""How old what units tell of the store's space may be: one look takes a call to the kernel."""
OWN_RATE: Final = 256 << 20
"""Bytes per second that units write by themselves, unless the configuration says otherwise: half of
what the journal takes at its best, so that clients keep theirs."""


class Volumes(Protocol):
    """The volumes that there are. Quick, but for `open_version`."""

    def names(self) -> list[str]: ...
    def get(self, name: str) -> LastingDevice | None: ...
    def open_version(self, name: str) -> LastingDevice:
        """As `blockd.device.Versions`."""


class Keeper(Protocol):
    """Where targets and units keep what outlives the server. Both wait for disks; any thread."""

    def kept(self, prefix: str) -> dict[str, bytes]:
        """What was kept under names with that prefix."""

    def keep(self, name: str, value: bytes | None) -> None:
        """Durable on return; None forgets. VolumeError, OSError."""


class UnitStore(Volumes, Keeper, Protocol):
    """What units need of a store."""

    def status(self) -> StoreStatus:
        """Waits for disks."""


class Units:
    """See the module's text."""

    def __init__(
        self, store: UnitStore, own_rate: int = OWN_RATE, *, ignore_isids: bool = False
    ) -> None:
        """Waits for disks. `ignore_isids`: see `Reservations.ignore_isids`."""
        self._ignore_isids = ignore_isids
        self.paths: Paths = ALONE
        self._store = store
        self._kept = store.kept(PREFIX)
        self._forget_strangers()
        self._units: dict[LastingDevice, LogicalUnit] = {}
        self._went_back: dict[LastingDevice, int] = {}
        self._node: Node | None = None
        self._work: DoWork | None = None
        self._background: Background | None = None
        self._space = _facts(store.status())
        self._space_due_s = 0.0
        self._pace = _Pace(own_rate)

    def serve(self, node: Node, work: DoWork) -> None:
        """Sessions are about to come."""
        self._node, self._work = node, work
        self._background = Background(work)

    def of(self, device: LastingDevice) -> LogicalUnit:
        """The unit of a device."""
        unit = self._units.get(device)
        if unit is None:
            surroundings = UnitSurroundings(self, device)
            identity = Identity(device.uuid, device.name)
            unit = LogicalUnit(device, identity, surroundings, TABLE)
            if self._ignore_isids:
                unit.reservations.ignore_isids()
            self._units[device] = unit
            self._went_back[device] = went_back(device)
            if self._node is not None:
                self._node.watch([unit])
        return unit

    def tell_sessions(self, target: Target) -> None:
        """The units of `target` are others than before."""
        if self._node is not None:
            self._node.units_changed(target)

    def drop(self, device: LastingDevice) -> None:
        """Nobody is to find that unit again."""
        self._went_back.pop(device, None)
        unit = self._units.pop(device, None)
        if unit is not None and self._node is not None:
            self._node.forget(unit)

    def retired(self, unit: LogicalUnit) -> bool:
        """Whether the device of that unit is no more."""
        device: LastingDevice = unit.device  # type: ignore[assignment] # `of` made it
        return device.retired

    def drop_retired(self) -> bool:
        """Forget the units of devices that are no more; whether there were any.

        A node that takes the state of a volume from others has it as another device then. Nobody
        was served the one before, so that who was logged in to it may log in to that at once. One
        that other nodes have as well stays the same device when it goes back to a version: nobody
        was attached at the node that serves it, but here initiators may be, for the day on which
        this node does; they are to hear of it."""
        retired = [device for device in self._units if device.retired]
        for device in retired:
            unit = self._units[device]
            self.drop(device)
            if mirrored(device) and self._node is not None:
                self._node.end_sessions_of(unit, "the volume was taken from other nodes anew")
        for device, count in self._went_back.items():
            if (now := went_back(device)) != count:
                self._went_back[device] = now
                if self._node is not None:
                    why = "the volume went back to an earlier state"
                    self._node.end_sessions_of(self._units[device], why)
        return bool(retired)

    def paths_changed(self) -> None:
        """Tell initiators whose units have become better or worse to reach. What fails with one
        unit is raised when all have looked: sessions of the others are called back all the same."""
        failed: list[Exception] = []
        for unit in list(self._units.values()):
            try:
                if unit.port_groups is not None:
                    unit.look_around()
            except Exception as error:
                failed.append(error)
        if failed:
            raise failed[0]

    def find(self, identifier: bytes) -> LogicalUnit | None:
        """The unit with that NAA designator, among all volumes and the versions in use."""
        for device in (*self._units, *self._volumes()):
            if naa(device.uuid) == identifier and not device.retired:
                return self.of(device)
        return None

    def _volumes(self) -> Iterable[LastingDevice]:
        for name in self._store.names():
            device = self._store.get(name)
            if device is not None:
                yield device

    # -- what is kept

    def load(self, name: str) -> bytes | None:
        return self._kept.get(name)

    def save(self, name: str, value: bytes | None) -> None:
        """Waits for the disk. OSError."""
        try:
            self._store.keep(name, value)
        except OSError:
            raise
        except Exception as error:
            raise OSError(errno.EIO, str(error)) from error
        if value is None:
            self._kept.pop(name, None)
        else:
            self._kept[name] = value

    def forget_sanitize(self, volume_uuid: bytes) -> None:
        """The volume was put back: what a sanitize has not done yet is not to be done to the state
        that somebody wanted back. At once for the volume's next unit, and soon on the disk."""
        name = f"{PREFIX}{volume_uuid.hex()}/{volume_uuid.hex()}/{sanitize.KEY}"
        if self._kept.pop(name, None) is None or self._work is None:
            return

        def forgotten(_: None, error: Exception | None) -> None:
            if error is not None:
                log.warning("sanitize of an older state kept", extra={"reason": str(error)})

        self._work(lambda: self.save(name, None), forgotten)

    def forget_volume(self, volume_uuid: bytes) -> None:
        """The volume is gone: and what its units kept. Waits for disks. OSError."""
        start = f"{PREFIX}{volume_uuid.hex()}/"
        for name in [each for each in list(self._kept) if each.startswith(start)]:
            self.save(name, None)

    def _forget_strangers(self) -> None:
        known = {device.volume_uuid.hex() for device in self._volumes()}
        for name in list(self._kept):
            if name.removeprefix(PREFIX).partition("/")[0] not in known:
                self.save(name, None)

    # -- space, pace, background

    def space(self) -> SpaceFacts:
        return self._space

    def tick(self, now_s: float) -> None:
        """Look at the ways to units, some of which go by time, and at the store's space from time
        to time."""
        self.paths_changed()
        if now_s >= self._space_due_s and self._work is not None and self._units:
            self._space_due_s = now_s + SPACE_AGE_S
            self._work(self._store.status, self._looked)

    def _looked(self, status: StoreStatus | None, error: Exception | None) -> None:
        if error is not None:
            log.warning("space not known", extra={"reason": str(error)})
        elif status is not None:
            self._space = _facts(status)

    def pace(self, length: int) -> None:
        self._pace.wait(length)

    def run(self, steps: Steps) -> None:
        assert self._background is not None, "units are used by sessions, which come after `serve`"
        self._background.run(steps)

    def stop(self) -> None:
        """End what goes on without a session."""
        if self._background is not None:
            self._background.stop()


class UnitSurroundings:
    """What one unit sees of the rest (`blockd.scsi.unit.Surroundings`)."""

    def __init__(self, units: Units, device: LastingDevice) -> None:
        self._units = units
        self._device = device
        self._prefix = f"{PREFIX}{device.volume_uuid.hex()}/{device.uuid.hex()}/"
        self._groups: NodeGroups | None = None

    def space(self) -> SpaceFacts:
        return self._units.space()

    def load(self, key: str) -> bytes | None:
        return self._units.load(self._prefix + key)

    def save(self, key: str, value: bytes | None) -> None:
        if self._device.retired:
            raise OSError(errno.ESHUTDOWN, os.strerror(errno.ESHUTDOWN))
        self._units.save(self._prefix + key, value)

    def unit(self, identifier: bytes) -> LogicalUnit | None:
        return self._units.find(identifier)

    def port_groups(self) -> PortGroups | None:
        groups = self._groups
        if groups is None and mirrored(self._device):
            groups = self._groups = NodeGroups(self._device, self._units)
        return None if groups is None or self._device.retired else groups

    def shared_state(self) -> UnitState | None:
        return UnitState(self._device, self._units) if mirrored(self._device) else None

    def pace(self, length: int) -> None:
        self._units.pace(length)

    def run(self, steps: Steps) -> None:
        self._units.run(steps)


class _Pace:
    """So many bytes a second, for all who ask together."""

    def __init__(
        self,
        rate: int,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._rate = rate
        self._clock = clock
        self._sleep = sleep
        self._lock = threading.Lock()
        self._free_at_s = 0.0

    def wait(self, length: int) -> None:
        """Until `length` bytes more are due."""
        with self._lock:
            now_s = self._clock()
            wait_s = self._free_at_s - now_s
            self._free_at_s = max(now_s, self._free_at_s) + length / self._rate
        if wait_s > 0:
            self._sleep(wait_s)


def _facts(status: StoreStatus) -> SpaceFacts:
    threshold = status.space_short_bytes
    return SpaceFacts(
        used_bytes=status.pack_bytes + status.journal_bytes,
        available_bytes=status.space_left_bytes,
        short=status.space_left_bytes < threshold,
        threshold_bytes=threshold,
    )
