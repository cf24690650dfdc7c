"""Carrying out the move of one shard: the four steps that `transport.moves` names, on devices.

A crash after the shard is written, or read back, leaves a file that the row does not name; after
the row has changed, one at the source that it names no more. Both are leftovers, and the pack has
as many good shards as before.
"""

import contextlib
from collections.abc import Mapping
from typing import Final

from transport import stripes
from transport.errors import TransportError
from transport.moves import Move
from transport.packrow import PackRow, PackRows
from transport.shardfile import CorruptShard, ShardFile, copy_shard, remove_shard
from volume.disk import Disk

MAX_SWAPS: Final = 8
"""Tries to note a move: other shards of the pack may be moving as well, each once."""


class MoveOvertaken(TransportError):
    """The row is not any more what the move was planned for. What was written is a leftover."""

    code = "move_overtaken"

    def __init__(self, move: Move, why: str) -> None:
        super().__init__(
            f"pack {move.pack_id.hex()}, shard {move.number}: {why}; the next plan knows better"
        )


def carry_out(move: Move, rows: PackRows, disks: Mapping[str, Disk]) -> PackRow:
    """Do all of a move; the row as it is noted. Durable on return.

    `disks`: the devices that can be read, by id. Where `move.source` is None, the shard is computed
    from whatever there is of it and of others. MoveOvertaken; StripeLost, CorruptShard, OSError:
    it came to nothing, and the row is as it was, unless it was the removal at the source that
    failed: then the row has the target already."""
    row = _expected(move, rows.read(move.pack_id))
    _write(move, row, disks)
    _read_back(move, row, disks[move.target])
    noted = _note(move, rows, row)
    if move.source is not None:
        remove_shard(disks[move.source], row.name(move.number))
    return noted


def _expected(move: Move, row: PackRow | None) -> PackRow:
    if row is None or not row.shards:
        raise MoveOvertaken(move, "there is no such stripe")
    if move.number >= len(row.shards):
        raise MoveOvertaken(move, f"the stripe has {len(row.shards)} shards")
    if move.source is not None and row.shards[move.number] != move.source:
        raise MoveOvertaken(move, f"is on {row.shards[move.number]}, not on {move.source}")
    if move.target in row.shards:
        raise MoveOvertaken(move, f"{move.target} has a shard of the pack already")
    return row


def _write(move: Move, row: PackRow, disks: Mapping[str, Disk]) -> None:
    target = disks[move.target]
    if move.source is not None:
        with contextlib.closing(ShardFile(disks[move.source], row.name(move.number))) as source:
            _check_stripe(source, row)
            copy_shard(source, target)
        return
    held = [None if one is None else disks.get(one) for one in row.shards]
    reader = stripes.StripeReader(row.pack_id, row.data, row.digest, held)
    with contextlib.closing(reader):
        stripes.rebuild(reader, {move.number: target})


def _read_back(move: Move, row: PackRow, target: Disk) -> None:
    name = row.name(move.number)
    with contextlib.closing(ShardFile(target, name, uncached=True)) as shard:
        _check_stripe(shard, row)
        shard.verify()


def _check_stripe(shard: ShardFile, row: PackRow) -> None:
    if shard.stripe.digest != row.digest:
        raise CorruptShard(f"{shard.path}: is of another stripe of the same pack")


def _note(move: Move, rows: PackRows, row: PackRow) -> PackRow:
    for _ in range(MAX_SWAPS):
        after = row.moved(move.number, move.target)
        if rows.swap(row, after):
            return after
        # Another shard of the pack was noted meanwhile, perhaps; what was written still fits then.
        newer = _expected(move, rows.read(move.pack_id))
        if newer.digest != row.digest:
            raise MoveOvertaken(move, "the pack is another stripe by now")
        row = newer
    raise MoveOvertaken(move, f"the row was changed {MAX_SWAPS} times meanwhile")
