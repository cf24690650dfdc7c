"""The control API over its socket: statuses, bodies, bounds."""

import asyncio
import json
import logging
import os
import signal
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from blockd.api.app import MAX_BODY_BYTES, create_app
from blockd.api.client import ApiError, Client, NoDaemon
from blockd.api.errors import HTTP_STATUS
from blockd.api.server import HttpServer
from blockd.api.types import ConnectionInfo, from_json
from blockd.sockets import CONTROL, ListenError, UnixListener
from tests.fake_node import VERSION, FakeNode, raw_client, serving
from volume import errors
from volume.errors import NoSuchVolume, OutOfSpace, ReplicaError, StoreSealed, VolumeError

GiB = 1 << 30


@pytest.fixture
def http(node: FakeNode) -> Iterator[httpx.Client]:
    with raw_client(node) as client:
        yield client


def error_of(response: httpx.Response) -> tuple[int, str]:
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"code", "message"}
    assert body["error"]["message"]
    return response.status_code, body["error"]["code"]


def test_a_volume_lives_through_the_api(http: httpx.Client) -> None:
    made = http.post("/v1/volumes", json={"name": "vm1", "size": GiB, "block_size": 512})
    assert made.status_code == 201
    assert made.json()["size"] == GiB
    assert made.json()["block_size"] == 512
    assert http.get("/v1/volumes").json() == [made.json()]

    grown = http.patch("/v1/volumes/vm1", json={"size": 2 * GiB})
    assert (grown.status_code, grown.json()["size"]) == (200, 2 * GiB)
    renamed = http.patch("/v1/volumes/vm1", json={"name": "vm2"})
    assert (renamed.status_code, renamed.json()["name"]) == (200, "vm2")
    assert http.get("/v1/volumes/vm2").json() == renamed.json()

    assert http.delete("/v1/volumes/vm2").status_code == 204
    assert http.get("/v1/volumes").json() == []


def test_store_errors_have_their_own_status(node: FakeNode, http: httpx.Client) -> None:
    node.store.create_volume("a", GiB)
    node.store.create_volume("b", GiB)
    node.store.attach("a", "127.0.0.1:5000")

    assert error_of(http.get("/v1/volumes/x")) == (404, "no_such_volume")
    body = {"name": "a", "size": GiB}
    assert error_of(http.post("/v1/volumes", json=body)) == (409, "volume_exists")
    assert error_of(http.delete("/v1/volumes/a")) == (409, "volume_busy")
    assert error_of(http.patch("/v1/volumes/a", json={"name": "b"})) == (409, "volume_exists")
    assert error_of(http.patch("/v1/volumes/b", json={"size": 4096})) == (409, "shrink_refused")
    assert error_of(http.patch("/v1/volumes/b", json={"size": 5})) == (422, "invalid_size")
    assert error_of(http.patch("/v1/volumes/b", json={"name": "-"})) == (422, "invalid_name")


def test_force_deletes_what_is_attached(node: FakeNode, http: httpx.Client) -> None:
    node.store.create_volume("a", GiB)
    node.store.attach("a", "127.0.0.1:5000")
    assert http.delete("/v1/volumes/a", params={"force": "true"}).status_code == 204


def test_force_shrinks(node: FakeNode, http: httpx.Client) -> None:
    node.store.create_volume("a", GiB)
    answer = http.patch("/v1/volumes/a", json={"size": 4096, "force": True})
    assert answer.json()["size"] == 4096


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (OutOfSpace("no space"), 507, "out_of_space"),
        (StoreSealed("fdatasync: EIO"), 503, "store_sealed"),
        (errors.CorruptChunk("chunk 3f"), 500, "corrupt_chunk"),
        (OSError(5, "Input/output error"), 500, "io_error"),
        (ZeroDivisionError("a bug"), 500, "internal_error"),
    ],
)
def test_failures_keep_their_code(
    node: FakeNode, http: httpx.Client, error: Exception, status: int, code: str
) -> None:
    node.store.fail_with = error
    assert error_of(http.get("/v1/volumes")) == (status, code)
    assert http.get("/v1/volumes").status_code == 200


def test_a_bug_is_logged_once_and_not_told(
    node: FakeNode, http: httpx.Client, caplog: pytest.LogCaptureFixture
) -> None:
    node.store.fail_with = ZeroDivisionError("a secret")
    assert "secret" not in http.get("/v1/volumes").text
    assert [record.getMessage() for record in caplog.records if record.exc_info] == [
        "request crashed"
    ]


