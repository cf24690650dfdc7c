"""`blockd backup-meta`: a copy of meta/, to be kept somewhere else."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated

import typer

from blockd.cli.options import ControlOption, JsonOption, UsageError, connect
from blockd.cli.output import counted, print_json
from blockd.places import CONTROL_NAME
from blockd.sizes import format_size

if TYPE_CHECKING:
    from volume.metabackup import BackupInfo

PIECE_BYTES = 1024 * 1024
PREFIX = "blockd-meta-"
SUFFIX = ".mdb"


def backup_meta(
    out: Annotated[
        Path,
        typer.Option(
            "--out", metavar="PATH", help="File to write, or a folder to put a dated one into."
        ),
    ],
    keep: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Keep the newest N in the folder, remove others."),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option("--data", metavar="DIR", help="Data directory, for when no daemon serves it."),
    ] = None,
    control: ControlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Copy meta/ (names, snapshots, targets and their secrets), checked, while volumes are in use.

    Data is not in it. Bring a copy back with blockd doctor --rebuild-meta --from PATH.
    """
    folder = out if out.is_dir() else out.parent
    if keep is not None and folder != out:
        raise UsageError(f"--keep: {out} is no folder; name one with --out that is there")
    if not folder.is_dir():
        raise UsageError(f"--out {out}: there is no folder {folder}; make it first")
    path, info = _written(data, control, out, folder)
    removed = _thinned(folder, info, keep) if keep is not None else []
    if as_json:
        print_json({**asdict(info), "path": str(path), "removed": [str(each) for each in removed]})
        return
    what = f"{counted(info.volumes, 'volume')}, {counted(info.snapshots, 'snapshot')}"
    print(
        f"{path}: {what}, {format_size(info.length)}; "
        "it has the secrets of targets, keep it private"
    )
    for each in removed:
        print(f"removed {each}")


def _written(
    data: Path | None, control: Path | None, out: Path, folder: Path
) -> "tuple[Path, BackupInfo]":
    """Write, check, then name it: a crash or an error leaves what was there before."""
    from volume.metabackup import look_at

    temporary = folder / f".{PREFIX}{os.getpid()}.tmp"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        with open(os.open(temporary, flags, 0o600), "wb") as file:
            for piece in _pieces(data, control):
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        info = look_at(temporary)
        path = folder / _dated(info) if folder == out else out
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
    return path, info


def _pieces(data: Path | None, control: Path | None) -> Iterator[bytes]:
    """From the daemon, or, with `data` and none there, from the directory."""
    from blockd.api.client import NoDaemon

    if data is not None and control is None:
        control = data / CONTROL_NAME
        if not os.path.lexists(control):
            yield from _offline(data)
            return
    try:
        with connect(control) as client, client.backup_meta() as pieces:
            yield from pieces
    except NoDaemon:
        if data is None:
            raise
        yield from _offline(data)


def _offline(data: Path) -> Iterator[bytes]:
    from volume.metabackup import copied_offline

    with contextlib.closing(copied_offline(data)) as file:
        yield from _read(file)


def _read(file: IO[bytes]) -> Iterator[bytes]:
    while piece := file.read(PIECE_BYTES):
        yield piece


def _dated(info: "BackupInfo") -> str:
    """Sorts by time; the store's uuid tells copies of several apart."""
    from volume.refs import format_time

    second = info.time_ns - info.time_ns % 1_000_000_000
    stamp = format_time(second).replace("-", "").replace(":", "")
    return f"{PREFIX}{info.store_uuid[:8]}-{stamp}{SUFFIX}"


def _thinned(folder: Path, info: "BackupInfo", keep: int) -> list[Path]:
    """Remove all but the newest copies of this store; those that are gone."""
    copies = sorted(folder.glob(f"{PREFIX}{info.store_uuid[:8]}-*{SUFFIX}"))
    for each in copies[:-keep]:
        each.unlink()
    return copies[:-keep]
