"""Every command through libnbd's Python binding, each on a volume of its own, with the errors.

The scripts run in the system's Python; see tests.clients.run_libnbd for what they are given.
"""

import pytest

from tests.clients import run_libnbd
from tests.daemon import Daemon, StartDaemon

pytestmark = pytest.mark.usefixtures("libnbd")


@pytest.fixture
def server(daemon: StartDaemon) -> Daemon:
    server = daemon()
    server.create("demo", 256 << 20)
    return server


def test_reads_return_what_was_written_and_zeros_elsewhere(server: Daemon) -> None:
    run_libnbd(
        server.uri(),
        """
h = connected()
h.pwrite(b"a" * 4096 + b"b" * 4096, 8192)
assert h.pread(16384, 4096) == bytes(4096) + b"a" * 4096 + b"b" * 4096 + bytes(4096)
h.pwrite(b"c" * 512, 8192 + 512)
assert h.pread(4096, 8192) == b"a" * 512 + b"c" * 512 + b"a" * 3072
""",
    )


def test_simple_replies_carry_the_same_data(server: Daemon) -> None:
    run_libnbd(
        server.uri(),
        """
h = connected(structured=False, contexts=())
assert not h.get_structured_replies_negotiated()
h.pwrite(b"s" * 8192, 0)
assert h.pread(12288, 0) == b"s" * 8192 + bytes(4096)
""",
    )


def test_largest_payload_goes_both_ways(server: Daemon) -> None:
    run_libnbd(
        server.uri(),
        """
import random
data = random.Random(1).randbytes(32 << 20)
h = connected()
h.pwrite(data, 4096)
assert h.pread(len(data), 4096) == data
""",
    )


def test_fua_and_flush_succeed(server: Daemon) -> None:
    run_libnbd(
        server.uri(),
        """
h = connected()
h.pwrite(b"f" * 4096, 0, nbd.CMD_FLAG_FUA)
h.zero(4096, 4096, nbd.CMD_FLAG_FUA)
h.trim(4096, 8192, nbd.CMD_FLAG_FUA)
h.flush()
assert h.pread(12288, 0) == b"f" * 4096 + bytes(8192)
""",
    )


def test_trim_and_zero_read_as_zeros(server: Daemon) -> None:
    run_libnbd(
        server.uri(),
        """
h = connected()
h.pwrite(b"x" * 65536, 0)
h.trim(4096, 0)
h.zero(4096, 8192)
h.zero(4096, 16384, nbd.CMD_FLAG_NO_HOLE)
h.zero(4096, 24576, nbd.CMD_FLAG_FAST_ZERO)
data = h.pread(65536, 0)
for index in range(16):
    expected = bytes(4096) if index in (0, 2, 4, 6) else b"x" * 4096
    assert data[index * 4096 : (index + 1) * 4096] == expected, index
""",
    )


def test_zero_of_the_whole_volume_in_one_command(server: Daemon) -> None:
    run_libnbd(
        server.uri(),
        """
h = connected()
h.pwrite(b"x" * 65536, 128 << 20)
h.zero(h.get_size(), 0)
assert h.pread(65536, 128 << 20) == bytes(65536)
h.trim(h.get_size(), 0)
""",
    )


def test_cache_succeeds_and_changes_nothing(server: Daemon) -> None:
    run_libnbd(
        server.uri(),
        """
h = connected()
h.pwrite(b"k" * 4096, 0)
h.cache(1 << 20, 0)
assert h.pread(4096, 0) == b"k" * 4096
""",
    )


def test_structured_read_tells_data_from_holes(server: Daemon) -> None:
    run_libnbd(
        server.uri(),
        """
h = connected()
h.pwrite(b"d" * 65536, 65536)
seen = bytearray(b"?" * 196608)
kinds = set()
def chunk(data, offset, status, error):
    kinds.add(status)
    seen[offset : offset + len(data)] = data
h.pread_structured(196608, 0, chunk)
assert seen == bytes(65536) + b"d" * 65536 + bytes(65536)
assert kinds == {nbd.READ_DATA, nbd.READ_HOLE}, kinds
""",
    )


def test_read_that_must_not_be_fragmented_comes_in_one_piece(server: Daemon) -> None:
    run_libnbd(
        server.uri(),
        """
h = connected()
h.pwrite(b"d" * 4096, 4096)
pieces = []
def chunk(data, offset, status, error):
    pieces.append((offset, len(data)))
h.pread_structured(65536, 0, chunk, nbd.CMD_FLAG_DF)
assert pieces == [(0, 65536)], pieces
""",
    )


