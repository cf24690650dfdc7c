"""How many bytes the commands of a session may hold at a time, and who waits for that.

Counted are the data-out that was asked for and the data-in that is promised. What was answered
counts until the socket side has taken it: an initiator that does not read gets no more read for it.
Commands that find no room wait in their order. The bound may be passed by one command, so that the
longest one fits, whatever the bound is.
"""

from collections import deque

from blockd.iscsi.command import Command


class Room:
    """See the module's text. `Command.charge` is what a command holds."""

    __slots__ = ("_answered", "_waiting", "held", "limit")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = 0
        self._answered = 0
        self._waiting: deque[Command] = deque()

    @property
    def free(self) -> bool:
        """Whether a command may `take` some, and need not `wait` for its turn."""
        return not self._waiting and self.held < self.limit

    def take(self, command: Command, length: int) -> None:
        command.charge += length
        self.held += length

    def wait(self, command: Command) -> None:
        self._waiting.append(command)

    def answered(self, command: Command) -> None:
        """What it holds is in the output now."""
        self._answered += command.charge

    def output_taken(self) -> None:
        """All output so far has left."""
        self.held -= self._answered
        self._answered = 0

    def give_back(self, command: Command) -> None:
        """It was aborted: nothing of it will be in the output."""
        self.held -= command.charge
        command.charge = 0

    def clear(self) -> None:
        """Nobody holds anything, nobody waits."""
        self.held = self._answered = 0
        self._waiting.clear()

    def next(self) -> Command | None:
        """Take out the command whose turn it is, if there is room for one. It may be over."""
        if self._waiting and self.held < self.limit:
            return self._waiting.popleft()
        return None
