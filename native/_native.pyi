"""Stub of the C extension: every function states who owns which buffer."""

from collections.abc import Sequence
from typing import Final

from typing_extensions import Buffer

OP_READ: Final = 0
OP_WRITE: Final = 1
OP_FLUSH: Final = 2
OP_UNMAP: Final = 3
OP_WRITE_ZEROES: Final = 4
OP_CACHE: Final = 5
OP_BLOCK_STATUS: Final = 6
OP_OTHER: Final = 7
"""Of accounts only: what reaches no device. No Request has it."""

FLAG_FUA: Final = 1
FLAG_NO_HOLE: Final = 2
FLAG_FAST_ZERO: Final = 4
FLAG_IF_SEQ: Final = 8
"""WRITE, UNMAP, WRITE_ZEROES: only when `Request.seq` is still the volume's, that is, when nothing
was written to it since; else the error is ECANCELED. What a read told that was submitted after that
`seq` had been taken is then still so: a read, a decision and a write become one step."""

class Request:
    """One block request, from the front end to the volume and back.

    The front end sets the first six fields and submits it; the volume sets `error`, `message`
    and, for reads, `data`, exactly once. `offset` and `length` are bytes. `cookie` is opaque to
    the volume. `error` is 0 or a positive errno.

    `data` of a WRITE is any contiguous buffer of `length` bytes; it is borrowed for the duration
    of `submit()` only. `data` of a finished READ is a bytes object of `length` bytes. `data` of a
    finished BLOCK_STATUS is a list of `(length, flags)` extents.
    """

    op: int
    flags: int
    cookie: int
    offset: int
    length: int
    seq: int
    """0, unless somebody sets it; for FLAG_IF_SEQ."""
    data: object
    error: int
    message: str | None
    @property
    def waits(self) -> bool:
        """Of a volume with a gate, after `submit`: done, and to be told when other nodes have
        `wait_seq`, on their disks if `wait_durable`; a read also while the lease has run out."""

    @property
    def wait_seq(self) -> int: ...
    @property
    def wait_durable(self) -> bool: ...
    def __init__(
        self,
        op: int,
        offset: int = 0,
        length: int = 0,
        data: Buffer | None = None,
        flags: int = 0,
        cookie: int = 0,
    ) -> None: ...

ACCOUNT_OPS: Final[tuple[str, ...]]
"""Names of the OP_* in their order, as accounts have them."""
ACCOUNT_BOUNDS_NS: Final[tuple[int, ...]]
"""Upper bounds, inclusive, of all buckets of a latency histogram but the last: 2**10 to 2**36
nanoseconds, with one step between two powers."""

class Account:
    """What the clients of one volume asked for by one protocol, and how long it took, from the
    complete arrival of a request until its reply was handed to the socket. Thread-safe, beside the
    threads of a Loop too; src/account.h says what that means for what is read."""

    def __init__(self) -> None: ...
    def record(self, op: int, length: int, failed: bool, elapsed_ns: int, /) -> None:
        """One request: `length` bytes of payload were moved. ValueError for an unknown `op`."""

    def snapshot(self) -> tuple[tuple[int, int, int, int, tuple[int, ...]], ...]:
        """Since the beginning, for each of ACCOUNT_OPS: (requests, bytes, errors, sum of
        nanoseconds, requests in each bucket); the last bucket has no bound. `bytes` are payload: of
        READ and WRITE, without those that failed."""

    def in_flight(self) -> tuple[int, int]:
        """(requests, bytes of payload) that have been begun and not answered yet."""

    def begin(self, requests: list[Request], now_ns: int, /) -> None:
        """These have just come, and are in flight until they are given to `end`."""

    def end(self, requests: list[Request], now_ns: int, /) -> None:
        """Record these, which their device has finished, and which `begin` was given before."""

LIMIT_MAX_RATE: Final = 10**12
LIMIT_MAX_BURST_NS: Final = 3600 * 10**9

class Limit:
    """How much the clients of one volume may ask for, all together. src/limit.h says how it is
    reckoned. Thread-safe, beside the threads of a Loop too. Times are CLOCK_MONOTONIC."""

    def __init__(self) -> None:
        """Nothing is limited."""

    is_set: bool
    """Whether anything is limited."""

    def set(
        self, rates: tuple[int, int, int, int, int, int], burst_ns: int, now_ns: int, /
    ) -> None:
        """Per second, at most LIMIT_MAX_RATE: operations, reads, writes, bytes, bytes read, bytes
        written; 0 does not limit. After a pause as much as leaks in `burst_ns` may come at once. At
        once for all clients. ValueError."""

    def held(self) -> tuple[int, int, int]:
        """Requests that wait now; that had to wait and went on, ever; for how many nanoseconds.
        Those behind them in line, which have not asked, are not counted."""

