"""The seeds of the NBD fuzz target.

Each is one input of tests.fuzz.nbd_target, named for what it shows.
"""

import struct

from blockd.nbd import wire
from tests.nbd_client import context_query, export_query, option, request

NEGOTIATE, SIMPLE, STRUCTURED, EXTENDED = range(4)
DEFERRED, LAZY, ALLOW_TLS, REQUIRE_TLS, READ_ONLY, DRAIN = 4, 8, 16, 32, 64, 128

FIXED = wire.CLIENT_FLAGS.pack(wire.FLAG_C_FIXED_NEWSTYLE | wire.FLAG_C_NO_ZEROES)
NOT_FIXED = wire.CLIENT_FLAGS.pack(0)
GO = option(wire.OPT_GO, export_query("disk", wire.INFO_BLOCK_SIZE, wire.INFO_NAME))
SET = option(wire.OPT_SET_META_CONTEXT, context_query("disk", "base:allocation", "qemu:"))
VERSION = option(wire.OPT_GO, export_query("disk@snap", wire.INFO_BLOCK_SIZE, wire.INFO_NAME))
CHANGES = ("blockd:changed-since:snap", "qemu:dirty-bitmap:snap", "qemu:dirty-bitmap:nosuch")
SET_CHANGES = option(
    wire.OPT_SET_META_CONTEXT, context_query("disk@snap", "base:allocation", *CHANGES)
)
DISC = request(wire.CMD_DISC)
PAYLOAD = wire.CMD_FLAG_PAYLOAD_LEN


def write(offset: int, data: bytes, *, cookie: int = 2, extended: bool = False) -> bytes:
    return request(
        wire.CMD_WRITE,
        offset,
        len(data),
        flags=PAYLOAD if extended else 0,
        cookie=cookie,
        payload=data,
        extended=extended,
    )


def every_command(extended: bool) -> bytes:
    """One good request of each kind, some bad ones, some with the cookie of another."""
    numbers = struct.pack(">QII", 8192, 1, 3)
    parts = [
        write(4096, b"w" * 4096, extended=extended),
        request(wire.CMD_READ, 0, 16384, cookie=1, extended=extended),
        request(wire.CMD_READ, 0, 0, cookie=1, extended=extended),
        request(wire.CMD_READ, 0, 9000, flags=wire.CMD_FLAG_DF, cookie=4, extended=extended),
        request(wire.CMD_FLUSH, cookie=5, extended=extended),
        request(wire.CMD_TRIM, 0, 1 << 20, flags=wire.CMD_FLAG_FUA, cookie=6, extended=extended),
        request(wire.CMD_CACHE, 0, 4096, cookie=7, extended=extended),
        request(wire.CMD_WRITE_ZEROES, 1, 5000, flags=wire.CMD_FLAG_NO_HOLE, extended=extended),
        request(wire.CMD_BLOCK_STATUS, 0, 1 << 20, cookie=8, extended=extended),
        request(wire.CMD_BLOCK_STATUS, 0, 9, flags=wire.CMD_FLAG_REQ_ONE, extended=extended),
        request(wire.CMD_READ, (1 << 64) - 4096, 8192, cookie=9, extended=extended),
        request(200, 0, 1, cookie=9, extended=extended),
    ]
    if extended:
        status = request(
            wire.CMD_BLOCK_STATUS,
            0,
            len(numbers),
            flags=PAYLOAD,
            cookie=10,
            payload=numbers,
            extended=True,
        )
        parts += [status, request(wire.CMD_READ, 0, 100, flags=PAYLOAD, extended=True) + b"x" * 100]
    return b"".join(parts)


