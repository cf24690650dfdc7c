"""Copying all of a volume to a member, on the wire: what `volume.replicacopy` asks, as messages.

    COMPARE without nodes    a stream is to come          COMPARED: what it may be based on
    COMPARE                  which nodes differ?          COMPARED: indexes of them
    HAVE                     which chunks are lacking?    WANT: ids of them
    STREAM                   a piece                      STREAMED
    ADOPT                    that is the volume           ACK

One is under way at a time. Answers are a peer's: indexes and ids that were not asked for are passed
over, and what an answer that lies leads to the member itself refuses.
"""

from transport.peer import messages as m
from transport.peer.wire import Message
from volume.replicacopy import Based, Copied, Heard, Step, Told
from volume.stream import Compare


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
