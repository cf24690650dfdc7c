"""A cold pack as a stripe of k data and m parity shards, each on a device of its own.

    encode    pack -> shards, in pieces: `width` times 256 KiB are in memory, never the pack
    verify    what the devices have is the pack, and its parity is what its data makes
    read      a part of the pack: of the one shard that has it; with that lost, decoded
    rebuild   lost shards from k others

Whatever is read is verified before it is used, page by page, so a damaged page is a lost one: the
part of the shard that it belongs to is decoded from the same part of others. Damage in different
places of more than m shards is no loss. Where fewer than k shards have a part, that is
`StripeLost`, an error for the client: never zeros, never what fails its checksum.

A `StripeReader` is a `packfile.Source`: what reads packs reads stripes.
"""

import contextlib
import errno
import functools
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Final

from blake3 import blake3

from native import ErasureCode
from transport.shardfile import (
    PIECE,
    CorruptShard,
    ShardFile,
    ShardName,
    ShardWriter,
    Stripe,
    padded,
)
from volume import packfile
from volume.disk import Disk, File
from volume.errors import CorruptData, CorruptPack, UnknownFormat
from volume.layout import PAGE_SIZE

READ_ERRORS: Final = (CorruptShard, UnknownFormat, OSError)
"""What makes a shard, or a part of it, a lost one."""


class StripeLost(CorruptData):
    """Fewer good shards than it takes."""

    code = "corrupt_stripe"

    def __init__(self, pack_id: bytes, needed: int, good: int, lost: Mapping[int, str]) -> None:
        reasons = "; ".join(f"shard {number}: {why}" for number, why in sorted(lost.items()))
        super().__init__(
            f"pack {pack_id.hex()}: {good} good shards, and it takes {needed} ({reasons}); bring "
            "back a device that has another one, or restore from another site"
        )
        self.pack_id = pack_id


@functools.lru_cache(maxsize=16)
def code_of(data: int, parity: int) -> ErasureCode:
    """Shared, since it keeps the tables of the patterns of loss that it has seen."""
    return ErasureCode(data, parity)


# -- cutting a pack


def boundaries_of(file: File, number: int, store_uuid: bytes) -> list[int]:
    """Where a sealed pack may be cut: the beginnings of its entries and of its footer.

    CorruptPack for one without a sound footer, which scrub looks after first."""
    trailer = packfile.read_trailer(file, number, store_uuid)
    rows = None if trailer is None else packfile.read_rows(file, trailer)
    if trailer is None or rows is None:
        raise CorruptPack(f"pack {number:08x}: has no sound footer, so it stays as it is")
    starts = [place.offset for _, place in packfile.decode_rows(rows, number)]
    return [*starts, trailer.rows_offset]


def cuts_of(boundaries: Sequence[int], size: int, data: int) -> tuple[int, ...]:
    """`data` + 1 cuts into about equal parts, each at the boundary that is nearest to where it
    would be without entries. A pack of few large entries leaves some parts empty."""
    cuts = [0]
    inside = sorted({at for at in boundaries if 0 < at < size})
    for part in range(1, data):
        ideal = size * part // data
        # None of them: the rest goes into one part.
        nearest = min(inside, key=lambda at: (abs(at - ideal), at), default=size)
        cuts.append(max(cuts[-1], nearest))
    return (*cuts, size)


def pack_id_of(source: packfile.Source, size: int) -> bytes:
    """BLAKE3-256 of a pack's bytes. CorruptPack when it is shorter than `size`."""
    hasher = blake3()
    for at in range(0, size, PIECE):
        hasher.update(_exactly(source, min(PIECE, size - at), at))
    return hasher.digest()


def _exactly(source: packfile.Source, length: int, offset: int) -> bytes:
    data = source.pread(length, offset)
    if len(data) != length:
        raise CorruptPack(f"a pack ends after {offset + len(data)} bytes; expected more")
    return data


# -- encoding


def encode(
    source: packfile.Source,
    pack_id: bytes,
    size: int,
    cuts: Sequence[int],
    disks: Sequence[Disk],
    parity: int,
) -> Stripe:
    """Write the shards of a pack, shard i to `disks[i]`; durable on return.

    OSError and CorruptPack leave no shard under its name that is not whole. Whether the devices
    have what was written says `verify`."""
    data = len(cuts) - 1
    assert len(disks) == data + parity
    code = code_of(data, parity)
    parts = list(pairwise(cuts))
    length = padded(max(end - start for start, end in parts))
    with contextlib.ExitStack() as stack:
        writers = []
        for number, disk in enumerate(disks):
            writers.append(ShardWriter(disk, ShardName(pack_id, data, parity, number), length))
            stack.callback(writers[-1].discard)
        for at in range(0, length, PIECE):
            count = min(PIECE, length - at)
            shards: list[bytes | bytearray] = [
                _exactly(source, max(0, min(count, end - start - at)), start + at).ljust(
                    count, b"\0"
                )
                for start, end in parts
            ]
            made = [bytearray(count) for _ in range(parity)]
            code.encode(shards, made)
            for writer, shard in zip(writers, [*shards, *made], strict=True):
                writer.append(shard)
        hashes = tuple([writer.hash for writer in writers])
        stripe = Stripe(pack_id, size, data, parity, tuple(cuts), hashes)
        for writer in writers:
            writer.finish(stripe)
        stack.pop_all()
    return stripe


