"""From where shards are to where they should be: which are moved, in which order, how many at once.

`plan` compares what is noted of each pack with its placement by the newest map. It is a function of
these two and nothing else, so a node that crashed plans again and goes on where it was. `Mover`
hands the moves out, bounded for each device, and counts bytes for whoever draws a bar. Neither
touches a disk; who does, does for each move, in this order:

    1  write the shard at the target: copied from `source`, or computed from `others`; synced
    2  read it back and verify it
    3  note the target in the source's place, by compare-and-swap of the pack's row
    4  remove the shard at the source

so at no point are there fewer good shards than before. A crash before 3 leaves a file at the target
that no row names, a crash before 4 one at the source: `packrow.leftovers` finds both.

Order: packs with the fewest shards to spare first; of these what is lost, then what is on devices
that drain, then what has a better place. A pack with fewer good shards than it needs is
`unreadable` until one of its devices comes back; what it still has is moved off draining devices
all the same.
"""

import enum
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from transport.devicemap import DeviceState
from transport.placement import Held, Placement

PER_DEVICE: Final = 2
"""Moves that keep a device busy at once: one waits for the disk, one for the network."""
LOOK_AHEAD: Final = 1000
"""Moves looked at for one whose devices are free; bounds what a call costs."""
MAX_TRIES: Final = 3
"""Of one move in one plan. Then it is left to the next plan, and shown."""


class Reason(enum.IntEnum):
    """Why a shard moves; lower goes first."""

    LOST = 0
    DRAIN = 1
    BALANCE = 2


@dataclass(frozen=True, slots=True)
class Placed:
    """A pack, as its row says: whole copies, or the shards of a stripe."""

    pack_id: bytes
    needed: int
    """Shards that it takes to read all of it: 1 of copies, k of a stripe."""
    shard_bytes: int
    """On disk, each."""
    held: Held


@dataclass(frozen=True, slots=True)
class Move:
    """One shard to one device."""

    pack_id: bytes
    number: int
    source: str | None
    """Who has it; None: it is computed from others."""
    target: str
    length: int
    reason: Reason
    spare: int
    """Shards that may still be lost before the pack is unreadable."""
    needed: int
    others: tuple[str, ...]
    """Who has other good shards of the pack."""

    @property
    def devices(self) -> tuple[str, ...]:
        """Those that this move keeps busy."""
        return (*((self.source,) if self.source else self.others[: self.needed]), self.target)

    @property
    def key(self) -> tuple[bytes, int]:
        return self.pack_id, self.number


@dataclass(frozen=True, slots=True)
class Plan:
    map_epoch: int
    moves: tuple[Move, ...]
    """In the order in which they are to begin."""
    unreadable: tuple[bytes, ...]
    """Ids of packs with fewer good shards than needed."""

    @property
    def total_bytes(self) -> int:
        return sum(move.length for move in self.moves)


def plan(placement: Placement, packs: Iterable[Placed]) -> Plan:
    """What it takes to have every pack where `placement` wants it. TooFewDomains."""
    by_width: dict[int, list[Placed]] = {}
    for pack in packs:
        by_width.setdefault(len(pack.held), []).append(pack)
    moves: list[Move] = []
    unreadable: list[bytes] = []
    for width, group in sorted(by_width.items()):
        ids = [pack.pack_id for pack in group]
        for pack, chosen in zip(group, placement.choose_all(ids, width), strict=True):
            wanted = placement.keeping(_known(placement, pack.held), chosen)
            good = good_holders(placement, pack.held)
            if len(good) < pack.needed:
                unreadable.append(pack.pack_id)
            moves += _moves_of(placement, pack, good, wanted)
    moves.sort(key=lambda move: (move.spare, move.reason, move.pack_id, move.number))
    return Plan(placement.map.epoch, tuple(moves), tuple(sorted(unreadable)))


def _known(placement: Placement, held: Held) -> Held:
    return tuple([device if device in placement.map.devices else None for device in held])


def good_holders(placement: Placement, held: Held) -> dict[int, str]:
    """Shard number -> device, for those that can be read as far as the map knows."""
    devices = placement.map.devices
    return {
        number: device
        for number, device in enumerate(held)
        if device is not None and device in devices and devices[device].readable
    }


