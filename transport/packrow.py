"""The row of a pack: where it can be read, and which files on devices belong to it.

A row changes by compare-and-swap only: by a conversion (`transport.conversion`), by the third step
of a move (`transport.moves`), and by who uses the stripe (`transport.striping`).
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from transport.moves import Placed
from transport.placement import Held
from transport.shardfile import ShardName


@dataclass(frozen=True, slots=True)
class PackRow:
    """At least one of `copies` and `shards` can be read; with `shards`, there is no `coming`."""

    pack_id: bytes
    size: int
    """Bytes of the pack."""
    copies: tuple[str, ...] = ()
    """Devices that have all of it; with `shards`, those that are to drop it."""
    shards: Held = ()
    """Devices by shard number, None where nobody has it; empty: it is no stripe."""
    data: int = 0
    """k of `shards`, or of `coming`."""
    shard_bytes: int = 0
    """Of payload, each."""
    digest: bytes = b""
    """Of the stripe (`Stripe.digest`)."""
    coming: tuple[str, ...] = ()
    """Devices that shards are being written to, by number."""
    owner: str = ""
    """Who writes them: a token of its own for each try."""
    users: tuple[str, ...] = ()
    """Nodes that find chunks in the stripe: none of its shards goes while there is one."""
    joining: tuple[str, ...] = ()
    """Of the users, those that have no stub of it yet, or did not when they wrote this."""
    left: tuple[str, ...] = ()
    """Nodes that have been users: too little was left there of what they had found in it. They do
    not come back, or they would come and go for ever."""
    removing: bool = False
    """Nobody used it any more, and nobody may begin to: its shards go."""
    given_up: bool = False
    """Somebody has said that it will not be readable again: what cannot be read of it is lost, and
    nothing waits for it any more."""

    @property
    def placed(self) -> Placed:
        """For plans of moves."""
        if self.shards:
            return Placed(self.pack_id, self.data, self.shard_bytes, self.shards)
        return Placed(self.pack_id, 1, self.size, self.copies)

    def name(self, number: int) -> ShardName:
        """Of a file of its stripe."""
        return ShardName(self.pack_id, self.data, len(self.shards) - self.data, number)

    def moved(self, number: int, target: str) -> "PackRow":
        """With a shard on another device."""
        shards = [target if n == number else one for n, one in enumerate(self.shards)]
        return replace(self, shards=tuple(shards))

    def has(self, device_id: str, name: ShardName) -> bool:
        """Whether that file on that device is a shard of this pack's stripe, or comes to be one."""
        held: Held = self.shards or self.coming
        return (
            name.pack_id == self.pack_id
            and (name.data, name.data + name.parity) == (self.data, len(held))
            and held[name.number] == device_id
        )


class PackRows(Protocol):
    """Where rows are kept. Any thread."""

    def read(self, pack_id: bytes) -> PackRow | None: ...

    def swap(self, before: PackRow, after: PackRow) -> bool:
        """Put `after` in the place of `before`, durable on return; False when the row is another,
        and not `after`. OSError or an error of the store: nobody knows, and it may be tried
        again."""


class StripeLike(Protocol):
    """What rows are made again from: `transport.shardfile.Stripe`, or as much of it."""

    @property
    def pack_id(self) -> bytes: ...
    @property
    def pack_size(self) -> int: ...
    @property
    def data(self) -> int: ...
    @property
    def width(self) -> int: ...
    @property
    def shard_length(self) -> int: ...
    @property
    def digest(self) -> bytes: ...


def rows_from(found: Iterable[tuple[str, StripeLike, int]]) -> dict[bytes, PackRow]:
    """Rows made again from what shards say of themselves: (device, stripe, number) of each whole
    file. Of two stripes of a pack the one with more to spare counts. A shard may be on several
    devices, and a device have several of one stripe, of moves: a row names each device once, and as
    many shards as that allows. Packs of which there are too few to read them are left out."""
    by_stripe: dict[StripeLike, dict[int, list[str]]] = {}
    for device_id, stripe, number in sorted(found, key=lambda each: (each[0], each[2])):
        by_stripe.setdefault(stripe, {}).setdefault(number, []).append(device_id)
    rows: dict[bytes, PackRow] = {}
    spare_of: dict[bytes, int] = {}
    for stripe, files in sorted(by_stripe.items(), key=lambda item: item[0].digest):
        held = _apart(files)
        spare = len(held) - stripe.data
        if spare > spare_of.get(stripe.pack_id, -1):
            spare_of[stripe.pack_id] = spare
            rows[stripe.pack_id] = PackRow(
                stripe.pack_id,
                stripe.pack_size,
                shards=tuple([held.get(number) for number in range(stripe.width)]),
                data=stripe.data,
                shard_bytes=stripe.shard_length,
                digest=stripe.digest,
            )
    return rows


def _apart(files: Mapping[int, list[str]]) -> dict[int, str]:
    """A device for as many shards as can have one of their own: `files` by shard number."""
    taken: dict[str, int] = {}

    def place(number: int, seen: set[str]) -> bool:
        for device in files[number]:
            if device not in seen:
                seen.add(device)
                if device not in taken or place(taken[device], seen):
                    taken[device] = number
                    return True
        return False

    for number in sorted(files):
        place(number, set())
    return {number: device for device, number in taken.items()}


def leftovers(
    device_id: str,
    names: Iterable[ShardName],
    rows: Mapping[bytes, PackRow],
    busy: Collection[tuple[bytes, int]],
) -> list[ShardName]:
    """Shard files of a device that may be removed: no row has them there, and no move in flight
    (`busy`, see `Mover`) is writing them. `rows` is to be read after the files were listed, so that
    what was noted meanwhile is in it."""
    return [
        name
        for name in names
        if (name.pack_id, name.number) not in busy
        and not (name.pack_id in rows and rows[name.pack_id].has(device_id, name))
    ]
