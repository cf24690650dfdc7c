"""Limits as real clients meet them, over NBD and iSCSI, in the request loop and in the engines.

However busy the machine is, a limited volume never does more than its limit says: so much is
demanded in seconds. That it does as much is demanded beside a neighbour only, who has the same
machine at the same time.
"""

import json
import signal
import socket
import struct
import subprocess
import time
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families as parse_text

from blockd.api.limit_types import VolumeLimits
from blockd.nbd import wire
from tests.clients import FindTool, run_tool
from tests.daemon import STORE, Daemon, StartDaemon
from tests.nbd_client import NbdClient, good_replies, in_transmission
from tests.peer_nodes import until

KIB = 1 << 10
MIB = 1 << 20
BLOCK = 4 * KIB
PROTOCOLS = ("nbd", "iscsi")
RATE = 150  # requests a second of a volume beside its neighbour
SECONDS = 2


@pytest.fixture(params=[2, 0], ids=["loop", "engines"])
def server(request: pytest.FixtureRequest, daemon: StartDaemon, tmp_path: Path) -> Daemon:
    config = tmp_path / "limits.toml"
    config.write_text(f"loop_threads = {request.param}\n[store]\n{STORE}")
    options = ("--volume", "demo=64M", "--volume", "other=64M", "--iscsi", "127.0.0.1:0")
    return daemon("--config", str(config), *options)


def url(server: Daemon, protocol: str, volume: str = "demo") -> str:
    return server.uri(volume) if protocol == "nbd" else server.iscsi_url(volume)


def limit(server: Daemon, volume: str = "demo", **limits: float) -> None:
    with server.control() as client:
        client.set_limits(volume, VolumeLimits(**limits))  # type: ignore[arg-type]


def bench(qemu_img: str, where: str, *options: str) -> float:
    """Seconds that qemu took, its start included."""
    began = time.monotonic()
    run_tool(qemu_img, "bench", "-f", "raw", "-t", "none", *options, where)
    return time.monotonic() - began


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_requests_take_the_time_that_their_limit_says(
    client_tool: FindTool, server: Daemon, protocol: str
) -> None:
    limit(server, iops=300, burst_s=0.1)
    for options in ((), ("-w",)):
        took_s = bench(
            client_tool("qemu-img"), url(server, protocol), "-c", "450", "-d", "16", *options
        )
        assert took_s >= (450 - 30 - 1) / 300


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_bytes_take_the_time_that_their_limit_says(
    client_tool: FindTool, server: Daemon, protocol: str
) -> None:
    limit(server, write_bandwidth=16 * MIB, burst_s=0.25)
    options = ("-c", "320", "-d", "8", "-s", "65536")
    took_s = bench(client_tool("qemu-img"), url(server, protocol), "-w", *options)
    assert took_s >= 320 / 256 - 0.25 - 1 / 256
    before = server.run_json("volume", "limit", "demo")
    bench(client_tool("qemu-img"), url(server, protocol), *options)
    assert server.run_json("volume", "limit", "demo") == before  # reads are not limited


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_burst_is_for_who_has_paused(
    client_tool: FindTool, server: Daemon, protocol: str
) -> None:
    limit(server, iops=20, burst_s=3600)
    bench(client_tool("qemu-img"), url(server, protocol), "-c", "2000", "-d", "32", "-w")
    with server.control() as client:
        assert client.limits("demo").held_requests == 0


def test_several_initiators_and_clients_share_a_limit(
    client_tool: FindTool, server: Daemon
) -> None:
    limit(server, iops=200, burst_s=0.1)
    began = time.monotonic()
    command = [client_tool("qemu-img"), "bench", "-f", "raw", "-t", "none", "-c", "100", "-d", "8"]
    running = [subprocess.Popen([*command, url(server, each)]) for each in PROTOCOLS * 2]
    assert [each.wait(60) for each in running] == [0] * 4
    assert time.monotonic() - began >= (400 - 20 - 4) / 200


def test_initiators_read_at_their_limit(client_tool: FindTool, server: Daemon) -> None:
    limit(server, read_iops=100, burst_s=0.1)
    began = time.monotonic()
    iscsi_perf = client_tool("iscsi-perf")
    run_tool(iscsi_perf, "-m", "16", "-b", "8", "-t", "2", "-r", server.iscsi_url())
    took_s = time.monotonic() - began
    (session_count,) = _counted(server, "blockd_requests_total", "iscsi", "read")
    assert session_count <= 100 * took_s + 10 + 1


