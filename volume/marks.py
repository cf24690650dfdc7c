"""Which entries of which packs: the bitmaps that gc and scrub work with.

An entry of a pack is named by (pack, ordinal), so a set of them is one bit each: 2 MiB for the
chunks of 1 TiB at 64 KiB a chunk, whatever their ids are.

`Marks` is such a set that only grows. `Condemned` remembers since when entries have been dead, so
that gc can leave them alone for a while.
"""

from typing import NamedTuple

from volume.errors import CorruptData
from volume.index import Place, Slot

MAX_ORDINAL = 1 << 23  # as many entries of 128 bytes, the smallest, are in the largest pack
GENERATIONS = 4  # points in time per condemn period that deaths are remembered by


class Marks:
    """A set of entries. One thread marks; any may ask."""

    __slots__ = ("_bits",)

    def __init__(self) -> None:
        self._bits: dict[int, bytearray] = {}

    def mark(self, entry: Slot | Place) -> bool:
        """Add an entry; whether it was not in the set before. CorruptData: no pack has so many."""
        number, ordinal = entry.pack, entry.ordinal
        bits = self._bits.get(number)
        if bits is None:
            bits = self._bits[number] = bytearray()
        at, bit = ordinal >> 3, 1 << (ordinal & 7)
        if at >= len(bits):
            if ordinal > MAX_ORDINAL:
                raise CorruptData(
                    f"index: names entry {ordinal} of pack {number:08x}, no pack has so many; "
                    "stop the daemon, then: blockd doctor --repair-index"
                )
            bits.extend(bytes(at + 1 - len(bits)))
        if bits[at] & bit:
            return False
        bits[at] |= bit
        return True

    def marked(self, entry: Slot | Place) -> bool:
        number, ordinal = entry.pack, entry.ordinal
        bits = self._bits.get(number, b"")
        at = ordinal >> 3
        return at < len(bits) and bool(bits[at] >> (ordinal & 7) & 1)

    def count(self, number: int) -> int:
        """Entries of a pack that are in the set."""
        return self.bits(number).bit_count()

    def bits(self, number: int) -> int:
        """Those of a pack as a number: bit n is the entry with ordinal n."""
        return int.from_bytes(self._bits.get(number, b""), "little")

    def merge(self, other: "Marks") -> None:
        """Add all entries of `other`."""
        for number, added in other._bits.items():
            bits = self.bits(number) | int.from_bytes(added, "little")
            self._bits[number] = bytearray(bits.to_bytes(-(-bits.bit_length() // 8), "little"))


class _Generation(NamedTuple):
    """Entries of a pack that were found dead together."""

    since: float
    bits: int


class Condemned:
    """Since when entries have been dead. Times are monotonic seconds.

    A death is dated by the first generation that has it: never too early, and at most a
    GENERATIONS-th of the period too late. So a pack needs a few bitmaps, however often gc runs."""

    def __init__(self, period_s: float) -> None:
        self.period_s = period_s
        self._packs: dict[int, list[_Generation]] = {}

    def found(self, number: int, dead: int, now: float) -> None:
        """The dead entries of a pack, as bits. Those that were dead and are not any more: pardoned,
        and their next death is a new one."""
        known = 0
        kept: list[_Generation] = []
        for since, bits in self._packs.get(number, ()):
            if bits & dead:
                kept.append(_Generation(since, bits & dead))
                known |= bits
        fresh = dead & ~known
        if fresh and (not kept or now - kept[-1].since >= self.period_s / GENERATIONS):
            kept.append(_Generation(now, fresh))
        if kept:
            self._packs[number] = kept
        else:
            self._packs.pop(number, None)

    def due(self, number: int, now: float) -> int:
        """The entries of a pack, as bits, that have been dead for the whole period."""
        due = 0
        for since, bits in self._packs.get(number, ()):
            if now - since >= self.period_s:
                due |= bits
        return due

    def carry(self, old: Slot, new: Slot) -> None:
        """A dead entry was copied: it has been dead for as long in its new place."""
        for since, bits in self._packs.get(old.pack, ()):
            if bits >> old.ordinal & 1:
                ages = dict(self._packs.get(new.pack, ()))
                ages[since] = ages.get(since, 0) | 1 << new.ordinal
                self._packs[new.pack] = [_Generation(*age) for age in sorted(ages.items())]
                return

    def forget(self, number: int) -> None:
        """The pack is gone."""
        self._packs.pop(number, None)
