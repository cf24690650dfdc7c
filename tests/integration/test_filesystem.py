"""ext4 on a volume, through nbdfuse and a loop device."""

import hashlib
import random
from pathlib import Path

from tests.clients import run_tool
from tests.daemon import StartDaemon
from tests.mounts import Tools, mounted, read_tree, volume_as_file


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


def test_ext4_keeps_its_files_over_a_crash_of_the_daemon(
    mount_tools: Tools, daemon: StartDaemon, tmp_path: Path
) -> None:
    server = daemon()
    server.create("demo", 512 << 20)  # nbdfuse passes on mkfs's sectors as they come
    with volume_as_file(mount_tools, server.uri(), tmp_path / "one") as disk:
        run_tool(mount_tools["mkfs.ext4"], "-q", disk)
        with mounted(mount_tools, disk, tmp_path / "mount") as root:
            digests = write_tree(root, seed=5)
    server.kill()
    server.start()
    with volume_as_file(mount_tools, server.uri(), tmp_path / "two") as disk:
        run_tool(mount_tools["fsck.ext4"], "-fn", disk)
        with mounted(mount_tools, disk, tmp_path / "mount") as root:
            assert read_tree(root) == digests
        run_tool(mount_tools["fsck.ext4"], "-fn", disk)
