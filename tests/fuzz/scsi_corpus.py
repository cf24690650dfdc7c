"""The seeds of the SCSI fuzz target.

Each is one input of tests.fuzz.scsi_target, named for what it shows.
"""

from blockd.scsi.opcodes import TABLE
from tests import scsi_cdbs as cdbs
from tests.fuzz.scsi_target import BACKGROUND, FAIL, FILL, FINISH, RENEW, RESET
from tests.pr_client import (
    ALL_PORTS,
    PERSIST,
    TEST_UNIT_READY,
    WITH_OTHERS,
    in_cdb,
    move_list,
    out_cdb,
    out_list,
    transport_id,
)
from tests.scsi_copies import HERE, THERE

DEFERRED, READ_ONLY, BIG, BROKEN, DAMAGED, SHORT, BY_NAME = (1 << bit for bit in range(7))
UNIT, OTHER, ABSENT, WELL_KNOWN = 0, 5, 6, 7
HOST_1 = transport_id("iqn.2026-11.test:host1", b"\x80\0\0\0\0\1")
HOST_2 = transport_id("iqn.2026-11.test:host2", b"\x80\0\0\0\0\2")


def command(cdb: bytes, data: bytes = b"", *, control: int = 0, place: int = UNIT) -> bytes:
    head = bytes((control, place << 5 | len(cdb)))
    return head + cdb + len(data).to_bytes(2, "big") + data


def reserve_out(
    who: int, action: int, data: bytes, kind: int = 0, *, control: int = 0, scope: int = 0
) -> bytes:
    return command(out_cdb(action, len(data), kind, scope), data, control=control | who)


def every_command(*, place: int = UNIT, control: int = FILL) -> list[bytes]:
    """One of each operation code, with all fields zero but for lengths that bring data."""
    found = []
    for known in TABLE.values():
        for opcode in known.values() if isinstance(known, dict) else (known,):
            cdb = bytearray(len(opcode.usage))
            cdb[0] = opcode.code
            cdb[1] |= opcode.action or 0
            last_length = len(cdb) - 2 if len(cdb) != 6 else 4
            if opcode.usage[last_length] == 0xFF:
                cdb[last_length] = 24
            found.append(command(bytes(cdb), control=control, place=place))
    return found


def reads_and_writes() -> list[bytes]:
    parts = []
    for size in cdbs.READS:
        parts.append(command(cdbs.write(8, 2, size=size), b"ab" * 512, control=FILL))
        parts.append(command(cdbs.read(7, 4, size=size)))
        parts.append(command(cdbs.read(2047, 2, size=size), control=1))
    for size in cdbs.LONG:
        parts.append(command(cdbs.write_and_verify(9, 1, size=size), b"v", control=FILL))
        parts.append(command(cdbs.verify(9, 1, size=size, check=1), b"v", control=FILL))
        parts.append(command(cdbs.verify(9, 2, size=size, check=3), b"v", control=FILL))
        parts.append(command(cdbs.verify(0, 0, size=size)))
    parts.append(command(cdbs.write(8, 2, flags=0x08), b"short" * 140))
    parts.append(command(cdbs.write(0, 0)))
    parts.append(command(cdbs.synchronize(size=16)))
    parts.append(command(cdbs.pre_fetch(5, 100)))
    return parts


def space_and_atomic() -> list[bytes]:
    unmaps = cdbs.unmap_list((0, 8), (100, 1), (2047, 1))
    return [
        command(cdbs.write_same(10, 20), b"s", control=FILL),
        command(cdbs.write_same(10, 20, flags=0x08), bytes(512)),
        command(cdbs.write_same(10, 20, flags=0x01)),
        command(cdbs.write_same(0, 0), b"t", control=FILL),
        command(cdbs.unmap(len(unmaps)), unmaps),
        command(cdbs.unmap(len(unmaps)), unmaps[:-5]),
        command(cdbs.get_lba_status(0, 1000)),
        command(cdbs.compare_and_write(5, 2), bytes(1024) + b"n" * 1024),
        command(cdbs.compare_and_write(5, 2), bytes(1024) + b"n" * 1024),
        command(cdbs.orwrite(5, 1), b"\x01", control=FILL),
        command(cdbs.write_atomic(5, 1), b"a", control=FILL),
    ]


def copies() -> list[bytes]:
    both = [cdbs.cscd(HERE), cdbs.cscd(THERE)]
    lists = [
        cdbs.copy_list(both, [cdbs.segment(0, 1, 9, 0, 100), cdbs.segment(1, 0, 9, 100, 2000)]),
        cdbs.copy_list(both, [cdbs.segment(0, 0, 100, 0, 7)], list_id=2, usage=2),
        cdbs.copy_list(both, [cdbs.segment(0, 1, 9, 2040, 0), cdbs.segment(0, 2, 1, 0, 0)]),
        cdbs.copy_list([cdbs.cscd(b"\x60" + b"?" * 15)], [cdbs.segment(0, 0, 1, 0, 0)]),
        cdbs.copy_list([], [], inline=7),
    ]
    asks = [command(cdbs.copy_results(action, list_id=1)) for action in (0, 1, 3, 4)]
    return [command(cdbs.extended_copy(len(one)), one) for one in lists] + asks