def test_every_error_of_the_volume_layer_has_a_status() -> None:
    def codes(cls: type[VolumeError]) -> set[str]:
        return {cls.code}.union(*(codes(child) for child in cls.__subclasses__()))

    faults = {"volume_error", "unknown_format", *codes(ReplicaError)}  # those are for nodes
    faults |= {code for code in codes(VolumeError) if code.startswith("corrupt")}
    assert codes(VolumeError) - faults <= set(HTTP_STATUS)


@pytest.mark.parametrize(
    "body",
    [
        {"name": "a"},
        {"name": "a", "size": "1"},
        {"name": "a", "size": 1.5},
        {"name": "a", "size": True},
        {"name": 1, "size": 4096},
        {"name": "a", "size": 4096, "sise": 1},
        [],
    ],
)
def test_wrong_bodies_are_refused(http: httpx.Client, body: object) -> None:
    assert error_of(http.post("/v1/volumes", json=body)) == (422, "invalid_request")


@pytest.mark.parametrize("body", [{}, {"size": 1, "name": "b"}, {"name": "b", "force": True}])
def test_a_change_is_one_change(node: FakeNode, http: httpx.Client, body: dict[str, Any]) -> None:
    node.store.create_volume("a", GiB)
    assert error_of(http.patch("/v1/volumes/a", json=body)) == (422, "invalid_request")


def test_what_is_wrong_is_named(http: httpx.Client) -> None:
    answer = http.post("/v1/volumes", json={"name": "a", "size": "big", "colour": 1})
    message = answer.json()["error"]["message"]
    assert "size: " in message
    assert "colour: " in message


def test_broken_json_is_refused(http: httpx.Client) -> None:
    headers = {"content-type": "application/json"}
    answer = http.post("/v1/volumes", content=b"{", headers=headers)
    assert error_of(answer) == (422, "invalid_request")


def test_unknown_paths_and_methods(http: httpx.Client) -> None:
    assert error_of(http.get("/v1/nothing")) == (404, "not_found")
    assert error_of(http.put("/v1/volumes")) == (405, "method_not_allowed")


def test_a_long_body_is_refused(http: httpx.Client) -> None:
    content = json.dumps({"name": "a" * MAX_BODY_BYTES, "size": 1})
    assert error_of(http.post("/v1/volumes", content=content)) == (413, "body_too_large")


