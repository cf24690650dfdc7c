"""The systems whose space is compared: each takes an image, its clones and its days, and says what
all the versions take on the disk. Every version stays readable in each of them.
"""

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from tests.integration.pipelined import FLUSH, WRITE, PipelinedClient
from versions import stores
from versions.workload import Change, apply, copy_sparse
from volume.options import StoreOptions
from volume.store import Store

PIECE = 1 << 20
START_S = 20.0
STOP_S = 60.0


class System(Protocol):
    """What the comparison asks of a system; `clone` and `day` come in order, after `base`."""

    name: str

    def base(self, image: Path) -> None: ...
    def clone(self, number: int, changes: list[Change]) -> None: ...
    def day(self, number: int, changes: list[Change]) -> None: ...
    def stored_bytes(self) -> int: ...
    def check(self, day: int, image: Path) -> None:
        """Raises SystemExit unless the version of that day is what `image` holds."""

    def close(self) -> None: ...


class Blockd:
    """Snapshots of one volume, and clones of its first one. The journal, a ring of fixed size, is
    not counted: what it holds is in the packs as well."""

    def __init__(self, folder: Path, codec: str, chunk_size: int) -> None:
        self.name = f"blockd, {codec}, {chunk_size >> 10} KiB chunks"
        self._folder = folder
        self._chunk_size = chunk_size
        self._opened = stores.filling(folder, StoreOptions(compression=codec))
        self._store: Store = self._opened.__enter__()

    def base(self, image: Path) -> None:
        self._store.create_volume("disk", image.stat().st_size, chunk_size=self._chunk_size)
        with image.open("rb") as file:
            offset = 0
            while data := file.read(PIECE):
                if any(data):
                    stores.write(self._store, "disk", offset, data)
                offset += len(data)
        self._snapshot("base")

    def clone(self, number: int, changes: list[Change]) -> None:
        self._store.versions.clone("disk@base", f"clone{number}")
        self._write(f"clone{number}", changes)

    def day(self, number: int, changes: list[Change]) -> None:
        self._write("disk", changes)
        self._snapshot(f"day{number}")

    def _write(self, name: str, changes: list[Change]) -> None:
        for offset, data in changes:
            stores.write(self._store, name, offset, data)
        stores.settle(self._store)

    def _snapshot(self, name: str) -> None:
        self._store.snapshots.create(name, ["disk"])
        stores.settle(self._store)

    def stored_bytes(self) -> int:
        return stores.stored_bytes(self._folder)

    def check(self, day: int, image: Path) -> None:
        version = self._store.open_version(f"disk@day{day}")
        version.attach("check")
        with image.open("rb") as file:
            offset = 0
            while data := file.read(PIECE):
                if stores.read(version, offset, len(data)) != data:
                    raise SystemExit(f"{self.name}: day {day} differs in the MiB at {offset}")
                offset += len(data)
        version.detach("check")

    def close(self) -> None:
        self._opened.__exit__(None, None, None)


class Qcow2Snapshots:
    """A read-only image, an overlay for each clone, and one with internal snapshots for the days:
    what a person makes of qcow2 without stopping the guest."""

    name = "qcow2, overlays and internal snapshots"

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._folder = folder

    def base(self, image: Path) -> None:
        _run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", image, self._folder / "base")
        self._overlay("base", "live")

    def clone(self, number: int, changes: list[Change]) -> None:
        self._overlay("base", f"clone{number}")
        write_qcow2(self._folder / f"clone{number}", changes)

    def day(self, number: int, changes: list[Change]) -> None:
        write_qcow2(self._folder / "live", changes)
        _run("qemu-img", "snapshot", "-c", f"day{number}", self._folder / "live")

    def _overlay(self, base: str, name: str) -> None:
        backing = ("-b", self._folder / base, "-F", "qcow2")
        _run("qemu-img", "create", "-q", "-f", "qcow2", *backing, self._folder / name)

    def stored_bytes(self) -> int:
        return _usage(self._folder)

    def check(self, day: int, image: Path) -> None:
        back = self._folder / "check"
        _run(
            *("qemu-img", "convert", "-f", "qcow2", "-O", "raw", "-l", f"snapshot.name=day{day}"),
            *(self._folder / "live", back),
        )
        _run("qemu-img", "compare", "-q", "-f", "raw", "-F", "raw", back, image)
        back.unlink()

    def close(self) -> None:
        pass


