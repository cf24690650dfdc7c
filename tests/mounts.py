"""ext4 on a volume: nbdfuse shows the volume as a file, a loop device mounts it.

Needs root, /dev/fuse and a free loop device; the fixture `mount_tools` asks for all of it.
"""

import contextlib
import hashlib
import os
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.clients import FindTool, run_tool, unavailable

APPEAR_S = 60.0  # nbdfuse connects and mounts; a hang ends the test
NAMES = ("nbdfuse", "fusermount3", "losetup", "mkfs.ext4", "mount", "umount", "fsck.ext4")

Tools = Mapping[str, str]
"""Paths of the programs in NAMES."""


def find_mount_tools(client_tool: FindTool) -> Tools:
    """The programs; skips or fails the test where one of them, or a right, is missing."""
    if os.geteuid() != 0:
        unavailable("root (to mount)")
    for device in ("/dev/fuse", "/dev/loop-control"):
        if not Path(device).exists():
            unavailable(device)
    return {name: client_tool(name) for name in NAMES}


@contextlib.contextmanager
def volume_as_file(tools: Tools, uri: str, folder: Path) -> Iterator[Path]:
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
def mounted(tools: Tools, disk: Path, folder: Path) -> Iterator[Path]:
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
        image.unlink()  # so much of it is written that a few runs would fill the real disk


def read_tree(root: Path) -> dict[str, str]:
    """Digests of all files named file... below `root`, by path."""
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in root.rglob("file*")
        if path.is_file()
    }
