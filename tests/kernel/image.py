"""The guest's initramfs: programs, their libraries and kernel modules of Debian's packages.

Everything of the guest is in memory, so each boot begins the same. The layout is merged-usr: what a
package ships below /bin, /sbin and /lib is below /usr here, and the short names are links.
"""

import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tests.kernel.packages import kernel_release, unpacked

GUEST = Path(__file__).parent / "guest"
LIBRARIES = (
    "lib/x86_64-linux-gnu",
    "usr/lib/x86_64-linux-gnu",
    "lib",
    "usr/lib/x86_64-linux-gnu/ceph",
    "usr/lib/x86_64-linux-gnu/systemd",
)
BUILD_S = 300.0

MODULES = (
    "virtio_pci", "virtio_net", "virtio_console",
    "nbd", "iscsi_tcp", "sd_mod", "crc32c_generic", "crc32c_intel",
    "dm_multipath", "dm_round_robin", "dm_service_time", "scsi_dh_alua",
    "ext4", "xfs",
)  # fmt: skip

PROGRAMS = (
    "dash", "busybox", "kmod", "modprobe", "udevadm", "ip", "mount", "umount", "mountpoint",
    "blkdiscard", "blkid", "blockdev", "dmsetup", "flock", "fsfreeze", "losetup", "lsblk",
    "base64", "cat", "cp", "dd", "head", "mkdir", "mv", "realpath", "rm", "seq", "sha256sum",
    "sleep", "sort", "stat", "sync", "tail", "timeout", "wc",
    "nbd-client", "iscsid", "iscsiadm", "multipath", "multipathd", "mpathpersist",
    "kpartx",
    "mke2fs", "mkfs.ext4", "e2fsck", "fsck.ext4", "resize2fs", "mkfs.xfs", "xfs_repair",
    "fio",
)  # fmt: skip

FILES = (
    "etc/iscsi/iscsid.conf",
    "etc/mke2fs.conf",
    "etc/udev/udev.conf",
    "lib/multipath/*",
    "lib/systemd/systemd-udevd",
    "lib/udev/rules.d/5*",
    "lib/udev/rules.d/60-block.rules",
    "lib/udev/rules.d/60-multipath.rules",
    "lib/udev/rules.d/60-persistent-storage*.rules",
    "lib/udev/rules.d/80-drivers.rules",
    "lib/udev/rules.d/95-dm-notify.rules",
    "lib/udev/scsi_id",
    "usr/bin/sg_inq",
)

LOADED_BY_NAME = ("libgcc_s.so.1",)
"""Libraries that glibc loads when a thread ends."""


@dataclass(frozen=True)
class Image:
    kernel: Path
    initramfs: Path
    release: str


def build(cache: Path) -> Image:
    """The image in `cache`, made anew when something that it is made of has changed."""
    cache = cache.resolve()
    cache.mkdir(parents=True, exist_ok=True)
    root = unpacked(cache)
    release = kernel_release(root)
    image = Image(root / f"boot/vmlinuz-{release}", cache / "initramfs", release)
    stamp = cache / "initramfs.stamp"
    own = sorted(path for path in GUEST.rglob("*") if path.is_file())
    sources = (Path(__file__), cache / "root.stamp", *own)
    key = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()
    if not (stamp.exists() and stamp.read_text() == key):
        stamp.unlink(missing_ok=True)
        tree = cache / "tree"
        shutil.rmtree(tree, ignore_errors=True)
        _Tree(root, tree).fill(release)
        _pack(tree, image.initramfs)
        shutil.rmtree(tree)
        stamp.write_text(key)
    return image


