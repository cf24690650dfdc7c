"""Clients of both protocols on one volume, killed servers, snapshots: what they saw is judged."""

import time
from pathlib import Path

from tests.check.events import Recorder
from tests.check.judge import judge_file
from tests.check.record import Addresses, Clients, Pace, read_whole
from tests.daemon import Daemon, StartDaemon

SIZE = 4 << 20
ROUNDS = 3
EACH = 600
"""Requests of a round."""


def addresses(server: Daemon) -> Addresses:
    host, port = server.iscsi_address.rsplit(":", 1)
    return Addresses(server.host_port, (host, int(port)))


def until(recorder: Recorder, count: int, clients: Clients) -> None:
    """Wait for so many more requests."""
    wanted = recorder.count + count
    deadline = time.monotonic() + 60
    while recorder.count < wanted and not clients.failures:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_what_clients_saw_over_kills_and_snapshots_is_legal(
    daemon: StartDaemon, tmp_path: Path
) -> None:
    server = daemon(listen=("--nbd", "127.0.0.1:0", "--iscsi", "127.0.0.1:0"))
    server.create("demo", SIZE)
    path = tmp_path / "history"
    with Recorder(path, "demo", SIZE) as recorder:
        clients = Clients(recorder, 5, Pace(5000), seed=1)
        try:
            for number in range(ROUNDS):
                name = f"at{number}"
                clients.go_on(addresses(server))
                until(recorder, EACH // 2, clients)
                recorder.naming(name)
                with server.control() as control:
                    control.create_snapshot(name, ["demo"])
                recorder.named(name)
                until(recorder, EACH // 2, clients)
                server.kill()
                clients.quiet()
                recorder.crash()
                server.start()
                recorder.restart()
                recorder.state(read_whole(server.host_port, "demo", SIZE, 1))
                recorder.state(read_whole(server.host_port, f"demo@{name}", SIZE, 1), name)
        finally:
            clients.stop()
        assert not clients.failures
    report = judge_file(path)
    assert report.ok, "\n".join(map(str, report.findings))
    assert report.total >= ROUNDS * EACH
    assert (report.crashes, report.states, report.failed) == (ROUNDS, 2 * ROUNDS, 0)
