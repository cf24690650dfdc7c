"""CDBs of the commands that move data, byte by byte as SBC-3 and SPC-4 have them."""

READS = (6, 10, 12, 16)
LONG = (10, 12, 16)


def _ten(code: int, flags: int, lba: int, count: int) -> bytes:
    return bytes((code, flags)) + lba.to_bytes(4, "big") + b"\0" + count.to_bytes(2, "big") + b"\0"


def _twelve(code: int, flags: int, lba: int, count: int) -> bytes:
    return bytes((code, flags)) + lba.to_bytes(4, "big") + count.to_bytes(4, "big") + b"\0\0"


def _sixteen(code: int, flags: int, lba: int, count: int) -> bytes:
    return bytes((code, flags)) + lba.to_bytes(8, "big") + count.to_bytes(4, "big") + b"\0\0"


_FORMS = {10: _ten, 12: _twelve, 16: _sixteen}


def _six(code: int, lba: int, count: int) -> bytes:
    return bytes((code,)) + lba.to_bytes(3, "big") + bytes((count & 0xFF, 0))


def read(lba: int, count: int, *, size: int = 10, flags: int = 0) -> bytes:
    if size == 6:
        return _six(0x08, lba, count)
    return _FORMS[size]({10: 0x28, 12: 0xA8, 16: 0x88}[size], flags, lba, count)


def write(lba: int, count: int, *, size: int = 10, flags: int = 0) -> bytes:
    if size == 6:
        return _six(0x0A, lba, count)
    return _FORMS[size]({10: 0x2A, 12: 0xAA, 16: 0x8A}[size], flags, lba, count)


def verify(lba: int, count: int, *, size: int = 10, check: int = 0, flags: int = 0) -> bytes:
    return _FORMS[size]({10: 0x2F, 12: 0xAF, 16: 0x8F}[size], flags | check << 1, lba, count)


def write_and_verify(
    lba: int, count: int, *, size: int = 10, check: int = 1, flags: int = 0
) -> bytes:
    return _FORMS[size]({10: 0x2E, 12: 0xAE, 16: 0x8E}[size], flags | check << 1, lba, count)


def synchronize(lba: int = 0, count: int = 0, *, size: int = 10, flags: int = 0) -> bytes:
    return _FORMS[size]({10: 0x35, 16: 0x91}[size], flags, lba, count)


def pre_fetch(lba: int, count: int, *, size: int = 10, flags: int = 0) -> bytes:
    return _FORMS[size]({10: 0x34, 16: 0x90}[size], flags, lba, count)


def write_same(lba: int, count: int, *, size: int = 16, flags: int = 0) -> bytes:
    return _FORMS[size]({10: 0x41, 16: 0x93}[size], flags, lba, count)


def unmap(length: int, *, flags: int = 0) -> bytes:
    """`length` of the parameter list."""
    return bytes((0x42, flags, 0, 0, 0, 0, 0)) + length.to_bytes(2, "big") + b"\0"


def unmap_list(*ranges: tuple[int, int]) -> bytes:
    """(lba, count) each."""
    body = b"".join(
        lba.to_bytes(8, "big") + count.to_bytes(4, "big") + bytes(4) for lba, count in ranges
    )
    return (len(body) + 6).to_bytes(2, "big") + len(body).to_bytes(2, "big") + bytes(4) + body


def get_lba_status(lba: int, allocation: int = 24) -> bytes:
    return b"\x9e\x12" + lba.to_bytes(8, "big") + allocation.to_bytes(4, "big") + b"\0\0"


def compare_and_write(lba: int, count: int, *, flags: int = 0) -> bytes:
    return bytes((0x89, flags)) + lba.to_bytes(8, "big") + bytes((0, 0, 0, count, 0, 0))


def orwrite(lba: int, count: int, *, flags: int = 0) -> bytes:
    return _sixteen(0x8B, flags, lba, count)


def write_atomic(lba: int, count: int, *, flags: int = 0, boundary: int = 0) -> bytes:
    return (
        bytes((0x9C, flags))
        + lba.to_bytes(8, "big")
        + boundary.to_bytes(2, "big")
        + count.to_bytes(2, "big")
        + b"\0\0"
    )


def sanitize(action: int, length: int = 0, *, flags: int = 0) -> bytes:
    return bytes((0x48, flags | action, 0, 0, 0, 0, 0)) + length.to_bytes(2, "big") + b"\0"


def extended_copy(length: int) -> bytes:
    return b"\x83" + bytes(9) + length.to_bytes(4, "big") + b"\0\0"


def copy_results(action: int, list_id: int = 0, allocation: int = 1024) -> bytes:
    return bytes((0x84, action, list_id)) + bytes(7) + allocation.to_bytes(4, "big") + b"\0\0"


def cscd(
    designator: bytes,
    *,
    kind: int = 0xE4,
    flags: int = 0,
    pad: bool = False,
    block_length: int = 512,
) -> bytes:
    """`flags` of byte 1."""
    head = bytes((kind, flags, 0, 0, 0x01, 0x03, 0, len(designator))) + designator.ljust(20, b"\0")
    return head + bytes((pad << 2,)) + block_length.to_bytes(3, "big")


def segment(
    source: int,
    destination: int,
    count: int,
    source_lba: int,
    destination_lba: int,
    *,
    kind: int = 0x02,
    flags: int = 0,
) -> bytes:
    return (
        bytes((kind, flags, 0, 0x18))
        + source.to_bytes(2, "big")
        + destination.to_bytes(2, "big")
        + bytes(2)
        + count.to_bytes(2, "big")
        + source_lba.to_bytes(8, "big")
        + destination_lba.to_bytes(8, "big")
    )


def copy_list(
    cscds: list[bytes],
    segments: list[bytes],
    *,
    list_id: int = 1,
    usage: int = 0,
    inline: int = 0,
) -> bytes:
    targets, parts = b"".join(cscds), b"".join(segments)
    return (
        bytes((list_id, usage << 3))
        + len(targets).to_bytes(2, "big")
        + bytes(4)
        + len(parts).to_bytes(4, "big")
        + inline.to_bytes(4, "big")
        + targets
        + parts
    )
