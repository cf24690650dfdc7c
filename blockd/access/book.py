"""The access lists of all volumes: looked at by the front ends, changed by the control API.

A list belongs to a volume by its uuid, so it stays when the volume gets another name or is put back
to an older version; past versions have the list of their volume. A change is durable, then it holds
for who comes, then who is no longer let in is cut, then it is answered.

A clone has the list of its source from its first moment on, also if the server dies meanwhile: the
list is kept for the name that is to come, the volume is made, the list is kept for its uuid, and
the first is forgotten. What is found of the first at a start belongs to the volume of that name, or
to none. A volume that is created closed goes the same way.

Everything belongs to the event loop's thread but for what says that it waits for disks. Lists of
volumes that are gone are harmless and stay, in case that an older copy of meta/ brings them back.
"""

import asyncio
import hashlib
import logging
from collections.abc import Awaitable, Callable
from typing import Protocol

from blockd.access import kept
from blockd.access.rules import AccessChanged, AccessList, Client, Grant, Rule, checked
from blockd.device import BlockDevice
from volume.errors import VolumeError
from volume.model import VolumeInfo
from volume.refs import check_volume_name
from volume.states import Damaged

log = logging.getLogger(__name__)

Share = Callable[[bytes, AccessList | None, str | None], int | None]
"""Tell other nodes of a volume's list, by its uuid; the number that it has there, None when no
other node has the volume. The last argument is the `revision` of the list that they must have, if
that matters. Waits. AccessChanged; VolumeError, OSError: they are not told."""
Take = Callable[[bytes, AccessList | None, int], None]
"""Hand over the list that another node gives a volume, and its number; does not wait."""
Watch = Callable[[], Awaitable[list[str]]]
"""Cut who is not let in any more; their ids."""


class VolumeAccess(Protocol):
    """What front ends need of the book."""

    def grant(self, device: BlockDevice, client: Client) -> Grant:
        """What the client may do with a volume, or with a past version of it. Quick."""


class Everybody:
    """No volume has a list."""

    def grant(self, device: BlockDevice, client: Client) -> Grant:
        return Grant.WRITE


class Keeper(Protocol):
    """Where lists are kept. Both wait for disks; any thread."""

    def kept(self, prefix: str, damaged: Damaged | None = None) -> dict[str, bytes]:
        """What was kept under names with that prefix; `damaged` is told of what cannot be read."""

    def keep(self, name: str, value: bytes | None) -> None:
        """Durable on return; None forgets. VolumeError, OSError."""

    def get(self, name: str) -> BlockDevice | None:
        """The volume of that name. Quick."""


