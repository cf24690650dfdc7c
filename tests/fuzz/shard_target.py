"""Fuzz target of shards: any bytes as the file of one shard of a stripe whose others are sound, and

- its header is what it would be written as, or CorruptShard or UnknownFormat;
- opening it, reading all of it and verifying it end with its bytes or with these two; no other
  exception, and no memory beyond a few times the file;
- the pack is read from the stripe all the same, every byte of it; where the checksums were made
  right for other bytes (RESEAL), at least what is on the other shards;
- it is rebuilt as it was, unless it is what its hash says already.

Input: one byte of switches, a length (2, little-endian) and the beginning of the header, the rest
of which are zeros, its crc32c (4), a length (2) and the page table, and the payload. With RESEAL
the header's checksum, the page table and its checksum are made right, so that mutations get behind
them.
"""

import contextlib
import functools

from native import crc32c, crc32c_pages
from tests.fuzz.unlogged import unlogged
from tests.sim.image import Image
from tests.stripe_rig import MadePack, StripeRig, make_pack
from transport import stripes
from transport.shardfile import HEADER_LENGTH, CorruptShard, ShardFile, Stripe, decode_header
from volume.errors import CorruptData, UnknownFormat
from volume.layout import PAGE_SIZE

RESEAL = 1
FUZZED = 1
"""The shard that is fuzzed, of 2+1."""
_TABLE_CRC_AT = 64


@functools.cache
def _made() -> tuple[MadePack, Image, Stripe]:
    pack = make_pack([512, 1024])
    rig = StripeRig(4)
    stripe = rig.encode(pack, 2, 1)
    return pack, rig.disk.image(), stripe


def sound() -> tuple[MadePack, StripeRig, Stripe]:
    """A small stripe without a fault, on devices of its own."""
    pack, image, stripe = _made()
    return pack, StripeRig(4, image), stripe


@unlogged()
def shard_target(data: bytes) -> None:
    """Run one input; raises when an invariant is broken."""
    switches, content = data[0] if data else 0, unpacked(data[1:])
    if switches & RESEAL:
        content = reseal(content)
    with contextlib.suppress(CorruptShard, UnknownFormat):
        header = decode_header(content, "a shard")
        again = header.stripe.header(header.number, header.table_crc)
        assert again == content[:HEADER_LENGTH]
    pack, rig, stripe = sound()
    file = rig.disk.open(rig.path(stripe, FUZZED))
    file.truncate(0)
    if content:
        file.pwrite(content, 0)
    intact = _intact(rig, stripe)
    _check_reads(pack, rig, stripe, forged=bool(switches & RESEAL) and not intact)
    if not intact:
        _check_rebuild(rig, stripe)


def _intact(rig: StripeRig, stripe: Stripe) -> bool:
    """Whether the file is a shard of this stripe, payload and all."""
    try:
        shard = ShardFile(rig.devices[FUZZED], stripe.name(FUZZED))
    except (CorruptShard, UnknownFormat):
        return False
    try:
        assert sum(map(len, shard.read_all())) == shard.stripe.shard_length
        shard.verify()
    except CorruptShard:
        return False
    finally:
        shard.close()
    return shard.stripe == stripe


def _check_reads(pack: MadePack, rig: StripeRig, stripe: Stripe, *, forged: bool) -> None:
    reader = rig.reader(stripe)
    try:
        found = reader.pread(len(pack.content), 0)
    except CorruptData:
        assert forged
        return
    assert len(found) == len(pack.content)
    end = stripe.cuts[FUZZED] if forged else len(pack.content)
    assert found[:end] == pack.content[:end]


def _check_rebuild(rig: StripeRig, stripe: Stripe) -> None:
    reader = rig.reader(stripe, lost=[FUZZED])
    stripes.rebuild(reader, {FUZZED: rig.devices[3]})
    ShardFile(rig.devices[3], stripe.name(FUZZED)).verify()


# -- the form of inputs


def packed(content: bytes, switches: int = 0) -> bytes:
    """The input for a whole shard file with one page of table."""
    head = content[: HEADER_LENGTH - 4].rstrip(b"\0")
    table = content[HEADER_LENGTH : HEADER_LENGTH + PAGE_SIZE].rstrip(b"\0")
    return (
        bytes((switches,))
        + len(head).to_bytes(2, "little")
        + head
        + content[HEADER_LENGTH - 4 : HEADER_LENGTH]
        + len(table).to_bytes(2, "little")
        + table
        + content[HEADER_LENGTH + PAGE_SIZE :]
    )


def unpacked(data: bytes) -> bytes:
    """The file of an input without its switches; cut off where the input is."""
    head_length = int.from_bytes(data[:2], "little") % (HEADER_LENGTH - 3)
    at = 2 + head_length
    head, crc, rest = data[2:at], data[at : at + 4], data[at + 4 :]
    table_length = int.from_bytes(rest[:2], "little") % (PAGE_SIZE + 1)
    table, payload = rest[2 : 2 + table_length], rest[2 + table_length :]
    if not rest:
        return head + crc
    return head.ljust(HEADER_LENGTH - 4, b"\0") + crc + table.ljust(PAGE_SIZE, b"\0") + payload


def reseal(content: bytes) -> bytes:
    """With every checksum made right for what is there."""
    out = bytearray(content)
    if len(out) < HEADER_LENGTH:
        return content
    table = crc32c_pages(content[HEADER_LENGTH + PAGE_SIZE :])[:PAGE_SIZE]
    out[HEADER_LENGTH : HEADER_LENGTH + len(table)] = table
    out[_TABLE_CRC_AT : _TABLE_CRC_AT + 4] = crc32c(table).to_bytes(4, "little")
    body = bytes(out[: HEADER_LENGTH - 4])
    out[HEADER_LENGTH - 4 : HEADER_LENGTH] = crc32c(body).to_bytes(4, "little")
    return bytes(out)