class Reservation:
    """The place of the next request of one client of a Limit. Given up when it is freed."""

    def __init__(self, limit: Limit, /) -> None: ...
    def ask(self, op: int, length: int, now_ns: int, /) -> int:
        """Whether a request may go on: 0, and then it has; else when to ask again for the same one,
        0.1 s from now at the latest. A place that was kept for another request is given up."""

def crc32c(data: Buffer, crc: int = 0) -> int:
    """CRC-32C of `data`, continuing from `crc`: crc32c(b, crc32c(a)) == crc32c(a + b)."""

def crc32c_pages(data: Buffer) -> bytes:
    """One little-endian u32 CRC-32C for each started 4 KiB of `data`. Releases the GIL."""

def is_zero(data: Buffer) -> bool:
    """Whether every byte is zero; true for an empty buffer."""

def encode(codec: int, raw: Buffer, capacity: int, /) -> bytes | None:
    """`raw`, of at most 16 MiB, as a codec of `volume.codecs` stores it; None when that takes more
    than `capacity` bytes. Releases the GIL. ValueError for an unknown codec."""

def decode(codec: int, stored: Buffer, raw_length: int, /) -> bytes:
    """The `raw_length` bytes that were encoded. Releases the GIL. ValueError when `stored`, which
    may hold anything, is not exactly that; also for an unknown codec."""

def error_seals(error: int, /) -> bool:
    """Whether a change of a file that fails with this errno means that the disk cannot be trusted
    any more; src/disk_error.h has the table. For whatever is no sync: those always do."""

ERASURE_MAX_SHARDS: Final = 20
ERASURE_PATTERNS: Final = 32
"""Patterns of loss whose tables an ErasureCode keeps."""

class ErasureCode:
    """Reed-Solomon code of `data` + `parity` shards, any `data` of which give the others back.
    src/erasure.h says which code; it is part of the format of shards. Thread-safe.

    All buffers of a call are contiguous and have one length, at least 1 byte. Outputs are writable
    and overlap no other buffer. They are borrowed for the call, which releases the GIL when there
    are more than 32 KiB to read. ValueError for anything else; then nothing was written.
    """

    def __init__(self, data: int, parity: int, /) -> None:
        """At least one of each, at most ERASURE_MAX_SHARDS in all; else ValueError."""

    def encode(self, data: Sequence[Buffer], parity: Sequence[Buffer], /) -> None:
        """Compute all parity shards of all data shards."""

    def reconstruct(
        self, shards: Sequence[Buffer | None], into: Sequence[Buffer | None], /
    ) -> None:
        """Compute shards from others. Both have an item for each shard: its bytes where it is
        there, a buffer where it is wanted, else None. The first `data` that are there are read, and
        believed: verify them before. A part of a shard needs the same part of the others only.
        ValueError also when too few are there."""

    def stats(self) -> tuple[int, int]:
        """(patterns whose tables are kept, tables made since the beginning)"""

RENDEZVOUS_MAX_CHOSEN: Final = 32
RENDEZVOUS_MAX_DEVICES: Final = 4096
RENDEZVOUS_MAX_WEIGHT_BITS: Final = 60

class Rendezvous:
    """Which devices have the shards of a pack, by weight, one in each failure domain.
    src/rendezvous.h says how they are drawn; all nodes have to agree on it. Thread-safe."""

    def __init__(self, devices: Sequence[tuple[int, int, int]], /) -> None:
        """(key of 64 bits, weight from 1 to 2**60, domain of 32 bits) for each device, at most
        RENDEZVOUS_MAX_DEVICES. ValueError, TypeError, OverflowError for anything else."""

    def choose(self, pack_ids: Buffer, count: int, /) -> list[tuple[int, ...]]:
        """For each id of 32 bytes, up to `count` (1 to RENDEZVOUS_MAX_CHOSEN) indices of devices in
        different domains, cheapest first; fewer where there are fewer domains. Only the first 8
        bytes of an id count, which must be random. The GIL is released for large batches."""

def rendezvous_cost(pack: int, device: int, /) -> int:
    """The cost of a device of weight 1 for a pack, both told by 64 bits: Q56, 1 to 2**62."""

class ReadFault(Exception):
    """Stored bytes fail their checksum or cannot be read.

    `args` are (offset in the volume, journal slot or pack number, offset in that file, in_pack).
    """

