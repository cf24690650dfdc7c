"""The device map: which devices a cluster has, where they stand, and what each may be used for.

A device is a disk (a data directory) of a node. It stands in a host, a rack and a site, by the
names that people gave them. Another rack may have a host of the same name, so a domain is its whole
path. Weights are bytes of space: a device of twice the weight gets twice the shards.

    in         gets shards, keeps them
    draining   is read from, gets nothing new; its shards move away
    out        has nothing any more, gets nothing; can be removed
    failed     cannot be read: what it had is lost, and is made again elsewhere

A map is a value. A change makes another one with the next epoch, and `MapRecords.change` puts it
in place of the one it was made from, by a guarded transaction that raises `map_epoch` of the
cluster as well: of two who change the same map one is told that it lost. A map is named by its
epoch and by the BLAKE3 of its content, so that two nodes can tell that they mean the same one.

`seat` is what rendezvous hashes. It is the device's own id, except for one that took the place of
another: that has the other's seat, and so exactly the shards that the other had.
"""

import enum
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Final

from blake3 import blake3

from native import RENDEZVOUS_MAX_DEVICES, RENDEZVOUS_MAX_WEIGHT_BITS
from transport.errors import TransportError
from volume.metastore import ClusterRecords, Stored, Transaction
from volume.metastore_records import (
    ClusterRecord,
    CorruptRecord,
    Fields,
    canonical_json,
)

MAX_DEVICES: Final = RENDEZVOUS_MAX_DEVICES
MAX_WEIGHT: Final = 1 << RENDEZVOUS_MAX_WEIGHT_BITS  # bytes: 1 EiB
MAX_MAP_BYTES: Final = 768 << 10
"""Of 4,096 devices with names of usual length it takes half. A transaction carries the old map as
well, as its guard, and etcd takes 1.5 MiB."""

_ID = re.compile(r"[0-9a-f]{32}")
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class WrongMap(TransportError):
    """A change of the device map that cannot be made."""

    code = "wrong_device_map"


class DeviceState(enum.StrEnum):
    IN = "in"
    DRAINING = "draining"
    OUT = "out"
    FAILED = "failed"


class Level(enum.StrEnum):
    """What is to fail alone: no two shards of a pack are in the same domain of this level."""

    DEVICE = "device"
    HOST = "host"
    RACK = "rack"
    SITE = "site"


@dataclass(frozen=True, slots=True)
class Device:
    device_id: str
    """32 hex digits; never given again."""
    node_id: str
    """Of the node that serves it, 32 hex digits."""
    site: str
    rack: str
    host: str
    weight: int
    """Bytes, 1 to MAX_WEIGHT."""
    state: DeviceState = DeviceState.IN
    seat: str = ""
    """Empty: its own id."""

    @property
    def place(self) -> str:
        """The id that rendezvous hashes."""
        return self.seat or self.device_id

    @property
    def readable(self) -> bool:
        return self.state is not DeviceState.FAILED

    def domain(self, level: Level) -> tuple[str, ...]:
        path = (self.site, self.rack, self.host, self.device_id)
        return path[: 1 + (Level.SITE, Level.RACK, Level.HOST, Level.DEVICE).index(level)]


