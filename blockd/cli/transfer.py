"""`blockd send`, `receive`, `export` and `import`: volumes in and out.

Streams go through the daemon's control socket; images go over NBD, by qemu-img and nbdcopy. Data
is on stdout or stdin, so everything that is said goes to stderr, but for the result of `receive`
and `import`.
"""

import contextlib
import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from blockd.api.client import Client
from blockd.cli import images
from blockd.cli.completion import complete_snapshot, complete_version
from blockd.cli.meter import Meter
from blockd.cli.options import (
    ControlOption,
    JsonOption,
    UsageError,
    connect,
    size_argument,
)
from blockd.cli.output import print_fields, print_json, print_table
from blockd.sizes import exact_size, format_size
from volume.model import DEFAULT_BLOCK_SIZE, DEFAULT_CHUNK_SIZE, ReceiveInfo, VolumeInfo

READ_BYTES = 1024 * 1024  # of stdin at once
PIPE = "-"


class TransferFailed(Exception):
    """What was to be moved was not, or not all of it; the message says how to go on."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def send(
    source: Annotated[
        str,
        typer.Argument(
            metavar="VOL[@VERSION]", help="What to send.", autocompletion=complete_version
        ),
    ],
    base: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="VOL@VERSION",
            help="Send only what this version lacks; the receiver must have it.",
            autocompletion=complete_snapshot,
        ),
    ] = None,
    resume: Annotated[
        str | None,
        typer.Option(metavar="TOKEN", help="Go on where `blockd receive` was cut off."),
    ] = None,
    control: ControlOption = None,
) -> None:
    """Write a version of a volume to stdout, as a stream for `blockd receive`.

    To a file, or through a pipe: blockd send vm1@monday | ssh host blockd receive vm1

    Compressed chunks stay compressed, holes and what is stored twice are not sent at all.
    """
    if sys.stdout.isatty():
        raise UsageError(
            f"a stream is not for a terminal: blockd send {source} > FILE, "
            f"or blockd send {source} | ssh HOST blockd receive NAME"
        )
    from volume.stream_wire import Scanner

    scanner = Scanner()
    with connect(control) as client, Meter(f"send {source}") as meter:
        with client.send(source, base, resume) as pieces:
            for piece in pieces:
                _write(sys.stdout.fileno(), piece)
                scanner.feed(piece)
                meter.update(scanner.done, scanner.total, scanner.fraction)
        if not scanner.ended:
            why = f": {scanner.reason}" if scanner.reason else "; its log says why"
            raise TransferFailed("stream_interrupted", f"the daemon broke the stream off{why}")


def receive(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="The volume to make, or to bring forward.")
    ] = None,
    token: Annotated[
        bool, typer.Option("--token", help="Print where to go on, for `blockd send --resume`.")
    ] = False,
    abort: Annotated[
        bool, typer.Option("--abort", help="Forget what was received before it broke off.")
    ] = False,
    show: Annotated[
        bool, typer.Option("--list", help="List the streams that are not at their end.")
    ] = False,
    control: ControlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Read a stream of `blockd send` from stdin and make a volume of it.

    A whole version makes the new volume NAME. A difference makes the next version of volume NAME,
    when that is as it was sent, and unattached. Nothing can be seen before everything has come. A
    stream that broke off goes on with the same command, from a file or by the resume token.
    """
    if show or name is None:
        if name is not None or token or abort or not show:
            raise UsageError("name a volume: blockd receive NAME < FILE (or --list, alone)")
        with connect(control) as client:
            _print_receives(client.receives(), as_json)
        return
    if token or abort:
        with connect(control) as client:
            _unfinished(client, name, abort=abort, as_json=as_json)
        return
    if sys.stdin.isatty():
        raise UsageError(f"a stream is not typed: blockd receive {name} < FILE, or a pipe")
    with connect(control) as client, Meter(f"receive {name}") as meter:
        info = client.receive(name, _incoming(meter))
    _report(info, "received", as_json)


def _incoming(meter: Meter) -> Iterator[bytes]:
    """stdin, until it ends."""
    from volume.stream_wire import Scanner

    scanner = Scanner()
    while piece := os.read(sys.stdin.fileno(), READ_BYTES):
        scanner.feed(piece)
        meter.update(scanner.done, scanner.total, scanner.fraction)
        yield piece


def _unfinished(client: Client, name: str, *, abort: bool, as_json: bool) -> None:
    if abort:
        client.abort_receive(name)
        if as_json:
            print_json({"aborted": name})
        else:
            print(f"forgot what was received of volume {name}")
        return
    for info in client.receives():
        if info.name == name:
            if as_json:
                print_json(info)
            else:
                print(info.token)
            return
    raise TransferFailed(
        "no_such_receive", f"volume {name}: no stream was being received into it; send it whole"
    )


def _print_receives(receives: list[ReceiveInfo], as_json: bool) -> None:
    if as_json:
        print_json(receives)
        return
    print_table(
        ("VOLUME", "SOURCE", "COMMIT", "DONE", "RECEIVED", "STATE"),
        (
            (
                info.name,
                info.source,
                info.commit[:16],
                f"{info.fraction:.0%}",
                format_size(info.received_bytes),
                "coming in" if info.active else "broken off",
            )
            for info in receives
        ),
        right=("DONE", "RECEIVED"),
    )