def _seeds() -> dict[str, tuple[int, int, bytes]]:
    """Name -> switches, piece length, what the client sends."""
    oversize = request(wire.CMD_WRITE, 0, 70000, cookie=3) + b"o" * 70000
    options = (
        option(wire.OPT_LIST)
        + option(wire.OPT_INFO, export_query("other"))
        + option(99, b"unknown" * 50)
        + option(wire.OPT_STRUCTURED_REPLY)
        + option(wire.OPT_LIST_META_CONTEXT, context_query("disk"))
        + SET
        + option(wire.OPT_EXTENDED_HEADERS)
        + option(wire.OPT_STRUCTURED_REPLY)
    )
    starttls = option(wire.OPT_STARTTLS)
    structured = option(wire.OPT_STRUCTURED_REPLY)
    versions = (
        structured
        + option(wire.OPT_LIST)
        + option(wire.OPT_INFO, export_query("disk@nosuch"))
        + option(wire.OPT_INFO, export_query("@snap"))
        + option(wire.OPT_INFO, export_query("secret@snap"))
        + option(wire.OPT_LIST_META_CONTEXT, context_query("disk", "blockd:", *CHANGES))
        + SET_CHANGES
    )
    hostile = b"".join(
        option(wire.OPT_INFO, export_query(name))
        for name in ("disk@", "@", "@" * 4000, "disk@" + "s" * 200, "disk@a@b", "disk@\n")
    )
    flood = b"".join(
        option(wire.OPT_INFO, export_query(name)) for name in ("disk@snap", "disk@nosuch") * 6
    )
    bitmaps = [f"qemu:dirty-bitmap:{number}" for number in range(17)]
    reads = b"".join(request(wire.CMD_READ, 0, 60000, cookie=number) for number in range(20))
    return {
        "negotiate-everything": (NEGOTIATE, 0, FIXED + options + GO + every_command(True) + DISC),
        "negotiate-by-bytes": (NEGOTIATE, 1, FIXED + options + GO + every_command(True)),
        "export-name": (NEGOTIATE, 7, FIXED + option(1, b"disk") + every_command(False) + DISC),
        "export-name-not-fixed": (NEGOTIATE, 0, NOT_FIXED + option(1, b"") + every_command(False)),
        "list-not-fixed": (NEGOTIATE, 0, NOT_FIXED + option(wire.OPT_LIST)),
        "abort": (NEGOTIATE, 0, FIXED + option(wire.OPT_ABORT, b"why") + GO),
        "bad-client-flags": (NEGOTIATE, 0, b"\xff\xff\xff\xff" + GO),
        "bad-option-magic": (NEGOTIATE, 0, FIXED + b"IHAVEOPS" + bytes(8)),
        "option-flood": (NEGOTIATE | LAZY, 0, FIXED + option(wire.OPT_LIST) * 80),
        "option-too-long": (NEGOTIATE, 0, FIXED + option(wire.OPT_GO, b"g" * 5000) + GO),
        "option-name-length": (NEGOTIATE, 0, FIXED + option(7, struct.pack(">I", 1 << 31))),
        "tls-selective": (NEGOTIATE | ALLOW_TLS, 3, FIXED + options + starttls + GO),
        "tls-secret": (
            NEGOTIATE | ALLOW_TLS,
            16,
            FIXED + starttls + option(wire.OPT_GO, export_query("secret")) + every_command(False),
        ),
        "tls-required": (NEGOTIATE | REQUIRE_TLS, 16, FIXED + GO + starttls + options + GO + DISC),
        "tls-required-export-name": (NEGOTIATE | REQUIRE_TLS, 0, FIXED + option(1, b"disk")),
        "drain-negotiating": (NEGOTIATE | DRAIN, 9, FIXED + options + GO),
        "simple": (SIMPLE, 0, every_command(False) + DISC),
        "simple-deferred": (SIMPLE | DEFERRED, 11, every_command(False) + DISC),
        "simple-read-only": (SIMPLE | READ_ONLY, 0, every_command(False)),
        "simple-drain": (SIMPLE | DRAIN | DEFERRED, 50, every_command(False)),
        "simple-oversize-write": (SIMPLE, 0, oversize + every_command(False)),
        "simple-stalled": (SIMPLE | DEFERRED, 0, reads + every_command(False)),
        "simple-lazy": (SIMPLE | LAZY, 0, reads + every_command(False) + DISC),
        "simple-cut-payload": (SIMPLE, 0, every_command(False) + write(0, b"x" * 99)[:-1]),
        "simple-bad-magic": (SIMPLE | DEFERRED, 0, every_command(False) + bytes(28)),
        "structured": (STRUCTURED, 0, every_command(False) + DISC),
        "structured-lazy": (STRUCTURED | LAZY, 0, every_command(False) * 4),
        "extended": (EXTENDED, 0, every_command(True) + DISC),
        "extended-deferred": (EXTENDED | DEFERRED, 5, every_command(True) * 3),
        "version": (NEGOTIATE, 0, FIXED + versions + VERSION + every_command(False) + DISC),
        "version-by-bytes": (
            NEGOTIATE | DEFERRED,
            1,
            FIXED + versions + VERSION + every_command(False),
        ),
        "version-extended": (
            NEGOTIATE | DEFERRED,
            200,
            FIXED + option(wire.OPT_EXTENDED_HEADERS) + SET_CHANGES + VERSION + every_command(True),
        ),
        "version-export-name": (NEGOTIATE, 5, FIXED + option(1, b"disk@snap") + DISC),
        "version-export-name-unknown": (NEGOTIATE, 0, FIXED + option(1, b"disk@nosuch")),
        "version-left-while-opened": (NEGOTIATE | DEFERRED, 0, FIXED + VERSION),
        "version-drain": (NEGOTIATE | DEFERRED | DRAIN, 40, FIXED + VERSION + every_command(False)),
        "version-flood": (NEGOTIATE, 0, FIXED + flood + GO),
        "version-hostile-names": (NEGOTIATE, 0, FIXED + hostile + GO + DISC),
        "version-tls": (
            NEGOTIATE | ALLOW_TLS,
            30,
            FIXED + versions + starttls + option(wire.OPT_GO, export_query("secret@snap")) + DISC,
        ),
        "contexts-too-many": (
            NEGOTIATE,
            0,
            FIXED
            + structured
            + option(wire.OPT_SET_META_CONTEXT, context_query("disk", *bitmaps))
            + GO,
        ),
        "extended-huge-payload": (
            EXTENDED,
            0,
            request(1, 0, 1 << 40, flags=PAYLOAD, extended=True),
        ),
    }


def inputs() -> dict[str, bytes]:
    """Name -> input."""
    return {
        name: bytes((switches, piece)) + sent for name, (switches, piece, sent) in _seeds().items()
    }
