"""One life of the daemon: start, readiness, reload, signals, drain. The store is in memory, the
listener is real where clients matter and scripted where the order of a stop does."""

import asyncio
import json
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from blockd import daemon, logs, systemd, wiring
from blockd.access.book import Everybody
from blockd.api.client import Client
from blockd.api.iscsi_types import SessionInfo
from blockd.api.node import Store
from blockd.api.types import ConnectionInfo
from blockd.certificates import Certificate
from blockd.config import (
    ControlConfig,
    ExportConfig,
    IscsiConfig,
    LogConfig,
    LogLevel,
    NbdConfig,
    PortalAddress,
    ServeConfig,
    TcpAddress,
    TlsConfig,
)
from blockd.control import HttpSide
from blockd.daemon import ClusterNode, Daemon, Parts
from blockd.iscsi.targets import Credentials
from blockd.nbd.access import ExportPolicy
from blockd.paths import Paths
from blockd.ready import Ready
from blockd.registry import stored
from blockd.sockets import ListenError
from blockd.toml_decode import ConfigError
from tests import aio
from tests.fake_store import FakeStore
from volume.errors import DirectoryLocked

GiB = 1 << 30
PORTAL = PortalAddress(TcpAddress("127.0.0.1", 3260))


class ScriptedListener:
    """Stops only when told to hurry, or at once; keeps what happened, in order."""

    def __init__(self, events: list[str]) -> None:
        self.events = events
        self.addresses: list[str] = []
        self.stays_until_hurried = False
        self.bind_error: Exception | None = None
        self.start_error: Exception | None = None
        self.reload_error: Exception | None = None
        self.tls: list[Certificate] = []
        self.looks = 0
        self._hurried = asyncio.Event()

    async def bind(self) -> None:
        if self.bind_error:
            raise self.bind_error
        self.events.append("listener bound")

    def unbind(self) -> None:
        self.events.append("listener released")

    async def start(self) -> None:
        if self.start_error:
            raise self.start_error
        self.events.append("listener started")
        self.addresses = ["127.0.0.1:4000"]

    def follow(self, paths: Paths) -> None:
        raise AssertionError("a node by itself has no other ways")

    async def stop(self, drain_s: float) -> None:
        self.events.append(f"listener stopping in {drain_s}")
        if drain_s == 0.0:
            self._hurried.set()
        elif self.stays_until_hurried:
            await self._hurried.wait()

    @property
    def client_count(self) -> int:
        return 0

    def connections(self) -> list[ConnectionInfo]:
        return []

    async def disconnect_id(self, client_id: str) -> bool | None:
        return None

    def certificates(self) -> list[Certificate]:
        self.looks += 1
        return self.tls

    async def bar(self) -> list[str]:
        return []

    def reload_tls(self) -> None:
        if self.reload_error:
            raise self.reload_error
        self.events.append("tls reloaded")


class ScriptedIscsi(ScriptedListener):
    """Says nothing of itself as long as no portal is configured."""

    def __init__(self, events: list[str], config: ServeConfig) -> None:
        super().__init__(events)
        self.portals = [(str(each.address), 1) for each in config.iscsi.listen]

    async def bind(self) -> None:
        pass

    def unbind(self) -> None:
        pass

    async def start(self) -> None:
        self.addresses = [address for address, _ in self.portals]

    def paths_changed(self) -> None:
        raise AssertionError("a node by itself has no other ways")

    async def stop(self, drain_s: float) -> None:
        if self.portals:
            self.events.append(f"iscsi stopping in {drain_s}")

    def sessions(self) -> list[SessionInfo]:
        return []


