"""Answering: what another member asks of a part, but for a planned move."""

from collections.abc import Callable

from transport.group.around import Around
from transport.group.member import NANOSECONDS, Left, Member
from transport.group.watch import Watch
from transport.peer import messages as m
from transport.peer.wire import Message


class Answering:
    """Of one part. `promised`: told of each promise that it gives. `moved`: the watch, perhaps."""

    def __init__(
        self,
        around: Around,
        member: Member,
        watch: Watch,
        promised: Callable[[int], None],
        moved: Callable[[], None],
    ) -> None:
        self.withdrawn = False
        """The part is being let go: nobody is answered any more."""
        self._around = around
        self._member = member
        self._watcher = watch
        self._heard_ns = 0
        self._promised = promised
        self._moved = moved

    @property
    def watch(self) -> Watch:
        """It hears first of what was answered without it: plain APPENDs."""
        heard_ns = self._member.replica.answered_ns
        if heard_ns > self._heard_ns:
            self._heard_ns = heard_ns
            self._watcher.heard(heard_ns / NANOSECONDS)
        return self._watcher

    def withdraw(self) -> None:
        self.withdrawn = True
        self._member.withdraw()

    def answer(self, message: m.Request, then: Callable[[Message], None]) -> None:
        member, now = self._member, self._around.clock()

        def answered(result: Message | Exception) -> None:
            if isinstance(result, Exception):
                text = f"volume {member.replica.name}: {result}"
                result = m.Error(m.Code.FAILED, 0, text)
            self._note(message, result)
            then(result)
            self._moved()

        def wait() -> None:
            self._around.work(lambda: member.answer(message, now), answered)

        def synced(_: int | Exception) -> None:
            if self.withdrawn:  # asked now, the member would answer plain APPENDs again
                then(self.let_go())
                return
            reply = member.at_once(message, now)
            if isinstance(reply, Left):  # it failed, or another request has its turn
                wait()
            else:
                answered(reply)

        reply = member.at_once(message, now)
        if reply is Left.SYNC:
            self._around.sync(member.replica, synced)
        elif reply is Left.ALL:
            wait()
        else:
            answered(reply)

    def let_go(self) -> m.Error:
        """What is answered once it is withdrawn."""
        name = self._member.replica.name
        return m.Error(m.Code.BUSY, 0, f"volume {name}: its part is let go here")

    def _note(self, message: m.Request, answer: Message) -> None:
        """What follows for the watch from what was answered."""
        now = self._around.clock()
        match message, answer:
            case (m.Close(), m.Ack()):
                self.watch.left(now)
            case (m.Append() | m.AppendBrief() | m.Sync(), m.Ack()):
                watch = self.watch
                if now > self._heard_ns / NANOSECONDS:  # else it was a plain one: it has heard
                    watch.heard(now)
            case (m.Open() | m.Undo() | m.Adopt(), m.Ack()):
                self.watch.heard(now)
            case (m.Stream() | m.Compare() | m.Have(), m.Streamed() | m.Compared() | m.Want()):
                self.watch.heard(now)
            case (m.Seal(), m.Sealed()):
                self._promised(answer.epoch)
