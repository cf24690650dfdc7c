"""Names -> targets, as logins, discovery and operators see them.

    automatic   iqn.2026-11.io.blockd:VOLUME, with the volume as unit 0, for every volume there is;
                iqn.2026-11.io.blockd:VOLUME:at:REF, or VOLUME@REF: a past version, opened when
                somebody logs in
    configured  made by `blockd target create`, with units, access lists and CHAP of their own

Automatic targets are there while only this machine can reach the portals, or when the
configuration says so. A configured target hides the automatic one of the same name.

Everything belongs to the event loop's thread but for what says that it waits for disks. A change of
a configured target is kept first, then made; one at a time.
"""

import asyncio
import ipaddress
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from blockd.device import LastingDevice
from blockd.iscsi.names import normalised
from blockd.iscsi.node import Node
from blockd.iscsi.targets import IQN_PREFIX, Access, Portal, Target, past_version
from blockd.paths import Paths
from blockd.registry import stored
from blockd.registry.configured import ConfiguredTarget
from blockd.registry.errors import NoSuchTarget, TargetBusy, TargetExists
from blockd.registry.steps import DoWork
from blockd.registry.stored import StoredTarget
from blockd.registry.units import OWN_RATE, Units, UnitStore
from blockd.registry.ways import portals_elsewhere
from blockd.scsi.target import TargetDevice
from volume.errors import NoSuchVolume, VolumeError
from volume.refs import TimeRef
from volume.refs import parse as parse_ref

log = logging.getLogger(__name__)

MARK: Final = "@"  # between volume and version
WILDCARDS: Final = ("", "0.0.0.0", "::")


@dataclass(eq=False, slots=True)
class _Past:
    """An automatic target of a past version, while connections hold it."""

    target: Target
    device: LastingDevice
    holds: int = 0


@dataclass(frozen=True, slots=True)
class _Source:
    """What a unit is to be of."""

    volume: str
    """Its uuid, in hexadecimal."""
    ref: str
    """Which version; "" for the head."""
    version: LastingDevice | None
    """That version, opened."""