class PackFile:
    """An open pack (a duplicate of the descriptor), shared by the cached places of its chunks."""

    def __init__(self, file: object, number: int, /) -> None:
        """`file` is what `volume.disk.File.native()` returned."""

CHUNK_HOLE: Final = 0
CHUNK_RAW: Final = 1
CHUNK_DECODED: Final = 2
CHUNK_PACKED: Final = 3

PLACE_DATA: Final = 0
PLACE_ZERO: Final = 1
PLACE_REFER: Final = 2
REFERRED: Final = 1 << 62
"""Flag of a chunk's index: not the chunk of the volume's tree, but what a REFER record names."""
PEER_AT_ONCE: Final = 1 << 18
"""Bytes of records that `answer_append` takes at once (native/src/peer.h)."""
TAP_MIN_BUFFER: Final = (1 << 20) + 128
"""Bytes: a buffer of this size takes any record."""

Referred = tuple[int, bytes, int, int]
"""What a chunk reads as: (seq of the REFER record, root, height, index of a chunk in that tree)."""

class PlaceTable:
    """Cache of chunk places for all volumes of a store, at most `limit` bytes. Thread-safe."""

    def __init__(self, limit: int, /) -> None: ...
    def clear(self) -> None:
        """Forget everything, and let go of what is mapped of packs. Releases the GIL."""

    def drop_pack(self, number: int, /) -> None: ...
    def drop_volume(self, number: int, /) -> None: ...
    def stats(self) -> tuple[int, int, int, int, int]:
        """(entries, bytes, limit, hits, misses)"""

    def take_read_packs(self) -> bytes:
        """Of which packs clients have read chunks since the last call: a bit for each number modulo
        65536, the lowest of a byte first."""

def spliced_bytes() -> int:
    """Bytes of packs that have left by sockets without being copied, in this process."""

Cut = tuple[int, int, int, int]
"""A position in the log: (next lsn, segment sequence, position in the segment, chain)."""

ReplayState = tuple[int, int, int, int]
"""How far a replay is: (next lsn, chain, node epoch, position in the segment)."""

LogRow = tuple[int, int, int, int, int, int, int]
"""A record: (lsn, seq, time in ns, op, offset, length, volume epoch)."""

LogPoint = tuple[int, int, int, bytes]
"""A POINT record, or a NOTE: (lsn, volume number or 0, seq, payload)."""

LogHead = tuple[int, int, int, int, int]
"""A HEAD record: (lsn, volume number, volume epoch, seq, node epoch)."""

