"""Debian's packages for the guest: fetched and unpacked below build/, nothing installed.

apt resolves what `WANTED` needs as if nothing were installed here, so the guest does not depend on
the host's set of packages. What has been unpacked stays until the lists below
change or the folder is removed; a newer kernel of the archive is picked up then.
"""

import hashlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

WANTED = (
    "linux-image-amd64",
    "busybox-static", "coreutils", "dash", "iproute2", "kmod", "mount", "udev", "util-linux",
    "nbd-client", "open-iscsi", "multipath-tools",
    "e2fsprogs", "xfsprogs", "fio",
)  # fmt: skip

UNWANTED = re.compile(
    r"adduser|debconf|dpkg|firmware-.*|init-system-helpers|initramfs-tools.*|klibc-utils|libdb5.*"
    r"|libfile-find.*|libklibc|libperl.*|libpython.*|linux-base|linux-image-amd64|lsb-base"
    r"|media-types|passwd|perl.*|python3.*|tar|usrmerge"
)
"""Dependencies of installation scripts, which do not run here."""

FETCH_S = 600.0
UNPACK_S = 600.0


def unpacked(cache: Path) -> Path:
    """A folder with the files of all packages. RuntimeError with apt's words if one is missing."""
    cache = cache.resolve()
    root, stamp = cache / "root", cache / "root.stamp"
    key = hashlib.sha256(repr((WANTED, UNWANTED.pattern)).encode()).hexdigest()
    if stamp.exists() and stamp.read_text() == key:
        return root
    stamp.unlink(missing_ok=True)
    archives = cache / "archives"
    for folder in (root, archives):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    _run(["apt-get", "download", *_closure(cache)], archives, FETCH_S)
    for archive in sorted(archives.glob("*.deb")):
        _run(["dpkg", "--extract", str(archive), str(root)], cache, UNPACK_S)
    shutil.rmtree(archives)
    _run(["depmod", "--basedir", str(root), kernel_release(root)], cache, UNPACK_S)
    stamp.write_text(key)
    return root


def kernel_release(root: Path) -> str:
    """What `uname -r` says in the guest."""
    (modules,) = (root / "lib/modules").iterdir()
    return modules.name


def _closure(cache: Path) -> list[str]:
    """Names of the packages in WANTED and of what they need."""
    nothing_installed = cache / "status"
    nothing_installed.touch()
    options = [f"Dir::State::status={nothing_installed}", f"Dir::Cache::archives={cache}/archives"]
    options += ["Debug::NoLocking=1", "APT::Install-Recommends=0"]
    (cache / "archives/partial").mkdir()
    command = ["apt-get", *(f"--option={option}" for option in options)]
    printed = _run([*command, "--print-uris", "--yes", "install", *WANTED], cache, FETCH_S)
    files = re.findall(r"^'[^']+' (\S+?)_\S+\.deb ", printed, re.MULTILINE)
    return [name for name in files if not UNWANTED.fullmatch(name)]


def _run(command: list[str], folder: Path, timeout_s: float) -> str:
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=timeout_s, check=False
    )
    if done.returncode:
        raise RuntimeError(
            f"{' '.join(command)}\nexited with {done.returncode}\n{done.stdout}{done.stderr}"
            "The guest is made of Debian 12's packages: `apt-get update` helps where apt has no"
            f" lists yet; running on {sys.platform}."
        )
    return done.stdout