def test_a_long_body_without_length_is_refused(http: httpx.Client) -> None:
    pieces = (b"x" * 1024 for _ in range(MAX_BODY_BYTES // 1024 + 1))
    assert error_of(http.post("/v1/volumes", content=pieces)) == (413, "body_too_large")


def test_status_holds_node_and_store(node: FakeNode, http: httpx.Client) -> None:
    node.store.create_volume("a", GiB)
    status = http.get("/v1/status").json()
    assert status["version"] == VERSION
    assert status["nbd"] == ["127.0.0.1:10809", "/run/nbd.sock"]
    assert status["store"]["volume_count"] == 1


def test_health_follows_the_store(node: FakeNode, http: httpx.Client) -> None:
    assert http.get("/v1/health").json() == {"healthy": True, "state": "ok", "reason": None}
    node.store.state = "full"
    assert http.get("/v1/health").status_code == 200
    node.store.state = "sealed"
    sealed = http.get("/v1/health")
    assert sealed.status_code == 503
    assert sealed.json()["healthy"] is False


def test_connections_are_listed(node: FakeNode) -> None:
    node.clients = [connection()]
    with Client(node.control) as client:
        assert client.connections() == node.clients


def test_the_description_names_every_route(http: httpx.Client) -> None:
    paths = http.get("/v1/openapi.json").json()["paths"]
    assert set(paths) == {
        "/v1/sessions",
        "/v1/volumes/{name}/ways",
        "/v1/targets",
        "/v1/targets/{name}",
        "/v1/targets/{name}/acl",
        "/v1/targets/{name}/chap",
        "/v1/targets/{name}/luns",
        "/v1/targets/{name}/luns/{lun}",
        "/v1/volumes",
        "/v1/volumes/{name}",
        "/v1/volumes/{name}/limits",
        "/v1/volumes/{name}/access",
        "/v1/volumes/{volume}/snapshots/{name}",
        "/v1/volumes/{volume}/schedule",
        "/v1/volumes/{volume}/log",
        "/v1/volumes/{volume}/history",
        "/v1/volumes/{volume}/restore",
        "/v1/snapshots",
        "/v1/clones",
        "/v1/diff",
        "/v1/space",
        "/v1/gc",
        "/v1/scrub",
        "/v1/scrub/hit",
        "/v1/stream",
        "/v1/receive",
        "/v1/meta-backup",
        "/v1/receive/{name}",
        "/v1/status",
        "/v1/health",
        "/v1/connections",
        "/v1/clients",
        "/v1/clients/{client_id}",
        "/v1/cluster",
        "/v1/cluster/tokens",
        "/v1/cluster/nodes/{name}",
        "/v1/cluster/nodes/{name}/drain",
        "/v1/cluster/status",
        "/v1/cluster/devices",
        "/v1/cluster/stripes/lost",
        "/v1/cluster/stripes/give-up",
        "/v1/cluster/stripes/rebuild-rows",
        "/v1/cluster/volumes",
        "/v1/cluster/volumes/{name}/move",
        "/v1/cluster/volumes/{name}/members",
    }


def test_the_client_gives_what_the_store_has(node: FakeNode) -> None:
    with Client(node.control) as client:
        made = client.create_volume("a:b", GiB, block_size=512, chunk_size=4096)
        assert made == node.store.info("a:b")
        assert client.volume("a:b") == made
        assert client.status().store == node.store.status()
        client.delete_volume("a:b")
        assert client.volumes() == []


def test_the_client_raises_the_daemons_code(node: FakeNode) -> None:
    with Client(node.control) as client, pytest.raises(ApiError, match="volume x") as caught:
        client.volume("x")
    assert caught.value.code == "no_such_volume"


@pytest.mark.parametrize("name", ["", ".", "..", "a/b"])
def test_names_that_no_path_carries_are_not_there(node: FakeNode, name: str) -> None:
    with Client(node.control) as client, pytest.raises(NoSuchVolume):
        client.delete_volume(name)


def test_odd_names_reach_the_daemon_whole(node: FakeNode) -> None:
    with Client(node.control) as client, pytest.raises(ApiError, match=r"volume a\?b#c %41"):
        client.volume("a?b#c %41")


def test_no_daemon_is_told_apart(tmp_path: Path) -> None:
    with pytest.raises(NoDaemon, match="blockd serve"):
        Client(tmp_path / "x")


# httpcore leaves the socket that failed to connect to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_daemon_that_went_away_is_noticed(socket_dir: Path) -> None:
    node = FakeNode(socket_dir / "s")
    with serving(node):
        client = Client(node.control)
    with client, pytest.raises(NoDaemon):
        client.volumes()


def test_an_older_daemon_is_named() -> None:
    with pytest.raises(ValueError, match="lacks 'peer'"):
        from_json(ConnectionInfo, {})


def test_the_socket_is_private(node: FakeNode) -> None:
    assert stat.S_IMODE(node.control.stat().st_mode) == 0o600


def test_a_live_socket_is_left_alone(node: FakeNode) -> None:
    with pytest.raises(ListenError, match=r"control socket .*: another server answers"):
        UnixListener(node.control, use=CONTROL)
    with Client(node.control) as client:
        assert client.volumes() == []


def test_who_changes_something_is_in_the_log(
    node: FakeNode, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "blockd.api.app"), Client(node.control) as client:
        client.create_volume("a", 1 << 20)
        client.volumes()
        with pytest.raises(ApiError):
            client.delete_volume("b")
        client.volumes()  # the line comes right behind the answer
    told = [
        (record.__dict__["method"], record.__dict__["path"], record.__dict__["status"])
        for record in caplog.records
        if record.message == "control request"
    ]
    assert told == [("POST", "/v1/volumes", 201), ("DELETE", "/v1/volumes/b", 404)]
    peers = {record.__dict__["peer"] for record in caplog.records if "peer" in record.__dict__}
    assert peers == {f"unix:pid={os.getpid()},uid={os.getuid()}"}


def test_the_server_leaves_signals_alone(socket_dir: Path) -> None:
    async def handlers() -> tuple[object, object]:
        node = FakeNode(socket_dir / "s")
        listener = UnixListener(node.control, use=CONTROL)
        server = HttpServer(create_app(node, VERSION), [listener.sock], "control API")
        before = signal.getsignal(signal.SIGTERM)
        await server.start()
        during = signal.getsignal(signal.SIGTERM)
        await server.stop()
        return before, during

    before, during = asyncio.run(handlers())
    assert before is during


def connection() -> ConnectionInfo:
    return ConnectionInfo(
        peer="127.0.0.1:5000",
        export="a",
        tls=True,
        names=("vm-host-1",),
        age_s=12.5,
        in_flight=3,
        read_count=1,
        read_bytes=4096,
        write_count=2,
        write_bytes=8192,
        error_count=0,
    )


def test_two_servers_cannot_share_a_node(node: FakeNode) -> None:
    other = FakeNode(node.control)
    with pytest.raises(AssertionError, match="another server answers"), serving(other):
        pass
