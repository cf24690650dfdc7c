"""Snapshots, versions and space over the control API's socket: statuses, bodies, long answers."""

import asyncio
import json
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import cast

import httpx
import pytest

from blockd.api.client import ApiError, Client
from blockd.api.streaming import SLICE_COUNT, streamed_list, streamed_object
from blockd.api.threads import LongCalls
from blockd.api.types import from_json
from blockd.device import BlockDevice
from tests.fake_cluster import FakeCluster
from tests.fake_node import FakeNode, raw_client
from volume.errors import NoSuchVersion
from volume.model import SnapshotInfo, SpaceReport, SpaceRow, VersionInfo, VersionLog, VolumeInfo

GiB = 1 << 30


@pytest.fixture
def http(node: FakeNode) -> Iterator[httpx.Client]:
    node.store.create_volume("a", GiB)
    node.store.create_volume("b", GiB)
    with raw_client(node, "http://blockd/v1") as client:
        yield client


def error_of(response: httpx.Response) -> tuple[int, str]:
    return response.status_code, response.json()["error"]["code"]


def test_a_snapshot_lives_through_the_api(http: httpx.Client) -> None:
    made = http.post("/snapshots", json={"name": "one", "volumes": ["a", "b"]})
    assert made.status_code == 201
    assert [each["volume"] for each in made.json()] == ["a", "b"]
    assert http.get("/snapshots").json() == made.json()
    path = "/volumes/a/snapshots/one"
    assert http.get(path).json() == made.json()[0]

    pinned = http.patch(path, json={"pinned": True})
    assert (pinned.status_code, pinned.json()["pinned"]) == (200, True)
    assert error_of(http.delete(path)) == (409, "snapshot_pinned")
    assert http.delete(path, params={"force": "true"}).status_code == 204
    assert error_of(http.get(path)) == (404, "no_such_version")
    assert http.get("/snapshots", params={"volume": "a"}).json() == []


def test_answers_say_how_long_the_daemon_took(http: httpx.Client) -> None:
    made = http.post("/snapshots", json={"name": "one", "volumes": ["a"]})
    timing = made.headers["server-timing"]
    durations = dict(entry.strip().split(";dur=") for entry in timing.split(","))
    assert 0.0 <= float(durations["create"]) <= float(durations["app"])
    assert http.get("/snapshots").headers["server-timing"].startswith("app;dur=")


def test_a_snapshot_that_would_wait_is_made_on_a_thread(node: FakeNode, http: httpx.Client) -> None:
    node.store.snapshots.busy = True
    made = http.post("/snapshots", json={"name": "one", "volumes": ["a"]})
    assert made.status_code == 201
    assert [info["name"] for info in http.get("/snapshots").json()] == ["one"]


def test_version_errors_have_their_own_status(http: httpx.Client) -> None:
    body = {"name": "one", "volumes": ["a"]}
    http.post("/snapshots", json=body)
    assert error_of(http.post("/snapshots", json=body)) == (409, "snapshot_exists")
    assert error_of(http.post("/snapshots", json={**body, "name": "-"})) == (422, "invalid_name")
    assert error_of(http.delete("/volumes/a")) == (409, "volume_has_snapshots")
    schedule = {"every_s": 60, "keep": "7x"}
    assert error_of(http.put("/volumes/a/schedule", json=schedule)) == (422, "invalid_policy")
    assert error_of(http.get("/diff", params={"old": "a", "new": "a@x"}))[0] == 404
    assert error_of(http.get("/snapshots", params={"volume": "x"})) == (404, "no_such_volume")


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/snapshots", {"name": "x", "volumes": []}),
        ("POST", "/snapshots", {"name": "x", "volumes": ["a"] * 1025}),
        ("POST", "/snapshots", {"name": "x", "volumes": "a"}),
        ("POST", "/snapshots", {"name": "x", "volumes": ["a"], "pined": True}),
        ("PATCH", "/volumes/a/snapshots/x", {"pinned": 1}),
        ("PUT", "/volumes/a/schedule", {"every_s": "15m", "keep": ""}),
        ("PATCH", "/volumes/a/history", {"window": 1}),
        ("POST", "/volumes/a/restore", {}),
        ("POST", "/clones", {"source": "a"}),
        ("POST", "/volumes", {"name": "c", "size": 4096, "compression": "rar"}),
        ("GET", "/volumes/a/log?limit=0", None),
        ("GET", "/volumes/a/log?limit=100001", None),
        ("GET", "/snapshots?limit=-1", None),
        ("GET", "/diff?old=a", None),
    ],
)
def test_wrong_requests_are_refused(
    http: httpx.Client, method: str, path: str, body: object
) -> None:
    answer = http.request(method, path, json=body) if body is not None else http.get(path)
    assert error_of(answer) == (422, "invalid_request")