class Stage:
    """Everything around a daemon under test. `during` runs in a thread while it serves."""

    def __init__(self, folder: Path) -> None:
        self.config = ServeConfig(data=folder / "data")
        self.reloaded = self.config
        self.store = FakeStore()
        self.events: list[str] = []
        self.ready: list[Ready] = []
        self.ready_file = folder / "ready.json"
        self.listener: ScriptedListener | None = None
        self.prepare: Callable[[ScriptedListener], None] = lambda listener: None
        self.prepare_iscsi: Callable[[ScriptedIscsi], None] = lambda listener: None
        self.open_error: Exception | None = None

    def run(self, during: Callable[[], None] = lambda: None) -> None:
        """One life; ends by SIGTERM after `during`, unless that sent a signal itself."""
        aio.run(self._run(during))

    async def _run(self, during: Callable[[], None]) -> None:
        def announce(ready: Ready) -> None:
            self.ready.append(ready)
            announced.set()

        async def act() -> None:
            await announced.wait()
            await asyncio.to_thread(during)
            if not self.stopping:
                self.signal(signal.SIGTERM)

        self.stopping = False
        announced = asyncio.Event()
        parts = Parts(
            open_store=self._open,
            open_targets=wiring.open_targets,
            make_listener=self._listen,
            make_iscsi=self._listen_iscsi,
            make_cluster=self._join,
            reload=lambda: self.reloaded,
            announce=announce,
            ready_file=self.ready_file,
        )
        actor = asyncio.create_task(act())
        try:
            await Daemon(self.config, parts).run()
        finally:
            announced.set()
            self.stopping = True
            await actor

    def _open(self, config: ServeConfig, scheduler: object) -> FakeStore:
        if self.open_error:
            raise self.open_error
        return self.store

    def _join(self, config: ServeConfig, store: Store, version: str) -> ClusterNode | None:
        self.events.append("cluster")
        return wiring.make_cluster(config, store, version)

    def _listen_iscsi(self, config: ServeConfig, *parts: object) -> ScriptedIscsi:
        iscsi = ScriptedIscsi(self.events, config)
        self.prepare_iscsi(iscsi)
        return iscsi

    def _listen(self, *parts: object) -> ScriptedListener:
        self.listener = ScriptedListener(self.events)
        self.prepare(self.listener)
        return self.listener

    def signal(self, number: signal.Signals) -> None:
        self.stopping = self.stopping or number != signal.SIGHUP
        os.kill(os.getpid(), number)

    def client(self) -> Client:
        return Client(Path(self.ready[0].control))


