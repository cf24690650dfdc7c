"""Copying all of a volume to a member, on the wire: what `volume.replicacopy` asks, as messages.

    COMPARE without nodes    a stream is to come          COMPARED: what it may be based on
    COMPARE                  which nodes differ?          COMPARED: indexes of them
    HAVE                     which chunks are lacking?    WANT: ids of them
    STREAM                   a piece                      STREAMED
    ADOPT                    that is the volume           ACK

One is under way at a time. Answers are a peer's: indexes and ids that were not asked for are passed
over, and what an answer that lies leads to the member itself refuses.
"""

from typing import Final

from transport.group.link import Copy, GroupPolicy, Link, State
from transport.group.underway import UnderWay
from transport.peer import messages as m
from transport.peer.wire import Message
from volume.replicacopy import Based, Copied, Heard, Step, Told
from volume.stream import Compare

COPYING: Final = "the log does not reach back to what it has: it gets all of the volume"


def beginning(volume: bytes, epoch: int) -> m.Request:
    """Asks a member what a stream may be based on."""
    return m.Compare(volume, epoch, ())


def request(step: Step, volume: bytes, epoch: int) -> m.Request:
    """What a member is asked, or told, with a step."""
    if isinstance(step, Copied):
        return m.Stream(volume, epoch, step.at, int(step.last), (step.data,))
    if isinstance(step, Compare):
        return m.Compare(volume, epoch, tuple((*at, node) for at, node in step.nodes))
    return m.Have(volume, epoch, tuple(node for _, node in step.nodes))


def heard(question: m.Request | None, answer: Message) -> Heard:
    """What a member has said to what it was asked; None when that is no answer to it."""
    match question, answer:
        case m.Compare(nodes=()), m.Compared():
            return Based(answer.base)
        case m.Compare(), m.Compared():
            return Told(frozenset(each for each in answer.unlike if each < len(question.nodes)))
        case m.Have(), m.Want():
            wanted = set(answer.ids)
            ids = enumerate(question.ids)
            return Told(frozenset(index for index, each in ids if each in wanted))
    return None


class Copying:
    """What a Primary does for members that get all of the volume, of its epoch."""

    def __init__(self, volume: bytes, epoch: int, policy: GroupPolicy, way: UnderWay) -> None:
        self._volume = volume
        self._epoch = epoch
        self._policy = policy
        self._way = way

    def begin(self, link: Link, now: float) -> None:
        self._way.lags(link, COPYING)
        link.lacks = link.anew = False
        link.state = State.COPYING
        link.after = link.keep
        self._next(link, now)

    def copied(self, link: Link, found: Step | None, now: float) -> None:
        """The next step of a stream of the volume; None: it could not be read."""
        piece = found if isinstance(found, Copied) else None
        if found is None or (piece is not None and not self._can_copy(piece)):
            self._way.away(link, now, "our volume cannot be copied", self._policy.retry_most_s)
        else:
            link.copy = piece
            self._send(link, request(found, self._volume, self._epoch), now)

    def answered(self, link: Link, said: Heard, now: float) -> None:
        """A member has answered a question."""
        if said is None:
            self._way.away(link, now, "it answered another question")
        else:
            self._go_on(link, said, now)

    def streamed(self, link: Link, at: int, now: float) -> None:
        """A member has taken a piece."""
        copy, link.copy = link.copy, None
        if copy is None or at != copy.at + len(copy.data):
            self._way.away(link, now, f"it has {at} bytes of a stream")
        elif copy.last and copy.names is None:
            link.after = copy.seq
            self._next(link, now)
        elif copy.last:
            names = (copy.names,) if copy.names else ()
            adopt = m.Adopt(self._volume, self._epoch, link.keep, copy.start, copy.ends, names)
            self._send(link, adopt, now)
        else:
            link.copied = at
            self._go_on(link, None, now)

    def _can_copy(self, piece: Copied) -> bool:
        return piece.names is None or piece.ends[-1][0] == self._epoch

    def _next(self, link: Link, now: float) -> None:
        """The states that have names come first, oldest first, then the newest one."""
        link.copied = 0
        self._send(link, beginning(self._volume, self._epoch), now)

    def _go_on(self, link: Link, said: Heard, now: float) -> None:
        tag = self._way.tag(link, None, now)
        copy = Copy(tag, link.node, link.copied, m.MAX_RECORDS_BYTES, said, link.after)
        self._way.out.append(copy)

    def _send(self, link: Link, message: m.Request, now: float) -> None:
        self._way.send(link, message, now, self._policy.seal_s)