FormatOption = Annotated[
    images.Format | None,
    typer.Option("--format", help="Of the image. [default: by the name of FILE]"),
]


def export_image(
    source: Annotated[
        str,
        typer.Argument(
            metavar="VOL[@VERSION]", help="What to export.", autocompletion=complete_version
        ),
    ],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The image; - for stdout (raw).")],
    image_format: FormatOption = None,
    force: Annotated[bool, typer.Option("--force", help="Replace FILE.")] = False,
    control: ControlOption = None,
) -> None:
    """Write a volume, or a version of it, to a raw or qcow2 image. Holes stay holes.

    Name a version (vm1@monday) for an image of one instant: a head may be written to meanwhile.
    """
    if str(file) == PIPE:
        _export_to_pipe(source, image_format, control)
        return
    chosen = image_format or images.format_by_name(file)
    try:
        mode = file.stat().st_mode
    except FileNotFoundError:
        mode = 0
    if mode and not force:
        raise UsageError(f"{file}: exists already; choose another name or use --force")
    with _attached(control, source) as uri, Meter(f"export {source}") as meter:
        if stat.S_ISBLK(mode):
            images.convert(uri, str(file), images.Format.RAW, chosen, meter, into_existing=True)
        else:
            part = file.with_name(file.name + ".part")
            try:
                images.convert(uri, str(part), images.Format.RAW, chosen, meter)
                part.replace(file)
            finally:
                part.unlink(missing_ok=True)


def _export_to_pipe(source: str, image_format: images.Format | None, control: Path | None) -> None:
    if image_format not in (None, images.Format.RAW):
        raise UsageError("only raw images can go to a pipe; name a file")
    if sys.stdout.isatty():
        raise UsageError(f"an image is not for a terminal: blockd export {source} - | ...")
    with _attached(control, source) as uri, Meter(f"export {source}") as meter:
        images.copy_out(uri, meter)


@contextlib.contextmanager
def _attached(control: Path | None, source: str) -> Iterator[str]:
    """Where to reach `source`. A tool that fails may not have been let in: say so."""
    volume = source.partition("@")[0]
    with connect(control) as client:
        uri = images.nbd_uri(client.status(), source)
        listed = client.access(volume).rules is not None
    try:
        yield uri
    except images.ToolFailed as failed:
        if not listed:
            raise
        raise images.ToolFailed(
            failed.code,
            f"{failed}; volume {volume} has an access list, which may not let you in: "
            f"blockd volume access allow {volume} --uid {os.getuid()} --read-only",
        ) from failed


def import_image(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The image; - for stdin (raw).")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="The new volume.")],
    image_format: FormatOption = None,
    size: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Of the volume. [default: of the image; stdin needs it]"),
    ] = None,
    block_size: Annotated[
        str, typer.Option(metavar="SIZE", help="Smallest unit clients write: 512 or 4096.")
    ] = str(DEFAULT_BLOCK_SIZE),
    chunk_size: Annotated[
        str, typer.Option(metavar="SIZE", help="Unit of deduplication, 4K to 1M.")
    ] = exact_size(DEFAULT_CHUNK_SIZE),
    allow_backing: Annotated[
        bool, typer.Option("--allow-backing", help="Read the files that a qcow2 image names too.")
    ] = False,
    control: ControlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a volume of a raw or qcow2 image. Holes and zeros take no space.

    When it fails, the volume is gone again.
    """
    options = {"block_size": size_argument(block_size), "chunk_size": size_argument(chunk_size)}
    wanted = None if size is None else size_argument(size)
    piped = str(file) == PIPE
    if piped:
        length = _size_of_pipe(image_format, wanted)
        chosen = images.Format.RAW
    else:
        chosen = image_format or images.guarded_format(file)
        found = images.image_size(file, chosen, allow_backing=allow_backing)
        length = wanted or -(-found // options["block_size"]) * options["block_size"]
        if length < found:
            raise UsageError(f"--size {length} is less than the {found} bytes of {file}")
    with connect(control) as client:
        uri = images.nbd_uri(client.status(), name)
        client.create_volume(name, length, **options)
        try:
            with Meter(f"import {name}") as meter:
                if piped:
                    images.copy_in(uri, length, meter)
                else:
                    images.convert(
                        str(file), uri, chosen, images.Format.RAW, meter, into_existing=True
                    )
        except BaseException:
            client.delete_volume(name, force=True)
            raise
        _report(client.volume(name), "imported", as_json)


def _size_of_pipe(image_format: images.Format | None, wanted: int | None) -> int:
    if image_format not in (None, images.Format.RAW):
        raise UsageError("only raw images can come from a pipe; name a file")
    if wanted is None:
        raise UsageError("a pipe has no size: say how large the volume is to be, as --size 10G")
    if sys.stdin.isatty():
        raise UsageError("an image is not typed: ... | blockd import - NAME --size SIZE")
    return wanted


def _report(info: VolumeInfo, done: str, as_json: bool) -> None:
    if as_json:
        print_json(info)
        return
    print(f"{done} volume {info.name}, {format_size(info.size)}")
    if info.commit:
        print_fields([("commit", info.commit)])


def _write(fd: int, data: bytes) -> None:
    """All of `data`, straight to the file: what is buffered here would be lost with a signal."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BrokenPipeError:
            raise TransferFailed(
                "broken_pipe",
                "who was to read the stream has gone; if it was `blockd receive`, "
                "that says how to go on",
            ) from None
