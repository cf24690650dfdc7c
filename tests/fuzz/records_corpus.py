"""The seeds of the records target: each record as it is written, and device maps gone wrong."""

from dataclasses import replace

from tests.device_maps import device, even_map
from tests.fuzz.records_target import CANONICAL, ID, KINDS, SEAL
from transport.devicemap import DeviceMap
from volume.metastore_records import (
    ClusterRecord,
    GroupState,
    Heartbeat,
    Mode,
    NameRecord,
    NodeRecord,
    Record,
    VolumeGroup,
    encode,
)

_OTHER = "b" * 32
_MAP = DeviceMap(
    3,
    even_map(3).drain(device(0, 0).device_id).replace(device(1, 1).device_id, device(9, 1)).devices,
)
_GROUP = VolumeGroup(
    volume_id=ID,
    name="vm1",
    epoch=3,
    primary=ID,
    members=(ID, _OTHER),
    replicas=3,
    write_quorum=2,
    mode=Mode.MIRROR,
    head="ef" * 32,
    branch="main",
    state=GroupState.OPEN,
)
_RECORDS: tuple[Record, ...] = (
    _MAP,
    _GROUP,
    NodeRecord(ID, "node-1", ("10.0.0.1:7000",), "cd" * 32),
    ClusterRecord(_OTHER, 7),
    NameRecord("vm1", ID),
    Heartbeat(ID, 1_700_000_000_000_000_000),
)


def _body(record: Record) -> bytes:
    """The JSON of its value."""
    value: bytes = encode(replace(record, token=ID))  # type: ignore[type-var]
    return value[17:]


def inputs() -> dict[str, bytes]:
    """Name -> input."""
    found = {}
    for number, (kind, _) in enumerate(KINDS):
        record = next(record for record in _RECORDS if type(record) is kind)
        found[kind.__name__] = bytes((number | SEAL,)) + _body(record)
        found[kind.__name__ + "-loose"] = bytes((number | CANONICAL,)) + _body(record)
    whole = encode(replace(_MAP, token=ID))
    body = _body(_MAP)
    first = device(2, 2).device_id.encode()
    return found | {
        "map-whole": b"\0" + whole,
        "map-another-version": b"\0" + whole.replace(b"blockd1", b"blockd2"),
        "map-bit-flip": b"\0" + whole[:-9] + b"!" + whole[-8:],
        "map-weight-0": bytes((CANONICAL,)) + body.replace(b"1099511627776", b"0"),
        "map-huge-weight": bytes((CANONICAL,)) + body.replace(b"1099511627776", b"9" * 40),
        "map-no-object": bytes((CANONICAL,)) + body.replace(b'{"h0"', b'["h0"').replace(b":", b","),
        "map-one-device-twice": bytes((CANONICAL,))
        + body.replace(device(0, 0).device_id.encode(), first),
        "map-spaces": bytes((SEAL,)) + body.replace(b",", b", "),
        "nothing": b"\0",
        "deep": bytes((SEAL,)) + b'{"sites":' * 200,
    }
