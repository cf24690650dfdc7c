"""Two units of one server and EXTENDED COPY commands between them."""

from blockd.scsi.sense import Sense
from tests import scsi_cdbs as cdbs
from tests.scsi_rig import BLOCK, BLOCKS, FakeSurroundings, Rig, Running

HERE, THERE = b"\x60" + b"h" * 15, b"\x60" + b"t" * 15


def pair(
    *, blocks: int = BLOCKS, block_size: int = BLOCK, deferred: bool = False
) -> tuple[Rig, Rig]:
    """Two units of one server; the first one, of 512-byte blocks, gets the commands."""
    surroundings = FakeSurroundings()
    here = Rig(blocks=blocks, surroundings=surroundings, deferred=deferred)
    there = Rig(blocks=blocks, block_size=block_size, surroundings=surroundings, uuid=b"t" * 16)
    surroundings.units[HERE] = here.unit
    surroundings.units[THERE] = there.unit
    return here, there


def both(*, block_length: int = BLOCK, pads: tuple[bool, bool] = (False, False)) -> list[bytes]:
    return [
        cdbs.cscd(HERE, pad=pads[0]),
        cdbs.cscd(THERE, block_length=block_length, pad=pads[1]),
    ]


def start(rig: Rig, parameters: bytes) -> Running:
    return rig.start(cdbs.extended_copy(len(parameters)), parameters)


def good(rig: Rig, parameters: bytes) -> None:
    assert rig.good(cdbs.extended_copy(len(parameters)), parameters) == b""


def fault(rig: Rig, parameters: bytes) -> Sense:
    return rig.fault(cdbs.extended_copy(len(parameters)), parameters)


def aborted(rig: Rig, parameters: bytes) -> tuple[int, int]:
    """ASC and ASCQ of a COPY ABORTED."""
    what = fault(rig, parameters)
    assert what.key == 0x0A
    return what.asc, what.ascq


def numbers(length: int) -> bytes:
    return bytes((at // 3) % 251 for at in range(length))