def test_a_failure_before_a_long_answer_keeps_its_status(
    node: FakeNode, http: httpx.Client
) -> None:
    node.store.fail_with = OSError(5, "Input/output error")
    assert error_of(http.get("/space")) == (500, "io_error")


def test_refs_survive_the_way(node: FakeNode) -> None:
    node.store.create_volume("a:b", GiB)
    with Client(node.control) as client:
        client.create_snapshot("x.y_z-1", ["a:b"])
        assert client.snapshot("a:b", "x.y_z-1").volume == "a:b"
        assert client.clone_volume("a:b@x.y_z-1", "c").name == "c"
        with pytest.raises(ApiError, match=r"version a:b@2026-11-22T09:31:05Z: there is none"):
            client.diff("a:b@2026-11-22T10:31:05+01:00", "a:b")


@pytest.mark.parametrize("name", ["", ".", "..", "a/b"])
def test_snapshots_that_no_path_carries_are_not_there(node: FakeNode, name: str) -> None:
    with Client(node.control) as client, pytest.raises(NoSuchVersion):
        client.delete_snapshot("a", name)


def test_snapshots_are_found_by_prefix(node: FakeNode, http: httpx.Client) -> None:
    for name in ("daily-1", "weekly-1", "daily-2"):
        node.store.snapshots.create(name, ["a", "b"])
    found = http.get("/snapshots", params={"volume": "a", "prefix": "daily", "limit": 1}).json()
    assert [each["name"] for each in found] == ["daily-2"]


def test_a_diff_counts_what_it_leaves_out(node: FakeNode, http: httpx.Client) -> None:
    node.store.versions.extents = ((0, 65536), (131072, 65536))
    found = http.get("/diff", params={"old": "a", "new": "b", "limit": 1}).json()
    assert found["extents"] == [[0, 65536]]
    assert (found["extent_count"], found["changed_bytes"]) == (2, 131072)


def test_the_daemon_answers_others_during_a_long_answer(node: FakeNode, http: httpx.Client) -> None:
    first = node.store.snapshots.create("0", ["a"])[0]
    for number in range(1, 20 * SLICE_COUNT):
        node.store.snapshots.put(replace(first, name=f"{number:0128}"))
    with http.stream("GET", "/snapshots") as slow:
        pieces = slow.iter_bytes(1000)
        begin = next(pieces)
        with Client(node.control) as other:  # the rest of it waits in the daemon meanwhile
            assert len(other.volumes()) == 2
        whole = json.loads(begin + b"".join(pieces))
    assert len(whole) == 20 * SLICE_COUNT


def body_of(response: object) -> object:
    async def read() -> bytes:
        return b"".join([bytes(piece) async for piece in response.body_iterator])  # type: ignore[attr-defined]

    return json.loads(asyncio.run(read()))


@pytest.mark.parametrize("count", [0, 1, SLICE_COUNT, SLICE_COUNT + 1, 3 * SLICE_COUNT])
def test_slices_make_one_document(count: int) -> None:
    snapshots = [
        SnapshotInfo("a", str(number), number, 1, GiB, number, None, False, True)
        for number in range(count)
    ]
    assert body_of(streamed_list(snapshots, SnapshotInfo)) == [asdict(each) for each in snapshots]


def version(seq: int) -> VersionInfo:
    return VersionInfo(seq, 1, seq, "commit", GiB, 65536, None, "c0", ("x", "y"))


@pytest.mark.parametrize("count", [0, 1, SLICE_COUNT + 1])
def test_a_long_field_makes_one_document(count: int) -> None:
    log = VersionLog("a", tuple(version(seq) for seq in range(count)), True, 7)
    assert from_json(VersionLog, body_of(streamed_object(log, "versions"))) == log  # type: ignore[arg-type]