def verify(stripe: Stripe, disks: Sequence[Disk]) -> None:
    """Read all shards back, past the page cache. CorruptShard or OSError unless each is what was
    written, the data are the pack that its id names, and the parity is what they make."""
    with contextlib.ExitStack() as stack:
        shards = []
        for number, disk in enumerate(disks):
            shards.append(ShardFile(disk, stripe.name(number), uncached=True))
            stack.callback(shards[-1].close)
            if shards[-1].stripe != stripe:
                raise CorruptShard(f"{shards[-1].path}: is of another stripe of the same pack")
        _check_pack(stripe, shards[: stripe.data])
        _check_parity(stripe, shards)


def _check_pack(stripe: Stripe, shards: Sequence[ShardFile]) -> None:
    whole = blake3()
    for number, shard in enumerate(shards):
        left = stripe.cuts[number + 1] - stripe.cuts[number]
        own = blake3()
        for piece in shard.read_all():
            own.update(piece)
            whole.update(piece[:left])
            left -= len(piece[:left])
        if own.digest() != stripe.hashes[number]:
            raise CorruptShard(f"{shard.path}: is not the bytes that its hash names")
    if whole.digest() != stripe.pack_id:
        raise CorruptShard(f"pack {stripe.pack_id.hex()}: its data shards are another pack")


def _check_parity(stripe: Stripe, shards: Sequence[ShardFile]) -> None:
    code = code_of(stripe.data, stripe.parity)
    hashers = [blake3() for _ in range(stripe.parity)]
    for at in range(0, stripe.shard_length, PIECE):
        count = min(PIECE, stripe.shard_length - at)
        found = [shard.read(at, count) for shard in shards]
        made = [bytearray(count) for _ in range(stripe.parity)]
        code.encode(found[: stripe.data], made)
        for number, computed in enumerate(made, stripe.data):
            if found[number] != computed:
                raise CorruptShard(f"{shards[number].path}: is not the parity of the data shards")
            hashers[number - stripe.data].update(computed)
    for number, hasher in enumerate(hashers, stripe.data):
        if hasher.digest() != stripe.hashes[number]:
            raise CorruptShard(f"{shards[number].path}: is not the bytes that its hash names")


# -- reading


