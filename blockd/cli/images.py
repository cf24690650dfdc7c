"""Images by the tools that everybody has for them: qemu-img for files, nbdcopy for pipes.

They talk NBD to the daemon, like any client. A raw file is never looked into to find out what it
is: a guest that wrote a qcow2 header into its disk could name files of this machine in it.
"""

import contextlib
import enum
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from blockd import attach
from blockd.api.types import NodeStatus
from blockd.cli.meter import Meter
from blockd.cli.options import UsageError

QCOW2_MAGIC = b"QFI\xfb"
PACKAGES = {
    "qemu-img": "qemu-utils (Debian, Ubuntu) or qemu-img (Fedora, RHEL, SUSE: qemu-tools)",
    "nbdcopy": "libnbd-bin (Debian, Ubuntu) or libnbd (Fedora, RHEL, SUSE)",
}
READ_BYTES = 1024 * 1024  # of stdin at once
MAX_MESSAGE = 2000  # characters of a tool's complaint that are shown
_PERCENT = re.compile(rb"\((\d+(?:\.\d+)?)/100%\)")
_COPIED = re.compile(rb"(\d+)/100\n")


class Format(enum.StrEnum):
    """Image formats."""

    RAW = "raw"
    QCOW2 = "qcow2"


class ToolFailed(Exception):
    """Another program is missing, or has failed; the message has what it said."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def tool(name: str) -> str:
    """Where program `name` is. ToolFailed names the package."""
    path = shutil.which(name)
    if path is None:
        raise ToolFailed("tool_missing", f"{name} is not installed; it is in {PACKAGES[name]}")
    return path


def format_by_name(file: Path) -> Format:
    return Format.QCOW2 if file.suffix.lower() == ".qcow2" else Format.RAW


def guarded_format(file: Path) -> Format:
    """By the name. UsageError when the bytes look like the other one: then it must be said."""
    named = format_by_name(file)
    with file.open("rb") as opened:
        qcow2 = opened.read(len(QCOW2_MAGIC)) == QCOW2_MAGIC
    if qcow2 != (named is Format.QCOW2):
        is_qcow2 = "begins like a qcow2 image" if qcow2 else "does not begin like a qcow2 image"
        raise UsageError(f"{file}: {is_qcow2}, against its name; say --format raw or qcow2")
    return named


def image_size(file: Path, image_format: Format, *, allow_backing: bool) -> int:
    """Bytes of the disk that an image is of."""
    command = [tool("qemu-img"), "info", "--output=json", "-f", image_format, _local(str(file))]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        raise _failed("qemu-img", done.returncode, done.stderr)
    info: dict[str, Any] = json.loads(done.stdout)
    data_file = info.get("format-specific", {}).get("data", {}).get("data-file")
    other = info.get("backing-filename") or data_file
    if other and not allow_backing:
        raise UsageError(
            f"{file}: reads {other} as well; when you trust the image, use --allow-backing"
        )
    return int(info["virtual-size"])


def nbd_uri(node: NodeStatus, export: str) -> str:
    """Where this machine reaches `export`: the unix socket if there is one."""
    if node.tls == "require":
        raise ToolFailed(
            "tls_required",
            "the daemon takes TLS only, and which certificates to use is not known here; run "
            "qemu-img yourself, as `blockd volume show` tells",
        )
    address = next((each for each in node.nbd if each.startswith("/")), node.nbd[0])
    return attach.uri(attach.reachable(address, "localhost"), export)


def convert(
    source: str,
    target: str,
    source_format: Format,
    target_format: Format,
    meter: Meter,
    *,
    into_existing: bool = False,
) -> None:
    """Copy an image by qemu-img; `into_existing`: `target` is there, and all zeros if it is NBD."""
    existing: list[str] = []
    if into_existing:
        existing = ["-n"]
        if target.startswith("nbd"):
            existing.append("--target-is-zero")
    total = image_bytes(source, source_format)
    command = [
        tool("qemu-img"),
        "convert",
        "-p",
        *existing,
        "-f",
        source_format,
        "-O",
        target_format,
        _local(source),
        _local(target),
    ]
    with _running("qemu-img", command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        for percent in _percents(process.stdout, _PERCENT):
            meter.update(int(total * percent / 100), total)


def image_bytes(source: str, source_format: Format) -> int:
    command = [tool("qemu-img"), "info", "--output=json", "-f", source_format, _local(source)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        raise _failed("qemu-img", done.returncode, done.stderr)
    return int(json.loads(done.stdout)["virtual-size"])


def _local(name: str) -> str:
    """`name` as qemu-img takes it for a file, whatever is in it, unless it is an NBD URI."""
    if name.startswith(("nbd://", "nbd+unix://")):
        return name
    return os.path.abspath(name)  # "a:b" alone would be a protocol


def copy_out(uri: str, meter: Meter) -> None:
    """A volume to stdout, raw."""
    total = image_bytes(uri, Format.RAW)
    read_end, write_end = os.pipe()
    command = [tool("nbdcopy"), f"--progress={write_end}", uri, "-"]
    with os.fdopen(read_end, "rb", buffering=0) as reports:
        try:
            running = _running("nbdcopy", command, pass_fds=(write_end,))
            with running:
                os.close(write_end)
                write_end = -1
                for percent in _percents(reports, _COPIED):
                    meter.update(int(total * percent / 100), total)
        finally:
            if write_end >= 0:
                os.close(write_end)


def copy_in(uri: str, size: int, meter: Meter) -> None:
    """stdin to a volume of `size` bytes that is all zeros. ToolFailed when more comes than fits."""
    command = [tool("nbdcopy"), "--destination-is-zero", "--sparse=4096", "-", uri]
    done = 0
    with _running("nbdcopy", command, stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        while data := os.read(sys.stdin.fileno(), READ_BYTES):
            done += len(data)
            if done > size:
                raise ToolFailed("image_too_large", f"more came than the {size} bytes of --size")
            try:
                process.stdin.write(data)
            except BrokenPipeError:
                break  # its exit says why
            meter.update(done, size)
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()


@contextlib.contextmanager
def _running(
    name: str, command: Sequence[str], **options: Any
) -> Iterator["subprocess.Popen[bytes]"]:
    """A program while the block runs, which then is waited for. ToolFailed with what it said."""

    with tempfile.TemporaryFile() as complaints:
        process = subprocess.Popen(command, stderr=complaints, **options)
        try:
            yield process
        except BaseException:
            process.kill()
            process.wait()
            raise
        finally:
            for stream in (process.stdout, process.stdin):
                if stream is not None:
                    with contextlib.suppress(BrokenPipeError):
                        stream.close()
        code = process.wait()
        complaints.seek(0)
        if code:
            raise _failed(name, code, complaints.read(MAX_MESSAGE).decode(errors="replace"))


def _percents(stream: IO[bytes], pattern: "re.Pattern[bytes]") -> Iterator[float]:
    """The numbers in a tool's reports, as they come."""
    pending = b""
    while data := os.read(stream.fileno(), 4096):
        pending += data
        found = None
        for found in pattern.finditer(pending):
            yield float(found.group(1))
        pending = pending[found.end() if found else 0 :][-64:]


def _failed(name: str, code: int, said: str) -> ToolFailed:
    what = " ".join(said.split()) or f"exit code {code}"
    return ToolFailed("tool_failed", f"{name} failed: {what[:MAX_MESSAGE]}")
