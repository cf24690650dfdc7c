"""The seeds of the fuzz targets of the request loop: what clients send once it serves them.

Each is one input of native/fuzz/fuzz_nbd.c or fuzz_iscsi.c, named for what it shows.
"""

import struct

from blockd.nbd import wire
from tests.fuzz.nbd_corpus import DISC, PAYLOAD, every_command, write
from tests.nbd_client import request

SIMPLE, STRUCTURED, EXTENDED = range(3)
READ_ONLY, BLOCKS, LAZY, SYNCS_FAIL = 4, 8, 16, 32
CHUNK = 65536
KNOWN, SIZE = 2 * CHUNK, 4 * CHUNK


def _plain(extended: bool) -> bytes:
    """What the loop serves."""
    zeroes = wire.CMD_FLAG_NO_HOLE | wire.CMD_FLAG_FAST_ZERO | wire.CMD_FLAG_FUA
    fua = wire.CMD_FLAG_FUA | (PAYLOAD if extended else 0)
    return b"".join(
        (
            write(4096, b"w" * 900, extended=extended),
            request(wire.CMD_READ, 3000, 9000, extended=extended),
            request(
                wire.CMD_WRITE,
                512,
                512,
                flags=fua,
                payload=bytes(range(256)) * 2,
                extended=extended,
            ),
            request(wire.CMD_READ, 0, 20000, extended=extended),
            request(wire.CMD_WRITE_ZEROES, 4200, 100, flags=zeroes, extended=extended),
            request(wire.CMD_TRIM, 0, 600, flags=wire.CMD_FLAG_FUA, extended=extended),
            request(wire.CMD_READ, 0, 5500, extended=extended),
            request(wire.CMD_FLUSH, extended=extended),
        )
    )


def _odd(extended: bool) -> bytes:
    """What is the engine's: ranges, flags, chunks that are not known."""
    return b"".join(
        (
            request(wire.CMD_READ, KNOWN - 512, 1024, extended=extended),
            write(KNOWN, b"k" * 512, extended=extended),
            request(wire.CMD_READ, KNOWN - 512, 1024, extended=extended),
            request(wire.CMD_READ, SIZE, 1, extended=extended),
            request(wire.CMD_READ, 0, CHUNK + 1, extended=extended),
            request(wire.CMD_READ, 0, 512, flags=wire.CMD_FLAG_DF, extended=extended),
            write(SIZE - 5, b"past" * 2, extended=extended),
            write((1 << 64) - 4, b"over" * 2, extended=extended),
            request(wire.CMD_WRITE, 0, 0, flags=PAYLOAD if extended else 0, extended=extended),
            request(wire.CMD_FLUSH, 0, 1, extended=extended),
            request(wire.CMD_BLOCK_STATUS, 0, 4096, extended=extended),
            request(99, 7, 7, flags=0xFFFF ^ PAYLOAD, extended=extended),
        )
    )


def nbd() -> dict[str, bytes]:
    """Name -> input of fuzz_nbd.c."""
    reads = b"".join(request(wire.CMD_READ, n * 512, CHUNK) for n in range(70))
    checkered = b"".join(write(n * 8192, b"x" * 10) for n in range(8))
    whole = request(wire.CMD_READ, 0, CHUNK)
    ours = request(wire.CMD_READ, 0, 512)
    found: dict[str, tuple[int, int, bytes]] = {
        "nothing": (SIMPLE, 0, b""),
        "too-long": (SIMPLE, 0, _plain(False) + request(wire.CMD_WRITE, 0, CHUNK + 1) + b"x" * 99),
        "not-a-request": (STRUCTURED, 3, _plain(False) + b"GET / HTTP/1.1\r\n\r\n" * 3),
        "cut-in-a-header": (SIMPLE, 0, _plain(False)[:-3]),
        "cut-in-a-payload": (SIMPLE, 2, _plain(False) + write(0, b"p" * 99)[:-1]),
        "wrong-header": (EXTENDED, 0, _plain(False)),
        "extended-too-long": (
            EXTENDED,
            0,
            request(wire.CMD_WRITE, 0, 1 << 62, flags=PAYLOAD, extended=True) + bytes(64),
        ),
        "extended-payload-of-a-read": (
            EXTENDED,
            5,
            request(wire.CMD_READ, 0, 100, flags=PAYLOAD, extended=True)
            + b"y" * 100
            + _plain(True),
        ),
        "more-output-than-is-kept": (STRUCTURED | LAZY, 0, write(0, b"d" * 9) + reads),
        "more-than-a-batch": (SIMPLE, 0, ours * 300),
        "many-holes": (STRUCTURED, 0, checkered + whole + whole),
        "blocks": (SIMPLE | BLOCKS, 0, _plain(False) + ours),
        "nothing-after-disc": (SIMPLE, 0, _plain(False) + DISC + _plain(False)),
    }
    for kind, name in enumerate(("simple", "structured", "extended")):
        extended = kind == EXTENDED
        plain, odd = _plain(extended), _odd(extended)
        found |= {
            name: (kind, 0, plain + odd + plain),
            f"{name}-in-pieces": (kind, 7, odd + plain + odd),
            f"{name}-lazy": (kind | LAZY, 9, plain + odd),
            f"{name}-read-only": (kind | READ_ONLY, 1, plain),
            f"{name}-syncs-fail": (kind | SYNCS_FAIL, 4, plain + odd + plain),
            f"{name}-every-command": (kind, 200, every_command(extended) + DISC),
        }
    return {
        name: bytes((switches, pieces)) + sent for name, (switches, pieces, sent) in found.items()
    }


