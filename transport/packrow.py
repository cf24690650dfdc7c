"""The row of a pack: where it can be read, and which files on devices belong to it.

A row changes by compare-and-swap only: by a conversion (`transport.conversion`), and by the third
step of a move (`transport.moves`).
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

from transport.moves import Placed
from transport.shardfile import ShardName


@dataclass(frozen=True, slots=True)
class PackRow:
    """At least one of `copies` and `shards` can be read; with `shards`, there is no `coming`."""

    pack_id: bytes
    size: int
    """Bytes of the pack."""
    copies: tuple[str, ...] = ()
    """Devices that have all of it; with `shards`, those that are to drop it."""
    shards: tuple[str, ...] = ()
    """Devices by shard number; empty: it is no stripe."""
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

    @property
    def placed(self) -> Placed:
        """For plans of moves."""
        if self.shards:
            return Placed(self.pack_id, self.data, self.shard_bytes, self.shards)
        return Placed(self.pack_id, 1, self.size, self.copies)

    def moved(self, number: int, target: str) -> "PackRow":
        """With a shard, or a copy, on another device."""
        held = self.shards or self.copies
        after = tuple([target if n == number else one for n, one in enumerate(held)])
        return replace(self, shards=after) if self.shards else replace(self, copies=after)

    def has(self, device_id: str, name: ShardName) -> bool:
        """Whether that file on that device is a shard of this pack's stripe, or comes to be one."""
        held = self.shards or self.coming
        return (
            name.pack_id == self.pack_id
            and (name.data, name.data + name.parity) == (self.data, len(held))
            and held[name.number] == device_id
        )


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