class StripeReader:
    """A pack that is a stripe, for one thread. Shards are opened when they are needed."""

    def __init__(
        self,
        pack_id: bytes,
        data: int,
        digest: bytes,
        disks: Sequence[Disk | None],
        *,
        uncached: bool = False,
    ) -> None:
        """`digest`: which stripe of the pack (`Stripe.digest`). `disks`: where shard i is; None
        where it is lost, or its device away."""
        self.pack_id = pack_id
        self._data = data
        self._digest = digest
        self._disks = disks
        self._uncached = uncached
        self._open: dict[int, ShardFile] = {}
        self.nowhere = [number for number, disk in enumerate(disks) if disk is None]
        """Shards without a disk."""
        self.lost: dict[int, str] = dict.fromkeys(self.nowhere, "no device has it")
        """Shards that are not there, or cannot be used at all, and why."""
        self.damaged: dict[int, str] = {}
        """Shards of which some page could not be read, and why: to be rebuilt."""
        self.away: set[int] = set()
        """Of both, those that may come back as they were: their device did not answer, or could
        not read."""
        self.decoded = 0
        """Parts that were computed from others."""

    def close(self) -> None:
        for shard in self._open.values():
            shard.close()
        self._open.clear()

    @functools.cached_property
    def stripe(self) -> Stripe:
        """What the shards say of themselves. StripeLost when there is none that can be used."""
        for number in range(len(self._disks)):
            shard = self._shard(number)
            if shard is not None:
                return shard.stripe
        raise StripeLost(self.pack_id, 1, 0, self.lost)

    def open_all(self) -> dict[int, str]:
        """Look at the header of each shard. Those that are lost or damaged, and why."""
        for number in range(len(self._disks)):
            self._shard(number)
        return self.damaged | self.lost

    def pread(self, length: int, offset: int) -> bytes:
        """Up to `length` bytes of the pack at `offset`; shorter only at its end. StripeLost."""
        stripe = self.stripe
        offset = min(offset, stripe.pack_size)
        length = min(length, stripe.pack_size - offset)
        parts = [self._read(*piece) for piece in stripe.pieces(offset, length)]
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _read(self, number: int, offset: int, length: int) -> bytes:
        found = self._try(number, offset, length)
        if found is not None:
            return found
        start, end = offset // PAGE_SIZE * PAGE_SIZE, padded(offset + length)
        data = self.parts([number], start, end - start)[number]
        return data[offset - start : offset - start + length]

    def parts(self, wanted: Sequence[int], offset: int, length: int) -> dict[int, bytes]:
        """The same whole pages of some shards: as they are on their devices, else computed from the
        same pages of others. StripeLost."""
        stripe = self.stripe
        found = self._try_all(wanted, offset, length)
        missing = [number for number in wanted if number not in found]
        if not missing:
            return found
        there = dict(found)
        for number in self._others(wanted):
            if len(there) >= stripe.data:
                break
            there |= self._try_all([number], offset, length)
        if len(there) >= stripe.data:
            return found | self._compute(missing, there, offset, length)
        if length <= PAGE_SIZE:
            raise StripeLost(self.pack_id, stripe.data, len(there), self.damaged | self.lost)
        # What is damaged in one half need not be so in the other.
        half = padded(length // 2)
        first = self.parts(missing, offset, half)
        second = self.parts(missing, offset + half, length - half)
        return found | {number: first[number] + second[number] for number in missing}

    def _compute(
        self, missing: Sequence[int], there: Mapping[int, bytes], offset: int, length: int
    ) -> dict[int, bytes]:
        stripe = self.stripe
        into = [bytearray(length) if n in missing else None for n in range(stripe.width)]
        read = [there.get(number) for number in range(stripe.width)]
        self.decoded += 1
        code_of(stripe.data, stripe.parity).reconstruct(read, into)
        made = {number: bytes(data) for number, data in enumerate(into) if data is not None}
        for number in missing:
            shard = self._open.get(number)
            if shard is not None:  # its page table knows what these pages have to be
                shard.check_pages(made[number], offset, offset + length)
        return made

    def check_all(self) -> dict[int, str]:
        """Scrub: read every shard. Those that are lost or damaged, and why."""
        for number in range(self.stripe.width):
            shard = self._shard(number)
            if shard is not None:
                try:
                    shard.verify()
                except READ_ERRORS as error:
                    self.damaged[number] = str(error)
        return self.damaged | self.lost

    def _others(self, wanted: Sequence[int]) -> list[int]:
        """Sound ones first: what has had damage is read only where it is needed."""
        others = [number for number in range(self.stripe.width) if number not in wanted]
        return sorted(others, key=lambda number: (number in self.damaged, number))

    def _try_all(self, numbers: Sequence[int], offset: int, length: int) -> dict[int, bytes]:
        tried = {number: self._try(number, offset, length) for number in numbers}
        return {number: data for number, data in tried.items() if data is not None}

    def _try(self, number: int, offset: int, length: int) -> bytes | None:
        shard = self._shard(number)
        if shard is None:
            return None
        try:
            return shard.read(offset, length)
        except READ_ERRORS as error:
            self._note_away(number, error)
            if isinstance(error, OSError) and error.errno == errno.EHOSTUNREACH:
                self.lost[number] = str(error)  # its node: not waited for again
                self._open.pop(number).close()
            else:
                self.damaged[number] = str(error)
            return None

    def _note_away(self, number: int, error: Exception) -> None:
        gone = isinstance(error, (CorruptShard, FileNotFoundError))
        if not gone:
            self.away.add(number)

    def _shard(self, number: int) -> ShardFile | None:
        if number in self._open or number in self.lost:
            return self._open.get(number)
        disk = self._disks[number]
        assert disk is not None
        try:
            name = ShardName(self.pack_id, self._data, len(self._disks) - self._data, number)
            shard = ShardFile(disk, name, uncached=self._uncached)
        except READ_ERRORS as error:
            self._note_away(number, error)
            self.lost[number] = str(error)
            return None
        if shard.stripe.digest != self._digest:
            self.lost[number] = f"{shard.path}: is of another stripe of the same pack"
            shard.close()
            return None
        self._open[number] = shard
        return shard


# -- repair


def rebuild(reader: StripeReader, wanted: Mapping[int, Disk]) -> None:
    """Compute shards again, each onto its device; durable on return, and known by its hash to be
    what was lost. StripeLost; CorruptShard when what was computed is something else; OSError when a
    device does not take it. Then no shard is under its name that is not whole."""
    stripe = reader.stripe
    numbers = sorted(wanted)
    with contextlib.ExitStack() as stack:
        writers = {}
        for number in numbers:
            name = stripe.name(number)
            writers[number] = ShardWriter(wanted[number], name, stripe.shard_length)
            stack.callback(writers[number].discard)
        for at in range(0, stripe.shard_length, PIECE):
            found = reader.parts(numbers, at, min(PIECE, stripe.shard_length - at))
            for number in numbers:
                writers[number].append(found[number])
        for writer in writers.values():
            writer.finish(stripe)
        stack.pop_all()