# -- iSCSI

INITIAL_R2T, IMMEDIATE_DATA, HEADER_DIGEST, DATA_DIGEST, HOLD_FEW, LATE, GIVE, RAW = (
    1 << n for n in range(8)
)
LONG_RECEIVE, LONG_BURST, LONG_FIRST, MANY_BURSTS = 4, 8, 16, 192
"""With the size of their segments (0 to 3), the second byte of terms."""
AUTO, HOLD, KEEP_NUMBER, SPOIL, CUT = 1, 2, 4, 8, 16
"""Switches in a BHS, see fuzz_iscsi.c."""
NOP_OUT, COMMAND, DATA_OUT, LOGOUT, IMMEDIATE = 0, 1, 5, 6, 0x40
FINAL, READ, WRITE = 0x80, 0x40, 0x20
NO_TAG = 0xFFFFFFFF
FIRST_TAG = NO_TAG - 2  # of the target's R2Ts
READ_10, WRITE_10, SYNC_10, READ_16, INQUIRY = 0x28, 0x2A, 0x35, 0x88, 0x12
FUA = 8
BLOCK = 512


def _bhs(
    opcode: int,
    flags: int,
    itt: int,
    *,
    length: int = 0,
    lun: int = 0,
    how: int = 0,
    which: int = 0,
    word: int = 0,
    rest: bytes = b"",
    number: int = 0,
) -> bytes:
    head = struct.pack(">BBBBIBB6xII", opcode, flags, which, how, length, 0, lun, itt, word)
    return (head + struct.pack(">II", number, 0) + rest).ljust(48, b"\0")


def _command(
    code: int,
    itt: int,
    lba: int,
    blocks: int,
    *,
    data: int = 0,
    final: bool = True,
    flags: int = 0,
    lun: int = 0,
    how: int = 0,
    block: int = BLOCK,
) -> bytes:
    """`data`: bytes that come with it."""
    if code == READ_16:
        cdb = struct.pack(">BBQIBB", code, flags, lba, blocks, 0, 0)
    else:
        cdb = struct.pack(">BBIBHB", code, flags, lba, 0, blocks, 0)
    direction = {READ_10: READ, READ_16: READ, WRITE_10: WRITE}.get(code, 0)
    return _bhs(
        COMMAND,
        direction | (FINAL if final else 0),
        itt,
        length=data,
        lun=lun,
        how=how,
        word=blocks * block if direction else 0,
        rest=cdb,
    )


def _ping(itt: int, length: int, *, immediate: bool = False) -> bytes:
    opcode = NOP_OUT | (IMMEDIATE if immediate else 0)
    return _bhs(opcode, FINAL, itt, length=length, word=NO_TAG)


def _auto(which: int = 0, length: int = 0, how: int = 0) -> bytes:
    """The Data-Out that a command waits for."""
    return _bhs(DATA_OUT, 0, 0, length=length, how=AUTO | how, which=which)


def _session(how: int = 0) -> bytes:
    """Reads, writes whole and in all the ways of Data-Out, a sync, pings."""
    return b"".join(
        (
            _command(WRITE_10, 1, 3, 2, data=1024, how=how),
            _command(READ_10, 2, 0, 40, how=how),
            _ping(3, 99),
            _command(WRITE_10, 4, 8, 60, flags=FUA),
            *(_auto(), _auto(0, 700), _auto(), _auto(), _auto(), _auto()),
            _command(WRITE_10, 5, 20, 16, data=512, final=False),
            *(_auto(0, 300), _auto(), _auto(), _auto()),
            _command(SYNC_10, 6, 0, 0, how=how),
            _command(READ_16, 7, 0, 100),
            _ping(8, 3, immediate=True),
        )
    )


