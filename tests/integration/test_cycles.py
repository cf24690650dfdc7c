"""100 cycles of create, serve, snapshot, clone and delete beside a volume under load: not one I/O
error anywhere, and the directory is as small afterwards as it was before.
"""

import json
import os
import random
import subprocess
from pathlib import Path

import pytest

from blockd.api.client import Client
from tests.clients import CLIENT_TIMEOUT_S, FindTool, run_tool
from tests.daemon import Daemon, StartDaemon
from tests.integration.pipelined import WRITE, PipelinedClient
from volume.gcrun import MIN_LIVE
from volume.options import StoreOptions

MiB = 1 << 20
CYCLES = 100
BUSY_BYTES = 64 * MiB
CYCLE_BYTES = 16 * MiB
PIECE = 256 * 1024
LEFT_BYTES = 8 * MiB
"""What gc may leave of a store without a version: a pack just begun."""
PACK_BYTES = StoreOptions().pack_bytes
"""What gc may leave beside packs that are mostly live: the one that is appended to."""


SETTINGS = """
[store]
gc_interval_s = 1
gc_condemn_s = 0
window = 0
window_s = 1
keep = ""
"""
"""So that gc is at work during the cycles, and the any-write window keeps not every version."""


@pytest.fixture
def server(daemon: StartDaemon, data_dir: Path) -> Daemon:
    data_dir.mkdir(mode=0o700)
    (data_dir / "blockd.toml").write_text(SETTINGS)
    return daemon("--volume", f"busy={BUSY_BYTES}")


def start_load(fio: str, server: Daemon, folder: Path) -> subprocess.Popen[str]:
    """fio writes and verifies over and over until it is told to stop."""
    command = [
        *(fio, "--name=busy", "--ioengine=nbd", f"--uri={server.uri('busy')}"),
        *("--rw=randwrite", "--bs=4k", "--iodepth=8", f"--size={BUSY_BYTES}", "--loops=1000"),
        *("--rate_iops=2000", "--verify=crc32c", "--verify_fatal=1", "--verify_backlog=256"),
        *("--output-format=json", f"--aux-path={folder}"),
    ]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def one_cycle(server: Daemon, control: Client, number: int) -> None:
    """A volume comes, is written and read by a client, and goes; some with a snapshot."""
    name = f"cycle{number}"
    pieces = [random.Random(number).randbytes(PIECE) for number in range(number, number + 4)]
    control.create_volume(name, CYCLE_BYTES)
    with PipelinedClient(server.host_port, name) as client:
        for index, piece in enumerate(pieces):
            client.send(WRITE, index, index * 3 * PIECE, PIECE, piece)
        assert sorted(client.reply() for _ in pieces) == [(n, 0) for n in range(len(pieces))]
        for index, piece in enumerate(pieces):
            assert client.read(index * 3 * PIECE, PIECE) == piece
            assert client.read((index * 3 + 1) * PIECE, PIECE) == bytes(PIECE)
    if number % 10 == 0:
        control.create_snapshot("kept", [name])
        with PipelinedClient(server.host_port, f"{name}@kept") as client:
            assert client.read(0, PIECE) == pieces[0]
    control.delete_volume(name, force=True)


def test_a_hundred_cycles_beside_a_busy_volume(
    client_tool: FindTool, server: Daemon, tmp_path: Path
) -> None:
    load = start_load(client_tool("fio"), server, tmp_path)
    try:
        with server.control() as control:
            for number in range(CYCLES):
                one_cycle(server, control, number)
                assert load.poll() is None, load.communicate()[0]
            assert [volume.name for volume in control.volumes()] == ["busy"]
    finally:
        load.terminate()  # fio ends its jobs and reports
        output = load.communicate(timeout=CLIENT_TIMEOUT_S)[0]
    job = json.loads(output[output.index("{") : output.rindex("}") + 1])["jobs"][0]
    assert job["error"] == 0, output
    assert job["read"]["io_bytes"] > 0, "fio verified nothing"
    assert "read error" not in server.stderr()
    server.wait_for("destage", lambda status: status.hot_bytes == 0)
    server.run("gc", "run")
    server.run("gc", "run")
    space = server.run_json("space")
    assert {row["volume"] for row in space["rows"]} == {"busy"}
    assert space["garbage_bytes"] < (1 - MIN_LIVE) * space["pack_bytes"] + PACK_BYTES

    verify_all(client_tool("fio"), server, tmp_path)
    server.kill()
    server.start()
    verify_all(client_tool("fio"), server, tmp_path)
    server.run("volume", "delete", "busy", "--force")
    server.run("gc", "run")
    server.run("gc", "run")
    assert disk_usage(server.data / "packs") < LEFT_BYTES


def verify_all(fio: str, server: Daemon, folder: Path) -> None:
    """Write every block of `busy` once more and read it back."""
    output = run_tool(
        *(fio, "--name=all", "--ioengine=nbd", f"--uri={server.uri('busy')}", "--rw=write"),
        *("--bs=64k", "--iodepth=8", f"--size={BUSY_BYTES}", "--verify=crc32c"),
        *("--verify_fatal=1", "--output-format=json", f"--aux-path={folder}"),
    )
    assert json.loads(output[output.index("{") :])["jobs"][0]["error"] == 0


def disk_usage(folder: Path) -> int:
    """Bytes that the file system gave to the files in `folder`."""
    return sum(entry.stat().st_blocks * 512 for entry in os.scandir(folder))
