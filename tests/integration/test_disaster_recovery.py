"""docs/disaster-recovery.md, disaster by disaster: each is brought about, its page is followed.

The commands are the page's own (`tests.recipes`). The daemon runs as a user of its own where the
tests are root, since files that root has made are part of most disasters.
"""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients import FindTool, run_libnbd, run_tool, unavailable
from tests.daemon import STORE
from tests.docs.pages import Block
from tests.mounts import Tools, mounted, small_disk
from tests.recipes import Service, recipes, told

PAGE = Path(__file__).parents[2] / "docs" / "disaster-recovery.md"
SECTIONS = recipes(PAGE)
SERVICE_UID = 10809
MiB = 1 << 20
BACKUP = "Before: copies of meta"

pytestmark = pytest.mark.usefixtures("libnbd")

WRITE = """
h = connected()
offset, fill = int(arguments[0]), bytes([int(arguments[1])])
h.pwrite(fill * 65536, offset)
h.flush()
"""
EXPECT = """
h = connected()
for offset, fill in zip(arguments[::2], arguments[1::2]):
    assert h.pread(65536, int(offset)) == bytes([int(fill)]) * 65536, (offset, fill)
"""


class Site:
    """A service with a volume `vm1`: something of it is in packs, something in the journal."""

    def __init__(self, service: Service, copies: Path) -> None:
        self.service = service
        self.data = service.data
        self.copies = copies

    def follow(self, heading: str, **more: str) -> str:
        """Run the commands of a section; what they print. What the page says that is told must have
        been told by now, or by them."""
        said = ""
        for block in SECTIONS[heading]:
            if block.kind == "sh":
                said += self.service.run(block.text, {"COPIES": str(self.copies), **more})
        self._was_told(SECTIONS[heading], self.service.said() + said)
        return said

    def _was_told(self, found: list[Block], said: str) -> None:
        for block in found:
            if block.kind == "text":
                for line in block.text.splitlines():
                    assert told(line, said), f"nobody was told: {line}\n{said}"

    def uri(self, volume: str = "vm1") -> str:
        return f"nbd+unix:///{volume}?socket={self.data}/nbd.sock"

    def write(self, number: int, fill: int, volume: str = "vm1") -> None:
        run_libnbd(self.uri(volume), WRITE, str(number * 65536), str(fill))

    def expect(self, volume: str = "vm1", **fills: int) -> None:
        """`n3=7`: block 3 is full of 7."""
        pairs = [(str(int(name[1:]) * 65536), str(fill)) for name, fill in fills.items()]
        run_libnbd(self.uri(volume), EXPECT, *(each for pair in pairs for each in pair))

    def blockd(self, *arguments: str) -> str:
        return self.service.run(f"blockd {' '.join(arguments)}")

    def destage(self) -> None:
        """Have everything so far in packs: a clone is, of its source."""
        self.blockd("volume clone vm1 destaged")
        self.blockd("volume delete destaged --force")


@pytest.fixture
def data_folder() -> Iterator[Path]:
    """Where a data directory may be made, below folders that the daemon's user may pass."""
    with tempfile.TemporaryDirectory(prefix="blockd-") as folder:
        Path(folder).chmod(0o755)  # pytest's own are for their owner only
        yield Path(folder) / "blockd"


@contextlib.contextmanager
def served(folder: Path, data: Path) -> Iterator[Site]:
    uid = SERVICE_UID if os.geteuid() == 0 else None
    service = Service(folder / "service", data, uid=uid)
    (folder / "service" / "blockd.toml").write_text(f"[store]\n{STORE}")
    copies = folder / "copies"
    data.mkdir(mode=0o700)
    if uid is not None:
        os.chown(data, uid, -1)
    site = Site(service, copies)
    try:
        service.start()
        site.blockd("volume create vm1 64M --block-size 512")
        site.write(0, 1)
        site.blockd("snapshot create vm1@monday")
        site.destage()
        site.write(1, 2)
        yield site
    finally:
        service.stop()


@pytest.fixture
def site(data_folder: Path) -> Iterator[Site]:
    with served(data_folder.parent, data_folder) as site:
        yield site


def test_a_lost_meta_with_a_copy(site: Site) -> None:
    site.follow(BACKUP)
    site.write(1, 3)
    site.blockd("volume create vm2 32M --block-size 512")
    site.write(0, 9, "vm2")
    site.service.stop()
    shutil.rmtree(site.data / "meta")
    assert "--rebuild-meta" in site.service.fails_to_start()
    said = site.follow("Lost meta")
    assert "nothing was made: this was a dry run" in said
    site.expect(n0=1, n1=3, n2=0)
    site.expect("vm2", n0=9)
    assert "monday" in site.blockd("snapshot list")


def test_a_lost_meta_without_a_copy(site: Site) -> None:
    site.service.stop()
    shutil.rmtree(site.data / "meta")
    site.service.fails_to_start()
    site.follow("Lost meta, without a copy")
    site.expect(n0=1, n1=2)
    site.write(2, 4)
    site.service.stop()
    site.service.start()
    site.expect(n0=1, n1=2, n2=4)


