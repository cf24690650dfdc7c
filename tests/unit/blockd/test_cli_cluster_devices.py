"""`blockd cluster devices` and `blockd cluster device ...` against a real control API."""

from dataclasses import replace

import pytest

from blockd.cli import exits
from tests.command import Blockd
from tests.fake_cluster import D1, D2, DEVICES, FakeCluster, FakeDevices
from tests.fake_node import FakeNode
from transport.devicemap import WrongMap


@pytest.fixture
def devices(node: FakeNode) -> FakeDevices:
    cluster = FakeCluster()
    node.cluster = cluster
    return cluster.devices


def lines(text: str) -> list[str]:
    return [" ".join(line.split()) for line in text.splitlines()]


def test_devices_are_shown_with_what_is_on_them(devices: FakeDevices, blockd: Blockd) -> None:
    done = blockd("cluster", "devices")
    assert done.code == exits.OK
    shown = lines(done.out)
    assert shown[:3] == ["map 5", "stripes 7", "to move 7 shards, 7 MiB"]
    assert shown[-2:] == [
        "d1d1d1d1d1d1 n1 site/rack/n1 1 TiB in 7 7 MiB -",
        "d2d2d2d2d2d2 n2 site/rack/n2 1 TiB draining 7 7 MiB 7 (7 MiB)",
    ]
    assert blockd("cluster", "devices", "--json").json["devices"][1]["state"] == "draining"


def test_what_is_wrong_is_said_and_is_a_failure(devices: FakeDevices, blockd: Blockd) -> None:
    problems = ("7 stripes of 3 shards: 2 hosts have a device that is in, and 3 are needed",)
    devices.shown = replace(DEVICES, unreadable=2, problems=problems, problem="etcd: no answer")
    done = blockd("cluster", "devices")
    assert done.code == exits.FAILED
    assert "2 stripes have too few good shards" in done.out
    assert problems[0] in done.out
    assert "etcd: no answer" in done.out


@pytest.mark.parametrize("action", ["drain", "return", "fail", "remove"])
def test_each_act_is_asked_for(devices: FakeDevices, blockd: Blockd, action: str) -> None:
    assert blockd("cluster", "device", action, "n2").code == exits.OK
    assert devices.acts == [(action, "n2", None)]


def test_a_device_takes_the_place_of_another(devices: FakeDevices, blockd: Blockd) -> None:
    assert blockd("cluster", "device", "replace", "n2", "d3d3").code == exits.OK
    assert devices.acts == [("replace", "n2", "d3d3")]


def test_a_drain_is_waited_for(devices: FakeDevices, blockd: Blockd) -> None:
    empty = replace(D2, state="out", shards=0, shard_bytes=0, leaving=0, leaving_bytes=0)
    devices.shown = replace(DEVICES, moves=0, move_bytes=0, devices=(D1, empty))
    assert "out" in blockd("cluster", "device", "drain", "n2", "--wait").out


def test_what_cannot_be_is_a_conflict(devices: FakeDevices, blockd: Blockd) -> None:
    devices.error = WrongMap("device d2: is in; drain it first")
    done = blockd("cluster", "device", "remove", "n2")
    assert done.code == exits.CONFLICT
    assert "drain it first" in done.err
