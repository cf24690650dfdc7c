"""The store's own threads: one that destages and collects, one that keeps segments and space ready.

They only decide when; what they do are plain methods of the store, which tests and simulations
call by hand. A failure that means the disk cannot be trusted seals the store; running out of space
does not, nor what the kernel refuses for other reasons (`volume.diskerror`): it is tried again.
"""

import logging
import threading
from collections.abc import Callable

from volume.diskerror import seals
from volume.errors import CorruptData, OutOfSpace, StoreClosing, StoreSealed, VolumeError

log = logging.getLogger(__name__)

RETRY_S = 1.0  # after a round that failed
WARNINGS_EVERY = 60  # failed rounds between two log lines about the same trouble


class Worker:
    """A thread that calls `work` whenever it is woken, and at least each `interval_s`.

    `work` returns whether it did something: then it is called again at once."""

    def __init__(
        self,
        name: str,
        interval_s: float,
        work: Callable[[], bool],
        failed: Callable[[OSError], None],
        ended: Callable[[], None] = lambda: None,
    ) -> None:
        """`failed`: told of an error after which the thread ends; `ended`: called when it ends for
        an error, that one or another."""
        self._name = name
        self._interval_s = interval_s
        self._work = work
        self._failed = failed
        self._ended = ended
        self._event = threading.Event()
        self._stopped = False
        self._failures = 0
        self._thread: threading.Thread | None = None

    @property
    def stopping(self) -> bool:
        return self._stopped

    def start(self) -> None:
        self._thread = threading.Thread(target=self._serve, name=self._name, daemon=True)
        self._thread.start()

    def wake(self) -> None:
        self._event.set()

    def stop(self) -> None:
        """End after what is being done now."""
        self._stopped = True
        self._event.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _serve(self) -> None:
        wait_s = 0.0
        while not self._stopped:
            self._event.wait(wait_s)
            self._event.clear()
            wait_s = self._interval_s
            try:
                while not self._stopped and self._work():
                    pass
                self._failures = 0
            except OutOfSpace as error:
                self._complain("out of space", error)
                wait_s = RETRY_S
            except (StoreSealed, StoreClosing):
                self._ended()
                return
            except CorruptData as error:
                self._complain("damaged data", error)
                wait_s = RETRY_S
            except VolumeError as error:
                self._complain("failed", error)
                wait_s = RETRY_S
            except OSError as error:
                if seals(error):
                    self._failed(error)
                    self._ended()
                    return
                self._complain("refused", error)
                wait_s = RETRY_S
            except Exception:
                log.exception("%s failed", self._name)
                wait_s = RETRY_S

    def _complain(self, what: str, error: Exception) -> None:
        if self._failures % WARNINGS_EVERY == 0:
            log.error("%s: %s, trying again error=%s", self._name, what, error)
        self._failures += 1