class Qcow2Chain:
    """An image and one overlay for each version, each rewritten compressed (zstd) once it is done:
    the smallest that qcow2 gets, with a chain that is as long as there are days."""

    name = "qcow2, backing chain, compressed with zstd"

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._folder = folder
        self._newest = "base"

    def base(self, image: Path) -> None:
        self._compress(image, "raw", "base", None)

    def clone(self, number: int, changes: list[Change]) -> None:
        self._add("base", f"clone{number}", changes)

    def day(self, number: int, changes: list[Change]) -> None:
        self._add(self._newest, f"day{number}", changes)
        self._newest = f"day{number}"

    def _add(self, base: str, name: str, changes: list[Change]) -> None:
        overlay = self._folder / "overlay"
        backing = ("-b", self._folder / base, "-F", "qcow2")
        _run("qemu-img", "create", "-q", "-f", "qcow2", *backing, overlay)
        write_qcow2(overlay, changes)
        self._compress(overlay, "qcow2", name, self._folder / base)
        overlay.unlink()

    def _compress(self, source: Path, source_format: str, name: str, backing: Path | None) -> None:
        options = ("-B", backing, "-F", "qcow2") if backing else ()
        _run(
            *("qemu-img", "convert", "-c", "-f", source_format, "-O", "qcow2"),
            *("-o", "compression_type=zstd", *options, source, self._folder / name),
        )

    def stored_bytes(self) -> int:
        return _usage(self._folder)

    def check(self, day: int, image: Path) -> None:
        version = self._folder / f"day{day}"
        _run("qemu-img", "compare", "-q", "-f", "qcow2", "-F", "raw", version, image)

    def close(self) -> None:
        pass


class Borg:
    """An archive of the whole image for each version, in a repository without encryption."""

    def __init__(self, folder: Path, chunker: str = "") -> None:
        """`chunker` as borg's --chunker-params; empty for its default."""
        folder.mkdir()
        self.name = "borg, zstd" + (f", chunker {chunker}" if chunker else "")
        self._folder = folder
        self._chunker = ("--chunker-params", chunker) if chunker else ()
        self._image = folder / "work" / "image.raw"
        self._image.parent.mkdir()
        self._clone = folder / "work" / "clone.raw"
        self._borg("init", "--encryption=none", self._repository)

    @property
    def _repository(self) -> Path:
        return self._folder / "repository"

    def base(self, image: Path) -> None:
        copy_sparse(image, self._image)
        self._pristine = image
        self._archive("base", self._image)

    def clone(self, number: int, changes: list[Change]) -> None:
        copy_sparse(self._pristine, self._clone)
        apply(changes, self._clone)
        self._archive(f"clone{number}", self._clone)
        self._clone.unlink()

    def day(self, number: int, changes: list[Change]) -> None:
        apply(changes, self._image)
        self._archive(f"day{number}", self._image)

    def _archive(self, name: str, image: Path) -> None:
        options = ("--compression=zstd", "--files-cache=disabled", *self._chunker)
        self._borg("create", *options, f"{self._repository}::{name}", image.name)

    def _borg(self, *arguments: str | Path) -> None:
        environ = {
            **os.environ,
            "BORG_BASE_DIR": str(self._folder / "borg"),
            "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes",
        }
        _run("borg", *arguments, cwd=self._image.parent, environ=environ)

    def stored_bytes(self) -> int:
        return _usage(self._repository)

    def check(self, day: int, image: Path) -> None:
        self._image.unlink()
        self._borg("extract", "--sparse", f"{self._repository}::day{day}")
        _run("cmp", self._image, image)

    def close(self) -> None:
        pass


def write_qcow2(image: Path, changes: list[Change]) -> None:
    """Write to a qcow2 image as a guest does, through qemu-nbd."""
    with _qemu_nbd(image) as client:
        for number, (offset, data) in enumerate(changes):
            client.send(WRITE, number, offset, len(data), data)
            assert client.reply() == (number, 0)
        client.send(FLUSH, 0, 0, 0)
        assert client.reply() == (0, 0)


@contextmanager
def _qemu_nbd(image: Path) -> Iterator[PipelinedClient]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = ["qemu-nbd", "--format=qcow2", "--bind=127.0.0.1", f"--port={port}"]
    process = subprocess.Popen([*command, "--cache=unsafe", str(image)])  # ends with the client
    try:
        with _connected(port, process) as client:
            yield client
    finally:
        process.wait(STOP_S)


def _connected(port: int, process: subprocess.Popen[bytes]) -> PipelinedClient:
    deadline = time.monotonic() + START_S
    while True:
        try:
            return PipelinedClient(("127.0.0.1", port), "")
        except ConnectionRefusedError:
            if process.poll() is not None or time.monotonic() > deadline:
                process.kill()
                raise SystemExit(f"qemu-nbd does not serve: {process.args!r}") from None
            time.sleep(0.01)


def _usage(folder: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())


def _run(
    *command: str | Path, cwd: Path | None = None, environ: dict[str, str] | None = None
) -> None:
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=cwd, env=environ, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)}\n{done.stdout}{done.stderr}")