class TargetRegistry:
    """See the module's text. `blockd.iscsi.targets.Targets`, and more."""

    def __init__(
        self,
        store: UnitStore,
        *,
        defaults: Access | None = None,
        auto: bool = True,
        own_rate: int = OWN_RATE,
        ignore_isids: bool = False,
    ) -> None:
        """Waits for disks: reads what is kept. `defaults`: who may log in for discovery, and the
        CHAP of targets that have none of their own; `auto`: whether volumes have automatic targets;
        `own_rate`: bytes per second that units write by themselves; `ignore_isids`: persistent
        reservations go by initiators' names alone.
        """
        self._store = store
        self._defaults = defaults or Access()
        self.auto = auto
        self._units = Units(store, own_rate, ignore_isids=ignore_isids)
        self._portals: Sequence[Portal] = ()
        self._node: Node | None = None
        self._work: DoWork | None = None
        self._heads: dict[LastingDevice, Target] = {}
        self._past: dict[Target, _Past] = {}
        self._configured: dict[str, ConfiguredTarget] = {}
        self._changing = asyncio.Lock()
        self._names: list[str] = []
        self._by_uuid: dict[str, LastingDevice] = {}
        self._look()
        for key, value in sorted(store.kept(stored.PREFIX).items()):
            target = self._made(stored.decode(key, value))
            self._open_versions(target)
            self._configured[target.stored.name] = target

    # -- what logins and discovery see

    @property
    def discovery(self) -> Access:
        return self._defaults

    def get(self, name: str) -> Target | None:
        """Past versions are not found here, see `hold`."""
        self._look()
        configured = self._configured.get(normalised(name))
        if configured is not None:
            configured.show()
            return configured.target
        volume = self._volume_of(name)
        device = None if volume is None else self._store.get(volume)
        return None if device is None else self._head(device)

    def all(self) -> Sequence[Target]:
        self._look()
        for target in self._configured.values():
            target.show()
        found = {name: target.target for name, target in self._configured.items()}
        for name in self._store.names() if self.auto else ():
            device = self._store.get(name)
            if device is not None and normalised(IQN_PREFIX + name) not in found:
                found[normalised(IQN_PREFIX + name)] = self._head(device)
        return [found[name] for name in sorted(found)]

    def portals(self, arrived_at: Portal, target: Target) -> Sequence[Portal]:
        """Loopback portals are shown to who came through one. Other nodes have the automatic target
        of a volume that they have, and their own idea of others."""
        own = [
            replace(portal, host=arrived_at.host) if portal.host in WILDCARDS else portal
            for portal in self._portals
            if _reachable(portal.host, arrived_at.host)
        ]
        volume = target.volume
        others = [] if volume is None else portals_elsewhere(volume, self._units.paths)
        return own + [each for each in others if _reachable(each.host, arrived_at.host)]

    def _volume_of(self, name: str) -> str | None:
        """The volume whose automatic target that is."""
        if not self.auto or not normalised(name).startswith(IQN_PREFIX):
            return None
        volume = name[len(IQN_PREFIX) :]
        if not volume or MARK in volume:
            return None
        names = self._store.names()
        if volume in names:
            return volume
        wanted = normalised(volume)  # as initiators write names that are compared without case
        return next((each for each in names if normalised(each) == wanted), None)

    def _head(self, device: LastingDevice) -> Target:
        """The automatic target of a volume; another one when the volume has another name."""
        name = IQN_PREFIX + device.name
        target = self._heads.get(device)
        if target is None or target.name != name:
            unit = self._units.of(device)
            target = self._target(name, TargetDevice({0: unit}, name, self._groups), device)
            self._heads[device] = target
        return target

    def _target(self, name: str, device: TargetDevice, volume: LastingDevice) -> Target:
        return Target(name, self._defaults, device, volume=volume)

    @property
    def _groups(self) -> tuple[int, ...]:
        return tuple(sorted({portal.group for portal in self._portals})) or (1,)

    # -- past versions

    def volume_of(self, name: str) -> LastingDevice | None:
        """The volume that target `name` stands for a past version of, whether there is such a
        version or not."""
        version = past_version(name) if self.auto else None
        return None if version is None else self._store.get(version.partition(MARK)[0])

    def open_past(self, name: str) -> LastingDevice:
        """The past version that target `name` stands for. Waits for disks, on any thread.
        NoSuchVolume, NoSuchVersion, InvalidName when there is none; VolumeError, OSError."""
        version = past_version(name)
        if not self.auto or version is None:
            raise NoSuchVolume(name)
        return self._store.open_version(version)

    def hold(self, name: str, device: LastingDevice) -> Target:
        """The target of a version that was just opened, until `release`."""
        past = next(
            (
                each
                for each in self._past.values()
                if each.device is device and each.target.name == name
            ),
            None,
        )
        if past is None:
            unit = self._units.of(device)
            target = self._target(name, TargetDevice({0: unit}, name, self._groups), device)
            past = _Past(target, device)
            self._past[past.target] = past
        past.holds += 1
        device.attach(name)
        return past.target

    def release(self, target: Target) -> None:
        """Take back one `hold`."""
        past = self._past[target]
        past.holds -= 1
        past.device.detach(target.name)
        if not past.holds:
            del self._past[target]
            self._drop_unused(past.device)

    def _drop_unused(self, device: LastingDevice) -> None:
        used = any(each.device is device for each in self._past.values()) or any(
            device in each.versions for each in self._configured.values()
        )
        if not used:
            self._units.drop(device)

    # -- life

    def serve(self, node: Node, work: DoWork) -> None:
        """Sessions are about to be opened; `work` makes calls on another thread."""
        self._node, self._work = node, work
        self._units.serve(node, work)
        for target in self._configured.values():
            target.show()

    def listening(self, portals: Sequence[Portal]) -> None:
        """Where targets are reached from now on."""
        self._portals = tuple(portals)
        for target in self._configured.values():
            target.reached_through(self._groups)
        for automatic in (*self._heads.values(), *self._past):
            automatic.device.port_groups = self._groups

    def follow(self, paths: Paths) -> None:
        """Before anybody logs in: how volumes that several nodes have are reached."""
        self._units.paths = paths

    def paths_changed(self) -> None:
        """Some of these ways are other ones."""
        self._units.paths_changed()

    def tick(self, now_s: float) -> None:
        """Called about once a second: look at what became of volumes."""
        self._units.tick(now_s)
        if self._look():
            for target in self._configured.values():
                target.show()

    def stop(self) -> None:
        """No session is left: end what goes on without any."""
        self._units.stop()
        for target in self._configured.values():
            target.close()

    def _look(self) -> bool:
        """Whether volumes came, went or were put back since the last time."""
        names = self._store.names()
        retired = any(device.retired for device in self._by_uuid.values())
        if names == self._names and not retired:
            return self._units.drop_retired()
        self._units.drop_retired()
        self._names = names
        before = self._by_uuid
        found = (self._store.get(name) for name in names)
        self._by_uuid = {each.uuid.hex(): each for each in found if each is not None}
        self._heads = {
            device: target for device, target in self._heads.items() if not device.retired
        }
        for uuid, device in before.items():
            if uuid not in self._by_uuid:
                self._forget(uuid)
            elif device.retired:
                self._units.forget_sanitize(device.volume_uuid)
        return True

    def _forget(self, uuid: str) -> None:
        def forgotten(_: None, error: Exception | None) -> None:
            if error is not None:
                log.warning("state of a deleted volume kept", extra={"reason": str(error)})

        if self._work is not None:
            self._work(lambda: self._units.forget_volume(bytes.fromhex(uuid)), forgotten)

    # -- configured targets

    def configured(self) -> list[ConfiguredTarget]:
        """By name."""
        return [self._configured[name] for name in sorted(self._configured)]

    def named(self, name: str) -> ConfiguredTarget:
        """NoSuchTarget."""
        target = self._configured.get(normalised(name))
        if target is None:
            raise NoSuchTarget(name)
        return target

    def session_count(self, target: Target) -> int:
        return 0 if self._node is None else len(self._node.of_target(target))

    async def create(
        self,
        name: str,
        alias: str = "",
        redirect: str | None = None,
        sources: Sequence[str] = (),
    ) -> None:
        """A new target with `sources`, as `add_lun` has them, from LUN 0 on: it is kept and seen
        with all of them or not at all. InvalidTarget, TargetExists, and what `add_lun` raises."""
        async with self._changing:
            kept = stored.created(name, alias, redirect)
            if kept.name in self._configured:
                raise TargetExists(kept.name)
            versions: dict[int, LastingDevice] = {}
            for source in sources:
                found = await self._found(source)
                lun = kept.next_lun
                kept = stored.with_lun(kept, found.volume, found.ref, lun)
                if found.version is not None:
                    versions[lun] = found.version
            await self._keep(kept)
            target = self._made(kept)
            for lun, version in versions.items():
                target.opened(lun, version)
            self._look()
            target.show()
            self._configured[kept.name] = target

    async def delete(self, name: str, *, force: bool = False) -> None:
        """NoSuchTarget; TargetBusy unless `force`, which ends its sessions."""
        async with self._changing:
            target = self.named(name)
            count = self.session_count(target.target)
            if count and not force:
                raise TargetBusy(target.stored.name, count)
            await asyncio.to_thread(self._store.keep, target.stored.key, None)
            del self._configured[target.stored.name]
            if self._node is not None:
                self._node.end_sessions(target.target, "the target was deleted")
            versions = target.versions
            target.close()
            for version in versions:
                self._drop_unused(version)

    async def change(self, name: str, changed: Callable[[StoredTarget], StoredTarget]) -> None:
        """Make another value of what is kept. NoSuchTarget, and what `changed` raises."""
        async with self._changing:
            target = self.named(name)
            kept = changed(target.stored)
            if kept != target.stored:
                await self._keep(kept)
                target.change(kept)

    async def add_lun(self, name: str, source: str, lun: int | None = None) -> int:
        """Add a volume, or "volume@ref", as a unit; its number. NoSuchTarget, NoSuchVolume,
        NoSuchVersion, LunTaken, InvalidTarget."""
        async with self._changing:
            target = self.named(name)
            found = await self._found(source)
            kept = stored.with_lun(target.stored, found.volume, found.ref, lun)
            [number] = {each.lun for each in kept.luns} - {each.lun for each in target.stored.luns}
            await self._keep(kept)
            if found.version is not None:
                target.opened(number, found.version)
            self._look()
            target.change(kept)
            return number

    async def _found(self, source: str) -> _Source:
        """NoSuchVolume, NoSuchVersion, InvalidName."""
        volume_name, _, ref = source.partition(MARK)
        head = self._store.get(volume_name) if volume_name else None
        if head is None:
            raise NoSuchVolume(volume_name)
        version = await asyncio.to_thread(self._store.open_version, source) if ref else None
        if version is not None and isinstance(parse_ref(source, time.time_ns()), TimeRef):
            ref = f"seq:{version.seq}"  # a time that is yet to come would mean another one later
        return _Source(head.uuid.hex(), ref, version)

    async def _keep(self, kept: StoredTarget) -> None:
        await asyncio.to_thread(self._store.keep, kept.key, kept.encode())

    def _made(self, kept: StoredTarget) -> ConfiguredTarget:
        return ConfiguredTarget(kept, self._units, self._by_uuid_get, self._defaults, self._groups)

    def _by_uuid_get(self, uuid: str) -> LastingDevice | None:
        return self._by_uuid.get(uuid)

    def _open_versions(self, target: ConfiguredTarget) -> None:
        """At a start; what cannot be opened is no unit. Waits for disks."""
        for lun in target.stored.luns:
            head = self._by_uuid.get(lun.volume)
            if not lun.ref or head is None:
                continue
            try:
                target.opened(lun.lun, self._store.open_version(f"{head.name}{MARK}{lun.ref}"))
            except (VolumeError, OSError) as error:
                facts = {"target": target.stored.name, "lun": lun.lun, "reason": str(error)}
                log.warning("unit left out", extra=facts)


def _reachable(host: str, arrived_at: str) -> bool:
    """Whether a client that reached us at `arrived_at` may reach `host`."""
    if host in WILDCARDS:
        return (":" in host) == (":" in arrived_at) or not host
    return not _loopback(host) or _loopback(arrived_at)


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return False