def test_block_status_covers_what_was_asked(server: Daemon) -> None:
    run_libnbd(
        server.uri(),
        """
h = connected()
h.pwrite(b"d" * 65536, 65536)
answers = []
def extents(context, offset, entries, error):
    answers.append((context, offset, list(entries)))
h.block_status(196608, 0, extents)
assert len(answers) == 1 and answers[0][:2] == ("base:allocation", 0), answers
lengths, states = answers[0][2][0::2], answers[0][2][1::2]
assert lengths[:2] == [65536, 65536] and states[:3] == [3, 0, 3], answers
answers.clear()
h.block_status(196608, 0, extents, nbd.CMD_FLAG_REQ_ONE)
assert answers == [("base:allocation", 0, [65536, 3])], answers
""",
    )


def test_requests_past_the_end_are_refused_and_the_session_goes_on(server: Daemon) -> None:
    run_libnbd(
        server.uri(),
        """
h = connected()
end = h.get_size()
refused("EINVAL", h.pread, 8192, end - 4096)
refused("ENOSPC", h.pwrite, bytes(8192), end - 4096)
refused("ENOSPC", h.zero, 8192, end - 4096)
refused("EINVAL", h.trim, 8192, end - 4096)
refused("EINVAL", h.pread, 8192, (1 << 64) - 4096)
h.pwrite(b"e" * 4096, end - 4096)
assert h.pread(4096, end - 4096) == b"e" * 4096
""",
    )


def test_requests_in_flight_are_each_answered_once(server: Daemon) -> None:
    run_libnbd(
        server.uri(),
        """
h = connected()
count, length = 512, 4096
answered = []
buffers = []
for index in range(count):
    buffer = nbd.Buffer.from_bytearray(bytearray(bytes([index % 251]) * length))
    buffers.append(buffer)
    def done(error, index=index):
        assert error.value == 0 if hasattr(error, "value") else error == 0
        answered.append(index)
        return 1
    h.aio_pwrite(buffer, index * length, completion=done)
while h.aio_in_flight():
    h.poll(-1)
assert sorted(answered) == list(range(count))
data = h.pread(count * length, 0)
for index in range(count):
    assert data[index * length : (index + 1) * length] == bytes([index % 251]) * length, index
""",
    )


def test_writes_sent_before_a_disconnect_are_kept(server: Daemon) -> None:
    run_libnbd(
        server.uri(),
        """
h = connected()
for index in range(64):
    h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(b"w" * 65536)), index * 65536)
h.aio_disconnect()
try:
    while not (h.aio_is_closed() or h.aio_is_dead()):
        h.poll(-1)
except nbd.Error:
    pass
assert connected().pread(64 * 65536, 0) == b"w" * 64 * 65536
""",
    )


def test_abort_and_listing_in_negotiation(server: Daemon) -> None:
    run_libnbd(
        server.uri(),
        """
h = nbd.NBD()
h.set_opt_mode(True)
h.connect_uri(uri)
names = []
h.opt_list(lambda name, description: names.append(name))
assert names == ["demo"], names
contexts = []
h.opt_list_meta_context(contexts.append)
assert "base:allocation" in contexts, contexts
h.opt_info()
assert h.get_size() == 256 << 20
h.set_export_name("nosuch")
refused("ENOENT", h.opt_info)
h.set_export_name("demo")
h.opt_go()
assert h.pread(512, 0) == bytes(512)
h.shutdown()
other = nbd.NBD()
other.set_opt_mode(True)
other.connect_uri(uri)
other.opt_abort()
""",
    )


def test_misaligned_requests_are_refused_on_a_volume_of_4096_byte_blocks(
    daemon: StartDaemon,
) -> None:
    server = daemon()
    server.create("demo", 64 << 20, block_size=4096)
    run_libnbd(
        server.uri(),
        """
h = connected()
assert h.get_block_size(nbd.SIZE_MINIMUM) == 4096
h.pwrite(b"a" * 8192, 0)
refused("EINVAL", h.pwrite, b"x" * 512, 0)
refused("EINVAL", h.pwrite, b"x" * 4096, 512)
refused("EINVAL", h.pread, 512, 4096)
refused("EINVAL", h.zero, 4096, 512)
assert h.pread(8192, 0) == b"a" * 8192
""",
    )
