"""A few bytes that all nodes of a volume keep together, and who may change them when.

One node serves such a volume at a time, in a *term*: its epoch. What is kept names the latest term
that has looked at it; from then on a node that still believes in an earlier one changes nothing.
So what a node has answered is there for whoever serves the volume after it, and nobody answers
anything that is not.

`blockd.cluster.reservations` has it, for the SCSI units of a volume (`blockd.scsi`).
"""

import errno
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Held:
    """What was kept at some moment."""

    term: int
    """The latest one that it is known to; 0: none yet."""
    revision: int
    """Grows with each change."""
    value: bytes
    """b"" until somebody has put something there."""


class Now(NamedTuple):
    """What a node knows at some moment."""

    term: int
    """In which it serves the volume; 0: it does not."""
    known: Held | None
    """As it was when its term began, or later."""

    @property
    def ready(self) -> bool:
        """Whether it serves the volume and knows what is kept."""
        return self.known is not None and self.known.term == self.term != 0


NOTHING: Final = Now(0, None)


class SharedState(Protocol):
    """Of one volume."""

    @property
    def now(self) -> Now:
        """Quick."""

    def note(self, held: Held) -> None:
        """That is known now, unless something newer is. Quick."""

    def read(self) -> Held:
        """What is kept now. Waits. OSError: not known."""

    def change(self, term: int, apply: Callable[[bytes], tuple[bytes, T]]) -> tuple[Held, T]:
        """Replace what is kept by what `apply` makes of it; durable on return, and not known yet.
        `term` 0 is for a node that does not serve the volume. What `apply` raises changes nothing;
        it may be called again, for what somebody else has put there meanwhile. Waits. OSError: it
        did not happen; `NotServing`: nor will it; `Unsettled`: it may have, or may yet."""


class NotServing(OSError):
    """The term is over: another node serves the volume, or is about to."""


class Unsettled(OSError):
    """A change whose answer was lost. Whoever knows of a later revision than `revision` knows
    whether it has happened; the node that serves the volume sees to it that there is one."""

    def __init__(self, text: str, revision: int, value: bytes, result: object) -> None:
        super().__init__(errno.EIO, text)
        self.revision = revision
        """That it would have replaced."""
        self.value = value
        """What is kept, if it has happened."""
        self.result = result
        """What `apply` gave for that."""


def ready(state: SharedState) -> bool:
    """Whether this node serves the volume and knows what is kept. Quick."""
    return state.now.ready
