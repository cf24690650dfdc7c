"""The seeds of the target of meta/ and index/: what real stores keep, whole and with damage."""

import json

from blockd.registry import stored
from blockd.scsi import pr_codec
from blockd.scsi.pr_codec import Kept, Registrant, Reservation
from tests.fuzz.meta_target import FRAMED
from tests.sim.store_rig import StoreRig
from tests.unit.volume.stream_rig import Site
from volume import layout

_IQN = "iqn.2026-11.test:t"


def rows(items: dict[bytes, bytes], *, body: bool = True) -> bytes:
    """The rows of an input; `body`: without what frames the values, as the target adds that."""
    out = b""
    for key, value in items.items():
        value = value[1:-4] if body else value
        out += bytes((len(key),)) + key + len(value).to_bytes(2, "big") + value
    return out


def _store() -> StoreRig:
    rig = StoreRig()
    rig.tend()
    rig.store.create_volume("vm", 1 << 20)
    rig.store.create_volume("other", 1 << 20)
    rig.write("vm", 0, b"one" * 2048)
    rig.store.snapshots.create("first", ["vm", "other"], pinned=True)
    rig.settle()
    rig.write("vm", 8192, b"two" * 2048)
    rig.store.snapshots.create("second", ["vm"])
    rig.store.snapshots.set_schedule("vm", 3600, "24h,7d")
    rig.store.versions.set_policy("vm", window_s=60, keep="60m")
    rig.store.keep("iscsi/x", b"opaque")
    return rig


def _target() -> bytes:
    target = stored.created(_IQN, "alias", "192.0.2.1:3260")
    target = stored.with_lun(target, "00" * 16, "", None)
    target = stored.with_entry(target, "192.0.2.0/24")
    target = stored.with_chap(target, "user", b"0123456789abcdef", mutual=False)
    return stored.with_chap(target, "me", b"fedcba9876543210", mutual=True).encode()


def _reservation() -> bytes:
    holder = Registrant("iqn.2026-11.test:a", bytes(6), 1)
    other = Registrant("iqn.2026-11.test:b", None, None)
    return pr_codec.encode_kept(Kept({holder: 1, other: 2}, Reservation(1, holder)))[:-4]


def _receive() -> dict[bytes, bytes]:
    site = Site()
    stream = site.stream(site.commit({at: at + 1 for at in range(40)}))
    sink = Site()
    with sink.receiver() as receiver:
        receiver.feed(stream[: len(stream) * 2 // 3])
    return sink.meta.snapshot()


def inputs() -> dict[str, bytes]:
    """Name -> input."""
    rig = _store()
    meta, index = rig.meta.snapshot(), dict(list(rig.index.snapshot().items())[:12])
    state = layout.META_PREFIX_STATE
    target_key = state + (stored.PREFIX + _IQN).encode()
    wrong = json.loads(_target()) | {"luns": [{"lun": 1}]}
    nobody = b"\1" + bytes(4)  # frames a value that has none
    named = {
        "meta": (FRAMED, rows(meta)),
        "meta-as-it-is": (0, rows(meta, body=False)),
        "meta-bit-flip": (0, rows({k: v[:-5] + b"\xff" + v[-4:] for k, v in meta.items()})),
        "meta-cut": (FRAMED, rows({key: value[:-9] for key, value in meta.items()})),
        "index": (0, rows(index, body=False)),
        "index-cut": (0, rows({k: v[:-1] for k, v in index.items()}, body=False)),
        "target": (FRAMED, rows({target_key: nobody[:1] + _target() + nobody[1:]})),
        "target-wrong": (FRAMED, rows({target_key: b"\1" + json.dumps(wrong).encode() + bytes(4)})),
        "reservation": (FRAMED, rows({state + b"iscsi/unit": b"\1" + _reservation() + bytes(4)})),
        "receive": (0, rows(_receive(), body=False)),
        "keys-too-short": (FRAMED, rows({key[:3]: value for key, value in meta.items()})),
        "nothing": (FRAMED, b""),
    }
    return {name: bytes((switches,)) + data for name, (switches, data) in named.items()}
