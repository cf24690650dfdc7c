"""Real iSCSI clients (libiscsi's tools, qemu) on a real daemon, beside NBD on the same volumes."""

import json
import re
from pathlib import Path

import pytest

from tests.clients import FindTool, finish_tool, run_tool
from tests.daemon import Daemon, StartDaemon
from tests.integration.images import sparse_image
from tests.integration.qemu import io

MiB = 1 << 20


@pytest.fixture
def server(daemon: StartDaemon) -> Daemon:
    return daemon("--volume", "demo=64M", "--iscsi", "127.0.0.1:0")


@pytest.fixture
def qemu_img(client_tool: FindTool) -> str:
    return client_tool("qemu-img")


@pytest.fixture
def qemu_io(client_tool: FindTool) -> str:
    return client_tool("qemu-io")


def test_every_volume_is_discovered(client_tool: FindTool, server: Daemon) -> None:
    server.create("other", 16 * MiB)
    listed = run_tool(client_tool("iscsi-ls"), "-s", f"iscsi://{server.iscsi_address}/")
    targets = re.findall(r"^Target:(\S+) Portal:(\S+)$", listed, flags=re.MULTILINE)
    portal = f"{server.iscsi_address},1"
    assert sorted(targets) == [
        ("iqn.2026-11.io.blockd:demo", portal),
        ("iqn.2026-11.io.blockd:other", portal),
    ]
    assert listed.count("Type:DIRECT_ACCESS (Size:") == 2


def test_a_target_with_an_alias_is_discovered(client_tool: FindTool, server: Daemon) -> None:
    server.run("target", "create", "db", "--lun", "demo", "--alias", "the disks of db")
    listed = run_tool(client_tool("iscsi-ls"), f"iscsi://{server.iscsi_address}/")
    assert "Target:iqn.2026-11.io.blockd:db " in listed


@pytest.mark.parametrize("page", ["0x00", "0x80", "0x83", "0xb0", "0xb1", "0xb2"])
def test_inquiry_of_a_page_that_initiators_read(
    client_tool: FindTool, server: Daemon, page: str
) -> None:
    url = server.iscsi_url("demo")
    told = run_tool(client_tool("iscsi-inq"), "-e", "1", "-c", str(int(page, 16)), url)
    assert told.strip()


def test_standard_inquiry_names_us(client_tool: FindTool, server: Daemon) -> None:
    told = run_tool(client_tool("iscsi-inq"), server.iscsi_url("demo"))
    assert "BLOCKD" in told


def test_read_capacity_is_the_volumes_size(client_tool: FindTool, server: Daemon) -> None:
    told = run_tool(client_tool("iscsi-readcapacity16"), server.iscsi_url("demo"))
    assert re.search(r"Total size:\s*67108864", told), told


@pytest.mark.parametrize("image_format", ["raw", "qcow2"])
def test_qemu_img_convert_in_and_out_compares_equal(
    qemu_img: str, server: Daemon, tmp_path: Path, image_format: str
) -> None:
    raw, image, back = tmp_path / "raw", tmp_path / "image", tmp_path / "back"
    url = server.iscsi_url("demo")
    sparse_image(raw, 64 * MiB, seed=4)
    run_tool(qemu_img, "convert", "-f", "raw", "-O", image_format, raw, image)
    run_tool(qemu_img, "convert", "-n", "-f", image_format, "-O", "raw", image, url)
    run_tool(qemu_img, "compare", "-f", image_format, "-F", "raw", image, url)
    run_tool(qemu_img, "compare", "-f", "raw", "-F", "raw", raw, server.uri("demo"))
    run_tool(qemu_img, "convert", "-f", "raw", "-O", image_format, url, back)
    run_tool(qemu_img, "compare", "-f", "raw", "-F", image_format, raw, back)


def test_qemu_io_patterns_over_each_other(qemu_io: str, server: Daemon) -> None:
    io(
        qemu_io,
        server.iscsi_url("demo"),
        "write -P 1 0 1M",
        "write -P 2 64k 4k",
        "write -z 128k 64k",
        "write -z -u 256k 64k",
        "discard 512k 64k",
        "write -f -P 3 516k 4k",
        "flush",
        "read -P 1 0 64k",
        "read -P 2 64k 4k",
        "read -P 1 68k 60k",
        "read -P 0 128k 64k",
        "read -P 0 256k 64k",
        "read -P 3 516k 4k",
        "read -P 1 576k 448k",
    )


def test_trimmed_blocks_are_shown_as_holes(qemu_img: str, qemu_io: str, server: Daemon) -> None:
    url = server.iscsi_url("demo")
    io(qemu_io, url, "write -P 7 1M 64k")
    extents = json.loads(run_tool(qemu_img, "map", "-f", "raw", "--output=json", url))
    data = [(e["start"], e["length"]) for e in extents if e["data"]]
    assert data == [(MiB, 65536)]


def test_nbd_and_iscsi_clients_verify_each_others_writes(qemu_io: str, server: Daemon) -> None:
    nbd, iscsi = server.uri("demo"), server.iscsi_url("demo")
    for turn in range(4):
        at = turn * 8
        writes = [f"aio_write -P {at + i + 1} {(at + i) * 64}k 64k" for i in range(8)]
        reads = [f"read -P {at + i + 1} {(at + i) * 64}k 64k" for i in range(8)]
        writer, reader = (nbd, iscsi) if turn % 2 else (iscsi, nbd)
        io(qemu_io, writer, *writes, "aio_flush")
        io(qemu_io, reader, *reads)


def test_bench_finishes_without_an_error(qemu_img: str, server: Daemon) -> None:
    for options in ((), ("-w",), ("-w", "--flush-interval=64"), ("-w", "-s", "1M", "-d", "8")):
        count = "64" if "1M" in options else "2048"
        url = server.iscsi_url("demo")
        run_tool(qemu_img, "bench", "-f", "raw", "-c", count, "-d", "32", *options, url)


def test_digests_are_served(client_tool: FindTool, server: Daemon) -> None:
    url = server.iscsi_url("demo") + "?header_digest=crc32c&data_digest=crc32c"
    assert "BLOCKD" in run_tool(client_tool("iscsi-inq"), url)


def test_an_absent_target_is_refused(client_tool: FindTool, server: Daemon) -> None:
    done = finish_tool(client_tool("iscsi-inq"), server.iscsi_url("absent"))
    assert done.returncode
    assert "target not found" in (done.stdout + done.stderr).lower()
