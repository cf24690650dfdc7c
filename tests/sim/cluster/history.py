"""What clients of a world's volume were told, judged as it happens by the history checker.

The events are those of `tests.check.events`; nothing is written to a file. `Violation` is raised
where the checker finds something.
"""

from tests.check.events import Header
from tests.check.judge import Judge
from tests.check.stamps import SECTOR, payload, runs_of
from tests.sim.world.stamps import Violation

HISTORY = 1


class History:
    """Of one volume of `size` bytes."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.lines: list[list[object]] = []
        self._judge = Judge(Header(HISTORY, "volume", size))
        self._count = 0
        self._forgotten = 0
        """Operations up to this one say nothing any more."""

    @property
    def operations(self) -> int:
        """How many have begun."""
        return self._count

    def begin(self, kind: str, first: int = 0, count: int = 0) -> int:
        """Before a request is sent: the operation's number."""
        self._count += 1
        self._take(["b", self._count, 1, kind, first, count])
        return self._count

    @staticmethod
    def payload(operation: int, first: int, count: int) -> bytes:
        """What a write has to send."""
        return payload(HISTORY, 1, operation, first, count)

    def end(self, operation: int, error: int = 0) -> None:
        """A request was answered, or nobody waits for its answer any more."""
        if operation > self._forgotten:
            self._take(["e", operation, error])

    def saw(self, operation: int, first: int, data: bytes) -> None:
        """A read was answered."""
        if operation > self._forgotten:
            self._take(["e", operation, 0, runs_of(data, first, HISTORY)])

    def taken_over(self, image: bytes) -> None:
        """A node begins to serve with this; all that was acknowledged before has to be in it."""
        self._take(["takeover"])
        self._take(["state", None, runs_of(image, 0, HISTORY)])

    def taken_over_after_loss(self, image: bytes) -> None:
        """A node begins to serve with this, after more members have lost what they had than the
        volume's mode allows for: what was flushed is there, and a prefix of the rest."""
        self._forgotten = self._count
        self._take(["crash", "power"])
        self._take(["state", None, runs_of(image, 0, HISTORY)])
        self._take(["restart"])

    def final(self, image: bytes) -> None:
        """What the volume reads as when all clients are gone."""
        self._take(["crash", "kill"])
        self._forgotten = self._count
        self._take(["state", None, runs_of(image, 0, HISTORY)])

    def _take(self, line: list[object]) -> None:
        self.lines.append(line)
        self._judge.take([line])
        report = self._judge.report
        if report.found:
            raise Violation(str(report.findings[0]))


def sectors(size: int) -> int:
    return size // SECTOR
