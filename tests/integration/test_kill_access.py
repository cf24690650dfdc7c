"""kill -9 wherever a volume with an access list comes into being: it has the list, or is not."""

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from blockd.access.rules import Rule
from blockd.api.client import ApiError
from tests.clients import FindTool, finish_tool
from tests.daemon import Daemon
from volume.sites import FAIL_POINT

MiB = 1 << 20
RULE = Rule(address="192.0.2.0/24")
POINTS = (
    ("kept.write.before", 1),  # of the list for the name
    ("kept.write.after", 1),
    ("volume.create.before", 1),
    ("volume.create.after", 1),
    ("clone.made", 1),
    ("kept.write.before", 2),  # of the list for the uuid
    ("kept.write.after", 2),
    ("kept.delete.before", 1),  # of the first
    ("kept.delete.after", 1),
)
BEFORE_IT_IS_THERE = POINTS[:3]
WAYS = [
    *(("clone", *point) for point in POINTS),
    *(("closed", *point) for point in (POINTS[1], POINTS[3])),  # the same code does it
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory with volume vm1, which has a list, and its snapshot; all points have their turn
    on it."""
    data = tmp_path_factory.mktemp("d") / "data"
    server = Daemon(data)
    server.start()
    server.create("vm1", MiB)
    with server.control() as client:
        client.create_snapshot("monday", ["vm1"])
        client.set_access("vm1", [RULE])
    assert server.stop() == 0  # what a clone is made of is destaged
    yield data
    server.discard()


def attaches(nbdinfo: str, server: Daemon, volume: str) -> bool:
    return finish_tool(nbdinfo, "--size", server.uri(volume)).returncode == 0


@pytest.mark.parametrize(("way", "point", "nth"), WAYS)
def test_a_new_volume_is_never_open(
    data: Path, client_tool: FindTool, way: str, point: str, nth: int
) -> None:
    nbdinfo = client_tool("nbdinfo")
    dying = Daemon(data, environ={FAIL_POINT: f"{point}:{nth}"})
    dying.start()
    try:
        with dying.control() as client:
            ways: dict[str, Callable[[], object]] = {
                "clone": lambda: client.clone_volume("vm1@monday", "copy"),
                "closed": lambda: client.create_volume("copy", MiB, closed=True),
            }
            with pytest.raises(ApiError, match="disconnected without an answer"):
                ways[way]()
        assert dying.wait() == -signal.SIGKILL
    finally:
        dying.discard()

    after = Daemon(data)
    after.start()
    try:
        with after.control() as client:
            there = "copy" in [volume.name for volume in client.volumes()]
            assert there is ((point, nth) not in BEFORE_IT_IS_THERE)
            if there:
                rules = client.access("copy").rules
                assert rules == ((RULE,) if way == "clone" else ())
                assert not attaches(nbdinfo, after, "copy")
                client.delete_volume("copy")
            client.create_volume("copy", MiB)
            assert attaches(nbdinfo, after, "copy"), "what was kept for the name is left over"
            client.delete_volume("copy")
        assert after.stop() == 0
    finally:
        after.discard()
