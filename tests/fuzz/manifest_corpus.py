"""The seeds of the manifest target: nodes, trees of them, and commits."""

import struct

from tests.fuzz.manifest_target import LINK, SEAL
from volume import commits, layout, manifest

ID = bytes(range(1, 33))


def link(number: int) -> bytes:
    return (LINK + bytes((number,))).ljust(32, b"\0")


def node(level: int, ids: dict[int, bytes], magic: bytes = SEAL) -> bytes:
    bits = sum(1 << index for index in ids)
    header = layout.NODE_HEADER.pack(magic, 1, level, len(ids))
    return header + bits.to_bytes(32, "little") + b"".join(ids[at] for at in sorted(ids))


def whole(heights: int, *pieces: bytes) -> bytes:
    return bytes((heights,)) + b"".join(struct.pack("<H", len(each)) + each for each in pieces)


def _commit() -> bytes:
    return commits.encode(
        commits.Commit(
            *(bytes(16), "vm", 1 << 30, 512, 65536, 2, ID, (ID, ID), 1, 9, 10**18, 3),
            site="here",
            writer="blockd",
        )
    )


def inputs() -> dict[str, bytes]:
    """Name -> input."""
    leaf = node(0, {0: ID, 1: ID, 255: ID})
    full = manifest.encode_node(0, ID * 256)
    sparse = manifest.encode_node(0, bytes(32) + ID + bytes(32 * 254))
    two = node(1, {0: link(0), 9: link(1)})
    return {
        "leaf": whole(0, leaf),
        "full-leaf": whole(0, full),
        "sparse-leaf": whole(0, sparse),
        "two-levels": whole(1, leaf, sparse, two),
        "three-levels": whole(2, leaf, sparse, two, node(2, {0: link(2), 7: link(2)})),
        "unequal-heights": whole(2 + 4, leaf, two, node(2, {0: link(1), 1: link(1)})),
        "wrong-level": whole(1, leaf, node(1, {0: link(0)}), node(1, {0: link(1)})),
        "missing-child": whole(1, leaf, node(1, {0: ID})),
        "zero-id": whole(0, node(0, {0: bytes(32)})),
        "no-ids": whole(0, node(0, {})),
        "another-magic": whole(0, node(0, {0: ID}, b"BMAN"), node(0, {0: ID}, b"XXXX")),
        "count-wrong": whole(0, full[:-32]),
        "commit": whole(0, _commit()),
        "commit-cut": whole(0, _commit()[:-3]),
        "commit-not-utf-8": whole(0, _commit()[:-3] + b"\xff\xfe\xfd"),
        "all-zeros": whole(0, bytes(100)),
    }
