"""The nodes that have a volume as target port groups (`blockd.scsi.alua`), and as portals."""

import errno
from collections.abc import Callable
from typing import Final, Protocol

from blockd.attach import split
from blockd.device import BlockDevice, LastingDevice, MayBeElsewhere
from blockd.iscsi.targets import Portal
from blockd.paths import Paths, Way, WayState, mirrored
from blockd.scsi.alua import Access, PortGroup
from blockd.shared_state import NOTHING, Held, Now, SharedState, T, ready

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
            shared = self._known.paths.shared(self._volume)
            known = shared is not None and ready(shared)
            return Access.OPTIMIZED if known else Access.TRANSITIONING
        own = next((way for way in self._known.paths.ways(self._volume) if way.here), None)
        if own is None or own.state is WayState.SERVING:  # it was a moment ago
            return Access.TRANSITIONING if own is not None else Access.STANDBY
        return _ACCESS[own.state]

    @property
    def own(self) -> int:
        return self._known.paths.number

    def all(self) -> tuple[PortGroup, ...]:
        return tuple(
            PortGroup(way.number, self.here if way.here else _ACCESS[way.state], way.tags)
            for way in self._known.paths.ways(self._volume)
        )


class UnitState:
    """`blockd.shared_state.SharedState` of one volume, wherever it comes from by now."""

    def __init__(self, device: LastingDevice, known: KnowsPaths) -> None:
        self._volume = device.volume_uuid
        self._known = known

    @property
    def _state(self) -> SharedState | None:
        return self._known.paths.shared(self._volume)

    @property
    def now(self) -> Now:
        state = self._state
        return NOTHING if state is None else state.now

    def note(self, held: Held) -> None:
        state = self._state
        if state is not None:
            state.note(held)

    def read(self) -> Held:
        return self._there().read()

    def change(self, term: int, apply: Callable[[bytes], tuple[bytes, T]]) -> tuple[Held, T]:
        return self._there().change(term, apply)

    def _there(self) -> SharedState:
        state = self._state
        if state is None:
            raise OSError(errno.ESHUTDOWN, "this node is not in its cluster yet")
        return state


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
