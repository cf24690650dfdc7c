"""`blockd cluster status|create` and `blockd volume move` against a real control API."""

from dataclasses import replace
from typing import Any

import pytest

from blockd.api.cluster_types import StripeCount, StripeNodeInfo, StripesInfo
from blockd.cli import exits
from blockd.cluster.making import CannotMake, choose_members
from blockd.cluster.volumes import CannotMove
from tests.command import Blockd
from tests.fake_cluster import FakeCluster
from tests.fake_node import FakeNode
from tests.fake_volumes import NODES, VOLUME, FakeVolumes, copy, silent
from volume.metastore_records import Mode

NONE = StripeCount(0, 0)
WORK = StripeNodeInfo(
    *("1" * 32, "n1", True, "", 3.0, "move"),
    cold_bytes=3 << 20,
    cold_left_s=None,
    coming_bytes=1 << 20,
    coming_left_s=125.0,
    broken=0,
    broken_bytes=0,
    broken_left_s=0.0,
)
AWAY = StripeNodeInfo("2" * 32, "n2", False, "not connected", *(None,) * 9)
STRIPES = StripesInfo(
    listed_s=3.0,
    all=StripeCount(9, 9 << 20),
    shard_bytes=14 << 20,
    degraded=NONE,
    unreadable=NONE,
    lost=NONE,
    given_up=NONE,
    making=NONE,
    removing=NONE,
    moves=StripeCount(2, 1 << 20),
    rebuilds=NONE,
    cold_bytes=3 << 20,
    cold_left_s=None,
    shards_left_s=125.0,
    lost_packs=(),
    problems=(),
    nodes=(WORK, AWAY),
)


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
    late = replace(copy(1, behind=7), behind_bytes=4096, behind_s=12.0)
    members = (copy(0), late, silent(2, "nothing accepts connections there"))
    problem = "not known: n3; behind: n2"
    volumes.shown = (replace(VOLUME, copies=1, members=members, problem=problem),)
    done = blockd("cluster", "status", "--copies")
    assert done.code == exits.FAILED
    first, second, third = rows(done.out)[-3:]
    numbers = ["4", "120", "100", "0", "0", "B", "0.0", "s", "0.0", "s"]
    assert first == ["vm1", "n1", *numbers, "-", "serving"]
    assert second[5:] == ["7", "4", "KiB", "12.0", "s", "unknown", "0.2s", "ago", "behind"]
    assert third[2:9] == ["unknown"] * 7
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


def test_stripes_are_shown_with_what_is_left_to_do(volumes: FakeVolumes, blockd: Blockd) -> None:
    volumes.stripes = STRIPES
    done = blockd("cluster", "status")
    assert done.code == exits.OK
    assert "9 stripes, 9 MiB in 14 MiB of shards, 3.0 s ago" in done.out
    assert "2 shards, 1 MiB, all 0:02:05 left" in done.out
    assert "3 MiB cold, unknown left" in done.out
    assert "degraded" not in done.out
    n1, n2 = rows(done.out)[-2:]
    assert n1 == [
        *("n1", "move", "3", "MiB", "unknown", "1", "MiB", "0:02:05", "0"),
        "0.0",
        "s",
        "-",
    ]
    assert n2[:2] == ["n2", "unknown"]
    assert done.out.endswith("not known: not connected\n")
    shown = blockd("cluster", "status", "--json").json["stripes"]
    assert shown["all"] == {"stripes": 9, "bytes": 9 << 20}
    assert shown["cold_left_s"] is None


@pytest.mark.parametrize(
    ("more", "code"),
    [
        ({"degraded": StripeCount(1, 1)}, exits.FAILED),
        ({"unreadable": StripeCount(1, 1)}, exits.FAILED),
        ({"lost": StripeCount(2, 2), "given_up": StripeCount(1, 1)}, exits.FAILED),
        ({"lost": StripeCount(2, 2), "given_up": StripeCount(2, 2)}, exits.OK),
        ({"all": None, "listed_s": None, "lost": None}, exits.FAILED),
    ],
    ids=["degraded", "unreadable", "lost", "given up", "unknown"],
)
def test_stripes_that_are_not_whole_are_a_failure(
    volumes: FakeVolumes, blockd: Blockd, more: dict[str, Any], code: int
) -> None:
    volumes.stripes = replace(STRIPES, **more)
    done = blockd("cluster", "status")
    assert done.code == code
    words = [name.replace("_", " ") for name in more if name not in ("all", "listed_s")]
    for word in words if more.get("all", 1) else ["unknown: this node has not read"]:
        assert word in done.out


def test_without_stripes_nothing_is_said_of_them(volumes: FakeVolumes, blockd: Blockd) -> None:
    none = StripeCount(0, 0)
    volumes.stripes = replace(STRIPES, all=none, moves=none, rebuilds=none, cold_bytes=0)
    done = blockd("cluster", "status")
    assert (done.code, "stripes" in done.out) == (exits.OK, False)


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