def test_nested_values_come_back_as_they_were() -> None:
    row = SpaceRow("a", "head", None, 1, 2, 3, 4, 5, ("head", "pin"))
    report = SpaceReport((row, row), (("a", 4), ("b", 5)), 1, 2, 3, 4, 5)
    plain = json.loads(json.dumps(asdict(report)))
    again = from_json(SpaceReport, plain)
    assert again.rows == report.rows
    assert [tuple(each) for each in again.volumes] == list(report.volumes)


def test_an_optional_object_may_be_null() -> None:
    assert from_json(_Outer, {"inner": None, "names": []}) == _Outer(None, ())
    assert from_json(_Outer, {"inner": {"x": 1}, "names": ["a"]}) == _Outer(_Inner(1), ("a",))
    with pytest.raises(ValueError, match="lacks 'x'"):
        from_json(_Outer, {"inner": {}, "names": []})


@dataclass(frozen=True)
class _Inner:
    x: int


@dataclass(frozen=True)
class _Outer:
    inner: _Inner | None
    names: tuple[str, ...]


def test_long_calls_take_turns() -> None:
    running, worst = 0, 0
    lock = threading.Lock()
    pair = threading.Barrier(2)

    def call() -> None:
        nonlocal running, worst
        with lock:
            running += 1
            worst = max(worst, running)
        pair.wait(60)
        with lock:
            running -= 1

    async def many() -> None:
        long = LongCalls(2)
        await asyncio.gather(*(long(call) for _ in range(6)))

    asyncio.run(many())
    assert (worst, running) == (2, 0)


def test_a_clone_on_several_nodes_has_its_access_list_before_it_has_anything_to_read(
    node: FakeNode, http: httpx.Client
) -> None:
    node.cluster = cluster = FakeCluster()
    versions, access = node.store.versions, node.access
    begun: list[tuple[str, str]] = []

    def create_like(source: str, name: str, sizes: tuple[int, int, int]) -> bool:
        if source == "a":
            node.store.create_volume(name, sizes[0])
        return source == "a"

    def begin_as(name: str, source: str) -> VolumeInfo:
        assert access.list_of(cast(BlockDevice, node.store.get(name))) == wanted
        begun.append((name, source))
        return node.store.info(name)

    cluster.volumes.create_like = create_like  # type: ignore[method-assign]
    versions.begin_as = begin_as  # type: ignore[method-assign]
    rule = {"read_only": True}
    assert http.put("/volumes/a/access", json={"rules": [rule]}).status_code < 300
    wanted = access.list_of(cast(BlockDevice, node.store.get("a")))
    assert wanted is not None
    assert http.post("/snapshots", json={"name": "one", "volumes": ["a", "b"]}).status_code == 201
    made = http.post("/clones", json={"source": "a@one", "name": "c"})
    assert (made.status_code, made.json()["name"], begun) == (201, "c", [("c", "a@one")])
    for body in ({"source": "b@one", "name": "d"}, {"source": "a@one", "name": "e", "alone": True}):
        assert http.post("/clones", json=body).status_code == 201
    assert begun == [("c", "a@one")]  # these are of this node alone


@pytest.mark.parametrize("other", ["size", "rules"])
def test_a_clone_is_not_made_of_an_empty_volume_that_is_there_for_something_else(
    node: FakeNode, http: httpx.Client, other: str
) -> None:
    node.cluster = cluster = FakeCluster()
    cluster.volumes.create_like = lambda *_: True  # type: ignore[method-assign]
    node.store.versions.begin_as = fail  # type: ignore[method-assign]
    size = node.store.info("a").size
    node.store.create_volume("mine", size * 2 if other == "size" else size)
    assert http.put("/volumes/a/access", json={"rules": [{"read_only": True}]}).status_code < 300
    if other == "rules":
        assert http.put("/volumes/mine/access", json={"rules": []}).status_code < 300
    mine = cast(BlockDevice, node.store.get("mine"))
    before = node.access.list_of(mine)
    assert http.post("/snapshots", json={"name": "one", "volumes": ["a"]}).status_code == 201
    refused = http.post("/clones", json={"source": "a@one", "name": "mine"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "volume_exists")
    assert node.access.list_of(mine) == before


def fail(name: str, source: str) -> VolumeInfo:
    raise AssertionError(f"{name} has begun as {source}")
