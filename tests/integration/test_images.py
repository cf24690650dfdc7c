"""blockd import and export of images, against a real daemon."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.clients import FindTool, run_tool
from tests.daemon import Daemon, StartDaemon, run_blockd
from tests.integration.images import sparse_image

MiB = 1 << 20
SIZE = 24 * MiB


@pytest.fixture
def server(daemon: StartDaemon, client_tool: FindTool) -> Daemon:
    client_tool("qemu-img")
    client_tool("nbdcopy")
    return daemon()


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    path = tmp_path / "disk.raw"
    sparse_image(path, SIZE, seed=8)
    return path


def blockd(
    server: Daemon, *arguments: str | Path, stdin: bytes | None = None, path: str | None = None
) -> subprocess.CompletedProcess[bytes]:
    environ = {**os.environ, "BLOCKD_CONTROL": str(server.ready["control"])}
    if path is not None:
        environ["PATH"] = path
    return run_blockd([*map(str, arguments)], stdin, environ=environ)


def succeed(server: Daemon, *arguments: str | Path, stdin: bytes | None = None) -> bytes:
    done = blockd(server, *arguments, stdin=stdin)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


@pytest.mark.parametrize("suffix", ["raw", "qcow2"])
def test_an_image_goes_in_and_out_unchanged(
    server: Daemon, raw: Path, tmp_path: Path, suffix: str
) -> None:
    image, back = tmp_path / f"in.{suffix}", tmp_path / f"out.{suffix}"
    run_tool("qemu-img", "convert", "-f", "raw", "-O", suffix, raw, image)
    said = succeed(server, "import", image, "demo").decode()
    assert said.startswith("imported volume demo, 24 MiB")
    succeed(server, "export", "demo", back)
    run_tool("qemu-img", "compare", "-f", "raw", "-F", suffix, raw, back)
    assert back.stat().st_blocks * 512 <= 1.1 * image.stat().st_blocks * 512 + MiB
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        {"disk.raw", image.name, back.name}
    )


def test_holes_stay_holes(server: Daemon, tmp_path: Path) -> None:
    image, back = tmp_path / "hole.raw", tmp_path / "back.raw"
    with image.open("wb") as file:
        file.truncate(256 * MiB)
        file.seek(100 * MiB)
        file.write(os.urandom(MiB))
    succeed(server, "import", image, "demo")
    assert server.store().hot_bytes <= 2 * MiB
    succeed(server, "export", "demo", back)
    assert back.stat().st_blocks * 512 <= 2 * MiB
    run_tool("qemu-img", "compare", "-f", "raw", "-F", "raw", image, back)


def test_pipes_carry_raw_images(server: Daemon, raw: Path) -> None:
    data = raw.read_bytes()
    succeed(server, "import", "-", "demo", "--size", str(SIZE + MiB), stdin=data)
    assert succeed(server, "export", "demo", "-") == data + bytes(MiB)


def test_more_than_fits_leaves_no_volume(server: Daemon) -> None:
    failed = blockd(server, "import", "-", "demo", "--size", "1M", stdin=bytes(2 * MiB))
    assert failed.returncode == 1
    assert b"more came than" in failed.stderr
    with server.control() as client:
        assert client.volumes() == []


def test_a_guest_cannot_choose_the_format(server: Daemon, raw: Path, tmp_path: Path) -> None:
    disguised = tmp_path / "guest.raw"
    run_tool("qemu-img", "create", "-q", "-f", "qcow2", disguised, "1M")
    refused = blockd(server, "import", disguised, "demo")
    assert refused.returncode == 2
    assert b"say --format" in refused.stderr
    succeed(server, "import", disguised, "asked", "--format", "qcow2")
    backed = tmp_path / "backed.qcow2"
    run_tool("qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", raw, backed)
    refused = blockd(server, "import", backed, "demo")
    assert refused.returncode == 2
    assert b"--allow-backing" in refused.stderr
    succeed(server, "import", backed, "demo", "--allow-backing")
    run_tool("qemu-img", "compare", "-f", "raw", "-F", "raw", raw, server.unix_uri())


def test_what_is_there_is_not_overwritten(server: Daemon, raw: Path, tmp_path: Path) -> None:
    succeed(server, "import", raw, "demo")
    assert blockd(server, "import", raw, "demo").returncode == 5
    run_tool("qemu-img", "compare", "-f", "raw", "-F", "raw", raw, server.unix_uri())
    out = tmp_path / "out.raw"
    out.write_bytes(b"mine")
    assert blockd(server, "export", "demo", out).returncode == 2
    assert out.read_bytes() == b"mine"
    succeed(server, "export", "demo", out, "--force")
    run_tool("qemu-img", "compare", "-f", "raw", "-F", "raw", raw, out)


def test_an_export_of_nothing_leaves_no_file(server: Daemon, tmp_path: Path) -> None:
    failed = blockd(server, "export", "nothing", tmp_path / "out.raw")
    assert failed.returncode == 4
    assert b"volume nothing: there is none" in failed.stderr
    server.create("demo", 4096)
    failed = blockd(server, "export", "demo@never", tmp_path / "out.raw")
    assert failed.returncode == 1
    assert b"qemu-img failed" in failed.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_missing_tool_is_named_with_its_package(server: Daemon, raw: Path) -> None:
    failed = blockd(server, "import", raw, "demo", path="/nowhere")
    assert failed.returncode == 1
    assert b"qemu-utils" in failed.stderr
