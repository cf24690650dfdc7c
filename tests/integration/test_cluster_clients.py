"""NBD clients and iSCSI initiators of a volume on three real daemons follow it when it moves."""

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from blockd.iscsi.targets import IQN_PREFIX
from blockd.nbd import wire
from tests.clients import SYSTEM_PYTHON, FindTool, run_tool
from tests.cluster_daemons import Nodes
from tests.etcd_cluster import EtcdCluster, etcd_cluster
from tests.failover_rig import BLOCK, LOST, NAMES, SLOW_S, VOLUME, created, volume
from tests.integration.qemu import io
from tests.integration.test_iscsi_conformance import expected_skips, parts, run
from tests.libiscsi import (
    CHECK_CONDITION,
    GOOD,
    OPTIMIZED,
    RESERVATION_CONFLICT,
    STANDBY,
    STANDBY_STATE,
    STATE_CHANGED,
    TRANSITION,
    UNAVAILABLE,
    Answer,
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
REGISTER = bytes.fromhex("5f060000000000001800")  # and ignore an existing key
RESERVE_FOR_REGISTRANTS = "5f010500000000001800"  # WRITE EXCLUSIVE
PREEMPT_AND_ABORT = "5f050500000000001800"
SECTOR = 512
GUIDE = Path(__file__).parents[2] / "docs" / "nbd-guide.md"


@pytest.fixture(scope="module")
def etcd(client_tool: FindTool, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdCluster]:
    with etcd_cluster(client_tool("etcd"), tmp_path_factory.mktemp("etcd"), 1) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory, etcd: EtcdCluster) -> Iterator[Nodes]:
    """Three of them, with a volume that n1 serves to begin with."""
    folder = tmp_path_factory.mktemp("n")
    made = Nodes(folder, etcd, folder.name, options=("--iscsi", "127.0.0.1:0"))
    try:
        yield created(made)
    finally:
        made.close()


def ways(nodes: Nodes, at: str) -> dict[str, str]:
    return ways_to(nodes, VOLUME, at)


def ways_to(nodes: Nodes, name: str, at: str) -> dict[str, str]:
    if not nodes.daemons[at].running:
        return {}
    with nodes.daemons[at].control() as client:
        return {each.node: each.state for each in client.ways(name).ways}


def _all_ways_are_known(nodes: Nodes, name: str) -> None:
    """At each node, and one of them serves it."""
    for at in NAMES:
        until(
            lambda at=at: (  # type: ignore[misc]
                sorted(ways_to(nodes, name, at).values()) == ["serving", "standby", "standby"]
            ),
            f"{at} knows all ways to {name}",
            SLOW_S,
        )


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
    _all_ways_are_known(nodes, VOLUME)
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


@contextmanager
def another(nodes: Nodes, name: str, size: int) -> Iterator[str]:
    """One more volume, served by n1 to begin with, with the ways to it known."""
    nodes.daemons["n1"].run("cluster", "create", name, str(size), "--block-size", "512")
    _all_ways_are_known(nodes, name)
    yield name
    server = next(each for each in NAMES if ways_to(nodes, name, each).get(each) == "serving")
    nodes.daemons[server].run("volume", "delete", name, "--yes", "--force")


def test_every_conformance_suite_passes_on_three_nodes(nodes: Nodes, client_tool: FindTool) -> None:
    """libiscsi's, those of persistent reservations among them; but for the sanitize that has to
    take longer than its test, which is nothing of several nodes (test_iscsi_conformance.py)."""
    tool = client_tool("iscsi-test-cu")
    with another(nodes, "unit", 64 << 20) as name:
        url = nodes.daemons["n1"].iscsi_url(name)
        found = run(tool, "ALL.MultipathIO", url, url)
        for part in parts(tool):
            found |= run(tool, part, url)
    skipped = {test for test, (outcome, _) in found.items() if outcome == "skipped"}
    no_reserve = {test for test in found if test.startswith("Reserve6.")}
    no_reserve.add("Sanitize.Reservations")  # of RESERVE (6) as well
    assert len(no_reserve) > 1
    assert skipped == expected_skips().keys() | no_reserve, sorted(skipped)
    reserving = [test for test in found.keys() - skipped if test.startswith("Pr")]
    assert len(reserving) >= 20, sorted(reserving)


