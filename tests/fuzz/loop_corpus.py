"""The seeds of the fuzz targets of the request loop: what clients send once it serves them.

Each is one input of native/fuzz/fuzz_nbd.c or fuzz_iscsi.c, named for what it shows.
"""

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
