"""NBD clients and iSCSI initiators of a volume on three real daemons follow it when it moves."""

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from blockd.iscsi.targets import IQN_PREFIX
from blockd.nbd import wire
from tests.clients import SYSTEM_PYTHON, FindTool, run_tool
from tests.cluster_daemons import Nodes
from tests.etcd_cluster import EtcdCluster, etcd_cluster
from tests.failover_rig import BLOCK, LOST, NAMES, SLOW_S, VOLUME, created, volume
from tests.libiscsi import (
    CHECK_CONDITION,
    GOOD,
    OPTIMIZED,
    STANDBY,
    STANDBY_STATE,
    STATE_CHANGED,
    TRANSITION,
    UNAVAILABLE,
    Gone,
    Group,
    Session,
)
from tests.nbd_client import NbdClient, OptionError
from tests.peer_nodes import until

TARGET = IQN_PREFIX + VOLUME
READ = bytes.fromhex("280000 0007d0 00000100")  # a block behind those of the NBD client
WRITE = bytes.fromhex("2a0000 0007d0 00000100")
READY = bytes(6)
SECTOR = 512
GUIDE = Path(__file__).parents[2] / "docs" / "nbd-guide.md"


@pytest.fixture(scope="module")
def etcd(client_tool: FindTool, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdCluster]:
    with etcd_cluster(client_tool("etcd"), tmp_path_factory.mktemp("etcd"), 1) as cluster:
        yield cluster


@pytest.fixture
def nodes(tmp_path_factory: pytest.TempPathFactory, etcd: EtcdCluster) -> Iterator[Nodes]:
    """Three of them, with a volume that n1 serves."""
    folder = tmp_path_factory.mktemp("n")
    made = Nodes(folder, etcd, folder.name, options=("--iscsi", "127.0.0.1:0"))
    try:
        yield created(made)
    finally:
        made.close()


def ways(nodes: Nodes, at: str) -> dict[str, str]:
    with nodes.daemons[at].control() as client:
        return {each.node: each.state for each in client.ways(VOLUME).ways}


def uris(nodes: Nodes) -> list[str]:
    """Of NBD, as `attach-info` prints them."""
    text = nodes.daemons["n2"].run("volume", "attach-info", VOLUME).decode()
    return re.findall(r"nbd://\S+", text)


class Follower:
    """The recipe of the NBD guide, which writes numbers until it is interrupted."""

    def __init__(self, *uris: str) -> None:
        [script] = re.findall(r"```python\n(# follow\.py.*?)```", GUIDE.read_text(), re.DOTALL)
        self._process = subprocess.Popen(
            [SYSTEM_PYTHON, "-c", script, *uris],
            stdout=subprocess.PIPE,
            text=True,
        )

    def lines(self, count: int) -> list[str]:
        assert self._process.stdout is not None
        return [self._process.stdout.readline().strip() for _ in range(count)]

    def end(self) -> str:
        self._process.send_signal(signal.SIGINT)
        out, _ = self._process.communicate(timeout=SLOW_S)
        assert self._process.returncode == 0
        return out


def test_dead_nodes_volume_moves_and_the_ghost_is_fenced(nodes: Nodes) -> None:
    addresses = {name: nodes.daemons[name].iscsi_address for name in NAMES}
    until(lambda: set(ways(nodes, "n2").values()) == {"serving", "standby"}, "all ways are known")
    until(lambda: len(ways(nodes, "n2")) == 3, "all ways are known")
    listed = run_tool("iscsi-ls", f"iscsi://{addresses['n2']}/")
    assert all(address in listed for address in addresses.values()), listed
    sessions = {name: Session(addresses[name], TARGET) for name in NAMES}
    try:
        _same_disk_by_three_ways(sessions)
        with pytest.raises(OptionError) as refused:
            _go(nodes, "n2")
        assert refused.value.reply == wire.REP_ERR_SHUTDOWN
        served_at = nodes.daemons["n1"].address
        assert str(refused.value).endswith(f"volume vm1 is served by n1 at {served_at}")

        follower = Follower(*uris(nodes))
        follower.lines(5)
        sessions["n1"].good(WRITE, data=b"1" * SECTOR)
        os.kill(nodes.daemons["n1"].pid, signal.SIGSTOP)
        stopped = time.monotonic()
        try:
            name = _followed(sessions, "n2", "n3")
            print(f"an initiator found the other way {time.monotonic() - stopped:.2f} s later")
            assert sessions[name].good(READ, read=SECTOR)[:1] == b"1"
            found = [each.state for each in sessions[name].groups().values()]
            assert found.count(UNAVAILABLE) == 1, "the way to the stopped node"
            follower.lines(5)
            ghost = _asked_the_ghost(nodes)
        finally:
            os.kill(nodes.daemons["n1"].pid, signal.SIGCONT)
        with ghost, pytest.raises(LOST):
            ghost.go_reply()
        _ghost_is_standby(sessions["n1"], addresses["n1"])
        assert follower.end().strip().endswith("all there")
        until(lambda: volume(nodes, name)["copies"] == 3, "n1 follows", SLOW_S)
        until(lambda: ways(nodes, "n1")[name] == "serving", "n1 knows who serves it", SLOW_S)
        text = nodes.daemons[name].address
        with pytest.raises(OptionError, match=f"served by {name} at {text}"):
            _go(nodes, "n1")
    finally:
        for session in sessions.values():
            session.__exit__()