@pytest.fixture
def stage(socket_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    for name in ("NOTIFY_SOCKET", "LISTEN_FDS"):
        monkeypatch.delenv(name, raising=False)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    root = logging.getLogger()
    kept, level = root.handlers[:], root.level
    yield Stage(socket_dir)
    root.handlers[:] = kept
    root.setLevel(level)
    logging.captureWarnings(False)
    for number, handler in handlers.items():
        signal.signal(number, handler)


def test_it_says_where_it_listens_once_it_does(stage: Stage) -> None:
    stage.store.create_volume("a", GiB)
    stage.run()
    data = str(stage.config.data)
    control = f"{data}/control.sock"
    address = "127.0.0.1:4000"
    assert stage.ready == [
        Ready(data, (address,), (), control, "off", (("a", GiB),), auto_targets=True)
    ]


def test_the_ready_file_is_there_while_it_serves(stage: Stage) -> None:
    seen: list[dict[str, object]] = []
    stage.run(lambda: seen.append(json.loads(stage.ready_file.read_text())))
    assert seen[0] == {
        "data": str(stage.config.data),
        "nbd": ["127.0.0.1:4000"],
        "iscsi": [],
        "control": str(stage.config.control_socket),
        "tls": "off",
        "volumes": {},
        "auto_targets": True,
        "iscsi_chap": False,
        "metrics": [],
        "peers": [],
        "pid": os.getpid(),
    }
    assert not stage.ready_file.exists()


def test_missing_volumes_are_made_and_present_ones_kept(stage: Stage) -> None:
    stage.store.create_volume("old", GiB)
    stage.config = replace(stage.config, volumes={"old": 2 * GiB, "new": 3 * GiB})
    stage.run()
    assert stage.ready[0].volumes == (("new", 3 * GiB), ("old", GiB))


def test_the_control_api_answers_for_the_node(stage: Stage) -> None:
    def during() -> None:
        with stage.client() as client:
            client.create_volume("a", GiB)
            status = client.status()
            assert status.nbd == ("127.0.0.1:4000",)
            assert status.pid == os.getpid()
            assert client.connections() == []

    stage.run(during)
    assert stage.store.names() == ["a"]


def test_volumes_are_served_before_the_control_api_is_loaded(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = HttpSide.start

    async def started(side: HttpSide, *parts: Any) -> None:
        stage.events.append("control API")
        await start(side, *parts)

    monkeypatch.setattr(HttpSide, "start", started)
    stage.run()
    assert stage.events[2:4] == ["listener started", "control API"]


def test_a_start_loads_what_serves_volumes_first() -> None:
    heavy = ("fastapi", "pydantic", "starlette", "uvicorn", "prometheus_client", "cryptography")
    code = (
        "import sys, blockd.daemon, blockd.wiring, blockd.privileges;"
        f"print([each for each in {heavy} if each in sys.modules])"
    )
    run = [sys.executable, "-c", code]
    assert subprocess.check_output(run, text=True, timeout=60) == "[]\n"


def test_a_stop_drains_closes_the_store_and_leaves_no_socket(stage: Stage) -> None:
    stage.run()
    assert stage.events == [
        *("listener bound", "cluster", "listener started", "listener stopping in 10.0"),
        "listener released",
    ]
    assert stage.store.closed
    assert not stage.config.control_socket.exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_cuts_the_drain_short(stage: Stage, number: signal.Signals) -> None:
    def stay(listener: ScriptedListener) -> None:
        listener.stays_until_hurried = True
        stop = listener.stop

        async def stop_and_signal(drain_s: float) -> None:
            if drain_s:
                stage.signal(number)
            await stop(drain_s)

        listener.stop = stop_and_signal  # type: ignore[method-assign]

    stage.prepare = stay
    stage.run(lambda: stage.signal(number))
    assert stage.events[3:5] == ["listener stopping in 10.0", "listener stopping in 0.0"]
    assert stage.store.closed


def test_a_listener_that_cannot_start_closes_the_store(stage: Stage) -> None:
    def refuse(listener: ScriptedListener) -> None:
        listener.start_error = ListenError("nbd address 127.0.0.1:1: in use")

    stage.prepare = refuse
    with pytest.raises(ListenError):
        stage.run()
    assert stage.store.closed
    assert stage.ready == []
    assert not stage.config.control_socket.exists()


def test_no_volume_is_taken_over_where_clients_cannot_connect(stage: Stage) -> None:
    def refuse(listener: ScriptedListener) -> None:
        listener.bind_error = ListenError("nbd address 127.0.0.1:1: in use")

    stage.prepare = refuse
    with pytest.raises(ListenError):
        stage.run()
    assert "cluster" not in stage.events


def test_no_volume_is_taken_over_by_a_node_that_cannot_be_controlled(stage: Stage) -> None:
    stage.config.data.mkdir()
    stage.config.control_socket.write_text("precious")
    with pytest.raises(ListenError):
        stage.run()
    assert "cluster" not in stage.events


def test_a_locked_directory_is_passed_on(stage: Stage) -> None:
    stage.open_error = DirectoryLocked("/data", "process 1")
    with pytest.raises(DirectoryLocked):
        stage.run()


def test_a_data_directory_that_cannot_be_made_is_named(stage: Stage, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    stage.config = replace(stage.config, data=tmp_path / "file" / "data")
    with pytest.raises(ConfigError, match=r"file/data: Not a directory; .* --data"):
        stage.run()


def test_a_control_socket_in_use_stops_the_start(stage: Stage, socket_dir: Path) -> None:
    path = socket_dir / "taken"
    stage.config = replace(stage.config, control=ControlConfig(socket=path))
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        with pytest.raises(ListenError, match=r"control socket .*: another server answers"):
            stage.run()
    assert path.exists()
    assert stage.store.closed


def on_hangup(stage: Stage) -> Callable[[], None]:
    """Send SIGHUP and come back when it was acted upon."""

    def during() -> None:
        stage.signal(signal.SIGHUP)
        with stage.client() as client:  # answered by the same loop, after the signal
            client.status()
            client.status()

    return during


def test_hangup_reloads_tls_and_log_settings(stage: Stage) -> None:
    stage.reloaded = replace(stage.config, log=LogConfig(level=LogLevel.ERROR))
    stage.run(on_hangup(stage))
    assert "tls reloaded" in stage.events
    assert logging.getLogger().level == logging.ERROR


def ends_in(days: float) -> Certificate:
    return Certificate("server", Path("/etc/cert.pem"), datetime.now(UTC) + timedelta(days=days))


def test_certificates_that_end_are_warned_of_at_the_start_and_after_a_reload(
    stage: Stage, capfd: pytest.CaptureFixture[str]
) -> None:
    stage.prepare = lambda listener: listener.tls.append(ends_in(10.5))
    logs.setup(stage.config.log)
    stage.run(on_hangup(stage))
    told = [line for line in capfd.readouterr().err.splitlines() if "certificate" in line]
    assert len(told) == 2
    for line in told:
        assert " warning blockd.certificates " in line
        assert "listener=nbd use=server file=/etc/cert.pem" in line
        assert line.endswith("days_left=10")


def test_certificates_are_looked_at_again_and_again(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemon, "CERTIFICATES_EVERY_S", 0.0)  # each turn of the loop is a day
    stage.run(on_hangup(stage))
    assert stage.listener
    assert stage.listener.looks > 3


def test_hangup_names_what_needs_a_restart(stage: Stage, capfd: pytest.CaptureFixture[str]) -> None:
    stage.reloaded = replace(stage.config, drain_s=1.0, volumes={"x": GiB})
    stage.run(on_hangup(stage))
    assert "settings need a restart changed=drain_s,volumes" in capfd.readouterr().err
    assert stage.events[-2:] == ["listener stopping in 10.0", "listener released"]


def test_a_bad_file_at_hangup_changes_nothing(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    stage.reloaded = replace(stage.config, tls=TlsConfig(key=Path("k")))
    stage.run(on_hangup(stage))
    assert "tls reloaded" not in stage.events
    assert "reload failed, the old settings stay" in caplog.messages


def test_unusable_tls_files_at_hangup_keep_the_daemon_up(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(listener: ScriptedListener) -> None:
        listener.reload_error = ConfigError("tls: broken")

    stage.prepare = refuse
    stage.run(on_hangup(stage))
    assert "reload failed, the old settings stay" in caplog.messages
    assert stage.events[-2:] == ["listener stopping in 10.0", "listener released"]


def test_systemd_is_told(stage: Stage, socket_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(socket_dir / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(path)
        manager.settimeout(10)
        stage.run(on_hangup(stage))
        messages = [manager.recv(1024).decode().split("\n")[0] for _ in range(4)]
    assert messages == ["READY=1", "RELOADING=1", "READY=1", "STOPPING=1"]


def test_a_watchdog_hears_that_the_loop_turns(
    stage: Stage, socket_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(socket_dir / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", path)
    monkeypatch.setenv("WATCHDOG_USEC", "60000000")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(path)
        manager.settimeout(10)
        stage.run()
        assert manager.recv(1024) == b"WATCHDOG=1"


def test_clients_on_the_network_in_plain_text_are_warned_of(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    nbd = NbdConfig(listen=(TcpAddress("0.0.0.0", 0),), insecure=True)
    stage.config = replace(stage.config, nbd=nbd)
    stage.run()
    assert "nbd in plain text on the network" in caplog.messages


@pytest.mark.parametrize(("name", "protocol"), [("nbd", "nbd"), ("iscsi", "iscsi")])
def test_a_passed_socket_on_the_network_needs_authentication_as_well(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, name: str, protocol: str
) -> None:
    with socket.create_server(("0.0.0.0", 0)) as sock:
        passed = systemd.Passed(**{name: [sock]})
        monkeypatch.setattr(systemd, "take_sockets", lambda *_: passed)
        with pytest.raises(ConfigError, match=rf"{protocol}: 0\.0\.0\.0:\d+ can be reached"):
            stage.run()
    assert stage.events == []


def test_policies_follow_the_configuration() -> None:
    policies = wiring.ConfiguredPolicies({"a": ExportConfig(True, ("host1",), True)})
    assert policies.policy("a") == ExportPolicy(True, ("host1",), True)
    assert policies.policy("b") == ExportPolicy()


def test_a_portal_that_cannot_be_bound_stops_what_had_begun(stage: Stage) -> None:
    async def fail() -> None:
        raise ListenError("iscsi address 127.0.0.1:3260: Address already in use")

    def prepare(iscsi: ScriptedIscsi) -> None:
        iscsi.start = fail  # type: ignore[method-assign]

    stage.prepare_iscsi = prepare
    stage.config = replace(stage.config, iscsi=IscsiConfig(listen=(PORTAL,)))
    with pytest.raises(ListenError):
        stage.run()
    assert stage.events == [
        *("listener bound", "cluster", "listener started", "listener stopping in 10.0"),
        "listener released",
    ]


def test_portals_are_told_and_drained_with_the_listener(stage: Stage) -> None:
    stage.config = replace(stage.config, iscsi=IscsiConfig(listen=(PORTAL,)))
    stage.run()
    assert stage.ready[0].iscsi == ("127.0.0.1:3260",)
    assert stage.events[3:5] == ["listener stopping in 10.0", "iscsi stopping in 10.0"]


def test_targets_are_those_that_were_kept(stage: Stage) -> None:
    stage.store.keep(
        "iscsi/target/iqn.2026-11.io.blockd:t",
        stored.created("iqn.2026-11.io.blockd:t", "", None).encode(),
    )
    found: list[str] = []

    def look() -> None:
        with Client(stage.config.control_socket) as client:
            found.extend(target.name for target in client.targets())

    stage.run(look)
    assert found == ["iqn.2026-11.io.blockd:t"]


def test_a_portal_of_the_service_manager_must_be_one_that_may_be_served(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("0.0.0.0", 0)) as passed:
        monkeypatch.setattr(systemd, "take_sockets", lambda *_: systemd.Passed(iscsi=[passed]))
        with pytest.raises(ConfigError, match="--iscsi-chap"):
            stage.run()


def test_chap_users_come_from_their_files(tmp_path: Path) -> None:
    users, own = tmp_path / "users", tmp_path / "own"
    users.write_text("host1:correct horse\n")
    own.write_text("blockd:battery staple\n")
    for path in (users, own):
        path.chmod(0o600)
    config = ServeConfig(iscsi=IscsiConfig(chap=users, mutual_chap=own))
    access = wiring.open_targets(config, FakeStore()).discovery
    assert access.chap == (Credentials("host1", b"correct horse"),)
    assert access.mutual == Credentials("blockd", b"battery staple")


def test_the_real_portal_takes_the_settings() -> None:
    portal = PortalAddress(TcpAddress("127.0.0.1", 0))
    config = ServeConfig(iscsi=IscsiConfig(listen=(portal,)))

    async def life() -> list[str]:
        targets = wiring.open_targets(config, FakeStore())
        listener = wiring.make_iscsi(config, targets, Everybody(), [])
        await listener.start()
        addresses = listener.addresses
        await listener.stop(0.0)
        return addresses

    [address] = aio.run(life())
    assert address.startswith("127.0.0.1:")


def test_the_real_listener_takes_the_settings(socket_dir: Path) -> None:
    nbd = NbdConfig(listen=(TcpAddress("127.0.0.1", 0),))
    config = ServeConfig(data=socket_dir, nbd=nbd)

    async def life() -> list[str]:
        listener = wiring.make_listener(config, FakeStore(), Everybody(), [])
        await listener.start()
        addresses = listener.addresses
        await listener.stop(0.0)
        return addresses

    tcp, unix = aio.run(life())
    assert tcp.startswith("127.0.0.1:")
    assert not tcp.endswith(":0")
    assert unix == str(socket_dir / "nbd.sock")


def test_sockets_of_the_service_manager_replace_configured_ones(socket_dir: Path) -> None:
    async def life(adopted: socket.socket) -> list[str]:
        config = ServeConfig(data=socket_dir)
        listener = wiring.make_listener(config, FakeStore(), Everybody(), [adopted])
        await listener.start()
        addresses = listener.addresses
        await listener.stop(0.0)
        return addresses

    adopted = socket.create_server(("127.0.0.1", 0))
    adopted.setblocking(False)
    port = adopted.getsockname()[1]
    assert aio.run(life(adopted)) == [f"127.0.0.1:{port}"]
