"""What clients of a world's volume were told, judged as it happens by the history checker.

The events are those of `tests.check.events`; nothing is written to a file. `Violation` is raised
where the checker finds something.

That the volume goes back to an image may happen or not: until that is known there are two lines of
its history, one in which it did, and events are held against both. What contradicts all lines is
wrong, and what contradicts the line that turns out to be the true one.
"""

from errno import EIO
from typing import Any

from tests.check.events import CHANGES, FLUSH, WRITE, Header
from tests.check.judge import Judge
from tests.check.stamps import SECTOR, Run, payload, runs_of
from tests.sim.world.stamps import Violation

HISTORY = 1


class Branch:
    """A line of what a volume has been: from the beginning, or since it went back to `image`.

    In the second one what the image holds are operations 1, 2... of the line's own, one for each
    run of sectors, and it has them on W disks; the clients' follow. What was under way when it went
    back may show later, but need not."""

    def __init__(self, size: int, since: int = 0) -> None:
        self.since = since
        """Operations up to this one have begun before."""
        self.judge = Judge(Header(HISTORY, "volume", size))
        self._own: list[tuple[int | str, int]] = []
        """By sector: what the image has of it, and the line's own operation that it is."""
        self._shift = 0

    @classmethod
    def back(
        cls, size: int, image: bytes, since: int, under_way: dict[int, tuple[str, int, int]]
    ) -> "Branch":
        branch = cls(size, since)
        lines: list[list[object]] = []
        number = first = 0
        for count, source in runs_of(image, 0, HISTORY):
            if source != 0:
                number += 1
                lines += [["b", number, 1, WRITE, first, count], ["e", number, 0]]
            branch._own += [(source, number if source != 0 else 0)] * int(count)
            first += int(count)
        number += 1
        lines += [["b", number, 1, FLUSH, 0, 0], ["e", number, 0]]
        branch._shift = number
        for operation, (kind, at, count) in under_way.items():
            lines += [["b", operation + number, 1, kind, at, count], ["e", operation + number, EIO]]
        branch.judge.take(lines)
        return branch

    def take(self, line: list[Any]) -> None:
        if not self._own:
            self.judge.take([line[:4] if line[0] == "e" else line])
        elif line[0] == "b":
            self.judge.take([["b", line[1] + self._shift, *line[2:]]])
        elif line[0] == "state":
            self.judge.take([["state", None, self._runs(line[2], 0)]])
        elif line[0] != "e":
            self.judge.take([line])
        elif line[1] > self.since:
            runs = [self._runs(each, line[4]) for each in line[3:4]]
            self.judge.take([["e", line[1] + self._shift, line[2], *runs]])

    def _runs(self, runs: list[Run], first: int) -> list[Run]:
        """With the line's own numbers."""
        found: list[Run] = []
        for count, source in runs:
            for sector in range(first, first + int(count)):
                own, number = self._own[sector]
                now = source
                if source == own:
                    now = number
                elif isinstance(source, int) and source:
                    now = source + self._shift
                if found and found[-1][1] == now:
                    found[-1] = [int(found[-1][0]) + 1, now]
                else:
                    found.append([1, now])
            first += int(count)
        return found


class History:
    """Of one volume of `size` bytes."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._branches = [
            Branch(size)
        ]  # oldest first; each one but the first is from the one before
        self._under_way: dict[int, tuple[str, int, int]] = {}
        """Changes that may yet happen: kind, first sector and count."""
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
        if kind in CHANGES:
            self._under_way[self._count] = (kind, first, count)
        self._take(["b", self._count, 1, kind, first, count])
        return self._count

    @staticmethod
    def payload(operation: int, first: int, count: int) -> bytes:
        """What a write has to send."""
        return payload(HISTORY, 1, operation, first, count)

    def end(self, operation: int, error: int = 0) -> None:
        """A request was answered, or nobody waits for its answer any more."""
        if not error:
            self._under_way.pop(operation, None)
        if operation > self._forgotten:
            self._take(["e", operation, error])

    def saw(self, operation: int, first: int, data: bytes) -> None:
        """A read was answered."""
        if operation > self._forgotten:
            self._take(["e", operation, 0, runs_of(data, first, HISTORY), first])

    def taken_over(self, image: bytes) -> None:
        """A node begins to serve with this; all that was acknowledged before has to be in it."""
        self._under_way.clear()
        self._take(["takeover"])
        self._take(["state", None, runs_of(image, 0, HISTORY)])

    def taken_over_after_loss(self, image: bytes) -> None:
        """A node begins to serve with this, after more members have lost what they had than the
        volume's mode allows for: what was flushed is there, and a prefix of the rest."""
        self._under_way.clear()
        self._forgotten = self._count
        self._take(["crash", "power"])
        self._take(["state", None, runs_of(image, 0, HISTORY)])
        self._take(["restart"])

    def final(self, image: bytes) -> None:
        """What the volume reads as when all clients are gone."""
        self._take(["crash", "kill"])
        self._forgotten = self._count
        self._take(["state", None, runs_of(image, 0, HISTORY)])

    # -- going back

    def goes_back(self, image: bytes) -> Branch:
        """From here on the volume is `image`, perhaps: the line in which it is."""
        branch = Branch.back(self.size, image, self._count, self._under_way)
        self._branches.append(branch)
        return branch

    def did_not(self, branch: Branch) -> None:
        """It did not go back, for certain."""
        self._branches.remove(branch)

    def went_back(self, branch: Branch) -> None:
        """It did: whoever asks from here on sees that. Violation."""
        if branch in self._branches:
            del self._branches[: self._branches.index(branch)]
            self._check()

    def settle(self, branch: Branch | None, *, whole: bool) -> None:
        """A node is about to serve: of all lines this one is true, None: the oldest. `whole`: what
        was seen of others had to be kept. Violation."""
        branch = branch or self._branches[0]
        self._branches = [branch]
        if not whole:
            branch.judge.report.found = 0
            branch.judge.report.findings.clear()
        self._check()

    def _take(self, line: list[Any]) -> None:
        for branch in self._branches:
            branch.take(line)
        self._check()

    def _check(self) -> None:
        for branch in self._branches:
            if not branch.judge.report.found:
                return
        raise Violation(str(self._branches[-1].judge.report.findings[0]))


def sectors(size: int) -> int:
    return size // SECTOR