def _moves_of(
    placement: Placement, pack: Placed, good: Mapping[int, str], wanted: Sequence[str]
) -> Iterator[Move]:
    for number, target in enumerate(wanted):
        source = good.get(number)
        if source == target:
            continue
        others = tuple([device for other, device in good.items() if other != number])
        if source is None and len(others) < pack.needed:
            continue  # unreadable
        yield Move(
            pack.pack_id,
            number,
            source,
            target,
            pack.shard_bytes,
            _reason(placement, source),
            max(0, len(good) - pack.needed),
            pack.needed,
            others,
        )


def _reason(placement: Placement, source: str | None) -> Reason:
    if source is None:
        return Reason.LOST
    draining = placement.map.devices[source].state is not DeviceState.IN
    return Reason.DRAIN if draining else Reason.BALANCE


def placed_on(packs: Iterable[Placed], device_id: str) -> tuple[int, int]:
    """(shards, bytes) that rows say are on a device. (0, 0): its drain is done."""
    lengths = [pack.shard_bytes * pack.held.count(device_id) for pack in packs]
    return sum(length > 0 for length in lengths), sum(lengths)


@dataclass(frozen=True, slots=True)
class Progress:
    """Of all moves since the mover was made, for a bar."""

    total_bytes: int
    done_bytes: int
    """With what those under way have written so far; never above the total."""
    moves_left: int
    given_up: int


class Mover:
    """Hands out the moves of a plan. A plain state machine: no clock, no threads."""

    def __init__(self, first: Plan, *, per_device: int = PER_DEVICE) -> None:
        assert per_device >= 1
        self._per_device = per_device
        self._queue: deque[Move] = deque(first.moves)
        self._queued_bytes = first.total_bytes
        self._busy: Counter[str] = Counter()
        self._under_way: dict[tuple[bytes, int], tuple[Move, int]] = {}
        """By key: the move, and the bytes it has written."""
        self._tries: Counter[tuple[bytes, int]] = Counter()
        self._done_bytes = 0
        self.given_up: list[Move] = []

    def start(self) -> list[Move]:
        """Moves that may begin now; they are under way from here on."""
        started, passed = [], []
        for _ in range(min(LOOK_AHEAD, len(self._queue))):
            move = self._queue.popleft()
            if all(self._busy[device] < self._per_device for device in move.devices):
                self._busy.update(move.devices)
                self._under_way[move.key] = (move, 0)
                self._queued_bytes -= move.length
                started.append(move)
            else:
                passed.append(move)
        self._queue.extendleft(reversed(passed))
        return started

    def wrote(self, move: Move, count: int) -> None:
        """`count` more bytes of a move that is under way are at its target."""
        known, written = self._under_way[move.key]
        self._under_way[move.key] = (known, min(known.length, written + count))

    def finished(self, move: Move) -> None:
        """It is noted, and what it replaced may be removed."""
        self._end(move)
        self._done_bytes += move.length

    def failed(self, move: Move) -> None:
        """It came to nothing. Tried again, computed from others where its source was the trouble;
        given up after MAX_TRIES."""
        self._end(move)
        self._tries[move.key] += 1
        if self._tries[move.key] >= MAX_TRIES:
            self.given_up.append(move)
            return
        if move.source is not None and len(move.others) >= move.needed:
            move = replace(move, source=None)
        self._queue.append(move)
        self._queued_bytes += move.length

    def replan(self, newer: Plan) -> None:
        """Go on with another plan. What is under way stays so; the plan is to be made of rows that
        were read after the last `finished`."""
        self._queue = deque(move for move in newer.moves if move.key not in self._under_way)
        self._queued_bytes = sum(move.length for move in self._queue)
        self._tries.clear()
        self.given_up.clear()

    @property
    def busy(self) -> frozenset[tuple[bytes, int]]:
        """Shards that are under way: not to be taken for leftovers."""
        return frozenset(self._under_way)

    @property
    def idle(self) -> bool:
        return not self._queue and not self._under_way

    @property
    def progress(self) -> Progress:
        lengths = sum(move.length for move, _ in self._under_way.values())
        written = sum(count for _, count in self._under_way.values())
        return Progress(
            total_bytes=self._done_bytes + lengths + self._queued_bytes,
            done_bytes=self._done_bytes + written,
            moves_left=len(self._under_way) + len(self._queue),
            given_up=len(self.given_up),
        )

    def _end(self, move: Move) -> None:
        known, _ = self._under_way.pop(move.key)
        assert known == move
        self._busy.subtract(move.devices)