def _same_disk_by_three_ways(sessions: dict[str, Session]) -> None:
    pages = {name: each.designators() for name, each in sessions.items()}
    for kind in ((0, 3), (0, 1)):  # NAA, T10: of the unit
        assert len({page[kind] for page in pages.values()}) == 1
    numbers = {name: int.from_bytes(page[1, 5], "big") for name, page in pages.items()}
    ports = {name: int.from_bytes(page[1, 4], "big") for name, page in pages.items()}
    assert len(set(numbers.values())) == len(set(ports.values())) == 3
    for session in sessions.values():
        assert session.groups() == {
            numbers[name]: Group(OPTIMIZED if name == "n1" else STANDBY_STATE, (ports[name],))
            for name in NAMES
        }
    assert sessions["n1"].run(READY).status == GOOD
    for name in ("n2", "n3"):
        for cdb in (READY, READ, WRITE):
            answer = sessions[name].run(cdb, read=SECTOR * (cdb is READ), data=b"")
            assert (answer.status, answer.sense) == (CHECK_CONDITION, STANDBY)


def _go(nodes: Nodes, name: str) -> None:
    with NbdClient(nodes.daemons[name].host_port) as client:
        client.greet()
        client.go(VOLUME)


def _followed(sessions: dict[str, Session], *names: str) -> str:
    """What an initiator does: it asks each way for the states, and writes by the good one."""
    told = dict.fromkeys(names, False)
    deadline = time.monotonic() + SLOW_S
    while time.monotonic() < deadline:
        for name in names:
            answer = sessions[name].run(WRITE, data=b"1" * SECTOR)
            if answer.status == GOOD:
                assert told[name], "its session was not told that something has changed"
                states = sessions[name].groups()
                assert sorted(each.state for each in states.values()).count(OPTIMIZED) == 1
                return name
            assert answer.sense in (STANDBY, TRANSITION, STATE_CHANGED), answer
            told[name] |= answer.sense == STATE_CHANGED
        time.sleep(0.05)
    raise AssertionError("nobody serves it")


class _Ghost:
    """A client whose login waits in the sockets of a stopped server."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.client = NbdClient(address, timeout_s=SLOW_S)

    def __enter__(self) -> "_Ghost":
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()

    def go_reply(self) -> None:
        self.client.greet()
        self.client.go(VOLUME)
        self.client.read(0, BLOCK)


def _asked_the_ghost(nodes: Nodes) -> _Ghost:
    return _Ghost(nodes.daemons["n1"].host_port)


def _ghost_is_standby(old: Session, portal: str) -> None:
    """Sessions from before, and those that come, are told the truth, and nothing old."""

    def settled() -> bool:
        try:
            with Session(portal, TARGET) as new:
                fresh = new.run(READ, read=SECTOR)
        except Gone:  # it does not know yet what it is
            return False
        assert fresh.status != GOOD, "a ghost answered a read"
        return fresh.sense == STANDBY

    answer = old.run(READ, read=SECTOR)
    assert answer.status != GOOD, "a ghost answered a read"
    until(settled, "the ghost knows that it is one", SLOW_S)
    until(lambda: old.run(READY).sense == STANDBY, "so does an old session", SLOW_S)