class Journal:
    """The journal of a data directory; see src/journal.h for what is durable when. Thread-safe.

    Files are given as `volume.disk.File.native()` returned them. Errors are OSError.
    """

    def __init__(self, store_uuid: bytes, segment_bytes: int, node_epoch: int, /) -> None: ...
    def add_ready(self, slot: int, file: object, /) -> None: ...
    def adopt(self, slot: int, file: object, sequence: int, /) -> None: ...
    def recycle(self, slot: int, /) -> None: ...
    def withdraw(self, slot: int, /) -> bool:
        """Take a ready segment back, so that it is not begun until `recycle`; whether that was
        possible: it is not ready any more, or the only one beyond the reserve."""

    def move_on(self) -> None:
        """The next record begins a segment, if one is ready beyond the reserve."""

    def queue(self) -> tuple[int | None, list[int]]:
        """Slots of the segment that is written, and of those that are ready, the next one first
        (256 at the most)."""

    def remove(self, slot: int, /) -> None: ...
    def sync(self) -> int:
        """Make all that was appended before the call durable; returns the lsn reached. Blocks
        without the GIL. An error seals the journal."""

    def write_behind(self) -> bool:
        """Have the kernel begin to write to the disk what was appended, if that is much; whether it
        was. Promises nothing; a later `sync` has less to wait for."""

    def seal(self, error: int, /) -> None: ...
    def release(self, lsn: int, /) -> list[int]:
        """Free the segments that hold only records before `lsn`; their slots."""

    def whole_pages(self) -> bool:
        """Whether what was appended last ended with a page: a stream of that reads no page before
        it writes a part of it."""

    def oldest(self) -> int:
        """Sequence of the oldest segment that was not released yet; 0 when there is none."""

    def cut(self) -> Cut: ...
    def freeze(self, volumes: list[VolumeCore], /) -> tuple[Cut, list[int]]:
        """Freeze the volumes' hot maps at one position of the log; it, and the volumes' seqs."""

    def append_point(
        self, volumes: list[VolumeCore], tail: Buffer, now_ns: int, /
    ) -> tuple[int, list[int]]:
        """Append a POINT record that tells where the volumes are, all at this moment; (its lsn,
        the volumes' seqs). Its payload: u32 count, (u32 number, u64 seq) each, then `tail` (at most
        64 KiB). BlockingIOError when no segment is ready."""

    def append_notes(
        self, notes: list[tuple[VolumeCore, bytes]], now_ns: int, retired: bool = False, /
    ) -> list[tuple[int, int]]:
        """Append a NOTE to each volume, all at one moment: (lsn, seq) of each. Of a payload
        native/src/record.h has the head. BlockingIOError when no segment is ready; ESHUTDOWN: a
        volume's gate is shut; EINVAL: it has another size than a NOTE says. Then there is none of
        them; fewer than were asked for: the journal has no room for the others. `retired`: the
        volumes are, else ESHUTDOWN; a RESTORE is for these alone, and while nothing is frozen
        there (EBUSY)."""

    def append_head(
        self, number: int, epoch: int, seq: int, payload: bytes, now_ns: int, /
    ) -> None: ...
    def append_mark(self, now_ns: int, /) -> None: ...
    def point(self, volumes: list[VolumeCore], /) -> tuple[Cut, list[int]]:
        """Where the log is and the volumes' seqs, all at one moment; freezes nothing."""

    def replay(
        self,
        slot: int,
        state: ReplayState,
        volumes: dict[int, VolumeCore],
        *,
        end_lsn: int = 0,
        end_ns: int = 0,
        end_volume: int = 0,
        end_seq: int = 0,
        rows_volume: int = 0,
        row_limit: int = 0,
        points: bool = False,
    ) -> tuple[ReplayState, int, int, int, bool, list[LogRow], list[LogPoint], list[LogHead]]:
        """Apply the records of a segment from `state` on, up to the first that does not fit.

        A record whose seq the volume has already, or of an epoch before the volume's, is skipped.
        Stops as well before the first record after `end_lsn`, the first MARK of a later time than
        `end_ns`, the first record of volume `end_volume` after `end_seq` (0: no such end).
        Returns (state there, records, skipped, time of the last MARK or 0, whether one of the ends
        was reached, the newest `row_limit` records of `rows_volume`, with `points` each
        POINT record, each NOTE of the volumes, and each HEAD record). A row has time 0 when no MARK
        of this segment is before it."""

    def copy_records(
        self,
        slot: int,
        state: ReplayState,
        end_lsn: int,
        wanted: tuple[int, int, int, int],
        buffer: Buffer,
        /,
    ) -> tuple[ReplayState, bool, int, int]:
        """Copy records of a segment, from `state` up to `end_lsn`, in the form that crosses the
        wire. `wanted`: (volume number, epoch they were written in, seq of the record before the
        first, seq of the last). Returns (state there, whether all are there or the next one has no
        room in `buffer`, bytes, seq of the last one copied)."""

    def proves(self, slot: int, position: int, lsn: int, /) -> bool:
        """Whether a mark in the segment, from `position` on, says that `lsn` was durable."""

    def resume(self, slot: int, position: int, lsn: int, chain: int, /) -> None: ...
    def begin(self, lsn: int, sequence: int, chain: int, /) -> None: ...
    def set_delay(self, delay_ns: int, /) -> None:
        """How long a Loop is to hold back each client that has written: 0, or more as the journal
        fills up."""

    def set_limits(self, space_left: int, reserve: int, /) -> None:
        """`space_left`: payload bytes that the disk can take before writes get ENOSPC; `reserve`:
        ready segments kept for records without payload."""

    def state(self) -> tuple[int, int, int, int, int, int, int]:
        """(lsn, synced_lsn, sealing errno or 0, ready, full, position, space_left)"""

LogRun = tuple[int, int, int, int, int]
"""Records of a volume that change it, one right behind the other: (volume number, epoch, first seq,
last seq, highest offset behind one of them)."""

def scan_segment(
    file: object, segment_bytes: int, state: ReplayState, /
) -> tuple[
    ReplayState,
    list[LogRun],
    list[tuple[int, int, int, int, bytes]],
    list[tuple[int, bytes]],
    list[tuple[int, bytes, int]],
]:
    """What the records of a segment say, from `state` on, up to the first that does not fit.
    `file` is what `volume.disk.File.native()` returned. Nothing is applied.

    Returns (state there, runs, HEAD records as (lsn, volume number, volume epoch, seq, payload),
    POINT records as (lsn, payload), the trees that REFER records name as (volume number, root,
    height)), each in the order of the log. OSError; EPROTO: the next record is of a later version.
    Releases the GIL."""

