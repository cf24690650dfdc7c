import errno
import logging
from threading import Event

import pytest

from volume.background import Worker
from volume.diskerror import SyncFailed, seals
from volume.errors import CorruptChunk, OutOfSpace, StoreClosing, StoreSealed, VolumeError


class Calls:
    """Work that raises `error` when it is called, and says so."""

    def __init__(self, error: Exception) -> None:
        self.error = error
        self.called = Event()
        self.sealed: list[OSError] = []
        self.worker = Worker("a-worker", 3600.0, self.work, self.sealed.append)

    def work(self) -> bool:
        self.called.set()
        raise self.error

    def run(self) -> None:
        """Until it was called, and is over."""
        self.worker.start()
        assert self.called.wait(60)
        self.worker.stop()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (CorruptChunk("chunk 12 is damaged"), "damaged data, trying again error=chunk 12"),
        (OutOfSpace("the disk is full"), "out of space, trying again error=the disk is full"),
        (VolumeError("something else"), "failed, trying again error=something else"),
        (StoreClosing(), None),
        (StoreSealed("a sync failed"), None),
        (OSError(errno.EACCES, "Permission denied"), "refused, trying again error=[Errno 13]"),
        (OSError(errno.EIO, "broken"), None),  # who seals says so
        (SyncFailed(errno.ENOSPC, "no space"), None),
    ],
)
def test_a_worker_says_what_is_wrong_and_nothing_when_the_store_ends(
    caplog: pytest.LogCaptureFixture, error: Exception, said: str | None
) -> None:
    calls = Calls(error)
    with caplog.at_level(logging.INFO):
        calls.run()
    if said is None:
        assert not caplog.records
    else:
        assert said in caplog.text
    assert calls.sealed == ([error] if isinstance(error, OSError) and seals(error) else [])
