"""A volume's records through a tap into a volume of another journal, against a reading of both."""

import errno
import os
import random
import re
import select
import threading
from pathlib import Path

import pytest

from native import (
    CHUNK_HOLE,
    OP_UNMAP,
    OP_WRITE,
    OP_WRITE_ZEROES,
    TAP_MIN_BUFFER,
    Journal,
    PlaceTable,
    Request,
    VolumeCore,
    arm_site,
    disarm_sites,
)
from tests.unit.native.rig import Rig, read

SIZE = 1 << 20
SECTOR = 512
EPOCH = 1


def rig() -> Rig:
    made = Rig(size=SIZE, segments=12)
    for index in range(SIZE // made.chunk_size):
        made.core.put_place(index, 0, CHUNK_HOLE, None, 0, made.chunk_size, b"")
    return made


def take(core: VolumeCore, capacity: int = TAP_MIN_BUFFER) -> bytes:
    buffer = bytearray(capacity)
    length, first, last, lost = core.take(buffer)
    assert not lost
    assert (length == 0) == (first == 0) == (last == 0)
    return bytes(buffer[:length])


def readable(descriptor: int) -> bool:
    return bool(select.select([descriptor], [], [], 0)[0])


def change(rng: random.Random, primary: Rig, other: VolumeCore) -> None:
    """A batch on one of two volumes of the journal, now and then a sync or another moment."""
    batch = []
    for _ in range(rng.randint(1, 6)):
        first = rng.randrange(SIZE // SECTOR)
        length = rng.randint(1, min(40, SIZE // SECTOR - first)) * SECTOR
        op = rng.choice((OP_WRITE, OP_WRITE, OP_WRITE, OP_UNMAP, OP_WRITE_ZEROES))
        data = rng.randbytes(length) if op == OP_WRITE else b""
        batch.append(Request(op, first * SECTOR, length, data))
    core = primary.core if rng.random() < 0.7 else other
    done, *waiting = core.submit(batch, primary.now_ns)
    assert not any(waiting)
    assert not any(request.error for request in done)
    if rng.random() < 0.3:
        primary.journal.sync()
    primary.now_ns += rng.choice((0, 1, 5_000_000))


@pytest.mark.parametrize("seed", range(12))
def test_a_member_reads_as_the_volume_that_its_records_are_of(seed: int) -> None:
    rng = random.Random(seed)
    primary, member = rig(), rig()
    other = primary.volume(2)
    _, seq = primary.core.tap(8 << 20)
    assert seq == 0
    kept = b""
    for _ in range(60):
        change(rng, primary, other)
        if rng.random() < 0.4:
            records = take(primary.core)
            again = kept if rng.random() < 0.3 else b""  # a link that was lost sends it again
            error, seq, _ = member.core.append_records(EPOCH, again + records, 7)
            assert error == 0
            kept = records
    assert member.core.append_records(EPOCH, take(primary.core), 7)[0] == 0
    assert take(primary.core) == b""
    assert member.core.state()[0] == primary.core.state()[0]
    assert read(member.core, 0, SIZE) == read(primary.core, 0, SIZE)


def test_what_was_written_before_the_tap_is_not_taken() -> None:
    primary, member = rig(), rig()
    primary.write(0, b"a" * SECTOR)
    descriptor, seq = primary.core.tap(8 << 20)
    assert seq == 1
    assert not readable(descriptor)
    primary.write(SECTOR, b"b" * SECTOR)
    assert readable(descriptor)
    assert member.core.append_records(EPOCH, take(primary.core), 7) == (errno.ERANGE, 0, None)
    assert not readable(descriptor)


def test_a_record_that_the_journal_does_not_hold_any_more_is_not_sent() -> None:
    primary = rig()
    primary.core.tap(8 << 20)
    primary.write(0, b"a" * SECTOR)
    at = primary.files[0].image.index(b"bdJR")
    primary.files[0].image[at + 20] ^= 1
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        primary.core.take(bytearray(TAP_MIN_BUFFER))
    primary.files[0].image[at + 20] ^= 1
    assert take(primary.core)  # nothing was lost by that


def test_a_write_that_failed_is_not_sent() -> None:
    primary, member = rig(), rig()
    primary.core.tap(8 << 20)
    primary.write(0, b"a" * SECTOR)
    primary.files[0].error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    request = Request(OP_WRITE, 0, SECTOR, b"x" * SECTOR)
    primary.submit(request)
    assert request.error == errno.ENOSPC
    primary.write(SECTOR, b"b" * SECTOR)
    assert member.core.append_records(EPOCH, take(primary.core), 7) == (0, 2, None)
    assert read(member.core, 0, 2 * SECTOR) == b"a" * SECTOR + b"b" * SECTOR


def test_a_tap_is_open_once_and_needs_room_for_a_record() -> None:
    core = rig().core
    for call, code in (
        (core.tap_again, errno.ENOENT),
        (lambda: core.take(bytearray(TAP_MIN_BUFFER)), errno.ENOENT),
        (lambda: core.tap(TAP_MIN_BUFFER - 1), errno.EINVAL),
    ):
        with pytest.raises(OSError, match=re.escape(os.strerror(code))):
            call()
    core.untap()
    core.tap(TAP_MIN_BUFFER)
    with pytest.raises(FileExistsError):
        core.tap(TAP_MIN_BUFFER)
    with pytest.raises(OSError, match="Invalid"):
        core.take(bytearray(TAP_MIN_BUFFER - 1))
    core.untap()
    core.tap(TAP_MIN_BUFFER)


def test_nobody_else_takes_or_unties_while_one_takes() -> None:
    primary = rig()
    primary.core.tap(8 << 20)
    primary.write(0, b"a" * SECTOR)
    reading, go_on = threading.Event(), threading.Event()
    pread = primary.files[0].pread

    def wait(length: int, offset: int) -> bytes:
        reading.set()
        assert go_on.wait(30)
        return pread(length, offset)

    primary.files[0].pread = wait  # type: ignore[method-assign]
    taken = []
    thread = threading.Thread(target=lambda: taken.append(take(primary.core)))
    thread.start()
    assert reading.wait(30)
    for call in (
        primary.core.untap,
        primary.core.tap_again,
        lambda: primary.core.take(bytearray(TAP_MIN_BUFFER)),
    ):
        with pytest.raises(OSError, match=os.strerror(errno.EBUSY)):
            call()
    primary.write(SECTOR, b"b" * SECTOR)  # writers do not wait for it
    go_on.set()
    thread.join()
    primary.files[0].pread = pread  # type: ignore[method-assign]
    second = take(primary.core)
    member = rig()
    assert member.core.append_records(EPOCH, taken[0] + second, 7) == (0, 2, None)


def test_a_tap_that_was_lost_while_it_was_taken_tells_of_what_is_written_next() -> None:
    primary = rig()
    descriptor, _ = primary.core.tap(TAP_MIN_BUFFER)
    with select.epoll() as told:
        told.register(descriptor, select.EPOLLIN | select.EPOLLET)
        primary.write(0, b"a" * SECTOR)
        pread = primary.files[0].pread

        def lose(length: int, offset: int) -> bytes:
            primary.files[0].pread = pread  # type: ignore[method-assign]
            for _ in range(3):
                primary.write(0, bytes(SIZE // 2))
            return pread(length, offset)

        primary.files[0].pread = lose  # type: ignore[method-assign]
        assert primary.core.take(bytearray(TAP_MIN_BUFFER)) == (0, 0, 0, True)
        assert told.poll(0)
        seq = primary.core.tap_again()
        assert not told.poll(0)
        primary.write(SECTOR, b"b" * SECTOR)
        assert told.poll(0)
    _, first, *_ = primary.core.take(bytearray(TAP_MIN_BUFFER))
    assert first == seq + 1


def test_what_is_not_in_memory_is_not_waited_for_unless_that_is_wanted(tmp_path: Path) -> None:
    journal = Journal(bytes(16), 1 << 20, 1)
    path = tmp_path / "segment"
    path.write_bytes(bytes(1 << 20))
    with path.open("r+b") as file:
        journal.add_ready(0, file.fileno())
        core = VolumeCore(journal, PlaceTable(1 << 20), 1, 1, 4096, SIZE, 0, 0)
        descriptor, _ = core.tap(8 << 20)
        core.submit([Request(OP_WRITE, 0, SECTOR, b"a" * SECTOR)], 1)
        arm_site("file.would-wait", 1, 0, 0)
        try:
            with pytest.raises(BlockingIOError):
                core.take(bytearray(TAP_MIN_BUFFER), True)
        finally:
            disarm_sites()
        assert readable(descriptor)  # nothing was taken
        length, first, last, lost = core.take(bytearray(TAP_MIN_BUFFER), True)
        assert (length > SECTOR, first, last, lost) == (True, 1, 1, False)


def test_a_tap_tells_once_until_it_is_taken() -> None:
    primary = rig()
    descriptor, _ = primary.core.tap(8 << 20)
    for _ in range(3):
        primary.write(0, b"a" * SECTOR)
    assert os.eventfd_read(descriptor) == 1
    assert take(primary.core)
    primary.write(0, b"a" * SECTOR)
    assert os.eventfd_read(descriptor) == 1