class AccessBook:
    """See the module's text."""

    def __init__(self, store: Keeper) -> None:
        """Reads what is kept. Waits for disks."""
        self._store = store
        self._lists: dict[bytes, AccessList] = {}
        self._coming: dict[str, AccessList] = {}  # of volumes being made, by name
        self._watches: list[Watch] = []
        self._share: Share = lambda volume, access, expected: None
        self._shared: dict[bytes, int] = {}  # numbers of lists that other nodes have, too
        self._changing = asyncio.Lock()
        unreadable: list[str] = []
        for key, value in store.kept(kept.PREFIX, lambda key, _: unreadable.append(key)).items():
            self._read(key, value)
        for key in unreadable:
            self._read(key, None)
        self._settle_coming()

    def _read(self, key: str, value: bytes | None) -> None:
        """None: it cannot be read."""
        access = kept.DAMAGED if value is None else kept.decode(key, value)
        if access.damaged:
            facts = {"key": key, "way_out": "blockd volume access clear, then allow"}
            log.error("access list damaged, nobody is let in", extra=facts)
        if key.startswith(kept.COMING):
            self._coming[key.removeprefix(kept.COMING)] = access
            return
        told = None if value is None else kept.volume_told(value)
        for uuid in {_uuid(key), told} - {None}:
            assert uuid is not None
            self._lists[uuid] = access

    def _settle_coming(self) -> None:
        """The server died while these were made."""
        for name in list(self._coming):
            made = self._store.get(name)
            try:
                if made is not None and made.volume_uuid not in self._lists:
                    self._lists[made.volume_uuid] = self._coming[name]
                    self._keep(kept.volume_key(made.volume_uuid), self._coming[name])
                self._store.keep(kept.coming_key(name), None)
            except (VolumeError, OSError) as error:
                facts = {"volume": name, "reason": str(error)}
                log.warning("access list of a new volume not settled", extra=facts)
            else:
                del self._coming[name]

    def watch(self, watch: Watch) -> None:
        """`watch` is awaited after each change."""
        self._watches.append(watch)

    def share_by(self, share: Share) -> None:
        """Call `share` before a change is kept."""
        self._share = share

    # -- looking

    def grant(self, device: BlockDevice, client: Client) -> Grant:
        """See `VolumeAccess`."""
        access = self.list_of(device)
        return Grant.WRITE if access is None else access.grant(client)

    def list_of(self, device: BlockDevice) -> AccessList | None:
        """The list of a volume, or of the volume that a version is of; None: it has none."""
        access = self._lists.get(device.volume_uuid)
        if access is None and self._coming:
            access = self._coming.get(device.name.partition("@")[0])
        return access

    # -- changing

    async def change(
        self, volume: BlockDevice, rules: tuple[Rule, ...] | None, expected: str | None = None
    ) -> list[str]:
        """Give the volume a list of these rules, or none. The ids of clients that were cut.

        `expected`: the `revision` of the list that the change was made from. AccessChanged,
        InvalidRule, VolumeError, OSError."""
        access = None if rules is None else checked(rules)
        async with self._changing:
            if expected is not None and expected != revision(self.list_of(volume)):
                raise AccessChanged(volume.name)
            uuid = volume.volume_uuid
            told = await asyncio.to_thread(self._share, uuid, access, expected)
            if told is not None:
                self._shared[uuid] = told
            await asyncio.to_thread(self._keep, kept.volume_key(uuid), access)
            if volume.name in self._coming:  # left over from making it
                await asyncio.to_thread(self._store.keep, kept.coming_key(volume.name), None)
                del self._coming[volume.name]
            cut = await self._holds(uuid, access)
        facts = {
            "volume": volume.name,
            "rules": "none" if access is None else len(access.rules),
            "cut": ",".join(cut) or "-",
        }
        log.info("access list changed", extra=facts)
        return cut

    async def take(self, volume: bytes, access: AccessList | None, number: int) -> None:
        """Another node has given a volume this list; one that was known before is passed over.
        VolumeError, OSError: it holds until the next start, and is told again."""
        async with self._changing:
            if number <= self._shared.get(volume, 0):
                return
            if access != self._lists.get(volume):
                cut = await self._holds(volume, access)
                facts = {"volume": volume.hex(), "cut": ",".join(cut) or "-"}
                log.info("access list changed by another node", extra=facts)
                await asyncio.to_thread(self._keep, kept.volume_key(volume), access)
            self._shared[volume] = number

    async def _holds(self, volume: bytes, access: AccessList | None) -> list[str]:
        """From now on; the ids of who was cut."""
        if access is None:
            self._lists.pop(volume, None)
        else:
            self._lists[volume] = access
        return [each for watch in self._watches for each in await watch()]

    async def clone(
        self, source: BlockDevice | None, name: str, make: Callable[[], VolumeInfo]
    ) -> VolumeInfo:
        """Have `make` clone `source` to a volume called `name`, on another thread, and give the
        clone the source's list. What `make` raises; VolumeError, OSError."""
        async with self._changing:
            return await self._made(name, None if source is None else self.list_of(source), make)

    async def create_closed(self, name: str, make: Callable[[], VolumeInfo]) -> VolumeInfo:
        """The same of a new volume, with a list that lets nobody in."""
        async with self._changing:
            return await self._made(name, AccessList(), make)

    async def _made(
        self, name: str, access: AccessList | None, make: Callable[[], VolumeInfo]
    ) -> VolumeInfo:
        if access is None or self._store.get(name) is not None:  # `make` will refuse the name
            return await asyncio.to_thread(make)
        check_volume_name(name)  # it is going to be part of a key
        key = kept.coming_key(name)
        await asyncio.to_thread(self._keep, key, access)
        self._coming[name] = access
        try:
            made = await asyncio.to_thread(make)
        except VolumeError:  # there is no volume; after other errors there may be one
            await asyncio.to_thread(self._store.keep, key, None)
            del self._coming[name]
            raise
        uuid = bytes.fromhex(made.uuid)
        self._lists[uuid] = access
        await asyncio.to_thread(self._keep, kept.volume_key(uuid), access)
        await asyncio.to_thread(self._store.keep, key, None)
        del self._coming[name]
        return made

    def _keep(self, key: str, access: AccessList | None) -> None:
        """Waits for the disk."""
        self._store.keep(key, None if access is None else kept.encode(key, access))

    async def forget(self, volume: BlockDevice) -> None:
        """The volume was deleted. VolumeError, OSError."""
        async with self._changing:
            if volume.volume_uuid in self._lists:
                key = kept.volume_key(volume.volume_uuid)
                await asyncio.to_thread(self._store.keep, key, None)
                del self._lists[volume.volume_uuid]


def revision(access: AccessList | None) -> str:
    """Which list it is: equal ones have the same."""
    if access is None:
        return "none"
    if access.damaged:
        return "damaged"
    return hashlib.sha256(kept.encode("", access)).hexdigest()[:16]


def _uuid(key: str) -> bytes | None:
    try:
        return bytes.fromhex(key.removeprefix(kept.VOLUME))
    except ValueError:
        return None
