"""`blockd cluster status|create` and `blockd volume move` against a real control API."""

from dataclasses import replace

import pytest

from blockd.cli import exits
from blockd.cluster.making import CannotMake, choose_members
from blockd.cluster.volumes import CannotMove
from tests.command import Blockd
from tests.fake_cluster import FakeCluster
from tests.fake_node import FakeNode
from tests.fake_volumes import NODES, VOLUME, FakeVolumes, copy, silent
from volume.metastore_records import Mode


@pytest.fixture
def volumes(node: FakeNode) -> FakeVolumes:
    cluster = FakeCluster()
    node.cluster = cluster
    return cluster.volumes


def rows(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


def test_all_that_is_well_is_shown_in_two_tables(volumes: FakeVolumes, blockd: Blockd) -> None:
    done = blockd("cluster", "status")
    assert done.code == exits.OK
    shown = rows(done.out)
    assert shown[1] == ["n1", "aaaaaaaa", "connected", "0:01:01", "-"]
    assert shown[3][:4] == ["n3", "cccccccc", "not", "connected"]
    assert shown[-1] == ["vm1", "open", "n1", "4", "3", "3", "serving", "-"]


def test_what_nobody_could_say_is_unknown(volumes: FakeVolumes, blockd: Blockd) -> None:
    members = (copy(0), copy(1, behind=7), silent(2, "nothing accepts connections there"))
    problem = "not known: n3; behind: n2"
    volumes.shown = (replace(VOLUME, copies=1, members=members, problem=problem),)
    done = blockd("cluster", "status", "--copies")
    assert done.code == exits.FAILED
    first, second, third = rows(done.out)[-3:]
    assert first == ["vm1", "n1", "4", "120", "100", "0", "0.2s", "ago", "serving"]
    assert second[5:] == ["7", "0.2s", "ago", "behind"]
    assert third[2:7] == ["unknown"] * 5
    assert "not known: nothing accepts connections there" in done.out
    assert problem in done.out


def test_a_volume_without_a_primary_is_a_failure(volumes: FakeVolumes, blockd: Blockd) -> None:
    nobody = replace(VOLUME, primary=None, copies=None, problem="no member says that it serves it")
    volumes.shown = (nobody,)
    done = blockd("cluster", "status")
    assert done.code == exits.FAILED
    assert rows(done.out)[-1][:6] == ["vm1", "open", "unknown", "4", "unknown", "3"]
    (shown,) = blockd("cluster", "status", "--json").json["volumes"]
    assert (shown["primary"], shown["copies"]) == (None, None)


def test_a_metastore_that_cannot_be_read_is_said(volumes: FakeVolumes, blockd: Blockd) -> None:
    volumes.metastore = "no etcd answers"
    done = blockd("cluster", "status")
    assert done.code == exits.FAILED
    assert rows(done.out)[0] == ["metastore", "no", "etcd", "answers"]


def test_a_volume_is_made_with_more_than_half_as_its_quorum(
    volumes: FakeVolumes, blockd: Blockd
) -> None:
    done = blockd("cluster", "create", "vm2", "10G")
    assert done.out == "created volume vm2, 10 GiB, on n1, n2, n3\n"
    assert volumes.made == ("vm2", (10 << 30, 512, 65536), 3, 2, Mode.MIRROR)
    options = ("--replicas", "2", "--write-quorum", "2", "--acks", "strict", "--block-size", "4096")
    blockd("cluster", "create", "vm3", "1G", *options)
    assert volumes.made == ("vm3", (1 << 30, 4096, 65536), 2, 2, Mode.STRICT)


def test_what_cannot_be_made_or_moved_is_a_conflict(volumes: FakeVolumes, blockd: Blockd) -> None:
    volumes.error = CannotMake("volume vm2: 3 copies need 3 nodes")
    done = blockd("cluster", "create", "vm2", "1G")
    assert (done.code, "3 copies need 3 nodes" in done.err) == (exits.CONFLICT, True)
    volumes.error = CannotMove("volume vm1 stays where it is: node n2 is not in step")
    done = blockd("volume", "move", "vm1", "n2")
    assert (done.code, "not in step" in done.err) == (exits.CONFLICT, True)


def test_a_volume_is_moved(volumes: FakeVolumes, blockd: Blockd) -> None:
    done = blockd("volume", "move", "vm1", "n2")
    assert done.out == "volume vm1 is served by n2, after 71 ms\n"
    assert volumes.moved == ("vm1", "n2")


def test_a_daemon_by_itself_has_none_of_it(blockd: Blockd) -> None:
    for command in (("cluster", "status"), ("volume", "move", "a", "n2")):
        done = blockd(*command)
        assert done.code == exits.CONFLICT
        assert "in no cluster" in done.err


def test_members_are_this_node_and_others_that_can_be_reached() -> None:
    ids = [node for _, node in NODES]
    assert choose_members(ids[1], [ids[2], ids[0]], 3) == (ids[1], ids[0], ids[2])
    assert choose_members(ids[1], [ids[2], ids[0]], 1) == (ids[1],)
    with pytest.raises(CannotMake, match="2 can be reached"):
        choose_members(ids[1], [ids[0]], 3)
