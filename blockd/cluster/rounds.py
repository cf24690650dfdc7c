"""A thread of a node that looks after something again and again: rows of etcd, damage."""

import logging
import threading
from collections.abc import Callable

from transport.errors import TransportError
from volume.errors import VolumeError

logger = logging.getLogger(__name__)


class Rounds:
    """Calls `step` every `every_s`, and soon after `look`, from `start` to `stop`.

    What a step raises (VolumeError, TransportError, OSError) is in the log as `trouble` with its
    reason, once until it is another one, and the next step is as if it had not been."""

    def __init__(self, name: str, step: Callable[[], object], trouble: str, every_s: float) -> None:
        self._step = step
        self._trouble = trouble
        self._every_s = every_s
        self._wake = threading.Event()
        self._problem = ""
        self.stopping = False
        self._thread = threading.Thread(target=self._run, name=name)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Waits for the step that is under way. Idempotent."""
        self.stopping = True
        self._wake.set()
        if self._thread.ident:
            self._thread.join()

    def look(self) -> None:
        """Soon. Any thread."""
        self._wake.set()

    def _run(self) -> None:
        while not self.stopping:
            try:
                self._step()
                problem = ""
            except (VolumeError, TransportError, OSError) as error:
                problem = str(error)
            if problem and problem != self._problem:
                logger.warning(self._trouble, extra={"reason": problem})
            self._problem = problem
            self._wake.wait(self._every_s)
            self._wake.clear()