@dataclass(frozen=True, slots=True)
class DeviceMap:
    """All devices by id. Checked when made: WrongMap names what does not fit."""

    epoch: int
    devices: Mapping[str, Device]
    token: str = ""

    prefix: ClassVar[str] = "devices"
    max_bytes: ClassVar[int] = MAX_MAP_BYTES

    def __post_init__(self) -> None:
        if self.epoch < 0:
            raise WrongMap(f"device map: epoch {self.epoch} is below 0")
        if len(self.devices) > MAX_DEVICES:
            raise WrongMap(f"device map: {len(self.devices)} devices; {MAX_DEVICES} are the most")
        seats: dict[str, str] = {}
        for device_id, device in self.devices.items():
            _check(device_id, device)
            if device.state is DeviceState.IN:
                other = seats.setdefault(device.place, device_id)
                if other != device_id:
                    raise WrongMap(
                        f"device {device_id}: has the seat of {other}, which is in as well; drain "
                        "or fail one of them"
                    )

    @property
    def key(self) -> str:
        return self.prefix

    @property
    def name(self) -> str:
        """Epoch and BLAKE3 of the content: equal for equal maps, on all nodes."""
        return f"{self.epoch}-{blake3(canonical_json(self.fields())).hexdigest()[:32]}"

    def device(self, device_id: str) -> Device:
        """WrongMap for one that is not there."""
        found = self.devices.get(device_id)
        if found is None:
            raise WrongMap(
                f"device {device_id}: is not in map {self.epoch}; `blockd cluster device list` "
                "shows what there is"
            )
        return found

    def usable(self) -> list[Device]:
        """Devices that get shards, by id."""
        found = [device for device in self.devices.values() if device.state is DeviceState.IN]
        return sorted(found, key=lambda device: device.device_id)

    # -- changes: each gives the map of the next epoch

    def add(self, device: Device) -> "DeviceMap":
        if device.device_id in self.devices:
            raise WrongMap(f"device {device.device_id}: is in the map already")
        return self._with(device)

    def drain(self, device_id: str) -> "DeviceMap":
        """Have its shards moved away; it is read from until they are."""
        return self._to(device_id, DeviceState.DRAINING, DeviceState.IN)

    def back(self, device_id: str) -> "DeviceMap":
        """Use it again: the end of a drain that is not wanted any more, or of an absence."""
        return self._to(device_id, DeviceState.IN, DeviceState.DRAINING, DeviceState.OUT)

    def fail(self, device_id: str) -> "DeviceMap":
        """Count what it has as lost. It does not come back under this id: a disk that had an error
        is never built onto."""
        states = (DeviceState.IN, DeviceState.DRAINING, DeviceState.OUT)
        return self._to(device_id, DeviceState.FAILED, *states)

    def emptied(self, device_id: str) -> "DeviceMap":
        """A drain is done. The caller has seen that nothing is placed there any more."""
        return self._to(device_id, DeviceState.OUT, DeviceState.DRAINING)

    def reweigh(self, device_id: str, weight: int) -> "DeviceMap":
        return self._with(replace(self.device(device_id), weight=weight))

    def replace(self, old_id: str, new: Device) -> "DeviceMap":
        """Put `new` in the seat of `old_id`, with its weight: it gets the shards that the old one
        has, and no others move. The old one drains, unless it has failed."""
        old = self.device(old_id)
        if new.device_id in self.devices:
            raise WrongMap(f"device {new.device_id}: is in the map already")
        if old.state is DeviceState.OUT:
            raise WrongMap(
                f"device {old_id}: is out, so there is nothing to take over; add the new"
            )
        if old.state is DeviceState.IN:
            old = replace(old, state=DeviceState.DRAINING)
        taken = replace(new, seat=old.place, weight=old.weight, state=DeviceState.IN)
        devices = {**self.devices, old_id: old, new.device_id: taken}
        return DeviceMap(self.epoch + 1, devices)

    def remove(self, device_id: str) -> "DeviceMap":
        """Forget a device that is out, or has failed and has been made good for."""
        device = self.device(device_id)
        if device.state not in (DeviceState.OUT, DeviceState.FAILED):
            raise WrongMap(f"device {device_id}: is {device.state}; drain it first")
        devices = {key: value for key, value in self.devices.items() if key != device_id}
        return DeviceMap(self.epoch + 1, devices)

    def _to(self, device_id: str, state: DeviceState, *allowed: DeviceState) -> "DeviceMap":
        device = self.device(device_id)
        if device.state not in allowed:
            raise WrongMap(
                f"device {device_id}: is {device.state}, and becomes {state} only from "
                f"{' or '.join(allowed)}"
            )
        return self._with(replace(device, state=state))

    def _with(self, device: Device) -> "DeviceMap":
        return DeviceMap(self.epoch + 1, {**self.devices, device.device_id: device})

    # -- canonical form

    def fields(self) -> dict[str, Any]:
        sites: dict[str, Any] = {}
        for device in self.devices.values():
            racks = sites.setdefault(device.site, {})
            hosts = racks.setdefault(device.rack, {})
            row = [device.node_id, str(device.state), device.weight]
            hosts.setdefault(device.host, {})[device.device_id] = (
                [*row, device.seat] if device.seat else row
            )
        return {"epoch": self.epoch, "sites": sites}

    @classmethod
    def parse(cls, fields: Fields) -> "DeviceMap":
        devices: dict[str, Device] = {}
        for device in _devices(fields):
            if device.device_id in devices:
                raise CorruptRecord(fields.key, f"has device {device.device_id} twice")
            if len(devices) == MAX_DEVICES:
                raise CorruptRecord(fields.key, f"has more than {MAX_DEVICES} devices")
            devices[device.device_id] = device
        try:
            return cls(fields.number("epoch"), devices, fields.id("token"))
        except WrongMap as error:
            raise CorruptRecord(fields.key, f"is no device map ({error})") from None