@pytest.mark.parametrize("image_format", ["raw", "qcow2"])
def test_qemu_writes_and_reads_over_both_protocols(
    nodes: Nodes, client_tool: FindTool, tmp_path: Path, image_format: str
) -> None:
    qemu_img, qemu_io = client_tool("qemu-img"), client_tool("qemu-io")
    raw, image, back = (tmp_path / each for each in ("raw", "image", "back"))
    raw.write_bytes(os.urandom(1 << 20) + bytes(3 << 20) + os.urandom(1 << 20))
    with another(nodes, image_format, 5 << 20) as name:  # not one that was deleted just now
        url = nodes.daemons["n1"].iscsi_url(name)
        uri = nodes.daemons["n1"].uri(name)
        run_tool(qemu_img, "convert", "-f", "raw", "-O", image_format, raw, image)
        run_tool(qemu_img, "convert", "-n", "-f", image_format, "-O", "raw", image, url)
        run_tool(qemu_img, "compare", "-f", "raw", "-F", "raw", raw, uri)
        io(qemu_io, uri, "write -P 7 64k 64k", "discard 1M 1M", "flush")
        io(qemu_io, url, "read -P 7 64k 64k", "read -P 0 1M 1M", "write -P 8 4M 4k", "flush")
        nodes.daemons["n1"].run("volume", "move", name, "n2")
        moved = nodes.daemons["n2"]
        io(qemu_io, moved.uri(name), "read -P 7 64k 64k", "read -P 8 4M 4k")
        run_tool(qemu_img, "convert", "-f", "raw", "-O", image_format, moved.uri(name), back)
        run_tool(
            *(qemu_img, "compare", "-f", image_format, "-F", "raw", back, moved.iscsi_url(name))
        )


class Host:
    """An initiator with a path to each node; its key is on all of them."""

    def __init__(self, nodes: Nodes, name: str, number: int) -> None:
        self._key = number.to_bytes(8, "big")
        initiator = f"iqn.2026-11.test:host{number}".encode()
        self.paths = {
            node: Session(nodes.daemons[node].iscsi_address, IQN_PREFIX + name, initiator=initiator)
            for node in NAMES
        }
        for path in self.paths.values():
            path.good(REGISTER, data=_list(bytes(8), self._key))

    def out(self, at: str, cdb: str, other: bytes = bytes(8)) -> None:
        self.paths[at].good(bytes.fromhex(cdb), data=_list(self._key, other))

    def writes(self, at: str) -> Answer:
        return self.paths[at].told(WRITE, data=b"w" * SECTOR)

    def writes_when_sure(self, at: str) -> Answer:
        """As initiators do: tried again while the node is still becoming the one that serves."""
        answers: list[Answer] = []

        def sure() -> bool:
            answers.append(self.writes(at))
            return answers[-1].sense != TRANSITION

        until(sure, f"{at} knows that it serves", SLOW_S)
        return answers[-1]

    def close(self) -> None:
        for path in self.paths.values():
            path.__exit__()


def _list(key: bytes, action_key: bytes) -> bytes:
    return key + action_key + bytes(8)


def _keys(session: Session) -> list[int]:
    data = session.good(bytes.fromhex("5e000000000000040000"), read=1024)
    return [int.from_bytes(data[at : at + 8], "big") for at in range(8, len(data), 8)]


def test_a_host_that_was_fenced_stays_so_when_the_node_that_did_it_dies(nodes: Nodes) -> None:
    hosts: list[Host] = []
    with another(nodes, "fenced", 8 << 20) as name:
        try:
            hosts += (Host(nodes, name, 1), Host(nodes, name, 2))
            one, two = hosts
            two.out("n1", RESERVE_FOR_REGISTRANTS)
            assert one.writes("n1").status == two.writes("n1").status == GOOD
            one.out("n1", PREEMPT_AND_ABORT, (2).to_bytes(8, "big"))
            assert two.writes("n1").status == RESERVATION_CONFLICT

            nodes.daemons["n1"].kill()
            heir = _heir(nodes, name)
            assert one.writes_when_sure(heir).status == GOOD
            assert two.writes_when_sure(heir).status == RESERVATION_CONFLICT
            assert _keys(one.paths[heir]) == [1, 1, 1]
            two.paths[heir].good(REGISTER, data=_list(bytes(8), (2).to_bytes(8, "big")))
            assert two.writes(heir).status == GOOD, "it may come back"

            nodes.start("n1")
            until(lambda: ways_to(nodes, name, "n1").get(heir) == "serving", "n1 follows", SLOW_S)
            with Session(nodes.daemons["n1"].iscsi_address, IQN_PREFIX + name) as back:
                assert _keys(back) == [1, 1, 1, 2]
        finally:
            for host in hosts:
                host.close()


def _heir(nodes: Nodes, name: str) -> str:
    def found() -> list[str]:
        return [at for at in ("n2", "n3") if ways_to(nodes, name, at).get(at) == "serving"]

    until(lambda: bool(found()), "another node serves it", SLOW_S)
    return found()[0]
