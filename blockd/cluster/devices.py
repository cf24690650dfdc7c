"""Devices of the cluster: this node's own one, entered by itself, and what people do to any.

A data directory is a device. Its id is in `shards/device`, made once, beside the shards: a disk
that was replaced by an empty one is another device. At each start, and until etcd has taken it, the
device is entered in the map as the configuration says where it stands; what is there of it stays:
its state, its seat, and a weight that somebody has set.

The map is read again with each round of the stripes, and at each change from here. What was read
last stays in use while etcd does not answer.
"""

import contextlib
import logging
import os
import re
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from blockd.api.cluster_types import DeviceInfo, DeviceList
from blockd.config.cluster import ClusterConfig
from transport.devicemap import Device, DeviceMap, DeviceState, MapRecords, WrongMap
from transport.shardfile import FOLDER, prepare
from transport.stripestate import DeviceUse, StripeState
from volume.disk import Disk
from volume.errors import CorruptData, VolumeError
from volume.metastore import TRIES, ClusterRecords, Done, Lost, MetaStoreUnavailable

logger = logging.getLogger(__name__)

ID_FILE: Final = f"{FOLDER}/device"
_NOTHING: Final = DeviceUse(0, 0, 0, 0)
_ID = re.compile(rb"[0-9a-f]{32}\n")


class CorruptDevice(CorruptData):
    """The file that says which device this is cannot be used."""

    code = "corrupt_device"


def own_id(disk: Disk) -> str:
    """The id of this data directory as a device, made if there is none: durable on return.
    CorruptDevice, OSError."""
    prepare(disk)
    try:
        file = disk.open(ID_FILE, read_only=True)
    except FileNotFoundError:
        return _new_id(disk)
    with contextlib.closing(file):
        found = file.pread(64, 0)
    if _ID.fullmatch(found) is None:
        raise CorruptDevice(
            f"{ID_FILE}: is no id of a device; `blockd cluster devices` on another node shows the "
            "id that this node's has: write it there, 32 hex digits and a line feed"
        )
    return found.decode().strip()


def _new_id(disk: Disk) -> str:
    made = os.urandom(16).hex()
    new = f"{ID_FILE}.making"
    with contextlib.suppress(FileNotFoundError):
        disk.unlink(new)
    file = disk.open(new, create=True)
    with contextlib.closing(file):
        file.pwrite(f"{made}\n".encode(), 0)
        file.sync()
    disk.rename(new, ID_FILE)
    disk.sync_dir(FOLDER)
    return made


