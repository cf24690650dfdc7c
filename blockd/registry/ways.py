"""The nodes that have a volume as target port groups (`blockd.scsi.alua`), and as portals."""

from typing import Final, Protocol

from blockd.attach import split
from blockd.device import BlockDevice, LastingDevice, MayBeElsewhere
from blockd.iscsi.targets import Portal
from blockd.paths import Paths, Way, WayState, mirrored
from blockd.scsi.alua import Access, PortGroup

_ACCESS: Final = {
    WayState.SERVING: Access.OPTIMIZED,
    WayState.STANDBY: Access.STANDBY,
    WayState.CHANGING: Access.TRANSITIONING,
    WayState.UNREACHABLE: Access.UNAVAILABLE,
}


class KnowsPaths(Protocol):
    @property
    def paths(self) -> Paths: ...


class NodeGroups:
    """Of one volume; see `blockd.scsi.alua.PortGroups`."""

    def __init__(self, device: LastingDevice, known: KnowsPaths) -> None:
        assert isinstance(device, MayBeElsewhere)
        self._device: MayBeElsewhere = device
        self._volume = device.volume_uuid
        self._known = known

    @property
    def here(self) -> Access:
        if self._device.leads:
            return Access.OPTIMIZED
        own = next((way for way in self._known.paths.ways(self._volume) if way.here), None)
        if own is None or own.state is WayState.SERVING:  # it was a moment ago
            return Access.TRANSITIONING if own is not None else Access.STANDBY
        return _ACCESS[own.state]

    @property
    def own(self) -> int:
        return self._known.paths.number

    def all(self) -> tuple[PortGroup, ...]:
        ways = self._known.paths.ways(self._volume)
        return tuple(PortGroup(way.number, _ACCESS[way.state], way.tags) for way in ways)


def portals_elsewhere(device: BlockDevice, paths: Paths) -> list[Portal]:
    """Where other nodes export the volume, those that can be reached first."""
    if not mirrored(device):
        return []
    ways = [way for way in paths.ways(device.volume_uuid) if not way.here]
    ways.sort(key=lambda way: way.state is WayState.UNREACHABLE)
    return [portal for way in ways for portal in portals_of(way)]


def portals_of(way: Way) -> list[Portal]:
    """Where initiators log in."""
    found = []
    for each in way.iscsi:
        address, _, tag = each.rpartition(",")
        host, port = split(address)
        found.append(Portal(host, int(port), int(tag)))
    return found
