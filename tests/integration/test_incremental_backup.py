"""Incremental backups restore bit-exact: by dirty bitmaps over NBD, and by send and receive."""

import contextlib
import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients import FindTool, run_libnbd, run_tool
from tests.daemon import Daemon, StartDaemon

MiB = 1 << 20
CHUNK = 65536
SIZE = 64 * MiB
APPEAR_S = 60.0

pytestmark = pytest.mark.usefixtures("libnbd")

FILL = """
import random
h = connected()
for offset in range(0, 48 << 20, 4 << 20):
    h.pwrite(random.Random(offset).randbytes(1 << 20), offset)
h.flush()
"""

CHANGE = """
import random
rng = random.Random(99)
h = connected()
h.pwrite(rng.randbytes(4096), (8 << 20) + 512)      # in the midst of data
h.pwrite(rng.randbytes(200_192), (33 << 20) + 7680) # where there was a hole, over four chunks
h.trim(1 << 20, 12 << 20)                           # data that goes
h.zero(65536, 16 << 20)
h.pwrite(rng.randbytes(512), h.get_size() - 512)
h.flush()
"""
CHANGED = [
    (8 * MiB, CHUNK),
    (12 * MiB, MiB),
    (16 * MiB, CHUNK),
    (33 * MiB, 4 * CHUNK),
    (SIZE - CHUNK, CHUNK),
]
"""What CHANGE touches, in whole chunks."""

COPY_DIRTY = """
context, target = arguments
source = connected(contexts=(context,))
assert source.can_meta_context(context)
copy = nbd.NBD()
copy.connect_uri(target)
at, end, copied = 0, source.get_size(), 0
assert copy.get_size() == end
while at < end:
    answers = []
    def extents(name, offset, entries, error):
        assert name == context and offset == at, (name, offset)
        answers.extend(zip(entries[0::2], entries[1::2]))
    source.block_status(end - at, at, extents)
    assert answers
    for length, flags in answers:
        assert flags in (0, 1), flags
        while flags and length:
            piece = min(length, 1 << 20)
            copy.pwrite(source.pread(piece, at), at)
            at, length, copied = at + piece, length - piece, copied + piece
        at += length
copy.flush()
copy.shutdown()
print(copied)
"""


@pytest.fixture
def server(daemon: StartDaemon) -> Daemon:
    """A volume with data, its snapshot `full`, changes, its snapshot `later`."""
    server = daemon("--volume", f"demo={SIZE}")
    run_libnbd(server.uri(), FILL)
    server.run("snapshot", "create", "demo@full")
    run_libnbd(server.uri(), CHANGE)
    server.run("snapshot", "create", "demo@later")
    run_libnbd(server.uri(), "connected().pwrite(b'x' * 4096, 0)")  # in neither
    return server


@contextlib.contextmanager
def served_by_qemu(qemu_nbd: str, image: Path, socket: Path) -> Iterator[str]:
    """The URI at which qemu-nbd lets a qcow2 image be written."""
    command = [qemu_nbd, "--format=qcow2", f"--socket={socket}", "--persistent", str(image)]
    process = subprocess.Popen(command)
    try:
        deadline = time.monotonic() + APPEAR_S
        while not socket.exists():
            assert process.poll() is None, f"qemu-nbd exited with {process.returncode}"
            assert time.monotonic() < deadline, "qemu-nbd did not listen"
            time.sleep(0.02)
        yield f"nbd+unix:///?socket={socket}"
    finally:
        process.terminate()
        process.wait(APPEAR_S)


def test_full_and_incremental_qcow2_by_the_dirty_bitmap(
    client_tool: FindTool, server: Daemon, data_dir: Path, tmp_path: Path
) -> None:
    qemu_img = client_tool("qemu-img")
    full, later = tmp_path / "full.qcow2", tmp_path / "later.qcow2"
    run_tool(qemu_img, "convert", "-f", "raw", "-O", "qcow2", server.uri("demo@full"), full)
    run_tool(qemu_img, "create", "-q", "-f", "qcow2", "-b", full, "-F", "qcow2", later)
    socket = data_dir.parent / "qemu.sock"
    with served_by_qemu(client_tool("qemu-nbd"), later, socket) as target:
        copied = run_libnbd(server.uri("demo@later"), COPY_DIRTY, "qemu:dirty-bitmap:full", target)
    assert int(copied) == sum(length for _, length in CHANGED)
    restored = tmp_path / "restored"
    run_tool(qemu_img, "convert", "-f", "qcow2", "-O", "raw", later, restored)
    compare = (qemu_img, "compare", "-f", "raw", "-F", "raw")
    run_tool(*compare, restored, server.uri("demo@later"))
    assert _bytes_of(client_tool, server, "demo@later", tmp_path) == restored.read_bytes()
    run_tool(qemu_img, "compare", "-f", "qcow2", "-F", "raw", full, server.uri("demo@full"))


def test_every_client_sees_the_same_changed_extents(client_tool: FindTool, server: Daemon) -> None:
    host, port = server.host_port
    image = f"driver=nbd,host={host},port={port},export=demo@later"
    by_qemu = json.loads(
        run_tool(
            *(client_tool("qemu-img"), "map", "--output=json", "--image-opts"),
            f"{image},x-dirty-bitmap=qemu:dirty-bitmap:full",
        )
    )
    # qemu shows a set bit as an extent without data.
    assert [(e["start"], e["length"]) for e in by_qemu if not e["data"]] == CHANGED
    for context in ("qemu:dirty-bitmap:full", "blockd:changed-since:full"):
        nbdinfo = (client_tool("nbdinfo"), "--json", f"--map={context}")
        extents = json.loads(run_tool(*nbdinfo, server.uri("demo@later")))
        assert [(e["offset"], e["length"]) for e in extents if e["type"] & 1] == CHANGED
    by_cli = server.run_json("volume", "diff", "demo@full", "demo@later")
    assert [tuple(extent) for extent in by_cli["extents"]] == CHANGED


def test_full_and_incremental_stream_into_a_second_daemon(
    client_tool: FindTool, server: Daemon, daemon: StartDaemon, data_dir: Path, tmp_path: Path
) -> None:
    other = daemon(data=data_dir.with_name("other"))
    full = server.run("send", "demo@full")
    other.run("receive", "copy", stdin=full)
    assert _bytes_of(client_tool, other, "copy", tmp_path) == _bytes_of(
        client_tool, server, "demo@full", tmp_path
    )
    with subprocess.Popen(
        server.cli("send", "demo@later", "--from", "demo@full"), stdout=subprocess.PIPE
    ) as sender:
        receiver = subprocess.run(
            other.cli("receive", "copy"), stdin=sender.stdout, capture_output=True, check=False
        )
    assert (sender.returncode, receiver.returncode) == (0, 0), receiver.stderr
    assert _bytes_of(client_tool, other, "copy", tmp_path) == _bytes_of(
        client_tool, server, "demo@later", tmp_path
    )
    incremental = server.run("send", "demo@later", "--from", "demo@full")
    written = 200_192 + CHUNK  # bytes of CHANGE that no codec makes smaller
    chunks = 6 * CHUNK  # what CHANGE left with data in it, whole
    assert written < len(incremental) < chunks + 128 * 1024 < len(full)


def _bytes_of(client_tool: FindTool, server: Daemon, export: str, tmp_path: Path) -> bytes:
    path = tmp_path / "copy"
    run_tool(client_tool("nbdcopy"), server.uri(export), path)
    content = path.read_bytes()
    path.unlink()
    assert len(content) == SIZE
    return content