def _check(device_id: str, device: Device) -> None:
    labels = [("site", device.site), ("rack", device.rack), ("host", device.host)]
    ids = [("id", device.device_id), ("node", device.node_id), ("seat", device.place)]
    for pattern, named in ((_LABEL, labels), (_ID, ids)):
        for what, value in named:
            if pattern.fullmatch(value) is None:
                form = "32 hex digits" if pattern is _ID else "1 to 64 letters, digits, '.-_'"
                raise WrongMap(f"device {device_id}: {what} {value!r} is not {form}")
    if device.device_id != device_id:
        raise WrongMap(f"device {device_id}: is entered as {device.device_id}")
    if device.seat == device_id:
        raise WrongMap(f"device {device_id}: says twice that its seat is its own")
    if not 1 <= device.weight <= MAX_WEIGHT:
        raise WrongMap(f"device {device_id}: weight {device.weight} is not 1 to {MAX_WEIGHT} bytes")


def _devices(fields: Fields) -> Iterator[Device]:
    """What the JSON has, no further checked than that it has this form."""

    def members(value: object, what: str) -> Mapping[str, Any]:
        if not isinstance(value, dict):
            raise CorruptRecord(fields.key, f"has {what} that is no JSON object")
        if not value and what != "a cluster":
            raise CorruptRecord(fields.key, f"has {what} without anything in it")
        return value

    for site, racks in members(fields.values.get("sites"), "a cluster").items():
        for rack, hosts in members(racks, "a site").items():
            for host, devices in members(hosts, "a rack").items():
                for device_id, row in members(devices, "a host").items():
                    yield _device(fields, device_id, (site, rack, host), row)


def _device(fields: Fields, device_id: str, path: tuple[str, str, str], row: object) -> Device:
    match row:
        case [str() as node, str() as state, int() as weight, *rest] if (
            type(weight) is int and state in list(DeviceState) and len(rest) <= 1
        ):
            seat = rest[0] if rest else ""
            if not isinstance(seat, str) or bool(rest) != bool(seat):
                raise CorruptRecord(fields.key, f"has a bad seat of device {device_id[:64]!r}")
            return Device(device_id, node, *path, weight, DeviceState(state), seat)
    raise CorruptRecord(fields.key, f"has a bad row of device {device_id[:64]!r}")


class MapRecords:
    """The device map in a cluster's MetaStore."""

    def __init__(self, records: ClusterRecords) -> None:
        self._records = records

    def read(self) -> Stored[DeviceMap] | None:
        """The map; perhaps an old one. CorruptRecord, MetaStoreUnavailable."""
        row = self._records.store.read(DeviceMap.prefix)
        return self._records.stored(DeviceMap, row)

    def change(
        self,
        cluster: Stored[ClusterRecord],
        old: Stored[DeviceMap] | None,
        make: Callable[[DeviceMap], DeviceMap],
    ) -> Transaction:
        """What `make` does of the map, in place of it. WrongMap from `make`, and where cluster and
        map are not of one epoch: then one of them was read before somebody's change."""
        epoch = cluster.record.map_epoch
        before = DeviceMap(epoch, {}) if old is None else old.record
        if before.epoch != epoch:
            raise WrongMap(
                f"device map: epoch {before.epoch}, but the cluster is at {epoch}; again"
            )
        after = make(before)
        assert after.epoch == epoch + 1, (after.epoch, epoch)
        return self._records.raise_map(cluster, (old, after))
