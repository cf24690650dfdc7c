"""The seeds of the fuzz targets in C.

Each is one input of native/fuzz/fuzz_NAME.c, named for what it shows. What an input is made
of says the head of that file; nothing here is used by the product.
"""

import struct

import native

WRITE, UNMAP, ZERO, MARK, HEAD, POINT, REFER = range(1, 8)
KEEP_ORDER, KEEP_PAYLOAD = 0x8000, 0x4000
RESEAL = 1
CHUNK = 65536
_UUID = b"0123456789abcdef"
_TEXT = b"the quick brown fox jumps over the lazy dog. " * 60


def record(
    op: int,
    offset: int = 0,
    length: int = 0,
    payload: bytes = b"",
    *,
    seq: int = 0,
    lsn: int = 0,
    volume: int = 1,
    flags: int = 0,
    epoch: int = 1,
    node_epoch: int = 1,
    version: int = 1,
) -> bytes:
    """A record and its payload, padded; what the target reseals is left 0."""
    head = struct.pack("<4sBBH", b"bdJR", version, op, flags)
    head += struct.pack("<IIQQQQ", node_epoch, epoch, lsn, seq, offset, length)
    head += struct.pack("<IIII", volume, 0, 0, 0)
    whole = head + payload
    return whole.ljust(-(-len(whole) // 64) * 64, b"\0")


def write(offset: int, data: bytes, seq: int, **others: int) -> bytes:
    return record(WRITE, offset, len(data), data, seq=seq, **others)


def refer(offset: int, length: int, seq: int, height: int = 2, version: int = 1) -> bytes:
    payload = bytes(range(32)) + struct.pack("<QBBHI", CHUNK, version, height, 0, 0)
    return record(REFER, offset, length, payload, seq=seq)


def records() -> dict[str, bytes]:
    """Name -> input of fuzz_record.c."""
    header = b"blockdJS" + struct.pack("<II16sQQIIQQ", 1, 3, _UUID, 7, 99, 1, 5, 1 << 26, 98)
    refers = bytes(32) + struct.pack("<QBBHI", 65536, 1, 3, 0, 0)
    rest = refers + header.ljust(128, b"\0")
    names = {WRITE: "write", UNMAP: "unmap", ZERO: "zero", MARK: "mark"}
    names |= {HEAD: "head", POINT: "point", REFER: "refer"}
    found = {name: b"\1" + record(op, 4096, 512)[:64] + rest for op, name in names.items()}
    found["no-checksum"] = b"\0" + record(WRITE, 0, 1)[:64] + rest
    found["later-version"] = b"\1" + record(WRITE, 0, 1, version=2)[:64] + rest
    found["unknown-op"] = b"\1" + record(9, 0, 1)[:64] + rest
    found["past-the-end"] = b"\1" + record(UNMAP, (1 << 64) - 512, 1024)[:64] + rest
    found["to-the-end"] = b"\1" + record(UNMAP, (1 << 64) - 512, 512)[:64] + rest
    found["too-long"] = b"\1" + record(WRITE, 0, (1 << 20) + 1)[:64] + rest
    return found


def segments() -> dict[str, bytes]:
    """Name -> input of fuzz_replay.c."""
    mark = record(MARK, 10**18, volume=0)
    page = bytes(range(256)) * 16
    plain = [
        mark,
        write(0, page, 1),
        write(4096 - 512, page[:1024], 2),
        record(UNMAP, 0, 512, seq=3),
    ]
    after_sync = b"".join(plain[:2])
    after_sync = after_sync.ljust(-(-len(after_sync) // 512) * 512, b"\0")
    named: dict[str, tuple[int, bytes]] = {
        "empty": (0, b""),
        "plain": (RESEAL, b"".join(plain)),
        "not-resealed": (0, b"".join(plain)),
        "after-a-sync": (RESEAL, after_sync + b"".join(plain[2:])),
        "zeroes": (RESEAL, mark + write(0, page, 1) + record(ZERO, 512, 1 << 20, seq=2)),
        "head-and-point": (
            RESEAL,
            mark
            + record(HEAD, 0, 100, b"h" * 100, volume=1)
            + record(POINT, 0, 300, b"p" * 300, volume=0)
            + write(0, b"x", 1),
        ),
        "refer": (RESEAL, mark + refer(CHUNK, CHUNK, 1) + write(CHUNK + 5, b"over it", 2)),
        "refer-misplaced": (RESEAL, mark + refer(CHUNK + 512, CHUNK, 1)),
        "refer-too-high": (RESEAL, mark + refer(0, CHUNK, 1, height=9)),
        "refer-of-a-later-version": (RESEAL, mark + refer(0, CHUNK, 1, version=2)),
        "later-version": (RESEAL, mark + write(0, b"x", 1, version=2)),
        "payload-damaged": (RESEAL, mark + write(0, page, 1, flags=KEEP_PAYLOAD) + plain[2]),
        "lsn-missing": (RESEAL, mark + write(0, page, 1, flags=KEEP_ORDER, lsn=5) + plain[2]),
        "another-volume": (RESEAL, mark + write(0, page, 1, volume=2) + write(0, b"y", 1)),
        "seq-again": (RESEAL, mark + write(0, b"a", 2) + write(0, b"b", 2) + write(0, b"c", 1)),
        "earlier-epoch": (RESEAL, mark + write(0, b"a", 1, epoch=0) + write(0, b"b", 2, epoch=9)),
        "node-epoch-back": (RESEAL, mark + write(0, b"a", 1, node_epoch=0)),
        "last-seq": (RESEAL, mark + write(0, b"a", (1 << 64) - 1)),
        "top-of-the-volume": (RESEAL, record(UNMAP, (1 << 64) - 512, 512, seq=1)),
        "cut-off": (RESEAL, b"".join(plain)[:-700]),
        "unaligned-ends": (RESEAL, b"".join(write(n * 100, b"z" * 99, n + 1) for n in range(20))),
    }
    return {name: bytes((switch, 3)) + data for name, (switch, data) in named.items()}


def _actions(*actions: tuple[int, int, int, int]) -> bytes:
    """One batch of (kind, offset, length, fill), in units of 64 bytes."""
    out = bytes((4, len(actions) - 1))
    for kind, offset, length, fill in actions:
        out += bytes((kind, offset, length - 1))
        if kind & 3 == 1:
            out += bytes((fill,))
    return out


def journals() -> dict[str, bytes]:
    """Name -> input of fuzz_journal.c."""
    first = _actions((1, 0, 8, 1), (0, 0, 9, 0), (1, 3, 1, 2), (2, 1, 1, 0))
    second = _actions((0x81, 63, 3, 7), (3, 64, 1, 0), (0, 60, 64, 0))
    sync, restart, later = b"\0", b"\1", b"\3\5"
    torn = b"\2\x80\0\xaa"
    return {
        "write-and-read": first + second,
        "synced": first + sync + second + sync,
        "restarted": first + restart + second + restart + first,
        "torn": first + sync + second + torn + first + torn,
        "torn-twice": first + torn + torn + second + restart,
        "later": first + later + second + later + sync + later + first + restart,
        "next-segment": _actions(*((1, 64 * n, 64, n) for n in range(4))) * 3 + torn + first,
    }


def extent_maps() -> dict[str, bytes]:
    """Name -> input of fuzz_extent_map.c."""

    def put(kind: int, first: int, count: int, number: int = 0) -> bytes:
        return struct.pack("<BHBH", kind, first, count - 1, number)

    return {
        "overwrite": put(1, 0, 8) + put(2, 2, 2, 1) + put(5, 3, 4) + put(7, 0, 16),
        "many": b"".join(put(0, n * 512, 256, n) for n in range(4)) + put(1, 100, 256, 9),
        "many-then-one": put(0, 0, 256) * 3 + put(0, 256, 256) + put(5, 0, 256) + put(5, 255, 256),
        "refers": put(6, 0, 128, 3) + put(1, 64, 1, 4) + put(6, 32, 64, 5) + put(7, 0, 200),
        "appended": b"".join(put(1, n, 1, n) for n in range(200)),
        "the-end": put(1, 4095, 1, 1) + put(7, 4095, 1) + put(5, 4000, 200),
    }


def codecs() -> dict[str, bytes]:
    """Name -> input of fuzz_codec.c."""
    found = {}
    for codec, name in enumerate(("none", "lz4", "zstd", "igzip")):
        stored = native.encode(codec, _TEXT, 2 * len(_TEXT)) if codec else _TEXT
        assert stored is not None
        numbers = bytes((codec,)) + b"".join(
            number.to_bytes(3, "little") for number in (len(_TEXT) - 1, 99, 4095)
        )
        found[name] = numbers + stored
        found[f"{name}-cut"] = numbers + stored[:-9]
        found[f"{name}-wrong-length"] = bytes((codec,)) + bytes(9) + stored
    found["unknown"] = b"\4" + bytes(9) + _TEXT[:50]
    return found


def packed() -> dict[str, bytes]:
    """Name -> input of fuzz_packed.c."""
    reads = b"".join(
        struct.pack("<HHB", offset, length, nowait)
        for offset, length, nowait in ((0, 500, 1), (400, 900, 0), (400, 100, 1), (0, 0, 0))
    )
    found = {}
    for codec, name in enumerate(("none", "lz4", "zstd", "igzip")):
        stored = native.encode(codec, _TEXT, 2 * len(_TEXT)) if codec else _TEXT
        assert stored is not None
        numbers = bytes((codec,)) + struct.pack("<HH", len(stored) - 1, len(_TEXT) - 1)
        found[name] = numbers + b"\x07\0\0" + reads + stored
        found[f"{name}-longer"] = (
            bytes((codec,)) + struct.pack("<HH", 65535, 65535) + bytes(3) + reads + stored
        )
    return found