def iscsi() -> dict[str, bytes]:
    """Name -> input of fuzz_iscsi.c."""
    unsolicited = IMMEDIATE_DATA
    session, held = _session(), _session(HOLD)
    many = b"".join(_command(WRITE_10, n, n * 4, 64) for n in range(1, 9))
    answers = b"".join(_auto(n % 8, n * 100) for n in range(40))
    unknown = b"".join(_command(READ_10, n, 1000 + n * 8, 40) for n in range(1, 6))
    digests = HEADER_DIGEST | DATA_DIGEST
    raw = _command(WRITE_10, 1, 0, 1, data=512)[:24] + b"\xff\xff\xff\xc0"
    raw += _command(WRITE_10, 1, 0, 1, data=512)[28:] + b"r" * 512 + b"\xff" * 99
    found: dict[str, tuple[int, int, int, bytes]] = {
        "nothing": (0, 0, 0, b""),
        "session": (unsolicited, 0, 0, session),
        "session-in-pieces": (unsolicited, 1, 3, session),
        "session-held": (unsolicited, 2, 8, held),
        "session-with-digests": (unsolicited | digests, 1, 5, session),
        "session-r2t-first": (INITIAL_R2T | unsolicited, MANY_BURSTS, 0, session),
        "session-lazy": (unsolicited | LATE, 3, 0, session * 2),
        "landing": (
            INITIAL_R2T,
            3 | LONG_RECEIVE | LONG_BURST,
            7,
            _command(WRITE_10, 1, 0, 512) + _auto() * 4 + _command(READ_10, 2, 0, 512),
        ),
        "landing-that-ends-within": (
            INITIAL_R2T | HEADER_DIGEST,
            LONG_RECEIVE | LONG_BURST,
            90,
            _command(WRITE_10, 1, 0, 512) + _auto() * 2 + _bhs(LOGOUT, FINAL, 2),
        ),
        "landing-that-is-cut": (
            INITIAL_R2T | HEADER_DIGEST,
            LONG_RECEIVE | LONG_BURST,
            90,
            _command(WRITE_10, 1, 0, 512) + _auto() + _auto(how=CUT),
        ),
        "cut": (unsolicited, 0, 2, session + _command(WRITE_10, 9, 0, 1, data=512, how=CUT)),
        "many-at-once": (INITIAL_R2T, 64, 0, many + answers),
        "few-are-held": (INITIAL_R2T | HOLD_FEW, 64, 0, many + answers),
        "unknown-chunks-given": (GIVE | unsolicited, 0, 0, unknown + session),
        "unknown-chunks-not-given": (unsolicited, 0, 0, unknown + session),
        "window": (INITIAL_R2T | HOLD_FEW, 0, 0, many * 17),
        "rare-command": (unsolicited, 0, 0, session + _command(INQUIRY, 9, 0, 0) + session),
        "logout": (unsolicited, 0, 2, session + _bhs(LOGOUT, FINAL, 9)),
        "number-skipped": (0, 0, 0, _command(READ_10, 1, 0, 1, how=KEEP_NUMBER)),
        "header-spoilt": (
            unsolicited | digests,
            0,
            0,
            session + _command(READ_10, 9, 0, 1, how=SPOIL),
        ),
        "data-spoilt": (
            unsolicited | digests,
            0,
            0,
            _command(WRITE_10, 9, 0, 1, data=512, how=SPOIL),
        ),
        "too-long": (unsolicited, 0, 0, _command(WRITE_10, 9, 0, 90, data=9000)),
        "additional-header": (0, 0, 0, _bhs(COMMAND, FINAL, 1, length=1 << 24)),
        "beyond-the-end": (0, 0, 0, _command(READ_10, 1, 2047, 2)),
        "to-the-end": (GIVE, 0, 0, _command(READ_10, 1, 2047, 1)),
        "read-only-unit": (unsolicited, 0, 0, _command(WRITE_10, 1, 0, 1, data=512, lun=1)),
        "no-unit": (0, 0, 0, _command(READ_10, 1, 0, 1, lun=9)),
        "units": (
            0,
            0,
            0,
            _command(READ_10, 1, 0, 1, lun=1, how=HOLD)
            + _command(READ_10, 2, 0, 2, lun=2, block=4096, how=HOLD)
            + _command(READ_10, 3, 0, 1),
        ),
        "same-tag": (0, 0, 0, _command(READ_10, 1, 0, 1, how=HOLD) * 3 + unknown * 2),
        "data-out-for-none": (0, 0, 0, _bhs(DATA_OUT, FINAL, 77, length=512, word=NO_TAG)),
        "data-out-out-of-order": (
            INITIAL_R2T,
            0,
            0,
            _command(WRITE_10, 1, 0, 16) + _bhs(DATA_OUT, FINAL, 1, length=512, word=NO_TAG),
        ),
        "data-out-beyond-its-burst": (
            INITIAL_R2T,
            LONG_RECEIVE,
            0,
            _command(WRITE_10, 1, 0, 32) + _bhs(DATA_OUT, FINAL, 1, length=9000, word=FIRST_TAG),
        ),
        "raw": (unsolicited | RAW, 0, 6, raw),
        "raw-rubbish": (RAW, 0, 0, b"\x00" * 47),
    }
    return {
        name: bytes((switches, sizes, pieces)) + sent
        for name, (switches, sizes, pieces, sent) in found.items()
    }