def reservations() -> list[bytes]:
    """Two paths of one initiator (0, 1) and two of another (2, 3)."""
    tells = [command(in_cdb(action), control=3) for action in range(4)]
    others = out_list(0, 3, WITH_OTHERS, transport_id("iqn.x") + transport_id("iqn.y", bytes(6)))
    return [
        reserve_out(0, 0, out_list(0, 1, PERSIST)),
        reserve_out(1, 0, out_list(0, 1, PERSIST | ALL_PORTS)),
        reserve_out(1, 6, out_list(0, 1, PERSIST | ALL_PORTS)),
        reserve_out(2, 0, others),
        reserve_out(0, 1, out_list(1), 5),
        *tells,
        command(cdbs.write(0, 1), control=3 | FILL),
        command(cdbs.read(0, 1), control=3),
        reserve_out(2, 4, out_list(3, 1), 8),
        command(TEST_UNIT_READY, control=0),
        command(TEST_UNIT_READY, control=1),
        reserve_out(2, 6, out_list(0, 7, PERSIST), control=RENEW),
        *tells,
        command(cdbs.write(0, 1), control=0 | FILL | RESET),
        reserve_out(2, 5, out_list(7, 0), 1),
        reserve_out(2, 7, move_list(7, 8, HOST_1, 1, PERSIST)),
        reserve_out(0, 2, out_list(8), 1),
        reserve_out(2, 1, out_list(7), 3, scope=1),
        reserve_out(0, 3, out_list(8)),
        *tells,
    ]


def sanitizes() -> list[bytes]:
    pattern = b"\x01\0\0\4abcd"
    return [
        command(cdbs.sanitize(1, len(pattern), flags=0x80), pattern),
        command(cdbs.read(0, 1)),
        command(TEST_UNIT_READY, control=BACKGROUND),
        command(cdbs.read(0, 1)),
        command(cdbs.sanitize(2), control=FAIL),
        command(cdbs.read(0, 1)),
        command(cdbs.sanitize(0x1F)),
        command(cdbs.sanitize(3, flags=0x20)),
        command(cdbs.read(0, 1), control=1),
    ]


def mode_pages() -> list[bytes]:
    control = bytes((0, 0, 0, 0, 0x0A, 0x0A, 0x04, 0, 0x08, 0, 0, 0, 0, 0, 0, 0))
    return [
        command(bytes((0x1A, 0, 0x3F, 0xFF, 255, 0))),
        command(bytes((0x5A, 0x10, 0x3F, 0, 0, 0, 0, 1, 0, 0))),
        command(bytes((0x15, 0x10, 0, 0, len(control), 0)), control),
        command(cdbs.write(0, 1), control=FILL),
        command(cdbs.write(0, 1), control=FILL | 1),
        command(bytes((0x15, 0x10, 0, 0, 9, 0)), control[:9]),
        command(cdbs.write(0, 1), control=FILL | RESET),
    ]


def legacy() -> list[bytes]:
    reserve, release = bytes((0x16, *bytes(5))), bytes((0x57, *bytes(9)))
    return [
        command(reserve),
        command(cdbs.read(0, 1), control=1),
        command(in_cdb(0)),
        command(release, control=1),
        command(cdbs.read(0, 1), control=1 | RENEW),
        command(reserve, control=2),
        command(cdbs.read(0, 1), control=0 | RENEW),
        command(release, control=2),
        reserve_out(0, 0, out_list(0, 1)),
        command(reserve),
    ]


def inputs() -> dict[str, bytes]:
    """Name -> input."""
    all_of_it = [
        *reads_and_writes()[:14],
        *space_and_atomic(),
        *copies()[:4],
        *reservations()[:14],
    ]
    every = every_command()
    finishing = every_command(control=FILL | FINISH)
    far = [command(cdbs.read(1 << 40, 1, size=16)), command(cdbs.write((1 << 32) - 1, 2, size=12))]
    big = [
        command(cdbs.read(0, 4096, size=16)),
        command(cdbs.read(0, 4097, size=16)),
        command(cdbs.write(0, 4097, size=16), control=FILL),
        command(cdbs.write_same(0, 8192), b"s" * 4096),
        command(cdbs.read((1 << 32) - 1, 1)),
        command(cdbs.verify(0, 8192, size=16)),
    ]
    failing = [one[:0] + bytes((one[0] | FAIL,)) + one[1:] for one in space_and_atomic()]
    seeds = {
        "every-command": (0, every[:48]),
        "every-command-rest": (0, every[48:]),
        "every-command-deferred": (DEFERRED, finishing[:40]),
        "every-command-absent-unit": (0, every_command(place=ABSENT)[:48]),
        "every-command-well-known-unit": (0, every_command(place=WELL_KNOWN)[:48]),
        "every-command-damaged": (DAMAGED, every[:48]),
        "every-command-read-only": (READ_ONLY, every[:48]),
        "reads-and-writes": (0, reads_and_writes()),
        "reads-and-writes-deferred": (DEFERRED, reads_and_writes()),
        "reads-and-writes-other-unit": (0, [command(cdbs.read(0, 1), place=OTHER)]),
        "far-away": (BIG, far),
        "big": (BIG, big),
        "space-and-atomic": (0, space_and_atomic()),
        "space-and-atomic-deferred": (DEFERRED | SHORT, space_and_atomic()),
        "space-and-atomic-failing": (0, failing),
        "copies": (0, copies()),
        "copies-deferred": (DEFERRED, copies()),
        "reservations": (0, reservations()),
        "reservations-by-name": (BY_NAME, reservations()),
        "reservations-not-kept": (BROKEN, reservations()),
        "reserve-and-release": (0, legacy()),
        "sanitizes": (0, sanitizes()),
        "sanitizes-not-kept": (BROKEN, sanitizes()),
        "mode-pages": (0, mode_pages()),
        "all-of-it": (0, all_of_it),
        "cut-off": (0, [command(cdbs.write(0, 1), b"x" * 512)[:40]]),
    }
    return {name: bytes((switches,)) + b"".join(sent) for name, (switches, sent) in seeds.items()}
