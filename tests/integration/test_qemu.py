"""qemu-img and qemu-io: images in and out of volumes, patterns, zeroes, discard, odd alignments."""

import json
from pathlib import Path

import pytest

from tests.clients import FindTool, run_tool
from tests.daemon import Daemon, StartDaemon
from tests.integration.images import sparse_image
from tests.integration.qemu import io

MiB = 1 << 20


@pytest.fixture
def qemu_img(client_tool: FindTool) -> str:
    return client_tool("qemu-img")


@pytest.fixture
def qemu_io(client_tool: FindTool) -> str:
    return client_tool("qemu-io")


@pytest.fixture
def server(daemon: StartDaemon) -> Daemon:
    return daemon("--volume", "demo=64M")


def test_info_shows_the_size(qemu_img: str, server: Daemon) -> None:
    info = json.loads(run_tool(qemu_img, "info", "--output=json", server.uri()))
    assert info["virtual-size"] == 64 * MiB


@pytest.mark.parametrize("image_format", ["raw", "qcow2"])
def test_convert_in_and_out_compares_equal(
    qemu_img: str, server: Daemon, tmp_path: Path, image_format: str
) -> None:
    raw, image, back = tmp_path / "raw", tmp_path / "image", tmp_path / "back"
    sparse_image(raw, 64 * MiB, seed=4)
    run_tool(qemu_img, "convert", "-f", "raw", "-O", image_format, raw, image)
    run_tool(qemu_img, "convert", "-n", "-f", image_format, "-O", "raw", image, server.uri())
    run_tool(qemu_img, "compare", "-f", image_format, "-F", "raw", image, server.uri())
    run_tool(qemu_img, "convert", "-f", "raw", "-O", image_format, server.unix_uri(), back)
    run_tool(qemu_img, "compare", "-f", "raw", "-F", image_format, raw, back)


def test_map_of_a_written_range(qemu_img: str, qemu_io: str, server: Daemon) -> None:
    io(qemu_io, server.uri(), "write -P 7 1M 64k")
    extents = json.loads(run_tool(qemu_img, "map", "-f", "raw", "--output=json", server.uri()))
    data = [(e["start"], e["length"]) for e in extents if e["data"]]
    assert data == [(MiB, 65536)]
    assert all(extent["zero"] for extent in extents if not extent["data"])


def test_patterns_over_each_other(qemu_io: str, server: Daemon) -> None:
    io(
        qemu_io,
        server.uri(),
        "write -P 1 0 1M",
        "write -P 2 64k 4k",
        "write -z 128k 64k",
        "write -z -u 256k 64k",
        "discard 512k 64k",
        "write -f -P 3 516k 512",
        "flush",
        "read -P 1 0 64k",
        "read -P 2 64k 4k",
        "read -P 1 68k 60k",
        "read -P 0 128k 64k",
        "read -P 1 192k 64k",
        "read -P 0 256k 64k",
        "read -P 0 512k 4k",
        "read -P 3 516k 512",
        "read -P 1 576k 448k",
    )


def test_unaligned_writes_touch_only_their_bytes(qemu_io: str, server: Daemon) -> None:
    io(
        qemu_io,
        server.uri(),
        "write -P 1 0 64k",
        "write -P 2 511 2",
        "write -P 3 4095 4098",
        "write -z 10001 777",
        "read -P 1 0 511",
        "read -P 2 511 2",
        "read -P 1 513 3582",
        "read -P 3 4095 4098",
        "read -P 1 8193 1808",
        "read -P 0 10001 777",
        "read -P 1 10778 54758",
    )


def test_asynchronous_writes_then_flush(qemu_io: str, server: Daemon) -> None:
    writes = [f"aio_write -P {index + 1} {index * 64}k 64k" for index in range(32)]
    reads = [f"read -P {index + 1} {index * 64}k 64k" for index in range(32)]
    io(qemu_io, server.uri(), *writes, "aio_flush", *reads)


def test_bench_finishes_without_an_error(qemu_img: str, server: Daemon) -> None:
    for options in ((), ("-w",), ("-w", "--flush-interval=64")):
        run_tool(qemu_img, "bench", "-f", "raw", "-c", "2048", "-d", "32", *options, server.uri())
