"""The seeds of the journal fuzz target.

Each is one input of tests.fuzz.journal_target, named for what it shows.
"""

import struct

from tests.fuzz.journal_target import (
    FROM_FIRST,
    KEEP_HEADER_AT,
    LONG,
    NAMED,
    RESEAL,
    ROUNDS,
    SHORT,
)
from tests.fuzz.native_corpus import (
    HEAD,
    KEEP_ORDER,
    KEEP_PAYLOAD,
    MARK,
    POINT,
    UNMAP,
    ZERO,
    record,
    refer,
    write,
)
from volume import layout, points

HEADER_BYTES = 4096


def header(
    sequence: int, *, synced: int = 0, epoch: int = 1, version: int = 1, keep: int = 0
) -> bytes:
    """A segment's header; what the target reseals is left 0."""
    head = struct.pack("<8sII16sQQ", b"blockdJS", version, 0, bytes(16), sequence, 0)
    head += struct.pack("<IIQQ", epoch, 0, 0, synced)
    head = head.ljust(KEEP_HEADER_AT, b"\0") + bytes((keep,))
    return head.ljust(HEADER_BYTES, b"\0")


def file(content: bytes, *, size: int = 0, name: str | None = None) -> bytes:
    given = b"" if name is None else bytes((len(name.encode()),)) + name.encode()
    kind = size | (NAMED if name is not None else 0)
    return bytes((kind,)) + given + len(content).to_bytes(2, "little") + content


def mark(
    time_ns: int, proves: int = 0, *, flags: int = 0, lsn: int = 0, node_epoch: int = 1
) -> bytes:
    return record(MARK, time_ns, seq=proves, volume=0, flags=flags, lsn=lsn, node_epoch=node_epoch)


def point(name: str, *volumes: tuple[int, int], damaged: bool = False) -> bytes:
    payload = layout.POINT_COUNT.pack(len(volumes))
    payload += b"".join(layout.POINT_VOLUME.pack(*volume) for volume in volumes)
    payload += points.encode_tail(
        5, name, pinned=True, scheduled=False, states=[(1, 1 << 20) for _ in volumes]
    )
    payload = payload[:-1] if damaged else payload
    return record(POINT, 0, len(payload), payload, volume=0)


def _aligned(data: bytes) -> bytes:
    """As a sync leaves it."""
    return data.ljust(-(-len(data) // 512) * 512, b"\0")


def _seeds() -> dict[str, tuple[int, list[bytes]]]:
    """Name -> switches, files."""
    page = bytes(range(256)) * 4
    text = b"".join(
        (
            mark(5),
            write(0, page, 1),
            record(UNMAP, 0, 512, seq=2),
            point("first", (1, 2), (2, 3)),
        )
    )
    after = mark(9, 4) + write(512, page, 3) + record(ZERO, 0, 4096, seq=4, volume=2, epoch=2)
    whole = header(1) + _aligned(text) + after
    one, two, three = (header(number) + text for number in (1, 2, 3))
    log = [file(one), file(two + after), file(header(3, synced=6) + mark(12) + point("last"))]
    both = RESEAL | FROM_FIRST
    end = (1 << 64) - 1
    named = "00000007.seg"
    return {
        "empty": (RESEAL, []),
        "zeros": (RESEAL, [file(b""), file(b"")]),
        "one": (both, [file(whole)]),
        "not-resealed": (0, [file(whole)]),
        "log": (both, log),
        "log-of-a-new-store": (RESEAL, log),
        "log-with-a-window": (RESEAL | ROUNDS, log),
        "log-in-any-order": (both, [file(three), file(one), file(two)]),
        "unused-segments": (both, [file(b""), *log, file(b"")]),
        "first-is-missing": (FROM_FIRST | RESEAL, log[1:]),
        "middle-is-missing": (both, [log[0], file(b""), log[2]]),
        "point-damaged": (both, [file(header(1) + point("x", (1, 1), damaged=True))]),
        "point-of-many": (both, [file(header(1) + point("m", *((n, n) for n in range(99))))]),
        "head-and-refer": (
            both,
            [file(header(1) + record(HEAD, 0, 99, b"h" * 99) + refer(0, 65536, 1) + after)],
        ),
        "refer-of-a-later-version": (both, [file(header(1) + refer(0, 65536, 1, version=2))]),
        "later-version": (both, [file(header(1) + mark(1) + write(0, b"x", 1, version=2))]),
        "later-header": (both, [file(one), file(header(2, version=2))]),
        "lsn-missing": (both, [file(header(1) + mark(1) + mark(2, flags=KEEP_ORDER, lsn=9))]),
        "payload-damaged": (
            both,
            [file(header(1) + mark(1) + write(0, page, 1, flags=KEEP_PAYLOAD) + after)],
        ),
        "damage-is-proved": (
            both,
            [
                file(
                    header(1)
                    + mark(1)
                    + write(0, page, 1, flags=KEEP_PAYLOAD)
                    + _aligned(mark(2, 2))
                    + mark(3, 3)
                )
            ],
        ),
        "damage-is-proved-later": (
            both,
            [
                file(header(1) + mark(1) + write(0, page, 1, flags=KEEP_PAYLOAD)),
                file(header(2, synced=9) + mark(2, 2)),
            ],
        ),
        "proof-not-signed": (
            both,
            [
                file(header(1) + mark(1) + write(0, b"x", 1, flags=KEEP_PAYLOAD)),
                file(header(2) + mark(2, 9, flags=KEEP_PAYLOAD)),
            ],
        ),
        "epoch-back": (both, [file(header(1, epoch=5) + text), file(header(2, epoch=1) + text)]),
        "same-sequence": (both, [file(one), file(one)]),
        "last-sequence": (RESEAL, [file(header(end) + text)]),
        "sequence-of-none": (both, [file(header(0) + text)]),
        "last-sequences": (both, [file(one), file(header(end - 1) + text)]),
        "synced-to-the-end": (both, [file(header(1, synced=end) + text)]),
        "last-epoch": (both, [file(header(1, epoch=(1 << 32) - 1) + text)]),
        "written-by-a-later-run": (both, [file(header(1) + mark(1, node_epoch=(1 << 32) - 1))]),
        "foreign": (both, [file(header(1, keep=1) + text)]),
        "short-and-long": (both, [file(one), file(two[:5000], size=SHORT)]),
        "longer": (both, [file(one), file(two, size=LONG)]),
        "names": (both, [file(one, name=named), file(b"x", name="README", size=SHORT)]),
        "names-that-are-numbers": (
            both,
            [file(one)]
            + [file(b"", name=name) for name in ("+0000007.seg", "0000000A.seg", "0x00000a.seg")],
        ),
        "names-of-no-slot": (
            both,
            [file(one), *(file(b"", name=name) for name in ("-0000001.seg", "00010000.seg"))],
        ),
        "seq-and-time-at-the-end": (
            both,
            [file(header(1) + mark(end) + write(0, b"a", end) + write(9, b"b", 7))],
        ),
        "to-the-end-of-the-volume": (
            both,
            [file(header(1) + record(UNMAP, end - 511, 511, seq=9, volume=2, epoch=2))],
        ),
        "fragments": (
            both,
            [file(header(1) + b"".join(write(n * 100, b"z", n + 1) for n in range(90)))],
        ),
    }


def inputs() -> dict[str, bytes]:
    """Name -> input."""
    return {
        name: bytes((switches,)) + b"".join(files) for name, (switches, files) in _seeds().items()
    }
