"""Space: TRIM gives it back, and a full disk is an error that passes.

The small file systems are loop-mounted ext4 images, so that running out is real.
"""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients import FindTool, run_libnbd, run_tool, unavailable
from tests.daemon import Daemon, StartDaemon

MiB = 1 << 20
GiB = 1 << 30

pytestmark = pytest.mark.usefixtures("libnbd")

FILL = """
import random
h = connected()
rng = random.Random(6)
start, end = int(arguments[0]), int(arguments[1])
offset = start
refusals = 0
while offset < end:
    try:
        h.pwrite(rng.randbytes(1 << 20), offset)
    except nbd.Error as error:
        assert error.errno == "ENOSPC", error.errno
        refusals += 1
        break
    offset += 1 << 20
print(offset)
"""


def disk_usage(folder: Path) -> int:
    """Bytes that the file system gave to the files below `folder`."""
    return int(run_tool("du", "-s", "--block-size=1", folder).split()[0])


def test_trim_of_a_gibibyte_shrinks_the_directory(daemon: StartDaemon) -> None:
    server = daemon("--volume", "demo=2G")
    run_libnbd(server.uri(), FILL, "0", str(GiB))
    server.wait_for("destage of what was written", lambda s: s.hot_bytes == 0)
    full = disk_usage(server.data / "packs")
    assert full >= GiB
    run_libnbd(server.uri(), "h = connected()\nh.trim(1 << 30, 0)\nh.flush()")
    server.wait_for("collection of what was trimmed", lambda s: s.pack_bytes < GiB // 8)
    assert disk_usage(server.data / "packs") < GiB // 8


@contextlib.contextmanager
def small_disk(client_tool: FindTool, folder: Path, size: int) -> Iterator[Path]:
    """A file system of `size` bytes, mounted below `folder`."""
    if os.geteuid() != 0 or not Path("/dev/loop-control").exists():
        unavailable("root with loop devices (for a small file system)")
    image, mountpoint = folder / "disk.img", folder / "m"
    with image.open("wb") as file:
        file.truncate(size)
    run_tool(client_tool("mkfs.ext4"), "-q", "-m", "0", image)
    mountpoint.mkdir()
    run_tool(client_tool("mount"), "-o", "loop", image, mountpoint)
    try:
        yield mountpoint
    finally:
        subprocess.run([client_tool("umount"), "-l", str(mountpoint)], check=True)


@pytest.fixture
def full_server(
    client_tool: FindTool, daemon: StartDaemon, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Daemon]:
    """A daemon on a disk of 768 MiB that clients have filled."""
    with small_disk(client_tool, tmp_path_factory.mktemp("s"), 768 * MiB) as mountpoint:
        server = daemon("--volume", "demo=4G", data=mountpoint / "data")
        yield server
        server.discard()


def test_a_full_disk_refuses_writes_and_serves_reads_and_trims(full_server: Daemon) -> None:
    written = int(run_libnbd(full_server.uri(), FILL, "0", str(4 * GiB)))
    assert 0 < written < GiB, "the disk of 768 MiB never filled up"
    assert full_server.store().state == "full"
    run_libnbd(
        full_server.uri(),
        """
import random
written = int(arguments[0])
h = connected()
rng = random.Random(6)
for offset in range(0, written, 1 << 20):
    assert h.pread(1 << 20, offset) == rng.randbytes(1 << 20), offset
refused("ENOSPC", h.pwrite, bytes(range(256)) * 4096, written)
h.trim(written, 0)
h.flush()
assert h.pread(1 << 20, 0) == bytes(1 << 20)
""",
        str(written),
    )
    full_server.wait_for("room after a trim", lambda s: s.space_left_bytes >= 64 * MiB)
    assert int(run_libnbd(full_server.uri(), FILL, "0", str(32 * MiB))) == 32 * MiB
    assert full_server.store().state == "ok"


def test_a_full_disk_can_be_started_on(full_server: Daemon) -> None:
    written = int(run_libnbd(full_server.uri(), FILL, "0", str(4 * GiB)))
    full_server.kill()
    full_server.start()
    run_libnbd(
        full_server.uri(),
        """
import random
h, rng = connected(), random.Random(6)
for offset in range(0, int(arguments[0]), 1 << 20):
    assert h.pread(1 << 20, offset) == rng.randbytes(1 << 20), offset
""",
        str(written),
    )
