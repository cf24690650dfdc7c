"""The commands for versions, one after the other as a person would use them, on a real daemon."""

import os
import random
import time
from pathlib import Path
from typing import Any

import pytest

from tests.clients import FindTool, run_libnbd, run_tool
from tests.daemon import Daemon, StartDaemon
from tests.damage import flip_a_bit
from tests.integration.pipelined import WRITE, PipelinedClient

MiB = 1 << 20
SIZE = 32 * MiB
SCRUB_S = 60.0
DAMAGED = 7  # blockd.cli.exits: scrub found something

pytestmark = pytest.mark.usefixtures("libnbd")


@pytest.fixture
def server(daemon: StartDaemon) -> Daemon:
    return daemon("--volume", f"demo={SIZE}")


def write(server: Daemon, export: str, letter: str, offset: int = 0, length: int = MiB) -> None:
    script = "connected().pwrite(arguments[0].encode() * int(arguments[2]), int(arguments[1]))"
    run_libnbd(server.uri(export), script, letter, str(offset), str(length))


def read(server: Daemon, export: str, offset: int = 0) -> str:
    """The byte at `offset`; "0" for zero, "EIO" for an error."""
    script = """
try:
    print(connected().pread(512, int(arguments[0]))[:1].decode().replace("\\0", "0"))
except nbd.Error as error:
    print(error.errno)
"""
    return run_libnbd(server.uri(export), script, str(offset)).strip()


def fails(server: Daemon, *arguments: str) -> str:
    """What a command that must fail says on stderr."""
    done = server.finish(*arguments)
    assert done.returncode != 0, arguments
    assert b"Traceback" not in done.stderr
    return done.stderr.decode()


def names(snapshots: list[dict[str, Any]]) -> list[str]:
    return sorted(f"{snapshot['volume']}@{snapshot['name']}" for snapshot in snapshots)


def test_snapshots_from_creation_to_deletion(server: Daemon) -> None:
    server.create("other", SIZE)
    write(server, "demo", "a")
    server.run("snapshot", "create", "demo@one")
    write(server, "demo", "b")
    server.run("snapshot", "create", "both", "--group", "demo,other")
    server.run("snapshot", "create", "demo@pinned", "--pin")
    assert names(server.run_json("snapshot", "list")) == [
        "demo@both",
        "demo@one",
        "demo@pinned",
        "other@both",
    ]
    assert names(server.run_json("snapshot", "list", "other")) == ["other@both"]
    assert server.run_json("snapshot", "show", "demo@pinned")["pinned"] is True
    assert (read(server, "demo@one"), read(server, "demo@both")) == ("a", "b")
    assert "exists" in fails(server, "snapshot", "create", "demo@one")
    assert "pinned" in fails(server, "snapshot", "delete", "demo@pinned")
    server.run("snapshot", "unpin", "demo@pinned")
    server.run("snapshot", "delete", "demo@pinned", "demo@one")
    assert names(server.run_json("snapshot", "list", "demo")) == ["demo@both"]
    assert "demo@one" in fails(server, "snapshot", "show", "demo@one")


def test_snapshots_outlive_the_process(server: Daemon) -> None:
    write(server, "demo", "a")
    server.run("snapshot", "create", "demo@kept")
    write(server, "demo", "b")
    server.kill()
    server.start()
    assert (read(server, "demo@kept"), read(server, "demo")) == ("a", "b")


def test_schedules(server: Daemon) -> None:
    assert server.run_json("snapshot", "schedule", "demo") is None
    server.run("snapshot", "schedule", "demo", "--every", "15m", "--keep", "24h,7d,4w")
    schedule = server.run_json("snapshot", "schedule", "demo")
    assert (schedule["every_s"], schedule["keep"]) == (900, "24h,7d,4w")
    assert 0 < schedule["next_ns"] - time.time_ns() <= 900 * 10**9
    assert "every 1s" in fails(
        *(server, "snapshot", "schedule", "demo", "--every", "1s", "--keep", "2s")
    )
    server.run("snapshot", "schedule", "demo", "--off")
    assert server.run_json("snapshot", "schedule", "demo") is None


def test_log_restore_and_clone(server: Daemon) -> None:
    write(server, "demo", "a")
    seq = server.run_json("volume", "show", "demo")["seq"]
    write(server, "demo", "b")
    server.run("snapshot", "create", "demo@b")
    write(server, "demo", "c")
    assert (read(server, f"demo@seq:{seq}"), read(server, "demo@b")) == ("a", "b")

    log = server.run_json("volume", "log", "demo", "--writes")
    by_seq = {version["seq"]: version for version in log["versions"]}
    assert list(by_seq) == [seq + 2, seq + 1, seq, *([0] if 0 in by_seq else [])]
    assert (by_seq[seq]["kind"], by_seq[seq]["offset"], by_seq[seq]["bytes"]) == ("write", 0, MiB)
    assert by_seq[seq + 1]["snapshots"] == ["b"]
    assert by_seq[seq + 2]["kind"] in ("head", "commit")  # as far as destaging has come
    assert "b" in server.run("volume", "log", "demo").decode()
    assert str(seq) in server.run("volume", "log", "demo", "--writes").decode()

    server.run("volume", "clone", f"demo@seq:{seq}", "copy")
    write(server, "copy", "d", MiB)
    assert (read(server, "copy"), read(server, "copy", MiB)) == ("a", "d")
    assert read(server, "demo", MiB) == "0"

    restored = server.run_json("volume", "restore", "demo", "--to", f"seq:{seq}")
    assert read(server, "demo") == "a"
    assert read(server, f"demo@{restored['kept']}") == "c"
    server.run("volume", "restore", "demo", "--to", restored["kept"])
    assert read(server, "demo") == "c"
    assert "seq:999999" in fails(server, "volume", "restore", "demo", "--to", "seq:999999")

    assert "snapshot" in fails(server, "volume", "delete", "demo", "--yes")
    server.run("volume", "delete", "demo", "--force")
    assert (read(server, "copy"), read(server, "copy", MiB)) == ("a", "d")


