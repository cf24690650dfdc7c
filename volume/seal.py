"""The seal: a sync, or a write that must not fail, has failed, so nothing is written any more."""

import contextlib
import errno
import logging
from collections.abc import Callable

from native import Journal
from volume.errors import StoreSealed
from volume.meta import Meta

log = logging.getLogger(__name__)


class Seal:
    """Whether a store may still write. Thread-safe."""

    def __init__(self, journal: Journal, meta: Meta, path: str) -> None:
        self._journal = journal
        self._meta = meta
        self._path = path
        self.reason: str | None = None
        self.closed: Callable[[], None] = lambda: None
        """Called once, on the thread that found out: nobody needs to wait for anything any more."""

    def check(self) -> None:
        """StoreSealed when it is."""
        if self.reason is not None:
            raise StoreSealed(self.reason)

    def close(self, error: OSError) -> None:
        """What the disk holds is no longer known: take no more writes, ever."""
        if self.reason is not None:
            return
        self.reason = f"{error.strerror or error} while writing to {self._path or 'the disk'}"
        self._journal.seal(error.errno or errno.EIO)
        log.critical("store sealed reason=%s", self.reason)
        self.closed()
        with contextlib.suppress(Exception):  # the same disk; the mark is for the next start
            self._meta.seal(self.reason)

    def sync_journal(self) -> None:
        """Make all that is in the journal durable. StoreSealed when that fails."""
        try:
            self._journal.sync()
        except OSError as error:
            self.close(error)
            raise StoreSealed(self.reason or str(error)) from error

    def try_sync(self) -> bool:
        """Make all that is in the journal durable, unless the store is sealed already: whether it
        was. StoreSealed when it fails now."""
        if self.reason is not None:
            return False
        self.sync_journal()
        return True