class Devices:
    """Any thread; calls wait for etcd. MetaStoreUnavailable, CorruptRecord, WrongMap."""

    def __init__(
        self,
        config: ClusterConfig,
        node: tuple[str, str],
        device_id: str,
        total_bytes: int,
        records: ClusterRecords,
        names: Callable[[], dict[str, str]],
        state: Callable[[], StripeState],
    ) -> None:
        """`node`: id and name of this one. `names`: of all nodes, by id. `state`: what the last
        round of the stripes has seen."""
        self.device_id = device_id
        self._config = config
        self._node, self._name = node
        self._total_bytes = total_bytes
        self._records = records
        self._maps = MapRecords(records)
        self._names = names
        self._state = state
        self._lock = threading.Lock()
        self._known = DeviceMap(0, {})

    # -- the map

    @property
    def known(self) -> DeviceMap:
        """As it was read last."""
        return self._known

    def read(self) -> DeviceMap:
        """As it is now."""
        found = self._maps.read()
        if found is not None:
            with self._lock:
                if found.record.epoch >= self._known.epoch:
                    self._known = found.record
        return self._known

    def change(self, make: Callable[[DeviceMap], DeviceMap | None]) -> DeviceMap:
        """Have the map be what `make` says, whatever others change meanwhile; None: as it is."""
        for _ in range(TRIES):
            cluster = self._records.cluster()
            if cluster is None:
                raise MetaStoreUnavailable("metastore: there is no cluster under this prefix")
            old = self._maps.read()
            if old is not None and old.record.epoch != cluster.record.map_epoch:
                continue  # somebody's change came between the two
            now = DeviceMap(cluster.record.map_epoch, {}) if old is None else old.record
            after = make(now)
            if after is None:
                return now
            made = self._maps.change(cluster, old, lambda _, after=after: after)  # type: ignore[misc]
            outcome = self._records.settle(made)
            if isinstance(outcome, Done):
                return self.read()
            if not isinstance(outcome, Lost):
                raise MetaStoreUnavailable(f"metastore: device map: {outcome.reason}")
        raise MetaStoreUnavailable(
            f"metastore: the device map was changed {TRIES} times meanwhile; try again"
        )

    def enter(self) -> None:
        """Have this node's device be in the map, where the configuration says that it stands."""
        self.change(self._entered)

    def _entered(self, now: DeviceMap) -> DeviceMap | None:
        config = self._config
        weight = config.weight or self._total_bytes
        place = (config.site, config.rack, config.host or self._name)
        found = now.devices.get(self.device_id)
        if found is None:
            return now.add(Device(self.device_id, self._node, *place, weight))
        if found.state is DeviceState.FAILED:
            logger.error("this node's device has failed: no shards device=%s", found.device_id)
        moved = replace(
            found,
            node_id=self._node,
            site=config.site,
            rack=config.rack,
            host=config.host or self._name,
            weight=config.weight or found.weight,
        )
        if moved == found:
            return None
        return DeviceMap(now.epoch + 1, {**now.devices, self.device_id: moved})

    def emptied(self, device_id: str) -> None:
        """A drain is done: nothing is placed there any more."""

        def out(now: DeviceMap) -> DeviceMap | None:
            found = now.devices.get(device_id)
            if found is None or found.state is not DeviceState.DRAINING:
                return None
            return now.emptied(device_id)

        self.change(out)

    # -- for people

    def list(self) -> DeviceList:
        """All devices, and what is on each, as the last round has seen it."""
        try:
            devices, problem = self.read(), ""
        except VolumeError as error:
            devices, problem = self._known, str(error)
        state, names = self._state(), self._names()
        infos = [self._info(each, state, names) for each in devices.devices.values()]
        return DeviceList(
            epoch=devices.epoch,
            problem=problem,
            stripes=state.rows,
            unreadable=state.unreadable,
            moves=state.waiting,
            move_bytes=state.waiting_bytes,
            problems=tuple(f"{what}: {why}" for what, why in sorted(state.problems.items())),
            devices=tuple(sorted(infos, key=lambda each: (each.node, each.device))),
        )

    def act(self, action: str, device: str, other: str | None = None) -> DeviceList:
        """Drain, return, fail, remove or replace (by `other`) a device, named by its id or the
        beginning of it, or by the name of its node. WrongMap; durable on return."""

        def change(now: DeviceMap) -> DeviceMap:
            found = self._named(now, device)
            match action:
                case "drain":
                    return now.drain(found)
                case "return":
                    return now.back(found)
                case "fail":
                    return now.fail(found)
                case "remove":
                    after = now.remove(found)
                    self._check_unused(found)
                    return after
                case _:
                    return self._replaced(now, found, other or "")

        self.change(change)
        return self.list()

    def _replaced(self, now: DeviceMap, old: str, other: str) -> DeviceMap:
        """The new device is in the map already, as each enters itself: it takes the seat."""
        new = now.devices[self._named(now, other)]
        if new.device_id == old:
            raise WrongMap(f"device {old}: cannot replace itself")
        if self._state().devices.get(new.device_id, None) not in (None, _NOTHING):
            raise WrongMap(f"device {new.device_id}: has shards already; drain it first")
        rest = {key: each for key, each in now.devices.items() if key != new.device_id}
        empty = replace(new, state=DeviceState.IN, seat="")
        return DeviceMap(now.epoch, rest).replace(old, empty)

    def _check_unused(self, device: str) -> None:
        use = self._state().devices.get(device)
        if use is None:  # then nobody could say any more that its shards are lost
            raise WrongMap(
                f"device {device}: this node has not looked yet what is placed on it; try again"
            )
        if use.shards:
            raise WrongMap(
                f"device {device}: {use.shards} shards are placed on it still; wait until they are "
                "made elsewhere, as `blockd cluster devices` shows"
            )

    def _named(self, now: DeviceMap, text: str) -> str:
        names = self._names()
        found = [
            device.device_id
            for device in now.devices.values()
            if device.device_id.startswith(text) or names.get(device.node_id) == text
        ]
        if len(found) == 1 and text:
            return found[0]
        raise WrongMap(
            f"device {text!r}: {f'{len(found)} devices are' if found else 'none is'} called so; "
            "`blockd cluster devices` shows their ids"
        )

    def _info(self, device: Device, state: StripeState, names: dict[str, str]) -> DeviceInfo:
        use = state.devices.get(device.device_id, _NOTHING)
        return DeviceInfo(
            device=device.device_id,
            node=names.get(device.node_id, device.node_id),
            here=device.device_id == self.device_id,
            site=device.site,
            rack=device.rack,
            host=device.host,
            weight=device.weight,
            state=str(device.state),
            shards=use.shards,
            shard_bytes=use.shard_bytes,
            leaving=use.leaving,
            leaving_bytes=use.leaving_bytes,
        )
