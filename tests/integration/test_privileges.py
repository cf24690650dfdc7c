"""Daemons that root starts with `--user`: what the kernel says of them, and that everything works.

They serve a port that only root may bind, as a user who owns nothing but the data directory.
"""

import errno
import os
import pwd
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients import FindTool, finish_tool, run_libnbd, run_tool
from tests.daemon import STORE, Daemon
from tests.tls_fixtures import TlsFiles, make_tls_files

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to begin with")

NOBODY = pwd.getpwnam("nobody")
WRITE_AND_READ = """
h = connected()
h.pwrite(b"x" * 65536, 0)
h.flush()
assert h.pread(65536, 0) == b"x" * 65536
h.shutdown()
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """One that nobody may pass, with `data`, which is his."""
    with tempfile.TemporaryDirectory(prefix="blockd-") as name:
        folder = Path(name)
        folder.chmod(0o755)  # pytest's own are for their owner only
        given(folder / "data")
        yield folder


def given(folder: Path) -> Path:
    folder.mkdir(mode=0o700)
    os.chown(folder, NOBODY.pw_uid, NOBODY.pw_gid)
    return folder


def root_only_ports(count: int) -> list[str]:
    """Free ones below the bound from which on anybody may bind."""
    bound = int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text())
    free = []
    for port in range(min(bound, 1024) - 1, 0, -1):
        with socket.socket() as sock:
            try:
                sock.bind(("127.0.0.1", port))
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    continue
                raise
        free.append(f"127.0.0.1:{port}")
        if len(free) == count:
            return free
    pytest.skip("anybody may bind every port here")


@pytest.fixture
def tls(folder: Path) -> TlsFiles:
    (keys := folder / "keys").mkdir()
    files = make_tls_files(keys)
    os.chown(files.server_key, NOBODY.pw_uid, -1)
    return files


class Started:
    """A daemon of nobody's on three ports of root's, with a log in a folder of its own."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.nbd, self.iscsi, self.metrics = root_only_ports(3)
        self.log = given(folder / "log") / "blockd.log"
        (folder / "blockd.toml").write_text(
            f'[store]\n{STORE}[log]\nfile = "{self.log}"\n[daemon]\nuser = "nobody"\n'
        )
        self.daemon = Daemon(
            folder / "data",
            ["--config", str(folder / "blockd.toml"), "--volume", "demo=64M", *options],
            listen=("--nbd", self.nbd, "--iscsi", self.iscsi, "--metrics", self.metrics),
        )


@pytest.fixture
def started(folder: Path, tls: TlsFiles) -> Iterator[Started]:
    options = ("--tls-cert", str(tls.server_certificate), "--tls-key", str(tls.server_key))
    started = Started(folder, "--tls", "allow", *options)
    started.daemon.start()
    yield started
    started.daemon.discard()


def statuses(pid: int) -> Iterator[dict[str, list[str]]]:
    """/proc/PID/status of each thread."""
    for path in Path(f"/proc/{pid}/task").glob("*/status"):
        lines = path.read_text().splitlines()
        yield {name: value.split() for name, _, value in (line.partition(":") for line in lines)}


def test_no_thread_has_anything_of_root(started: Started) -> None:
    threads = list(statuses(started.daemon.pid))
    assert len(threads) > 5
    for status in threads:
        assert status["Uid"] == [str(NOBODY.pw_uid)] * 4
        assert status["Gid"] == [str(NOBODY.pw_gid)] * 4
        assert status["Groups"] == [str(NOBODY.pw_gid)]
        for name in ("CapEff", "CapPrm", "CapAmb"):
            assert int(status[name][0], 16) == 0, name
        assert status["NoNewPrivs"] == ["1"]


def test_the_ports_of_root_are_served(started: Started, client_tool: FindTool) -> None:
    assert started.daemon.ready["nbd"][0] == started.nbd
    assert started.daemon.ready["iscsi"] == [started.iscsi]
    run_libnbd(started.daemon.uri(), WRITE_AND_READ)
    run_libnbd(started.daemon.unix_uri(), WRITE_AND_READ)
    assert "demo" in run_tool(client_tool("iscsi-ls"), "-s", f"iscsi://{started.iscsi}/")
    scrape = run_tool(client_tool("curl"), "-sf", f"http://{started.metrics}/metrics")
    assert "blockd_build_info" in scrape