class _Tree:
    """Copies of files below `root`, at their merged-usr places below `tree`."""

    def __init__(self, root: Path, tree: Path) -> None:
        self._root = root
        self._tree = tree

    def fill(self, release: str) -> None:
        for name in ("bin", "sbin", "lib", "lib64"):
            (self._tree / "usr" / name).mkdir(parents=True)
            (self._tree / name).symlink_to(f"usr/{name}")
        for name in ("dev", "etc", "mnt", "proc", "run", "sys", "tmp", "var/lib", "root"):
            (self._tree / name).mkdir(parents=True)
        (self._tree / "var/run").symlink_to("/run")
        (self._tree / "usr/bin/sh").symlink_to("dash")
        for name in PROGRAMS:
            self._copy(self._program(name))
        for pattern in FILES:
            self._copy_all(pattern)
        self._copy_libraries()
        self._copy_modules(release)
        self._copy_own()

    def _program(self, name: str) -> Path:
        places = [self._root / folder / name for folder in ("bin", "sbin", "usr/bin", "usr/sbin")]
        found = next((place for place in places if os.path.lexists(place)), None)
        if found is None:
            raise FileNotFoundError(f"no package of the guest has a program {name}")
        return found

    def _copy_all(self, pattern: str) -> None:
        found = sorted(self._root.glob(pattern))
        if os.path.islink(self._root / pattern):  # it may lead to a place in the guest only
            found = [self._root / pattern]
        if not found:
            raise FileNotFoundError(f"no package of the guest has a file {pattern}")
        for path in found:
            self._copy(path)

    def _copy(self, path: Path) -> None:
        """A file, or a link with what it leads to."""
        place = self._place(path.relative_to(self._root))
        if os.path.lexists(place):
            return
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, place, follow_symlinks=False)
        if path.is_symlink():
            target = os.readlink(path)
            here = self._root if target.startswith("/") else path.parent
            self._copy(here / target.lstrip("/"))

    def _place(self, path: Path) -> Path:
        short = path.parts[0] in ("bin", "sbin", "lib", "lib64")
        return self._tree / "usr" / path if short else self._tree / path

    def _copy_libraries(self) -> None:
        """What the programs are linked with, found as the dynamic linker finds it."""
        self._copy(self._root / "lib64/ld-linux-x86-64.so.2")
        seen: set[str] = set()
        asked = {*LOADED_BY_NAME, *_needed(self._executables())}
        while asked:
            seen |= asked
            libraries = [self._library(name) for name in sorted(asked)]
            for library in libraries:
                self._copy(library)
            asked = _needed(libraries) - seen

    def _executables(self) -> list[Path]:
        files = [path for path in self._tree.rglob("*") if path.is_file() and not path.is_symlink()]
        return [path for path in files if _is_elf(path)]

    def _library(self, name: str) -> Path:
        places = [self._root / folder / name for folder in LIBRARIES]
        found = next((place for place in places if os.path.lexists(place)), None)
        if found is None:
            raise FileNotFoundError(f"no package of the guest has the library {name}")
        return found

    def _copy_modules(self, release: str) -> None:
        """MODULES with what they depend on, and the tables that modprobe reads."""
        folder = self._root / "lib/modules" / release
        lines = (folder / "modules.dep").read_text().splitlines()
        needs = {line.split(":")[0]: line.split(":")[1].split() for line in lines}
        by_name = {Path(path).stem.replace("-", "_"): path for path in needs}
        for name in MODULES:
            path = by_name[name]
            for module in (path, *needs[path]):
                self._copy(folder / module)
        for table in ("modules.order", "modules.builtin", "modules.builtin.modinfo"):
            self._copy(folder / table)
        _run("depmod", "--basedir", self._tree / "usr", release)

    def _copy_own(self) -> None:
        """The scripts that make it a guest of ours, and the helper in C."""
        shutil.copy(GUEST / "init.sh", self._tree / "init")
        shutil.copy(GUEST / "agent.sh", self._tree / "usr/sbin/agent")
        shutil.copy(GUEST / "undo.sh", self._tree / "usr/sbin/undo")
        shutil.copytree(GUEST / "etc", self._tree / "etc", dirs_exist_ok=True)
        for name in ("init", "usr/sbin/agent", "usr/sbin/undo"):
            (self._tree / name).chmod(0o755)
        helper = self._tree / "usr/sbin/nbd-reconnect"
        source = GUEST / "nbd_reconnect.c"
        _run(
            "gcc",
            "-std=gnu11",
            "-O1",
            "-Wall",
            "-Wextra",
            "-Werror",
            "-static",
            "-o",
            helper,
            source,
        )


def _is_elf(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"\x7fELF"


def _needed(files: Iterable[Path]) -> set[str]:
    """The libraries that the files name themselves."""
    dynamic = _run("readelf", "--dynamic", *files)
    return set(re.findall(r"\(NEEDED\)\s+Shared library: \[(?!ld-linux)(.+)\]", dynamic))


def _pack(tree: Path, initramfs: Path) -> None:
    """Not compressed: the emulated processor would take longer to unpack it than qemu to load."""
    names = "\0".join(str(path.relative_to(tree)) for path in sorted(tree.rglob("*")))
    with initramfs.open("wb") as archive:
        subprocess.run(
            ["cpio", "--create", "--format=newc", "--null", "--owner=0:0", "--quiet"],
            cwd=tree, input=names.encode() + b"\0", stdout=archive, check=True, timeout=BUILD_S,
        )  # fmt: skip


def _run(*command: str | Path) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        capture_output=True, text=True, timeout=BUILD_S, check=False,
    )  # fmt: skip
    if done.returncode:
        shown = " ".join(str(part) for part in command)
        raise RuntimeError(f"{shown}\nexited with {done.returncode}\n{done.stderr}")
    return done.stdout
