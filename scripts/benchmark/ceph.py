"""Ceph on loopback, to be compared with: one monitor and three OSDs, an RBD image of three copies.

Debian's packages, without a service manager and without authentication, below one folder; each OSD
is a file for BlueStore. No manager daemon: the placement groups' number is given, and nothing here
asks for statistics.
"""

import os
import shutil
import subprocess
import time
import uuid
from pathlib import Path

from servers import cpu_s, free_port, resident_bytes

OSDS = 3
POOL = "rbd"
IMAGE = "bench"
OSD_BYTES = 6 << 30
START_S = 120.0
STOP_S = 20.0
PROGRAMS = ("ceph-mon", "ceph-osd", "monmaptool", "ceph", "rbd")

CONFIG = """\
[global]
fsid = {fsid}
mon host = 127.0.0.1:{port}
public network = 127.0.0.0/8
auth cluster required = none
auth service required = none
auth client required = none
run dir = {folder}
admin socket = {folder}/$type.$id.asok
log file = {folder}/$type.$id.log
mon data = {folder}/mon
osd data = {folder}/osd.$id
osd objectstore = bluestore
bluestore block size = {bytes}
bluestore block create = true
osd memory target = 1073741824
osd pool default size = {osds}
osd pool default min size = 2
osd crush chooseleaf type = 0
osd pool default pg autoscale mode = off
mon allow pool delete = true
rbd cache = false
"""


def usable() -> bool:
    return all(shutil.which(program) for program in PROGRAMS)


class Ceph:
    """It serves an image while the context lasts."""

    name = "Ceph RBD"

    def __init__(self, folder: Path, size: int) -> None:
        self._folder = folder / "ceph"
        self._size = size
        self._processes: list[subprocess.Popen[bytes]] = []

    @property
    def fio(self) -> tuple[str, ...]:
        return "--ioengine=rbd", "--clientname=admin", f"--pool={POOL}", f"--rbdname={IMAGE}"

    def cpu_s(self) -> float:
        return sum(cpu_s(process.pid) for process in self._processes)

    def resident_bytes(self) -> int:
        return sum(resident_bytes(process.pid) for process in self._processes)

    def __enter__(self) -> "Ceph":
        self._folder.mkdir(parents=True)
        fsid, port = str(uuid.uuid4()), free_port()
        config = self._folder / "ceph.conf"
        config.write_text(
            CONFIG.format(fsid=fsid, port=port, folder=self._folder, bytes=OSD_BYTES, osds=OSDS)
        )
        os.environ["CEPH_CONF"] = str(config)  # of fio's engine and of all commands below
        map_ = str(self._folder / "monmap")
        self._run(
            "monmaptool", "--create", "--fsid", fsid, "--addv", "a", f"[v2:127.0.0.1:{port}]", map_
        )
        self._run("ceph-mon", "--mkfs", "-i", "a", "--monmap", map_)
        self._start("ceph-mon", "-i", "a")
        for number in range(OSDS):
            which = str(uuid.uuid4())
            (self._folder / f"osd.{number}").mkdir()
            self._run("ceph", "osd", "new", which, str(number))
            self._run("ceph-osd", "-i", str(number), "--mkfs", "--osd-uuid", which)
            self._run("ceph", "osd", "crush", "add", str(number), "1.0", "root=default", "host=one")
            self._start("ceph-osd", "-i", str(number))
        self._run("ceph", "osd", "pool", "create", POOL, "32", "32")
        self._run("rbd", "pool", "init", POOL)
        self._run("rbd", "create", IMAGE, "--size", f"{self._size >> 20}M", "--pool", POOL)
        return self

    def settle(self) -> None:
        """BlueStore writes in place: what it defers is little, and has no end to wait for."""

    def fill(self, raw: Path) -> None:
        """The image gets the file's bytes."""
        self._run("rbd", "rm", f"{POOL}/{IMAGE}")
        self._run("rbd", "import", str(raw), f"{POOL}/{IMAGE}", timeout_s=600)

    def __exit__(self, *exc: object) -> None:
        for process in reversed(self._processes):
            process.terminate()
        deadline = time.monotonic() + STOP_S
        for process in reversed(self._processes):
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        os.environ.pop("CEPH_CONF", None)

    def _start(self, *command: str) -> None:
        options = ("-f", "--setuser", "root", "--setgroup", "root")
        with (self._folder / "output.log").open("ab") as log:
            process = subprocess.Popen([*command, *options], stdout=log, stderr=log)
        self._processes.append(process)

    def _run(self, *command: str, timeout_s: float = START_S) -> None:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout_s, check=False
        )
        if done.returncode:
            raise SystemExit(f"{' '.join(command)}: {done.returncode}\n{done.stderr}")


def version() -> str:
    done = subprocess.run(["ceph", "--version"], capture_output=True, text=True, check=True)
    return " ".join(done.stdout.split()[:3])