def decode_segment_header(
    data: Buffer, /
) -> tuple[bytes, int, int, int, int, int, int, int] | None:
    """(store uuid, slot, node epoch, sequence, first lsn, synced lsn, chain, segment bytes); None
    when it is no valid header; OSError(EPROTO) for another version."""

class Syncer:
    """A thread that makes a journal durable for one that must not wait; see src/syncer.h."""

    def __init__(self, journal: Journal, /) -> None: ...
    def fileno(self) -> int:
        """An eventfd, readable when a sync has ended since the last `done`."""

    def ask(self) -> int:
        """Have all that is in the journal made durable; a ticket. Waits for nothing."""

    def done(self) -> tuple[int, int]:
        """(the newest ticket whose sync has ended, errno of the last one or 0)"""

    def close(self) -> None:
        """Ends the thread, behind the sync that is under way. Nothing else is called after it."""

class Sender:
    """What a primary does with every write, where there is nothing to be decided; see src/sender.h.
    For one thread."""

    def __init__(self, core: VolumeCore, epoch: int, /) -> None:
        """OSError(ENOENT): it has no gate."""

    @property
    def on(self) -> bool:
        """Whether it is lent."""

    def begin(
        self,
        wanted: int,
        own_durable: int,
        taken: int,
        acked: int,
        durable: int,
        next_tag: int,
        room: int,
        members: tuple[tuple[bool, bool, bool, int, int, int], ...],
        /,
    ) -> bool:
        """Lend it; False: it is not lent. `members`: (counts, in step, busy, sent, received,
        durable). ValueError: it is lent already."""

    def end(
        self,
    ) -> (
        tuple[
            int,
            int,
            int,
            int,
            int,
            int,
            list[tuple[int, int, int, int, int, int]],
            list[tuple[int, int, bytes]],
        ]
        | None
    ):
        """Take it back: (taken, newest of the volume, acked, durable, next tag, bytes taken,
        members as (tag under way or 0, sent, received, durable, when it was sent last, when that
        was sent which was answered last), batches as (first, last, records)). None: it is not
        lent."""

    def turn(self, now_ns: int, /) -> tuple[list[tuple[int, int, int, int, bytes]], bool] | None:
        """The tap has something, perhaps: ([(member, tag, first, last, records)] to be sent now,
        whether that is all; else who lent has to go on). None: it is not lent."""

    def acked(
        self, tag: int, epoch: int, received: int, durable: int, now_ns: int, /
    ) -> tuple[list[tuple[int, int, int, int, bytes]], bool] | None:
        """A member has answered by an ACK: counted, and goes on as `turn`. None: it is for who
        lent."""

    def progress(self) -> tuple[int, int]:
        """(acked, durable)"""

