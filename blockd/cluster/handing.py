"""Handing over: before a node goes down, each volume that it serves is moved to a member in step.

It is a planned move like any other (`transport.group.part.Part.move`), and made while clients are
still served: the volume is not served for the length of one takeover whose members all answer. That
is less than when the node says good-bye first, as members then notice one after the other, and it
is a member that has everything which goes on.

    which member    one in step, and not one that is only to come; of these the one that was given
                    fewest so far, so that what one node served is spread
    how many        `AT_ONCE` moves are under way, so that one with many volumes does not have all
                    of them wait for the slowest disk
    how long        until `HAND_OVER_S` is over. Volumes that could not be moved by then, or whose
                    members are not in step, are given up as before (`Part.stop`): others take them
                    over, and need not wait for a lease

A move that fails is not tried again: why it failed will be so in a second as well, and a stop that
is put off is one that ends by kill -9.
"""

import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from typing import Final

from transport.errors import TransportError
from transport.group.acks import NodeId
from transport.group.link import State
from transport.group.part import Part
from transport.sessions import Sessions

logger = logging.getLogger(__name__)

HAND_OVER_S: Final = 10.0
AT_ONCE: Final = 4


class HandOver:
    """Of one node that goes down. `parts` is called on the sessions' thread. Made and used once."""

    def __init__(self, me: NodeId, sessions: Sessions, parts: Callable[[], Iterable[Part]]) -> None:
        self._me = me
        self._sessions = sessions
        self._parts = parts
        self._left: list[Part] = []
        self._moving = 0
        self._given: Counter[NodeId] = Counter()
        self._moved = 0
        self._over = threading.Event()

    def run(self, timeout_s: float = HAND_OVER_S) -> int:
        """Hand over what can be; how many volumes were. Waits; any thread but the sessions'."""
        try:
            self._sessions.result_of(self._begin)
        except TransportError:
            return 0
        if not self._over.wait(timeout_s):
            logger.warning("not all volumes are handed over; the rest is given up")
            self._sessions.post(self._left.clear)
        return self._moved

    # -- the sessions' thread

    def _begin(self) -> None:
        self._left = [part for part in self._parts() if part.serving]
        for _ in range(AT_ONCE):
            self._next()

    def _next(self) -> None:
        """Begin one more move, if there is one to make."""
        while self._left:
            part = self._left.pop()
            target = self._target(part)
            if target is None:
                continue
            self._given[target] += 1
            self._moving += 1
            part.move(target, partial(self._ended, part, target))
            return
        if not self._moving:
            self._over.set()

    def _target(self, part: Part) -> NodeId | None:
        if not part.serving:
            return None
        in_step = [
            each.member
            for each in part.status().members
            if each.counts and each.member != self._me and each.state == State.STEP.value
        ]
        if not in_step:
            logger.warning("nobody is in step to take volume=%s over", part.replica.name)
        return min(in_step, key=lambda node: self._given[node], default=None)

    def _ended(self, part: Part, target: NodeId, problem: str | None) -> None:
        self._moving -= 1
        if problem is None:
            self._moved += 1
        else:
            logger.warning(
                "volume=%s is not handed over to %s: %s", part.replica.name, target, problem
            )
        self._next()
