"""One configured target: what is kept of it, and what its initiators are shown.

The units of a target change while initiators are logged in. What is added or removed shows at once
(3F/0E). A volume that is put back to an older version or deleted is another matter: whoever is
logged in keeps the unit that tells him so, and others get what there is now. So a target has a
`TargetDevice` for new sessions, and those of before for as long as a session uses them.
"""

import logging
from collections.abc import Callable

from blockd.device import LastingDevice
from blockd.iscsi.targets import Access, Target
from blockd.registry.stored import StoredLun, StoredTarget
from blockd.registry.units import Units
from blockd.scsi.target import TargetDevice
from blockd.scsi.unit import LogicalUnit

log = logging.getLogger(__name__)

FindVolume = Callable[[str], LastingDevice | None]
"""The volume of that uuid (hexadecimal)."""


class ConfiguredTarget:
    """See the module's text."""

    def __init__(
        self,
        kept: StoredTarget,
        units: Units,
        find: FindVolume,
        defaults: Access,
        port_groups: tuple[int, ...],
    ) -> None:
        """`defaults`: what counts where the target says nothing."""
        self.stored = kept
        self._units = units
        self._find = find
        self._defaults = defaults
        self._before: list[TargetDevice] = []
        self._versions: dict[int, LastingDevice] = {}
        device = TargetDevice({}, kept.name, port_groups)
        self.target = Target(
            kept.name, kept.access(defaults), device, alias=kept.alias, redirect=kept.redirect
        )

    @property
    def versions(self) -> list[LastingDevice]:
        """Past versions that are open for it."""
        return list(self._versions.values())

    def change(self, kept: StoredTarget) -> None:
        """It is kept so from now on; show that."""
        for lun in self._versions.keys() - {each.lun for each in kept.luns}:
            self._let_go(lun)
        self.stored = kept
        self.target.alias, self.target.redirect = kept.alias, kept.redirect
        self.target.access = kept.access(self._defaults)
        self.show()

    def opened(self, lun: int, version: LastingDevice) -> None:
        """The past version at `lun` is open; it stays so as long as the unit is there."""
        if lun in self._versions:
            self._let_go(lun)
        version.attach(self.target.name)
        self._versions[lun] = version

    def reached_through(self, port_groups: tuple[int, ...]) -> None:
        """These are its portal groups from now on."""
        for device in (self.target.device, *self._before):
            device.port_groups = port_groups

    def close(self) -> None:
        """It is deleted, or the server stops."""
        for lun in list(self._versions):
            self._let_go(lun)

    def _let_go(self, lun: int) -> None:
        version = self._versions.pop(lun)
        version.detach(self.target.name)

    def device_at(self, lun: StoredLun) -> LastingDevice | None:
        """What is at that number now, unless it is gone."""
        device = self._versions.get(lun.lun) if lun.ref else self._find(lun.volume)
        return None if device is None or device.retired else device

    def show(self) -> None:
        """Let initiators see the units that there are to be now."""
        self._before = [device for device in self._before if device.used]
        wanted = self._wanted()
        current = self.target.device
        if wanted == current.units:
            return
        if current.used and self._lost_one(current):
            self._before.append(current)
            self.target.device = TargetDevice(wanted, current.name, current.port_groups)
        else:
            current.units = wanted
            current.luns_changed()
        for device in self._before:
            self._add_and_remove(device, wanted)
        self._units.tell_sessions(self.target)

    def _wanted(self) -> dict[int, LogicalUnit]:
        found = ((each.lun, self.device_at(each)) for each in self.stored.luns)
        return {lun: self._units.of(device) for lun, device in found if device is not None}

    def _lost_one(self, device: TargetDevice) -> bool:
        """Whether a unit of `device` is gone that nobody has removed."""
        numbers = {each.lun for each in self.stored.luns}
        return any(
            lun in numbers and self._units.retired(unit) for lun, unit in device.units.items()
        )

    def _add_and_remove(self, device: TargetDevice, wanted: dict[int, LogicalUnit]) -> None:
        numbers = {each.lun for each in self.stored.luns}
        kept = {lun: unit for lun, unit in device.units.items() if lun in numbers}
        units = {**wanted, **kept}
        if units != device.units:
            device.units = units
            device.luns_changed()