class VolumeCore:
    """Hot path of one volume's head: hot maps over the place table. Thread-safe."""

    def __init__(
        self,
        journal: Journal,
        table: PlaceTable,
        number: int,
        epoch: int,
        chunk_size: int,
        size: int,
        seq: int,
        generation: int,
        /,
    ) -> None: ...
    def submit(
        self, batch: Sequence[Request], now_ns: int, /
    ) -> tuple[list[Request], list[Request], list[Request], list[Request]]:
        """Execute in order; returns (done, to be read on another thread, waiting for a sync, to be
        submitted again when there is journal space). Buffers of writes are released on return."""

    def fill(self, request: Request, start: int, length: int, /) -> bool:
        """Read bytes [start, start + length) of a READ that `submit` left waiting into its `data`.

        May wait for the disk, without the GIL. False: a chunk's place is not in the table (see
        `missing`). Raises ReadFault, OSError."""

    def missing(self, offset: int, length: int, /) -> list[int]:
        """Indexes of chunks (1,024 at most) whose places a read of the range needs and lacks; with
        REFERRED set where that is what a REFER record lets the chunk read as."""

    def put_place(
        self,
        index: int,
        generation: int,
        kind: int,
        pack: PackFile | None,
        data_offset: int,
        length: int,
        payload: Buffer,
        codec: int = 0,
        stored_length: int = 0,
        /,
    ) -> bool:
        """Cache a chunk's place; False when `generation` is no longer the volume's, or, of an index
        with REFERRED set, no longer the seq of what `referred` tells of the chunk. `payload`: the
        page checksums of the stored bytes of a raw or packed chunk, or the bytes of a decoded one;
        copied. `codec` and `stored_length` are looked at for a packed chunk only."""

    def warm(
        self,
        generation: int,
        indexes: Buffer,
        ids: Buffer,
        places: Buffer,
        packs: tuple[PackFile, ...],
        /,
    ) -> int:
        """Cache the places of many chunks of the tree of `generation`, in order: u64le index, id
        (zeros: a hole) and row of the chunk index (zeros: none) of each. The first read of each
        chunk reads and verifies its entry in `packs`. How many are done; it stops at one whose row
        is not as it should be, whose pack is not given, or for which there is no memory."""

    def hot_extents(self, offset: int, length: int, limit: int, /) -> list[tuple[int, int, int]]:
        """(start, length, kind) from `offset` on without a gap; kind is one of PLACE_*, or -1 where
        nothing is hot."""

    def refer(
        self, offset: int, length: int, root: Buffer, height: int, source: int, now_ns: int, /
    ) -> int:
        """Append a REFER record: [offset, offset + length) reads as the tree of `root` does at
        `source`; the lsn. All three are multiples of the chunk size. The chunks of the tree must
        stay for as long as the record can be replayed. BlockingIOError when no segment is ready,
        ESHUTDOWN when the volume is retired, EINVAL past its end."""

    def referred(self, index: int, /) -> Referred | None:
        """What the newest REFER record that is hot lets chunk `index` read as, if any of it can
        still be seen. A read of what can be seen needs the place of `index | REFERRED`."""

    def frozen_runs(self) -> bytearray:
        """Chunks touched by the frozen map, as rows of three native u64, which
        `volume.builder.frozen_runs` reads: first, count and kind of a run, ascending. Those of kind
        PLACE_ZERO are wholly zero, those of PLACE_REFER wholly what one record refers to; the
        others, of PLACE_DATA, have to be put together."""

    def frozen_covers(self, offset: int, length: int, /) -> bool:
        """Whether the frozen map has bytes or zeros for all of the range."""

    def frozen_referred(self, index: int, /) -> Referred | None:
        """As `referred`, of the frozen map alone."""

    def overlay_frozen(self, offset: int, data: Buffer, /) -> None:
        """Copy the bytes and zeros that the frozen map has of the range over `data`. Raises
        ReadFault."""

    def commit(self, generation: int, /) -> None:
        """The frozen extents are in the head of `generation`, which is durable: drop them."""

    def retire(self) -> None:
        """The volume is deleted, or gets another head: later reads and writes fail with ESHUTDOWN.
        Call it before a destage round can leave the volume out, as the journal then uses the
        segments of its hot data again."""

    def revive(self) -> None:
        """Take `retire` back: nothing has come of it."""

    def resize(self, size: int, /) -> None: ...
    def state(self) -> tuple[int, int, int, int, int, int, bool]:
        """(seq, generation, size, hot bytes, extents, memory bytes, frozen)"""

    def tap(self, limit_bytes: int, /) -> tuple[int, int]:
        """Have later records noted, to be taken: (descriptor that is readable when there are some,
        seq of the newest one before them). The descriptor is the core's own. When whoever takes is
        further than `limit_bytes` of the journal behind, the tap is lost. EEXIST, EINVAL."""

    def untap(self) -> None:
        """Note nothing any more. EBUSY while another thread is in `take`."""

    def tap_again(self) -> int:
        """A lost tap notes again; the seq behind which it begins. ENOENT, EBUSY."""

    def take(self, buffer: Buffer, nowait: bool = False, /) -> tuple[int, int, int, bool]:
        """The next records in the form that crosses the wire (native/src/tap.h), as many as there
        are or fit into `buffer` (TAP_MIN_BUFFER or more): (bytes, first seq, last seq, lost). May
        wait for the disk, without the GIL; with `nowait` EAGAIN instead. EINVAL, ENOENT, EBUSY; EIO
        when the journal does not hold what was written."""

    def append_records(
        self, epoch: int, records: Buffer, now_ns: int, notes: bool = False, /
    ) -> tuple[int, int, tuple[int, int, int, bytes] | None]:
        """Append records of another node's tap, those that are here left out: (errno or 0, newest
        seq here, NOTE). Without `notes` it stops before the first NOTE, with ENOMSG; with it behind
        the first one; that is told: (lsn or 0, seq, where in `records`, payload). What was
        appended is in the page cache; a sync makes it durable. Hostile bytes are refused as a
        whole; native/src/member.h has the errors. Without the GIL."""

    def append_plain(
        self,
        epoch: int,
        written: int,
        first: int,
        last: int,
        records: Buffer,
        now_ns: int,
        boot_ns: int,
        /,
    ) -> int | None:
        """Append what comes with every write (native/src/member.h); the seq that the member has on
        its disk. None: not all of it was, and `append_records` says why."""

    def take_plain(self, epoch: int, /) -> None:
        """In the name of which epoch `append_plain` takes records; 0: of none."""

    def tell_durable(self, seq: int, /) -> None:
        """What `append_plain` gives."""

    def answered_ns(self) -> int:
        """When `append_plain` took something last, CLOCK_BOOTTIME; 0: never."""

    def begin_epoch(self, epoch: int, /) -> None:
        """Records from here on are of `epoch`, not below that of the newest one."""

    def gate(self) -> int:
        """Give the volume a gate (native/src/gate.h), which is shut: a descriptor that is readable
        when somebody begins to wait for a sync. EEXIST. Of all others: ENOENT without one."""

    def gate_open(self, start: int, strict: bool, timeout_ns: int, /) -> None:
        """Let requests in; `start`: the volume's newest record, which W nodes have synced."""

    def gate_shut(self) -> None:
        """Let none in any more; who waits fails with ESHUTDOWN. Nothing of a client is appended
        when this returns."""

    def gate_advance(self, acked: int, durable: int, /) -> None:
        """W nodes have this much: answers of the request loop that waited for it go out."""

    def gate_lease(self, until_ns: int, /) -> None:
        """Reads may be answered until then, CLOCK_BOOTTIME."""

    def gate_expire(self) -> None:
        """Fail with EIO what has waited too long in the request loop."""

    def gate_want(self, seq: int, /) -> None:
        """Somebody waits until `seq` is on W disks."""

    def gate_seen(self, offset: int, length: int, /) -> int:
        """Seq of the newest write, not in W journals yet, that touches the range; 0 for none."""

    def gate_state(self) -> tuple[bool, int, int, int, int, int]:
        """(shut, acked, durable, seq up to which somebody waits for a sync, until when reads are
        answered, jobs that wait)"""

