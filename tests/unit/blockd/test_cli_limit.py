"""`blockd volume limit` against a real control API: changes, what is shown, what is refused."""

import pytest

from blockd.api.limit_types import PREFIX, VolumeLimits
from blockd.cli import exits
from tests.command import Blockd
from tests.fake_node import FakeNode, raw_client

GiB = 1 << 30
MIB = 1 << 20


@pytest.fixture(autouse=True)
def volume(node: FakeNode) -> None:
    node.store.create_volume("vm1", GiB)


def shown(blockd: Blockd, *options: str) -> str:
    return " ".join(blockd("volume", "limit", "vm1", *options).out.split())


def test_what_is_not_named_stays(node: FakeNode, blockd: Blockd) -> None:
    assert shown(blockd) == "limits none"
    assert shown(blockd, "--iops", "500") == "limits iops 500/s, burst 0.1 s"
    options = ("--bandwidth", "100MiB", "--read-iops", "40", "--burst-seconds", "2.5")
    assert shown(blockd, *options) == (
        "limits iops 500/s, bandwidth 100 MiB/s, read iops 40/s, burst 2.5 s"
    )
    assert node.rate_limits.get("vm1").limits == VolumeLimits(
        iops=500, bandwidth=100 * MIB, read_iops=40, burst_s=2.5
    )
    assert shown(blockd, "--iops", "0") == (
        "limits bandwidth 100 MiB/s, read iops 40/s, burst 2.5 s"
    )
    assert shown(blockd, "--none") == "limits none"
    assert node.rate_limits.get("vm1").limits == VolumeLimits()


def test_a_volume_shows_its_limits(blockd: Blockd) -> None:
    blockd("volume", "limit", "vm1", "--write-bandwidth", "1M")
    assert "write bandwidth 1 MiB/s, burst 0.1 s" in blockd("volume", "show", "vm1").out
    assert blockd("volume", "show", "vm1", "--json").json["limits"]["write_bandwidth"] == MIB


def test_programs_are_told_what_was_held_back(blockd: Blockd) -> None:
    told = blockd("volume", "limit", "vm1", "--iops", "5", "--json").json
    assert told["limits"]["iops"] == 5
    assert (told["held_requests"], told["held_s"], told["problem"]) == (0, 0.0, None)


def test_limits_that_cannot_be_read_are_told(node: FakeNode, blockd: Blockd) -> None:
    device = node.store.get("vm1")
    assert device is not None
    node.store.keep(PREFIX + device.volume_uuid.hex(), b"{")
    node.rate_limits = type(node.rate_limits)(node.store)
    assert shown(blockd).startswith("limits unreadable, so none; set them again (")
    assert "limits unreadable" in " ".join(blockd("volume", "show", "vm1").out.split())
    assert shown(blockd, "--iops", "5") == "limits iops 5/s, burst 0.1 s"


@pytest.mark.parametrize(
    "options",
    [
        ("--none", "--iops", "5"),
        ("--iops", "-5"),
        ("--bandwidth", "10MB"),
        ("--bandwidth", "fast"),
        ("--burst-seconds", "0"),
        ("--burst-seconds", "nan"),
        ("--iops", "10000000000000"),
    ],
)
def test_what_cannot_be_is_refused(
    node: FakeNode, blockd: Blockd, options: tuple[str, ...]
) -> None:
    refused = blockd("volume", "limit", "vm1", *options)
    assert (refused.code, refused.out) == (exits.USAGE, "")
    assert node.rate_limits.get("vm1").limits == VolumeLimits()


def test_a_volume_that_is_not_there_is_named(blockd: Blockd) -> None:
    for options in ((), ("--iops", "5"), ("--none",)):
        missing = blockd("volume", "limit", "vm2", *options)
        assert missing.code == exits.NOT_FOUND
        assert "vm2" in missing.err


def test_a_volume_that_is_deleted_takes_its_limits_along(node: FakeNode, blockd: Blockd) -> None:
    blockd("volume", "limit", "vm1", "--iops", "5")
    assert node.store.kept(PREFIX)
    blockd("volume", "delete", "vm1", "--yes")
    assert not node.store.kept(PREFIX)


@pytest.mark.parametrize(
    "body",
    [
        {"iops": -1},
        {"iops": 1.5},
        {"iops": "5"},
        {"iops": None},
        {"tokens": 5},
        {"burst_s": 0},
        {"burst_s": 3601},
        [],
        "all",
    ],
)
def test_the_api_refuses_what_it_does_not_know(node: FakeNode, body: object) -> None:
    with raw_client(node) as http:
        assert http.put("/v1/volumes/vm1/limits", json={"iops": 7}).status_code == 200
        assert http.put("/v1/volumes/vm1/limits", json=body).status_code == 422
        assert http.get("/v1/volumes/vm1/limits").json()["limits"]["iops"] == 7
        assert http.put("/v1/volumes/vm1/limits", json={}).json()["limits"]["iops"] == 0
