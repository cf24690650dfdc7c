"""What a front end (NBD, later iSCSI) needs from a volume.

A front end hands over a **batch**: every request that arrived in one wake-up of its socket. The
device finishes each request exactly once, in any order, by calling `done` with lists of finished
requests: before `submit` returns with all that could be finished at once (usually the whole batch),
and later, on the event loop's thread, with those that had to wait for a disk.

`volume.volume.Volume` satisfies this structurally.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

from native import Request

Done = Callable[[list[Request]], None]

STATE_HOLE = 1  # flags of a BLOCK_STATUS extent, as NBD's base:allocation: nothing allocated
STATE_ZERO = 2  # reads as zeros


class BlockDevice(Protocol):
    """One attachable device. `size` and `block_size` are bytes; `size` may grow while attached."""

    @property
    def name(self) -> str: ...
    @property
    def size(self) -> int: ...
    @property
    def block_size(self) -> int: ...
    @property
    def read_only(self) -> bool: ...

    def submit(self, batch: Sequence[Request], done: Done) -> None:
        """Execute a batch; see the module's text for when `done` is called.

        Requests of one batch that overlap are executed in the order of the batch (a READ sees the
        WRITEs before it). A write is in the journal when it is done; FLUSH, and FUA on any
        writing command, are durable when done, and a FLUSH covers every write *finished* (on any
        connection) before it was submitted. `data` of a WRITE is not touched after `submit`
        returns. Ranges are checked here as well: past the end gives ENOSPC for WRITE and
        WRITE_ZEROES, EINVAL for the rest. READ, WRITE, UNMAP and WRITE_ZEROES take any byte
        offset and length; a front end that negotiated a block size refuses misaligned ones first.

        UNMAP'd and WRITE_ZEROES'd ranges read as zeros. BLOCK_STATUS sets `data` to a list of
        `(length, flags)` covering at least the first byte and at most the requested range, with at
        most 2**14 extents. Errors: `request.error` is a positive errno (EIO, ENOSPC, EINVAL,
        EPERM, ESHUTDOWN), `request.message` a text for the client or None.
        """

    def attach(self, client: str) -> None:
        """Count one more connection; `client` is shown to operators."""

    def detach(self, client: str) -> None:
        """Take back one `attach`."""


class Exports(Protocol):
    """The devices that clients can name."""

    def names(self) -> list[str]:
        """Names in listing order."""

    def get(self, name: str) -> BlockDevice | None:
        """The device called `name` ("" asks for the default export), or None."""