def test_diff_space_and_gc(server: Daemon) -> None:
    write(server, "demo", "a", 0, 4 * MiB)
    server.run("snapshot", "create", "demo@old")
    write(server, "demo", "b", MiB, 65536)
    write(server, "demo", "c", 8 * MiB, 512)
    diff = server.run_json("volume", "diff", "demo@old", "demo")
    assert diff["extents"] == [[MiB, 65536], [8 * MiB, 65536]]
    assert diff["changed_bytes"] == 131072
    assert "2 extents, 128 KiB" in server.run("volume", "diff", "demo@old", "demo").decode()

    server.wait_for("destage", lambda status: status.hot_bytes == 0)
    rows = {
        (row["volume"], row["kind"], row["name"]): row for row in server.run_json("space")["rows"]
    }
    assert rows["demo", "snapshot", "old"]["logical_bytes"] == 4 * MiB
    assert rows["demo", "head", None]["logical_bytes"] == 4 * MiB + 65536
    for row in rows.values():
        assert row["exclusive_bytes"] + row["shared_bytes"] == row["stored_bytes"]
    assert "demo" in server.run("space").decode()

    write(server, "demo", "z", 0, 16 * MiB)
    server.run("snapshot", "delete", "demo@old")
    server.run("gc", "run", "--dry-run")
    server.run("gc", "run")
    assert server.run("gc", "status")


def test_import_and_export(client_tool: FindTool, server: Daemon, tmp_path: Path) -> None:
    raw = tmp_path / "disk.raw"
    with raw.open("wb") as file:
        file.truncate(16 * MiB)
        file.seek(5 * MiB)
        file.write(os.urandom(MiB))
    server.run("import", str(raw), "imported")
    for image_format in ("raw", "qcow2"):
        out = tmp_path / f"out.{image_format}"
        server.run("snapshot", "create", f"imported@{image_format}")
        source = f"imported@{image_format}"
        server.run("export", source, str(out), "--format", image_format)
        compare = (client_tool("qemu-img"), "compare", "-f", "raw", "-F", image_format)
        run_tool(*compare, raw, out)
        assert out.stat().st_blocks * 512 < 2 * MiB, "holes were filled"


def test_send_and_receive(server: Daemon, tmp_path: Path) -> None:
    write(server, "demo", "a", 0, 4 * MiB)
    server.run("snapshot", "create", "demo@one")
    write(server, "demo", "b", 2 * MiB, 65536)
    server.run("snapshot", "create", "demo@two")
    server.run("receive", "copy", stdin=server.run("send", "demo@one"))
    assert read(server, "copy", 2 * MiB) == "a"
    stream = server.run("send", "demo@two", "--from", "demo@one")
    broken = bytearray(stream)
    broken[len(broken) // 2] ^= 1
    assert server.finish("receive", "copy", stdin=bytes(broken)).returncode != 0
    assert read(server, "copy", 2 * MiB) == "a"
    server.run("receive", "copy", stdin=stream)
    assert (read(server, "copy"), read(server, "copy", 2 * MiB)) == ("a", "b")


def test_damage_by_hand_is_an_error_and_scrub_names_it(server: Daemon) -> None:
    content = random.Random(1).randbytes(MiB)  # no codec makes it smaller: it is stored as it is
    with PipelinedClient(server.host_port, "demo") as client:
        client.send(WRITE, 1, 0, len(content), content)
        assert client.reply() == (1, 0)
    server.wait_for("destage", lambda status: status.hot_bytes == 0)
    assert server.stop() == 0
    pack = flip_a_bit(server.data / "packs", content[:512])
    server.start()
    assert read(server, "demo") == "EIO"
    assert read(server, "demo", 512 * 1024) != "EIO"
    said = server.stderr()
    assert "read error volume=demo offset=0" in said
    assert pack.stem in said

    server.run("scrub", "start")
    deadline = time.monotonic() + SCRUB_S
    while (status := server.finish("scrub", "status")).returncode != DAMAGED:
        assert time.monotonic() < deadline, status.stdout
        time.sleep(0.1)
    said = status.stdout.decode()
    assert pack.stem in said
    assert "demo" in said
