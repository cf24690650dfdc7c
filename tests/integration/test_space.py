"""Space: TRIM gives it back, and a full disk is an error that passes.

The small file systems are loop-mounted ext4 images, so that running out is real.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients import FindTool, run_libnbd, run_tool
from tests.daemon import Daemon, StartDaemon
from tests.mounts import small_disk

MiB = 1 << 20
GiB = 1 << 30

pytestmark = pytest.mark.usefixtures("libnbd")

FILL = """
import random
h = connected()
offset, end = int(arguments[0]), int(arguments[1])
while offset < end:
    try:
        h.pwrite(random.Random(offset).randbytes(1 << 20), offset)
    except nbd.Error as error:
        assert error.errno == "ENOSPC", error.errno
        break
    offset += 1 << 20
print(offset)
"""

READ_BACK = """
import random
h = connected()
for offset in range(0, int(arguments[0]), 1 << 20):
    assert h.pread(1 << 20, offset) == random.Random(offset).randbytes(1 << 20), offset
"""

MAX_FILLS = 50  # each ends when the journal is full; destaging makes room for the next


def fill(server: Daemon, start: int, end: int) -> int:
    """Write from `start` on until `end` or ENOSPC; the end of what was written."""
    return int(run_libnbd(server.uri(), FILL, str(start), str(end)))


def fill_up(server: Daemon) -> int:
    """Write until nothing more fits, destaged or not; the end of what was written."""
    written = 0
    for _ in range(MAX_FILLS):
        reached = fill(server, written, 4 * GiB)
        if reached == written:
            return written
        written = reached
        server.wait_for("destage", lambda s: s.hot_bytes == 0 or s.state == "full")
    raise AssertionError(f"a disk of 768 MiB took {written} bytes and more")


def disk_usage(folder: Path) -> int:
    """Bytes that the file system gave to the files below `folder`."""
    return int(run_tool("du", "-s", "--block-size=1", folder).split()[0])


def test_trim_of_a_gibibyte_shrinks_the_directory(
    daemon: StartDaemon, tmp_path_factory: pytest.TempPathFactory
) -> None:
    config = tmp_path_factory.mktemp("c") / "blockd.toml"
    config.write_text("[store]\ngc_interval_s = 1\ngc_condemn_s = 1\nshort_percent = 0\n")
    server = daemon("--volume", "demo=2G", "--config", str(config))
    assert fill(server, 0, GiB) == GiB
    server.wait_for("destage of what was written", lambda s: s.hot_bytes == 0)
    full = disk_usage(server.data / "packs")
    before = server.store()
    assert full >= GiB
    run_libnbd(server.uri(), "h = connected()\nh.trim(1 << 30, 0)\nh.flush()")
    server.wait_for("destage of the trim", lambda s: s.checkpoint_lsn > before.checkpoint_lsn)
    (history,) = [row for row in server.run_json("space")["rows"] if row["kind"] == "history"]
    assert history["exclusive_bytes"] >= GiB  # the versions before the trim have it
    server.run("volume", "history", "demo", "--window", "0", "--keep", "")
    server.wait_for("collection of what was trimmed", lambda s: s.pack_bytes < GiB // 8)
    assert disk_usage(server.data / "packs") < GiB // 8


@pytest.fixture
def small_server(
    client_tool: FindTool, daemon: StartDaemon, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Daemon]:
    """A daemon on a disk of 768 MiB with a volume that does not fit.

    What is dead goes at once where space is short, and after the condemn period where it is not:
    which of the two a trim meets is a matter of moments, so that period is short."""
    config = tmp_path_factory.mktemp("c") / "blockd.toml"
    config.write_text("[store]\nshort_percent = 10\ngc_interval_s = 1\ngc_condemn_s = 1\n")
    with small_disk(client_tool, tmp_path_factory.mktemp("s"), 768 * MiB) as mountpoint:
        data = mountpoint / "data"
        server = daemon("--volume", "demo=4G", "--config", str(config), data=data)
        yield server
        server.discard()


def test_a_full_disk_refuses_writes_serves_reads_and_recovers_by_trims(
    small_server: Daemon,
) -> None:
    written = fill_up(small_server)
    assert 256 * MiB < written < 768 * MiB
    run_libnbd(small_server.uri(), READ_BACK, str(written))
    run_libnbd(
        small_server.uri(),
        """
h = connected()
written = int(arguments[0])
h.trim(written // 2, 0)
h.flush()
assert h.pread(1 << 20, 0) == bytes(1 << 20)
""",
        str(written),
    )
    small_server.wait_for("room after a trim", lambda s: s.space_left_bytes >= 128 * MiB, 120.0)
    assert fill(small_server, 0, 64 * MiB) == 64 * MiB
    run_libnbd(small_server.uri(), READ_BACK, str(64 * MiB))
    assert small_server.store().state == "ok"


def test_a_full_disk_can_be_started_on(small_server: Daemon) -> None:
    written = fill_up(small_server)
    small_server.kill()
    small_server.start()
    run_libnbd(small_server.uri(), READ_BACK, str(written))
