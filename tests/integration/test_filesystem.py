"""ext4 on a volume: nbdfuse shows the volume as a file, a loop device mounts it.

Needs root, /dev/fuse and a free loop device; where they are missing the rule for missing clients
holds.
"""

import contextlib
import hashlib
import os
import random
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients import FindTool, run_tool, unavailable
from tests.daemon import StartDaemon

APPEAR_S = 20.0  # nbdfuse connects and mounts; a hang ends the test


@pytest.fixture
def tools(client_tool: FindTool) -> dict[str, str]:
    if os.geteuid() != 0:
        unavailable("root (to mount)")
    for device in ("/dev/fuse", "/dev/loop-control"):
        if not Path(device).exists():
            unavailable(device)
    names = ("nbdfuse", "fusermount3", "losetup", "mkfs.ext4", "mount", "umount", "fsck.ext4")
    return {name: client_tool(name) for name in names}


@contextlib.contextmanager
def volume_as_file(tools: dict[str, str], uri: str, folder: Path) -> Iterator[Path]:
    """The volume at `uri` as a file below `folder`."""
    folder.mkdir()
    fuse = subprocess.Popen([tools["nbdfuse"], str(folder / "disk"), uri])
    try:
        yield _when_there(folder / "disk", fuse)
    finally:
        if fuse.poll() is None:
            subprocess.run([tools["fusermount3"], "-u", str(folder)], check=True)
        fuse.wait(APPEAR_S)


def _when_there(path: Path, process: subprocess.Popen[bytes]) -> Path:
    deadline = time.monotonic() + APPEAR_S
    while not path.exists():
        assert process.poll() is None, f"nbdfuse exited with {process.returncode}"
        assert time.monotonic() < deadline, f"nbdfuse did not show {path}"
        time.sleep(0.02)
    return path


@contextlib.contextmanager
def mounted(tools: dict[str, str], disk: Path, folder: Path) -> Iterator[Path]:
    """The ext4 in the file `disk`, mounted at `folder` through a loop device."""
    folder.mkdir(exist_ok=True)
    loop = run_tool(tools["losetup"], "--find", "--show", disk).strip()
    try:
        run_tool(tools["mount"], "-t", "ext4", loop, folder)
        try:
            yield folder
        finally:
            run_tool(tools["umount"], folder)
    finally:
        run_tool(tools["losetup"], "--detach", loop)


def write_tree(root: Path, seed: int) -> dict[str, str]:
    """Files of all sizes below `root`; their digests by path. Some are deleted again."""
    rng = random.Random(seed)
    digests = {}
    for number in range(200):
        path = root / f"folder{number % 7}" / f"file{number}"
        path.parent.mkdir(exist_ok=True)
        content = rng.randbytes(rng.choice((0, 100, 5000, 70_000, 500_000)))
        path.write_bytes(content)
        digests[str(path.relative_to(root))] = hashlib.sha256(content).hexdigest()
    for name in list(digests)[::5]:
        (root / name).unlink()
        del digests[name]
    return digests


def read_tree(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in root.rglob("file*")
        if path.is_file()
    }


def test_ext4_keeps_its_files_over_a_crash_of_the_daemon(
    tools: dict[str, str], daemon: StartDaemon, tmp_path: Path
) -> None:
    server = daemon()
    server.create("demo", 512 << 20)  # nbdfuse passes on mkfs's sectors as they come
    with volume_as_file(tools, server.uri(), tmp_path / "one") as disk:
        run_tool(tools["mkfs.ext4"], "-q", disk)
        with mounted(tools, disk, tmp_path / "mount") as root:
            digests = write_tree(root, seed=5)
    server.kill()
    server.start()
    with volume_as_file(tools, server.uri(), tmp_path / "two") as disk:
        run_tool(tools["fsck.ext4"], "-fn", disk)
        with mounted(tools, disk, tmp_path / "mount") as root:
            assert read_tree(root) == digests
        run_tool(tools["fsck.ext4"], "-fn", disk)
