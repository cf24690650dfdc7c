"""Fuzz target of the cluster's records: any bytes as the value of a row of the MetaStore, and

- it decodes as the record of its key, or is CorruptRecord; no other exception;
- what decodes is written as exactly these bytes;
- a device map that decodes can be placed by, and a change of it decodes again.

Input: one byte of switches: which record (its low bits), SEAL (the rest is the JSON, and gets magic
and checksum), CANONICAL (the JSON, where it is some, is written in its canonical form).
"""

import contextlib
import json

from native import crc32c
from tests.fuzz.unlogged import unlogged
from transport.devicemap import DeviceMap, DeviceState, Level
from transport.placement import Placement
from volume.metastore_records import (
    MAGIC,
    ClusterRecord,
    CorruptRecord,
    Heartbeat,
    NameRecord,
    NodeRecord,
    Record,
    VolumeGroup,
    canonical_json,
    decode,
    encode,
)

ID = "a" * 32
KINDS: tuple[tuple[type[Record], str], ...] = (
    (DeviceMap, "devices"),
    (VolumeGroup, f"volume/{ID}"),
    (NodeRecord, f"node/{ID}"),
    (ClusterRecord, "cluster"),
    (NameRecord, "name/vm1"),
    (Heartbeat, f"beat/{ID}"),
)
KIND_BITS, SEAL, CANONICAL = 7, 8, 16


@unlogged()
def records_target(data: bytes) -> None:
    """Run one input; raises when an invariant is broken."""
    switches, value = data[0] if data else 0, data[1:]
    kind, key = KINDS[(switches & KIND_BITS) % len(KINDS)]
    if switches & CANONICAL:
        value = _canonical(value)
    if switches & (SEAL | CANONICAL):
        value = sealed(value)
    record = None
    with contextlib.suppress(CorruptRecord):
        record = decode(kind, key, value)
    if record is not None:
        assert encode(record) == value
    if isinstance(record, DeviceMap):
        _check_map(record)


def sealed(body: bytes) -> bytes:
    return MAGIC + b"%08x " % crc32c(body) + body


def _canonical(body: bytes) -> bytes:
    with contextlib.suppress(ValueError, RecursionError):
        fields = json.loads(body)
        if isinstance(fields, dict):
            return canonical_json(fields)
    return body


def _check_map(devices: DeviceMap) -> None:
    for level in Level:
        placement = Placement(devices, level)
        count = min(placement.domain_count, 8)
        if count:
            chosen = placement.choose(bytes(32), count)
            assert len({devices.device(one).domain(level) for one in chosen}) == count
    for device in devices.devices.values():
        if device.state is DeviceState.IN:
            changed = devices.drain(device.device_id)
            again = decode(DeviceMap, "devices", encode(_with_token(changed)))
            assert again.devices == changed.devices


def _with_token(devices: DeviceMap) -> DeviceMap:
    return DeviceMap(devices.epoch, devices.devices, ID)