def arm_site(name: str, nth: int, chance: int, seed: int) -> None:
    """Arm a site of the core for a test; see native/src/sites.h. `chance` is in 2^32. KeyError."""

def disarm_sites() -> None:
    """No site of the core fires any more."""

def report_sites(fd: int) -> None:
    """Where armed sites write a line when they are first reached, and first fire; -1: nowhere."""

def native_sites() -> list[tuple[str, str, int, int]]:
    """All sites of the core: kind ("point", "rare" or "rule"), name, times reached and fired since
    it was armed."""

NBD_SIMPLE: Final = 0
NBD_STRUCTURED: Final = 1
NBD_EXTENDED: Final = 2

class LoopClient:
    """One client's socket in a Loop, from `add_*` until it has stopped. Thread-safe.

    `owner` is what it was added with.
    """

    owner: object
    stopped: bool
    """Out of the loop: `leftover()` says what there is to go on with."""
    was_cut: bool
    """The socket broke, or `cut()` was called."""
    was_asked: bool
    """`stop()` was called."""
    stalled: bool
    """More than 4 MiB of replies wait to be taken, and less than 1 MiB was not reached since."""
    unsent: int
    """Bytes of replies that wait to be taken."""
    jobs: int
    """Requests that wait for a disk."""

    def take_mail(self) -> bytes:
        """The requests that the loop leaves to its owner, as they came, each of them whole."""

    def take_paid(self) -> tuple[int, int, int, int]:
        """Of the mail taken up to now, and not told yet, what limits have let go on: reads, their
        bytes, writes (trims and zeroes among them), their bytes. These do not ask again."""

    def send(self, buffers: Sequence[Buffer], /) -> int:
        """Send, in order, between the loop's own replies; what the socket does not take is kept,
        copied. Returns `unsent`. Nothing happens after `stopped` or `cut()`."""

    def stop(self) -> None:
        """Receive nothing more; `stopped` when what is under way has been answered."""

    def cut(self) -> None:
        """The same, and throw away what is unsent."""

    def leftover(self) -> tuple[bytes, bytes]:
        """What was received and not served, and what was not sent. RuntimeError unless
        `stopped`."""

    def counters(self) -> tuple[int, int, int, int, int, int, int]:
        """Of what the loop served: reads, bytes read, writes, bytes written, flushes, unmaps,
        write zeroes."""

