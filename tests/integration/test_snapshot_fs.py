"""ext4 snapshotted while files are written: each snapshot is a file system that a crash could have
left, and has every file that was fsynced before it was asked for.
"""

import hashlib
import os
import random
import threading
from pathlib import Path

from tests.clients import FindTool, finish_tool, run_tool
from tests.daemon import StartDaemon
from tests.mounts import Tools, mounted, read_tree, volume_as_file

SIZE = 256 << 20
SNAPSHOTS = 3
FILES_BETWEEN = 12  # fsynced from one snapshot to the next


class Load(threading.Thread):
    """Writes one file after the other below `root`, each with fsync, until told to stop."""

    def __init__(self, root: Path) -> None:
        super().__init__(daemon=True)
        self._root = root
        self._stopping = False
        self._reached = threading.Condition()
        self.fsynced: dict[str, str] = {}
        """Digests by path, in the order in which fsync returned."""

    def run(self) -> None:
        rng = random.Random(11)
        number = 0
        while not self._stopping:
            path = self._root / f"folder{number % 5}" / f"file{number}"
            path.parent.mkdir(exist_ok=True)
            content = rng.randbytes(rng.choice((1, 4096, 70_000, 300_000)))
            _write_durably(path, content)
            with self._reached:
                name = str(path.relative_to(self._root))
                self.fsynced[name] = hashlib.sha256(content).hexdigest()
                self._reached.notify_all()
            number += 1

    def wait_for_more(self, count: int) -> dict[str, str]:
        """All that is fsynced, once that is `count` files more."""
        with self._reached:
            wanted = len(self.fsynced) + count
            assert self._reached.wait_for(lambda: len(self.fsynced) >= wanted, 60.0), self.fsynced
            return dict(self.fsynced)

    def stop(self) -> None:
        self._stopping = True
        self.join(60.0)
        assert not self.is_alive()


def _write_durably(path: Path, content: bytes) -> None:
    for name, data in ((path, content), (path.parent, None)):
        fd = os.open(name, os.O_RDONLY if data is None else os.O_WRONLY | os.O_CREAT)
        try:
            if data is not None:
                os.write(fd, data)
            os.fsync(fd)
        finally:
            os.close(fd)


def test_snapshots_under_load_mount_clean_with_every_fsynced_file(
    mount_tools: Tools, client_tool: FindTool, daemon: StartDaemon, tmp_path: Path
) -> None:
    nbdcopy = client_tool("nbdcopy")
    server = daemon()
    server.create("demo", SIZE)
    expected: dict[str, dict[str, str]] = {}
    with volume_as_file(mount_tools, server.uri(), tmp_path / "live") as disk:
        run_tool(mount_tools["mkfs.ext4"], "-q", disk)
        with mounted(mount_tools, disk, tmp_path / "mount") as root:
            load = Load(root)
            load.start()
            for number in range(SNAPSHOTS):
                fsynced = load.wait_for_more(FILES_BETWEEN)
                server.run("snapshot", "create", f"demo@s{number}")
                expected[f"s{number}"] = fsynced
            load.wait_for_more(FILES_BETWEEN)
            load.stop()

    for name, files in expected.items():
        server.run("volume", "clone", f"demo@{name}", name)
        frozen = _export(nbdcopy, server.uri(f"demo@{name}"), tmp_path / f"{name}.before")
        with volume_as_file(mount_tools, server.uri(name), tmp_path / name) as disk:
            with mounted(mount_tools, disk, tmp_path / "mount") as root:  # replays its journal
                found = read_tree(root)
            run_tool(mount_tools["fsck.ext4"], "-fn", disk)
        assert {path: found.get(path) for path in files} == files
        # The clone has been written to; what it came from has not changed (I7).
        again = _export(nbdcopy, server.uri(f"demo@{name}"), tmp_path / f"{name}.after")
        assert _digest(again) == _digest(frozen)
        # The export itself, with ext4's journal replayed on a copy of it, is clean as well.
        repaired = finish_tool(mount_tools["fsck.ext4"], "-fy", again)
        assert repaired.returncode in (0, 1), repaired.stdout
        run_tool(mount_tools["fsck.ext4"], "-fn", again)
        frozen.unlink()
        again.unlink()


def _export(nbdcopy: str, uri: str, path: Path) -> Path:
    run_tool(nbdcopy, uri, path)
    assert path.stat().st_size == SIZE
    return path


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
