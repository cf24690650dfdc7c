"""Mending: this node's own part goes back to where it parted from the state that a takeover chose,
and takes the records behind that from the member that has them.

A step is asked for when the one before it is done; every record is checked by the replica that
appends it, and refused if a later epoch was promised meanwhile. What is left of it when it breaks
off is a shorter history, which the next try goes on from.
"""

from collections.abc import Callable
from typing import Final

from transport.group.around import Around, text_of
from transport.group.takeover_run import Mend
from transport.peer import messages as m
from transport.peer.wire import Message
from volume.replica import Replica

READ_S: Final = 10.0
PAUSE_S: Final = 0.05  # for journal space, when an append could not take all
MAX_PAUSES: Final = 200

Ask = Callable[[m.Request, float, Callable[[Message | str], None]], None]


class Mending:
    """`ask` asks the source; `then` is told once: None when the part has all, synced, else what is
    wrong. `alive` is asked before each step; nothing more comes when it says no."""

    def __init__(
        self,
        around: Around,
        replica: Replica,
        mend: Mend,
        ask: Ask,
        alive: Callable[[], bool],
        then: Callable[[Exception | str | None], None],
    ) -> None:
        self._around = around
        self._replica = replica
        self._mend = mend
        self._ask = ask
        self._alive = alive
        self._then = then
        self._point = (0, 0)
        self._pauses = 0

    def start(self) -> None:
        keep, epoch = self._mend.task.keep, self._mend.epoch
        if keep is None:
            self._then("the log of no member reaches back to what is here: it needs all")
            return
        self._point = keep

        def undone(result: Exception | None) -> None:
            if isinstance(result, Exception):
                self._end(result)
            else:
                self._read()

        self._around.work(lambda: self._replica.undo(epoch, keep), undone)

    def _read(self) -> None:
        if not self._alive():
            return
        epoch, seq = self._point
        if seq >= self._mend.chain.seq:
            self._around.work(self._replica.sync, self._end)
            return
        limit = m.MAX_RECORDS_BYTES
        self._ask(m.ReadLog(self._replica.uuid, epoch, seq, limit), READ_S, self._got)

    def _got(self, result: Message | str) -> None:
        if not isinstance(result, m.Log):
            self._end(text_of(result))
        elif not result.payload:
            self._end("the log of the member that has it does not reach back to what is here")
        else:
            self._append(result)

    def _append(self, found: m.Log) -> None:
        replica, epoch, data = self._replica, self._mend.epoch, found.payload[0]

        def append() -> int:
            replica.append(epoch, found.epoch, found.first_seq, found.last_seq, data)
            return replica.held[0]

        def appended(seq: int | Exception) -> None:
            if isinstance(seq, Exception):
                self._end(seq)
            elif seq >= found.last_seq:
                self._point = (found.epoch, found.last_seq)
                self._read()
            elif self._pauses < MAX_PAUSES:
                self._pauses += 1
                self._around.after(PAUSE_S, lambda: self._again(found))
            else:
                self._end("its journal has no room")

        if self._alive():
            self._around.work(append, appended)

    def _again(self, found: m.Log) -> None:
        if self._alive():
            self._append(found)

    def _end(self, result: Exception | str | None) -> None:
        if self._alive():
            self._then(result)