def _counted(server: Daemon, name: str, protocol: str, op: str) -> list[float]:
    with server.control() as client:
        text = client.metrics()
    wanted = {"volume": "demo", "protocol": protocol, "op": op}
    return [
        sample.value
        for family in parse_text(text)
        for sample in family.samples
        if sample.name == name and sample.labels == wanted
    ]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_limit_that_is_taken_away_lets_everything_go(
    client_tool: FindTool, server: Daemon, protocol: str
) -> None:
    command = [client_tool("qemu-img"), "bench", "-f", "raw", "-t", "none", "-c", "500", "-d", "32"]
    for change in (("--bandwidth", "1G"), ("--none",)):
        limit(server, bandwidth=1)
        running = subprocess.Popen([*command, url(server, protocol)])
        until_held(server)
        server.run("volume", "limit", "demo", *change)
        assert running.wait(60) == 0


def pipelined(server: Daemon, count: int) -> NbdClient:
    """A client with that many writes on their way, each of its own byte."""
    client = in_transmission(server.address, "demo", "simple")
    for number in range(count):
        payload = bytes([number + 1]) * BLOCK
        client.send_request(wire.CMD_WRITE, number * BLOCK, BLOCK, payload=payload)
    return client


def until_held(server: Daemon) -> None:
    with server.control() as client:
        until(lambda: client.limits("demo").waiting > 0, "something waits")


def test_a_server_that_stops_finishes_what_waits(server: Daemon) -> None:
    limit(server, bandwidth=1)
    with pipelined(server, 8) as client:
        assert client.read_reply().error == 0
        until_held(server)
        assert server.stop() == 0
        answered = 1 + good_replies(client)
        assert answered >= 2  # one waited; others may not have been received
    server.start()
    server.run("volume", "limit", "demo", "--none")
    with in_transmission(server.address, "demo", "simple") as client:
        for number in range(answered):
            assert client.read(number * BLOCK, BLOCK) == bytes([number + 1]) * BLOCK


def test_limits_outlive_the_process(server: Daemon) -> None:
    server.run("volume", "limit", "demo", "--iops", "7", "--bandwidth", "100MiB")
    server.run("volume", "rename", "demo", "renamed")
    server.end(signal.SIGKILL)
    server.start()
    told = server.run_json("volume", "limit", "renamed")
    assert (told["limits"]["iops"], told["limits"]["bandwidth"]) == (7, 100 * MIB)


def test_a_client_that_is_gone_leaves_the_line(server: Daemon) -> None:
    """Reset, as by a host that has crashed and is back: nothing of it waits any more."""
    limit(server, bandwidth=1)
    client = pipelined(server, 8)
    assert client.read_reply().error == 0
    until_held(server)
    client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
    until(lambda: not server.run_json("client", "list")["connections"], "it is gone")
    server.run("volume", "limit", "demo", "--none")
    with in_transmission(server.address, "demo", "simple") as other:
        assert other.read(0, BLOCK) == b"\1" * BLOCK
        assert other.read(BLOCK, 7 * BLOCK) == bytes(7 * BLOCK)


def test_a_flush_is_nobody_elses_to_wait_for(server: Daemon) -> None:
    limit(server, bandwidth=1)
    with pipelined(server, 4) as writer:
        assert writer.read_reply().error == 0
        until_held(server)
        with in_transmission(server.address, "demo", "simple") as other:
            other.flush()  # does not wait for what the first one has in line
        writer.send_request(wire.CMD_FLUSH)
        limit(server)
        assert [writer.read_reply().error for _ in range(4)] == [0] * 4


def test_a_noisy_volume_leaves_its_neighbour_within_a_tenth(
    client_tool: FindTool, server: Daemon
) -> None:
    """The noisy one asks for far more than its limit, in large writes; its neighbour gets nine
    tenths of its own limit, or of what the noisy one gets of the same one, where the machine cannot
    do that much. Something else may upset a measurement of two seconds, but not all of them."""
    limit(server, iops=RATE, burst_s=0.1)
    limit(server, "other", iops=RATE, burst_s=0.1)
    shares: list[float] = []
    while len(shares) < 5 and max(shares, default=0) < 0.9:
        noisy, quiet = side_by_side(client_tool("fio"), server)
        shares.append(quiet / min(noisy, RATE * SECONDS))
    assert max(shares) >= 0.9, shares


def side_by_side(fio: str, server: Daemon) -> tuple[int, int]:
    """Requests of a noisy client and of a quiet one; neither gets more than its limit."""
    began = time.monotonic()
    output = run_tool(
        fio,
        *(
            "--ioengine=nbd",
            "--time_based",
            f"--runtime={SECONDS}",
            "--output-format=json",
            "--size=64m",
        ),
        *("--name=noisy", f"--uri={server.uri()}", "--rw=randwrite", "--bs=64k", "--iodepth=64"),
        *("--name=quiet", f"--uri={server.uri('other')}", "--rw=randread", "--bs=4k"),
        "--iodepth=8",
    )
    took_s = time.monotonic() - began
    noisy, quiet = json.loads(output[output.index("{") :])["jobs"]
    assert (noisy["error"], quiet["error"]) == (0, 0)
    counts = noisy["write"]["total_ios"], quiet["read"]["total_ios"]
    for count in counts:
        assert count <= RATE * took_s + RATE // 10 + 1
    return counts