class Loop:
    """Threads that serve clients' sockets without the interpreter; see src/loop.h."""

    def __init__(self, workers: int, readers: int, pollers: int, /) -> None:
        """`workers` threads serve (1 to 64), `readers` wait for the disk. While at most `pollers`
        workers are awake, each looks at its sockets for a moment before it sleeps, where that is
        worth it (src/polling.h); 0: never. OSError, ValueError."""

    def fileno(self) -> int:
        """Readable when `news()` has something."""

    def news(self) -> list[LoopClient]:
        """Clients that have mail, have stopped, or whose `stalled` has changed."""

    def add_nbd(
        self,
        core: VolumeCore,
        account: Account | None,
        limit: Limit | None,
        fd: int,
        replies: int,
        size: int,
        minimum_block: int,
        max_payload: int,
        read_only: bool,
        input: Buffer,
        owner: object,
        /,
    ) -> LoopClient:
        """Serve an NBD client in its transmission phase, on a duplicate of the non-blocking socket
        `fd`; nobody else may read or write it until the client has stopped. `replies` is one of
        NBD_*; `size` bytes of `core` and blocks of `minimum_block` (a power of two) are what it
        was told. What is served counts in `account`, and
        is held back by `limit`. `input`: bytes that were received behind the
        last request. OSError, ValueError."""

    def close(self) -> list[LoopClient]:
        """Cut all clients, wait for what is under way, end the threads. What `news()` would say."""

ISCSI_COLLECTING: Final = 0
ISCSI_MAILED: Final = 2
ISCSI_FAILED: Final = 3
ISCSI_UNSYNCED: Final = 4
ISCSI_WAITING: Final = 5

def iscsi_add(
    loop: Loop,
    fd: int,
    terms: tuple[int, int, int, int, int, bool, bool, bool, bool, int],
    numbers: tuple[int, int, int, int],
    luns: Sequence[tuple[int, VolumeCore, Account | None, Limit | None, int, int, bool]],
    commands: Sequence[
        tuple[bytes, Buffer, int, int, bool, int, Sequence[tuple[int, int, int, int]]]
    ],
    input: Buffer,
    owner: object,
    /,
) -> LoopClient:
    """Serve an iSCSI session in its full feature phase, as `Loop.add_nbd` does NBD.

    `terms`: MaxRecvDataSegmentLength of the initiator and ours, MaxBurstLength, FirstBurstLength,
    MaxOutstandingR2T (at most 16), InitialR2T, ImmediateData, header digest, data digest, bytes of
    data-out that may be asked for at a time. `numbers`: ExpCmdSN, MaxCmdSN, the next StatSN, the
    next target transfer tag. `luns`: number (below 256), core, account, limit, size and block
    size in bytes, whether it is read-only; of units that nothing is out of the ordinary of.
    `commands`, WRITEs that collect their data: BHS, the bytes that came, how many came or were
    asked for, R2Ts sent, whether Data-Outs come that nobody asked for, how many came, and the R2Ts
    that are not answered (TTT, next byte, end, next DataSN). ValueError for one that cannot be
    served. OSError."""

def iscsi_interrupt(client: LoopClient, /) -> None:
    """`client.stop()`, and wait until no command begins any more: for as long as what has come
    takes. What was begun may still wait for a disk, until `stopped`."""

def iscsi_give(client: LoopClient, itt: int, data: Buffer | None, /) -> bool:
    """Answer the READ whose BHS came by mail: with all of its data, or with None when that failed,
    which stops the client. False when it does not wait (any more)."""

def iscsi_state(
    client: LoopClient, /
) -> tuple[
    tuple[int, int, int, int],
    list[
        tuple[
            int,
            bytes,
            bytes,
            int,
            int,
            bool,
            int,
            list[tuple[int, int, int, int]],
            Reservation | None,
        ]
    ],
]:
    """The numbers, and the commands that were begun and not answered, as `iscsi_add` takes them
    behind their state: ISCSI_COLLECTING; ISCSI_MAILED and ISCSI_FAILED, which are to be carried
    out; ISCSI_UNSYNCED, of which a flush is left; ISCSI_WAITING, for the limits of its volume, with
    its place there, if it has one. To be asked for once, before `leftover()`. RuntimeError unless
    `stopped`."""

def iscsi_open(client: LoopClient, lun: int = -1, /) -> int:
    """Commands that were begun and not answered, of one unit or of all."""

def iscsi_heard(client: LoopClient, /) -> bool:
    """Whether a byte came since the last call."""

def answer_append(
    cores: dict[bytes, VolumeCore],
    theirs: int,
    mine: int,
    head: Buffer,
    records: Buffer,
    now_ns: int,
    boot_ns: int,
    /,
) -> bytes | None:
    """The ACK of an APPEND that was done, of one of these volumes, where there was nothing to be
    decided; None: it is something else, or is to be decided. `theirs`, `mine`: of the session."""

def read_ack(theirs: int, mine: int, head: Buffer, /) -> tuple[int, int, int, int] | None:
    """(request, epoch, received, durable) of an ACK of this session; None: it is something else,
    or out of bounds."""
