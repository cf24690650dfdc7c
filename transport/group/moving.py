"""A planned move: the primary of a volume has another member be it (TAKE)."""

from collections.abc import Callable, Iterable
from typing import Final

from transport.group.acks import NodeId
from transport.group.link import MemberStatus, State
from transport.peer import messages as m
from transport.peer.wire import Message
from volume.replica import Replica

MOVE_S: Final = 30.0
MAX_TAKERS: Final = 16  # requests that wait for one takeover


def why_not(node: NodeId, me: NodeId, members: Iterable[MemberStatus]) -> str | None:
    """What keeps `me`, the primary, from moving the volume to a node; None: nothing does."""
    states = {each.member: each for each in members if each.counts}
    if node not in states or node == me:
        names = ", ".join(str(each) for each in states if each != me)
        return f"node {node} is no other member of it; those are {names}"
    if states[node].state != State.STEP.value:
        return f"node {node} is not in step: {states[node].state}, {states[node].why}"
    return None


class Takers:
    """At who is to be the primary: requests of who is it."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        self._waiting: list[Callable[[Message], None]] = []

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def asked(
        self,
        message: m.Take,
        answer: Callable[[Message], None],
        *,
        serving: bool,
        stopped: bool,
    ) -> bool:
        """Whether it waits now for this node to become the primary; else it was answered."""
        promised = self._replica.promised
        if serving and promised > message.epoch:
            answer(self._ack())  # asked again
        elif message.epoch != promised:
            text = f"volume {self._replica.name}: epoch {promised} is promised here"
            answer(m.Error(m.Code.STALE, promised, text))
        elif len(self._waiting) >= MAX_TAKERS or stopped:
            answer(m.Error(m.Code.BUSY, 0, ""))
        else:
            self._waiting.append(answer)
            return True
        return False

    def served(self) -> None:
        """This node is the primary."""
        self._answer(self._ack())

    def failed(self, why: str) -> None:
        text = f"volume {self._replica.name}: {why}"[:512]
        self._answer(m.Error(m.Code.FAILED, 0, text))

    def _ack(self) -> m.Ack:
        received, durable = self._replica.held
        return m.Ack(self._replica.promised, received, durable)

    def _answer(self, message: Message) -> None:
        waiting, self._waiting = self._waiting, []
        for answer in waiting:
            answer(message)
