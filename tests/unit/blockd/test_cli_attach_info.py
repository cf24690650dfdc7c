"""`blockd volume attach-info` against a real control API."""

from tests.command import Blockd
from tests.fake_cluster import FakeCluster
from tests.fake_node import FakeNode


def lines(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


def test_a_volume_of_one_node_is_at_its_own_addresses(node: FakeNode, blockd: Blockd) -> None:
    node.store.create_volume("vm1", 1 << 20)
    shown = lines(blockd("volume", "attach-info", "vm1").out)
    assert shown[0] == ["NODE", "STATE", "ADDRESS"]
    assert all(each[:3] == ["this", "node", "serving"] for each in shown[1:])
    assert any("vm1" in each[-1] for each in shown[1:])


def test_one_of_several_is_at_all_of_them(node: FakeNode, blockd: Blockd) -> None:
    node.store.create_volume("vm1", 1 << 20)
    cluster = FakeCluster()
    node.cluster = cluster
    cluster.paths.are("unreachable", "serving", "changing")
    shown = lines(blockd("volume", "attach-info", "vm1").out)
    assert [each[:2] for each in shown if each[-1].startswith("nbd://")] == [
        ["n1", "unreachable"],
        ["n2", "serving"],
        ["n3", "changing"],
    ]
    assert ["n2", "serving", "nbd://10.0.0.2/vm1"] in shown
    found = blockd("volume", "attach-info", "vm1", "--json").json
    assert found["ways"][1]["nbd"] == ["10.0.0.2:10809"]
    assert found["ways"][1]["iscsi"] == ["10.0.0.2:3260,513"]


def test_a_volume_that_there_is_not_is_an_error(node: FakeNode, blockd: Blockd) -> None:
    done = blockd("volume", "attach-info", "none")
    assert done.code
    assert "none" in done.err
