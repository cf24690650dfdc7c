"""Requests of a primary to its members that are under way, and what else its owner has to do."""

from collections.abc import Callable

from transport.group.acks import NodeId
from transport.group.link import Asked, Effect, GroupPolicy, Lag, Link, Send, State
from transport.peer import messages as m


class UnderWay:
    """Of one Primary. A request has a tag, which comes back once with what came of it."""

    def __init__(
        self,
        volume: bytes,
        epoch: int,
        policy: GroupPolicy,
        asks: Callable[[NodeId, float], None],
    ) -> None:
        """`asks`: told of each request, and when it goes to whom."""
        self.next_tag = 1
        self.asked: dict[int, Asked] = {}
        self.out: list[Effect] = []
        self._volume = volume
        self._epoch = epoch
        self._policy = policy
        self._asks = asks

    def drained(self) -> list[Effect]:
        """What is to be done since it was last asked."""
        out, self.out = self.out, []
        return out

    def late_at(self, link: Link) -> float:
        """When a member that is in step has not answered for too long."""
        return link.since + self._policy.behind_after_s

    # -- asking

    def send(self, link: Link, message: m.Request, now: float, timeout_s: float) -> None:
        tag = self.tag(link, message, now)
        self._asks(link.node, now)
        self.out.append(Send(link.node, tag, message, timeout_s))

    def send_sync(self, link: Link, seq: int, now: float) -> None:
        """Beside what else it is asked."""
        message = m.Sync(self._volume, self._epoch, seq)
        link.sync_tag = self.next_tag
        self.next_tag += 1
        self.asked[link.sync_tag] = Asked(link, message, now, link.received)
        self._asks(link.node, now)
        self.out.append(Send(link.node, link.sync_tag, message, self._policy.request_s))

    def tag(self, link: Link, message: m.Request | None, now: float) -> int:
        link.tag = tag = self.next_tag
        self.next_tag += 1
        link.since = now
        self.asked[tag] = Asked(link, message, now)
        return tag

    def found(self, tag: int) -> Link | None:
        """The member for which our own disk was asked, if that still counts: it has ended."""
        asked = self.asked.pop(tag, None)
        if asked is None or asked.link.tag != tag:
            return None
        asked.link.tag = 0
        return asked.link

    def ended(self, link: Link, tag: int) -> None:
        if link.tag == tag:
            link.tag = 0
        if link.sync_tag == tag:
            link.sync_tag = 0

    def forget(self, node: NodeId) -> None:
        """Whatever a node that is no member any more answers."""
        self.asked = {tag: asked for tag, asked in self.asked.items() if asked.link.node != node}

    # -- trouble

    def away(self, link: Link, now: float, why: str, pause_s: float | None = None) -> None:
        """Do without a member for a while, then begin with it anew."""
        policy = self._policy
        if pause_s is None:
            pause_s = min(policy.retry_first_s * 2.0 ** min(link.failures, 16), policy.retry_most_s)
        link.failures += 1
        link.state = State.AWAY
        link.tag = link.sync_tag = 0
        link.hold = link.copy = None
        link.retry_at = now + pause_s
        self.lags(link, why)

    def lags(self, link: Link, why: str) -> None:
        if not link.lags or link.why != why:
            link.lags, link.why = True, why
            self.out.append(Lag(link.node, True, why))
