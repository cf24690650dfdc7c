"""From whole copies to a stripe: in which order, and what a crash at each point leaves.

The row of a pack says where it can be read, and which devices somebody is writing shards to. It
changes by compare-and-swap only.

    step      what is done                                          the row then
    ---       -                                                     copies
    Reserve   say which devices get shards, and who writes them     copies, coming, owner
    Encode    write all shards, each synced
    Verify    read all shards back, past the page cache
    Switch    the stripe is what is read from now on                stripe, copies
    Drop      remove the copies
    Settle    forget them                                           stripe

At every point the row names something that is whole: the copies until `Switch`, the stripe from
then on, since nothing is removed before `Switch` is durable and nothing is switched to that was not
read back. A crash leaves shards that the row names as coming, or copies that it names as to be
dropped; `Conversion` begins with the row and goes on from there.

Who finds `coming` of another owner takes the pack over by `Reserve`, once that owner is known to be
gone. Should it not be gone, its `Switch` fails, as the row has changed; what it wrote meanwhile is,
byte for byte, what the new owner writes. Nobody removes shards of devices in `coming`.

A pack whose encoding or verifying fails gives its reservation back and stays as it was; shards that
were written are leftovers then (`packrow.leftovers`), and another plan may try again elsewhere.

This is a plain state machine: `action` is what to do next, `done`, `lost` and `failed` say what
came of it. Files are `stripes.encode` and `verify`; rows are whatever keeps them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, assert_never

from transport.packrow import PackRow

MAX_TRIES: Final = 3
"""Of a compare-and-swap whose answer was lost, or of a removal; then it is left to the next run."""


@dataclass(frozen=True, slots=True)
class Written:
    """What `Encode` made."""

    shard_bytes: int
    digest: bytes


@dataclass(frozen=True, slots=True)
class Swap:
    """Put `after` in the place of the row `before`; `why` is its name in the table above."""

    why: str
    before: PackRow
    after: PackRow


@dataclass(frozen=True, slots=True)
class Encode:
    targets: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Verify:
    targets: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Drop:
    """Remove the copies on these devices, durable on return."""

    devices: tuple[str, ...]


Action = Swap | Encode | Verify | Drop


class Conversion:
    """Of one pack, from whatever its row says."""

    def __init__(self, row: PackRow, targets: Sequence[str], data: int, owner: str) -> None:
        """`targets`: devices for the shards by number; `owner`: a token that nobody had before.
        For a row that has its stripe already, only the copies are dropped."""
        assert owner
        assert row.shards or (row.copies and data < len(targets) == len(set(targets)))
        self.row = row
        self.error: str | None = None
        """Why it was given up."""
        self._written: Written | None = None
        self._tries = 0
        if row.shards:
            self.action: Action | None = self._after_switch()
        else:
            reserved = replace(row, coming=tuple(targets), data=data, owner=owner)
            self.action = Swap("reserve", row, reserved)

    def done(self, written: Written | None = None) -> None:
        """The action happened, durably; `written` with `Encode` only."""
        action = self.action
        self._tries = 0
        match action:
            case Swap():
                self.row = action.after
                self.action = self._after(action.why)
            case Encode():
                assert written is not None
                self._written = written
                self.action = Verify(action.targets)
            case Verify():
                self.action = self._switch(action.targets)
            case Drop():
                self.action = Swap("settle", self.row, replace(self.row, copies=()))
            case None:
                raise AssertionError("nothing was to be done")
            case _:
                assert_never(action)

    def lost(self) -> None:
        """A swap was refused for good: the row is another by now, and somebody else's affair."""
        assert isinstance(self.action, Swap)
        self._give_up(f"{self.action.why}: the row was changed by somebody else")

    def failed(self, why: str) -> None:
        """It did not happen, or nobody knows. A swap may be tried again as it is: whether it
        happened already shows then."""
        action = self.action
        self._tries += 1
        match action:
            case Encode() | Verify():
                self.error = why
                free = replace(self.row, coming=(), data=0, owner="")
                self.action = Swap("give back", self.row, free)
                self._tries = 0
            case Swap() | Drop():
                if self._tries >= MAX_TRIES:
                    self._give_up(why)
            case None:
                raise AssertionError("nothing was to be done")
            case _:
                assert_never(action)

    @property
    def converted(self) -> bool:
        """The stripe is what is read from now on, whatever becomes of the copies."""
        return bool(self.row.shards)

    def _give_up(self, why: str) -> None:
        self.error = why
        self.action = None

    def _after(self, swapped: str) -> Action | None:
        match swapped:
            case "reserve":
                return Encode(self.row.coming)
            case "switch":
                return self._after_switch()
            case _:
                return None

    def _after_switch(self) -> Action | None:
        return Drop(self.row.copies) if self.row.copies else None

    def _switch(self, targets: tuple[str, ...]) -> Swap:
        assert self._written is not None
        after = replace(
            self.row,
            shards=targets,
            shard_bytes=self._written.shard_bytes,
            digest=self._written.digest,
            coming=(),
            owner="",
        )
        return Swap("switch", self.row, after)
