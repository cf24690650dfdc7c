"""Journal as Python sees it: freezing is all or nothing, headers decode as the twin says."""

import errno

import pytest

from native import OP_WRITE, Journal, Request, VolumeCore
from tests.unit.native.rig import SEGMENT_BYTES, STORE_UUID, MemoryFile, Rig, read
from volume.builder import frozen_runs


def test_a_freeze_that_fails_freezes_nothing() -> None:
    rig = Rig()
    other = rig.volume(2)
    rig.write(0, b"a" * 512)
    rig.journal.freeze([other])
    with pytest.raises(OSError, match="busy") as caught:
        rig.journal.freeze([rig.core, other])
    assert caught.value.errno == errno.EBUSY
    assert rig.core.state()[6] is False
    cut, seqs = rig.journal.freeze([rig.core])
    assert (cut[0], seqs) == (rig.journal.state()[0] + 1, [1])
    assert list(frozen_runs(rig.core)) == [(0, 1, False)]


def test_freeze_takes_the_volumes_of_its_journal_only() -> None:
    rig, other = Rig(), Rig()
    with pytest.raises(ValueError, match="this journal"):
        rig.journal.freeze([rig.core, other.core])
    with pytest.raises(TypeError):
        rig.journal.freeze([rig.core, object()])  # type: ignore[list-item]
    with pytest.raises(OSError, match="busy"):
        rig.journal.freeze([rig.core, rig.core])
    assert rig.core.state()[6] is False


@pytest.mark.parametrize(
    ("uuid", "segment_bytes"),
    [
        (b"short", SEGMENT_BYTES),
        (STORE_UUID, 0),
        (STORE_UUID, 12288),
        (STORE_UUID, SEGMENT_BYTES + 512),
        (STORE_UUID, (1 << 26) + 4096),
        (STORE_UUID, 1 << 63),
    ],
)
def test_a_journal_refuses_sizes_that_places_cannot_say(uuid: bytes, segment_bytes: int) -> None:
    with pytest.raises(ValueError, match="64 MiB"):
        Journal(uuid, segment_bytes, 1)


def test_slots() -> None:
    journal = Journal(STORE_UUID, SEGMENT_BYTES, 1)
    file = MemoryFile()
    journal.add_ready(7, file)
    for call, slot, code in (
        (journal.add_ready, 7, errno.EEXIST),
        (journal.add_ready, 65536, errno.EINVAL),
    ):
        with pytest.raises(OSError) as caught:  # noqa: PT011 - the errno is checked
            call(slot, file)
        assert caught.value.errno == code
    for other in (journal.recycle, journal.remove):
        for slot in (7, 8, 65536):
            with pytest.raises(FileNotFoundError):
                other(slot)


def test_a_head_record_has_a_payload_that_fits() -> None:
    rig = Rig()
    rig.journal.append_head(1, 1, 1, b"x" * 100, rig.now_ns)
    for payload in (b"", bytes((1 << 20) + 1)):
        with pytest.raises(OSError, match="Invalid argument"):
            rig.journal.append_head(1, 1, 1, payload, rig.now_ns)


def test_errors_of_simulated_files_are_errnos() -> None:
    class Strange(BaseException):
        pass

    for error, code in (
        (OSError(errno.ENOSPC, "full"), errno.ENOSPC),
        (OSError("no errno"), errno.EIO),
        (OSError(1 << 80, "too big"), errno.EIO),
        (OSError(-5, "negative"), errno.EIO),
        (Strange(), errno.EIO),
        (ValueError("a bug"), errno.EIO),
    ):
        rig = Rig()
        rig.write(0, b"a" * 512)
        rig.files[0].error = error
        request = Request(OP_WRITE, 512, 512, b"b" * 512)
        assert rig.submit(request) == (1, 0, 0, 0)
        assert request.error == code
        rig.files[0].error = None
        assert rig.read(0, 512) == b"a" * 512


def test_a_sync_that_fails_seals() -> None:
    rig = Rig()
    rig.write(0, b"a" * 512)
    rig.files[0].error = OSError(errno.EIO, "gone")
    with pytest.raises(OSError, match="Input/output") as caught:
        rig.journal.sync()
    assert caught.value.errno == errno.EIO
    assert rig.journal.state()[2] == errno.EIO
    request = Request(OP_WRITE, 0, 512, bytes(512))
    rig.submit(request)
    assert request.error == errno.EIO


def test_a_volume_keeps_its_journal_and_table_alive() -> None:
    rig = Rig()
    core: VolumeCore = rig.core
    rig.write(0, b"a" * 512)
    del rig
    assert read(core, 0, 512) == b"a" * 512
