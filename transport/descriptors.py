"""File descriptors that a thread watches beside its sockets: taps, and the gates of volumes.

However many there are, the thread waits for one: an epoll is readable when one of its descriptors
is. They are watched edge-triggered: what is not taken yet does not wake the thread again and again.
"""

import select
from collections.abc import Callable


class Watched:
    """One of them; `cancel` before it is closed."""

    def __init__(self, owner: "Descriptors", descriptor: int, call: Callable[[], None]) -> None:
        self._owner = owner
        self.descriptor = descriptor
        self.call = call
        self.cancelled = False

    def cancel(self) -> None:
        if not self.cancelled:
            self.cancelled = True
            self._owner.forget(self)


class Descriptors:
    """Belongs to one thread."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._watched: dict[int, Watched] = {}

    def fileno(self) -> int:
        """Readable when `ready` has something."""
        return self._epoll.fileno()

    def watch(self, descriptor: int, call: Callable[[], None]) -> Watched:
        """Have `call` be among those that `ready` gives, once after each time that the descriptor
        became readable."""
        watched = Watched(self, descriptor, call)
        self._epoll.register(descriptor, select.EPOLLIN | select.EPOLLET)
        self._watched[descriptor] = watched
        return watched

    def forget(self, watched: Watched) -> None:
        if self._watched.get(watched.descriptor) is watched:
            del self._watched[watched.descriptor]
            self._epoll.unregister(watched.descriptor)

    def ready(self) -> list[Watched]:
        """Those that have become readable; ask each whether it was `cancelled` by one before."""
        found = []
        for descriptor, _ in self._epoll.poll(0):
            watched = self._watched.get(descriptor)
            if watched is not None:
                found.append(watched)
        return found

    def close(self) -> None:
        self._watched.clear()
        self._epoll.close()