def test_an_old_meta_put_back(site: Site) -> None:
    site.service.stop()
    shutil.copytree(site.data / "meta", site.data.parent / "old")
    site.service.start()
    site.blockd("volume create vm2 32M --block-size 512")
    site.write(0, 9, "vm2")
    site.service.stop()
    shutil.rmtree(site.data / "meta")
    shutil.copytree(site.data.parent / "old", site.data / "meta")
    site.service.run('chown -R --reference="$DATA" "$DATA"')
    site.service.fails_to_start()
    site.follow("An old meta put back")
    site.expect(n0=1, n1=2)
    site.expect("vm2", n0=9)


def test_a_lost_index(site: Site) -> None:
    site.service.stop()
    shutil.rmtree(site.data / "index")
    said = site.follow("Lost index")
    assert "versions are whole" in said
    site.expect(n0=1, n1=2)
    site.service.stop()
    shutil.rmtree(site.data / "index")
    site.service.start()  # nothing was done
    site.expect(n0=1, n1=2)


def test_a_full_disk(client_tool: FindTool, data_folder: Path) -> None:
    with small_disk(client_tool, data_folder.parent, 768 * MiB) as mountpoint:
        mountpoint.chmod(0o755)
        with served(data_folder.parent, mountpoint / "data") as site:
            room = os.statvfs(site.data)
            filler = mountpoint / "other"
            with filler.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, (room.f_bavail - 1024) * room.f_frsize)
            wait = "until blockd status | grep -q ' full'; do sleep 0.1; done"
            site.service.run(wait)
            said = site.service.run("blockd status")
            refused = 'refused("ENOSPC", connected().pwrite, b"x" * 65536, 2 * 65536)'
            run_libnbd(site.uri(), refused)
            site.expect(n0=1, n1=2)
            with site.service.journal.open("a") as journal:
                journal.write(said)
            filler.unlink()
            site.follow("Full disk")
            site.service.run("while blockd status | grep -q ' full'; do sleep 0.1; done")
            site.write(2, 3)
            site.expect(n0=1, n1=2, n2=3)


def test_a_disk_that_failed_a_write(mount_tools: Tools, data_folder: Path) -> None:
    disk, mountpoint = data_folder.with_name("disk"), data_folder.with_name("m")
    with disk.open("wb") as file:
        file.truncate(768 * MiB)
    run_tool(mount_tools["mkfs.ext4"], "-q", disk)
    with mounted(mount_tools, disk, mountpoint):
        mountpoint.chmod(0o755)
        with served(data_folder.parent, mountpoint / "data") as site:
            run_tool(mount_tools["mount"], "-o", "remount,abort", mountpoint)
            lost = """
h = connected()
try:
    h.pwrite(b"x" * 65536, 2 * 65536)
    h.flush()
except nbd.Error as error:
    assert error.errno in ("EIO", "EPERM"), error.errno  # the latter: it was sealed already
else:
    raise AssertionError("the flush was acknowledged")
"""
            run_libnbd(site.uri(), lost)
            site.follow("Bad disk: a write failed")
            site.expect(n0=1, n1=2)
            site.write(2, 3)


def test_a_disk_that_returns_other_bytes(site: Site) -> None:
    site.service.stop()
    (pack,) = (site.data / "packs").iterdir()
    copy = site.data.parent / "copied" / pack.name
    copy.parent.mkdir()
    shutil.copy(pack, copy)
    place = pack.read_bytes().index(b"\1" * 512) if b"\1" * 512 in pack.read_bytes() else 300
    with pack.open("r+b") as file:
        file.seek(place)
        file.write(os.urandom(64))
    site.service.start()
    run_libnbd(site.uri(), 'refused("EIO", connected().pread, 65536, 0)')
    said = site.follow("Bad disk: damaged bytes", PACK_COPY=str(copy))
    assert "vm1" in said
    site.expect(n0=1, n1=2)


def test_files_of_another_owner(site: Site) -> None:
    if site.service.uid is None:
        unavailable("root (to change owners)")
    site.service.stop()
    for path in (site.data / "meta" / "data.mdb", site.data / "journal"):
        os.chown(path, 0, 0)
    said = site.service.fails_to_start()
    assert str(site.data / "meta") in said
    assert "chown" in said
    site.follow("Wrong owner")
    site.expect(n0=1, n1=2)


def test_a_moved_directory(client_tool: FindTool, site: Site) -> None:
    if os.geteuid() != 0:
        unavailable("root (to mount)")
    new = site.data.parent / "new"
    new.mkdir()
    try:
        site.follow("Moved directory", NEW=str(new))
        site.expect(n0=1, n1=2)
        site.service.stop()
    finally:
        if site.data.with_name("blockd.moved").exists():
            run_tool(client_tool("umount"), site.data)


def test_every_recipe_of_the_page_is_here() -> None:
    """By name: which of them ran is for their own tests to say. Those of clusters are elsewhere."""
    here = Path(__file__)
    source = here.read_text() + here.with_name("test_cluster_stripes.py").read_text()
    for heading, found in SECTIONS.items():
        assert not found or heading == BACKUP or f'"{heading}"' in source, heading
