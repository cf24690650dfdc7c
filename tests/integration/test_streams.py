"""blockd send and receive between two real daemons: pipes, differences, and every way to be cut."""

import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.clients import FindTool, run_tool
from tests.daemon import Daemon, StartDaemon, run_blockd

MiB = 1 << 20
SIZE = 48 * MiB
DATA = 26 * MiB  # three batches of a receiver
Pair = tuple[Daemon, Daemon]


@pytest.fixture
def pair(daemon: StartDaemon, client_tool: FindTool, data_dir: Path, tmp_path: Path) -> Pair:
    """A daemon with vm1 and its snapshots a and b, and one with nothing."""
    client_tool("qemu-img")
    client_tool("qemu-io")
    source, sink = daemon(), daemon(data=data_dir.with_name("sink"))
    image = tmp_path / "image.raw"
    with image.open("wb") as file:
        file.truncate(SIZE)
        file.seek(MiB + 512)
        file.write(random.Random(5).randbytes(DATA))
    succeed(source, "import", image, "vm1")
    succeed(source, "snapshot", "create", "vm1@a")
    changes = ("write -P 7 5M 70k", "write -P 8 40M 1M", "discard 0 2M", "write -P 9 4097k 512")
    commands = [part for change in changes for part in ("-c", change)]
    run_tool("qemu-io", "-f", "raw", *commands, source.unix_uri("vm1"))
    succeed(source, "snapshot", "create", "vm1@b")
    run_tool("qemu-io", "-f", "raw", "-c", "write -P 1 0 1M", source.unix_uri("vm1"))
    return source, sink


def blockd(
    server: Daemon, *arguments: str | Path, stdin: bytes = b""
) -> subprocess.CompletedProcess[bytes]:
    return run_blockd([*map(str, arguments)], stdin, environ=environ(server))


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "blockd", *map(str, arguments)]


def environ(server: Daemon) -> dict[str, str]:
    return {**os.environ, "BLOCKD_CONTROL": str(server.ready["control"])}


def succeed(server: Daemon, *arguments: str | Path, stdin: bytes = b"") -> bytes:
    done = blockd(server, *arguments, stdin=stdin)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def assert_equal(source: Daemon, version: str, sink: Daemon, volume: str) -> None:
    """By their bytes and by their commits."""
    run_tool(
        *("qemu-img", "compare", "-f", "raw", "-F", "raw"),
        source.unix_uri(version),
        sink.unix_uri(volume),
    )
    name, _, snapshot = version.partition("@")
    with source.control() as one, sink.control() as other:
        assert other.volume(volume).commit == one.snapshot(name, snapshot).commit


def test_a_pipe_carries_a_version_and_then_its_difference(pair: Pair) -> None:
    source, sink = pair
    for arguments in (("vm1@a",), ("vm1@b", "--from", "vm1@a")):
        with subprocess.Popen(
            command("send", *arguments), env=environ(source), stdout=subprocess.PIPE
        ) as sending:
            received = subprocess.run(
                command("receive", "copy"),
                env=environ(sink),
                stdin=sending.stdout,
                capture_output=True,
                timeout=120,
                check=False,
            )
            assert received.returncode == 0, received.stderr.decode()
            assert sending.wait(60) == 0
        assert_equal(source, arguments[0], sink, "copy")


def test_a_difference_is_small_and_fits_its_base_only(pair: Pair) -> None:
    source, sink = pair
    whole = succeed(source, "send", "vm1@a")
    difference = succeed(source, "send", "vm1@b", "--from", "vm1@a")
    assert len(difference) < 3 * MiB < DATA < len(whole) < 1.1 * DATA
    refused = blockd(sink, "receive", "copy", stdin=difference)
    assert refused.returncode == 5
    assert b"send the whole version" in refused.stderr
    succeed(sink, "receive", "copy", stdin=whole)
    run_tool("qemu-io", "-f", "raw", "-c", "write -P 3 0 4k", sink.unix_uri("copy"))
    refused = blockd(sink, "receive", "copy", stdin=difference)
    assert refused.returncode == 5
    assert b"not as it was" in refused.stderr
    succeed(sink, "receive", "other", stdin=difference)
    assert_equal(source, "vm1@b", sink, "other")