def test_what_it_makes_is_the_users_and_goes_when_it_stops(started: Started) -> None:
    data = started.daemon.data
    made = [data / "lock", data / "control.sock", data / "nbd.sock", started.log, *data.iterdir()]
    assert {path.lstat().st_uid for path in made} == {NOBODY.pw_uid}
    assert started.daemon.run_json("status")["pid"] == started.daemon.pid
    assert started.daemon.stop() == 0
    assert not (data / "control.sock").exists()
    assert not (data / "nbd.sock").exists()
    started.daemon.start()  # over what is there
    assert started.daemon.stop() == 0


def test_a_rotated_log_is_made_anew_and_a_reload_reads_keys(
    started: Started, tls: TlsFiles
) -> None:
    assert "root given up user=nobody uid=65534" in started.log.read_text()
    started.log.rename(started.log.with_suffix(".1"))
    tls.authority.server("renewed").write(tls.server_certificate, tls.server_key)
    os.kill(started.daemon.pid, signal.SIGHUP)
    started.daemon.run("status")  # answered after the signal
    assert "reloaded" in started.log.read_text()
    assert started.log.stat().st_uid == NOBODY.pw_uid
    host, port = started.nbd.split(":")
    run_libnbd(f"nbds://{host}:{port}/demo?tls-certificates={tls.folder}", TLS_NAME)


TLS_NAME = """
h = nbd.NBD()
h.set_uri_allow_local_file(True)
h.connect_uri(uri)
assert h.get_tls_negotiated()
assert h.pread(512, 0) == bytes(512)
"""


def refused(folder: Path, *options: str, prefix: tuple[str, ...] = ()) -> str:
    """What a daemon, and the check of its settings, say that do not start."""
    daemon = Daemon(folder / "data", ["--user", "nobody", *options], prefix=prefix)
    said = []
    for more in ([], ["--check-config"]):
        done = finish_tool(*daemon.command(), *more)
        assert done.returncode == 2, done.stderr
        said.append(done.stderr.splitlines()[-1])  # before it, a start has its log
    assert said[0] == said[1]
    return said[0]


def test_a_data_directory_of_root_is_refused(folder: Path) -> None:
    os.chown(folder / "data", 0, 0)
    assert f"run: chown -R nobody {folder}/data" in refused(folder)


def test_a_data_directory_that_cannot_be_made_is_refused(folder: Path) -> None:
    (folder / "data").rmdir()
    assert f"run: install -d -o nobody -m 700 {folder}/data" in refused(folder)


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o644])
def test_a_secret_of_root_is_refused_as_a_reload_could_not_read_it(
    folder: Path, tls: TlsFiles, mode: int
) -> None:
    tls.server_key.chmod(mode)
    os.chown(tls.server_key, 0, 0)
    options = ("--tls-cert", str(tls.server_certificate), "--tls-key", str(tls.server_key))
    said = refused(folder, "--tls", "require", *options)
    assert f"tls key {tls.server_key}: " in said
    assert f"run: ch{'mod 600' if mode == 0o644 else 'own nobody'} {tls.server_key}" in said


def test_settings_that_a_reload_could_not_read_are_refused(folder: Path) -> None:
    (file := folder / "blockd.toml").touch(mode=0o600)
    assert f"chown nobody {file}" in refused(folder, "--config", str(file))


def test_somebody_else_than_root_becomes_nobody(folder: Path) -> None:
    os.chown(folder / "data", pwd.getpwnam("daemon").pw_uid, -1)
    setpriv = ("setpriv", "--reuid=daemon", "--regid=daemon", "--clear-groups")
    said = refused(folder, prefix=setpriv)
    assert "only root can become somebody else, this is daemon" in said


def test_who_is_that_user_already_only_loses_the_ways_to_more(folder: Path) -> None:
    setpriv = ("setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups")
    daemon = Daemon(folder / "data", ["--user", "nobody"], prefix=setpriv)
    daemon.start()
    try:
        assert all(status["NoNewPrivs"] == ["1"] for status in statuses(daemon.pid))
    finally:
        daemon.discard()


def test_a_port_of_root_names_the_way_to_have_it(folder: Path) -> None:
    (address,) = root_only_ports(1)
    setpriv = ("setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups")
    daemon = Daemon(folder / "data", listen=("--nbd", address), prefix=setpriv)
    done = finish_tool(*daemon.command())
    assert done.returncode == 1
    assert "start as root with --user NAME" in done.stderr


def test_a_taken_port_is_told_before_anything_is_given_up(folder: Path) -> None:
    (address,) = root_only_ports(1)
    host, port = address.split(":")
    with socket.create_server((host, int(port))):
        daemon = Daemon(folder / "data", ["--user", "nobody"], listen=("--nbd", address))
        done = subprocess.run(daemon.command(), capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"nbd address {address}: Address already in use" in done.stderr
    assert not list((folder / "data").iterdir())
