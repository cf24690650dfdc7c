"""What a front end (NBD, later iSCSI) needs from a volume.

A front end hands over a **batch**: every request that arrived in one wake-up of its socket. The
device finishes each request exactly once, in any order, by calling `done` with lists of finished
requests: before `submit` returns with all that could be finished at once (usually the whole batch),
and later, on the event loop's thread, with those that had to wait for a disk.

`volume.volume.Volume` satisfies this structurally.
"""

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

from native import Request, VolumeCore

Done = Callable[[list[Request]], None]

STATE_HOLE = 1  # flags of a BLOCK_STATUS extent, as NBD's base:allocation: nothing allocated
STATE_ZERO = 2  # reads as zeros
STATE_CHANGED = 1  # flags of a BLOCK_STATUS extent that was asked about changes


class Changes(Protocol):
    """What changed in a device since one of its versions, as its `changes_since` found it.

    Opaque: it is only handed back, as `data` of a BLOCK_STATUS for the same device. It holds on to
    what it needs for as long as it is referenced; there is nothing to close.
    """


class BlockDevice(Protocol):
    """One attachable device. `size` and `block_size` are bytes; `size` may grow while attached."""

    @property
    def name(self) -> str: ...
    @property
    def volume_uuid(self) -> bytes:
        """16 bytes: of the volume that it is, or a past version of."""

    @property
    def size(self) -> int: ...
    @property
    def block_size(self) -> int: ...
    @property
    def read_only(self) -> bool: ...
    @property
    def seq(self) -> int:
        """Number of the last write, trim or zeroing that the device took: 0 if it never changes.
        What a read tells that is submitted afterwards is not older. See FLAG_IF_SEQ."""

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
        most 2**14 extents. It comes with `data` None and asks what is allocated (STATE_HOLE,
        STATE_ZERO), or with a `Changes` of this device and asks what changed (STATE_CHANGED).
        Errors: `request.error` is a positive errno (EIO, ENOSPC, EINVAL, EPERM, ESHUTDOWN),
        `request.message` a text for the client or None.
        """

    def attach(self, client: str) -> None:
        """Count one more connection; `client` is shown to operators."""

    def detach(self, client: str) -> None:
        """Take back one `attach`."""


@runtime_checkable
class ServedByCore(Protocol):
    """A BlockDevice whose reads and writes may be done without it, on its native core."""

    @property
    def core(self) -> VolumeCore:
        """The same for as long as the device is attached."""


@runtime_checkable
class MayBeElsewhere(Protocol):
    """A BlockDevice that another node may be serving."""

    @property
    def mirrored(self) -> bool:
        """Other nodes have it as well; for ever so, or never. Quick."""

    @property
    def opened(self) -> bool:
        """This node has become the one that serves it, and knows of no later one. Quick."""

    @property
    def leads(self) -> bool:
        """It has, and nobody else can be serving it at this moment. Quick."""

    @property
    def elsewhere(self) -> str | None:
        """Why no client is let in here, with the way out; None when they are. Quick."""


class LastingDevice(BlockDevice, Protocol):
    """A BlockDevice that is known by more than its name."""

    @property
    def uuid(self) -> bytes:
        """16 bytes; what else has the same is the same, whatever it is called."""

    @property
    def retired(self) -> bool:
        """Everything that is submitted ends with ESHUTDOWN, for ever."""


@runtime_checkable
class TracksChanges(Protocol):
    """A BlockDevice that can compare itself with its own versions."""

    def changes_since(self, ref: str) -> Changes:
        """What differs from the version `ref` of the same volume: the name of a snapshot, seq:N,
        commit:HEX or a time, as behind the "@" of an export name.

        Waits for the disk, on any thread. NoSuchVersion or InvalidName when there is none, else
        VolumeError or OSError. What is written after the call may be told or not.
        """


class Exports(Protocol):
    """The devices that clients can name. Quick: called on the event loop."""

    def names(self) -> list[str]:
        """Names in listing order."""

    def get(self, name: str) -> BlockDevice | None:
        """The device called `name` ("" asks for the default export), or None."""


@runtime_checkable
class Versions(Protocol):
    """Exports that have a past: `VOLUME@REF` names a version of a volume. Any thread; may wait."""

    def open_version(self, name: str) -> BlockDevice:
        """A read-only device with the bytes of the version `name`, as "vol@snapshot".

        A new device for each call. It stays open until the last of its `attach`es is taken back by
        `detach` (both quick, on the event loop); whoever called attaches at least once. A client
        that is cut when the daemon stops detaches while requests are still inside: these must come
        back all the same. A time that is yet to come names no version: it would name another one
        for each connection of a client.
        NoSuchVolume, NoSuchVersion or InvalidName when there is none, else VolumeError or OSError.
        """

    def version_names(self, volume: str | None, limit: int) -> list[str]:
        """Names of snapshots, as "vol@snapshot", of one volume or of all: for each volume newest
        first, at most `limit` in all. VolumeError, OSError."""


@runtime_checkable
class ClonesRanges(Protocol):
    """A BlockDevice that can share what another device of the same store holds."""

    @property
    def clone_granularity(self) -> int:
        """Bytes: only what begins at a multiple of it, on both sides, can be shared."""

    def clone_range(self, offset: int, source: BlockDevice, source_offset: int, length: int) -> int:
        """Make [offset, offset + length) read as the source does at `source_offset`, by reference.

        Returns how many bytes from the start were done so; 0 when nothing can be shared (another
        store, not aligned to chunks). What was done is in the journal on return, as a write is.
        Waits for the disk, on any thread. The range in the source is that of one moment between
        call and return. VolumeError, OSError.
        """