def go_on(source: Daemon, sink: Daemon, *sent: str) -> bytes:
    """The rest of a stream, by the token that the receiver has."""
    token = succeed(sink, "receive", "copy", "--token").decode().strip()
    return succeed(source, "send", *sent, "--resume", token)


def killed(sink: Daemon) -> None:
    sink.kill()
    sink.start()


def stopped(sink: Daemon) -> None:
    assert sink.stop() == 0
    sink.start()


@pytest.mark.parametrize("interrupt", [killed, stopped])
def test_a_receiver_goes_on_after_its_end(pair: Pair, interrupt: Callable[[Daemon], None]) -> None:
    """The stream stops for a while in its middle, the daemon goes away meanwhile."""
    source, sink = pair
    whole = succeed(source, "send", "vm1@a")
    with subprocess.Popen(
        command("receive", "copy"),
        env=environ(sink),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as receiving:
        assert receiving.stdin is not None
        receiving.stdin.write(whole[: 20 * MiB])
        receiving.stdin.flush()
        sink.wait_for("a batch is stored", lambda status: status.pack_bytes > 8 * MiB)
        interrupt(sink)
        _, said = receiving.communicate(timeout=60)
        assert receiving.returncode != 0
        assert b"Traceback" not in said, said.decode()
    with sink.control() as client:
        assert client.volumes() == []
        (info,) = client.receives()
        assert not info.active
    rest = go_on(source, sink, "vm1@a")
    assert len(rest) < len(whole) - 8 * MiB
    succeed(sink, "receive", "copy", stdin=rest)
    assert_equal(source, "vm1@a", sink, "copy")


def test_a_difference_that_was_cut_goes_on_as_it_is_told(pair: Pair) -> None:
    source, sink = pair
    succeed(sink, "receive", "copy", stdin=succeed(source, "send", "vm1@a"))
    difference = succeed(source, "send", "vm1@b", "--from", "vm1@a")
    cut = blockd(sink, "receive", "copy", stdin=difference[: len(difference) // 2])
    assert cut.returncode == 1
    told = cut.stderr.decode().strip().rpartition("go on with: ")[2]
    first, _, second = told.partition(" | ")
    rest = succeed(source, *first.split()[1:])
    assert len(rest) < len(difference)
    succeed(sink, "gc", "run")  # what came stays
    succeed(sink, *second.split()[1:], stdin=rest)
    assert_equal(source, "vm1@b", sink, "copy")


def test_a_sender_that_dies_leaves_a_stream_to_go_on_with(pair: Pair) -> None:
    source, sink = pair
    whole = succeed(source, "send", "vm1@a")
    with subprocess.Popen(
        command("send", "vm1@a"),
        env=environ(source),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as sending:
        assert sending.stdout is not None
        assert sending.stderr is not None
        begun = sending.stdout.read(MiB)
        source.kill()
        begun += sending.stdout.read()
        said = sending.stderr.read()
        assert sending.wait(60) == 1
        assert b"Traceback" not in said, said.decode()
    source.start()
    assert len(begun) < len(whole)
    assert whole.startswith(begun)
    cut = blockd(sink, "receive", "copy", stdin=begun)
    assert cut.returncode == 1
    assert b"ended before its end" in cut.stderr
    succeed(sink, "receive", "copy", stdin=go_on(source, sink, "vm1@a"))
    assert_equal(source, "vm1@a", sink, "copy")


def test_received_twice_it_is_stored_once(pair: Pair) -> None:
    source, sink = pair
    whole = succeed(source, "send", "vm1@a")
    succeed(sink, "receive", "copy", stdin=whole)
    before = sink.store().pack_bytes
    succeed(sink, "receive", "again", stdin=whole)
    assert sink.store().pack_bytes - before < 64 * 1024
    assert_equal(source, "vm1@a", sink, "again")
