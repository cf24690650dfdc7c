"""Access lists of a real daemon, by libnbd, qemu and libiscsi; who may use its control socket."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from blockd.iscsi.targets import IQN_PREFIX
from tests.clients import FindTool, finish_tool, run_libnbd, run_tool
from tests.daemon import STORE, Daemon, StartDaemon
from tests.tls_fixtures import TlsFiles, make_tls_files

MiB = 1 << 20
HOST = "iqn.2026-11.test:host1"
VM1 = IQN_PREFIX + "vm1"
OTHER_UID = 12345


@pytest.fixture
def server(daemon: StartDaemon) -> Daemon:
    return daemon("--volume", "vm1=16M", "--volume", "vm2=16M", "--iscsi", "127.0.0.1:0")


def allow(server: Daemon, *options: str, volume: str = "vm1") -> None:
    server.run("volume", "access", "allow", volume, *options)


def log_lines(server: Daemon, event: str) -> list[str]:
    return [line for line in server.stderr().splitlines() if event in line]


# --- NBD ----------------------------------------------------------------------------------------


def test_addresses_over_tcp(server: Daemon, client_tool: FindTool) -> None:
    nbdinfo = client_tool("nbdinfo")
    allow(server, "--address", "127.0.0.1")
    assert run_tool(nbdinfo, "--size", server.uri("vm1")).strip() == str(16 * MiB)
    server.run("volume", "access", "clear", "vm1")
    allow(server, "--address", "127.0.0.2")
    kept_out = finish_tool(nbdinfo, "--size", server.uri("vm1"))
    unknown = finish_tool(nbdinfo, "--size", server.uri("none"))
    assert kept_out.returncode
    assert kept_out.stderr.replace("vm1", "X") == unknown.stderr.replace("none", "X")
    listed = run_tool(nbdinfo, "--list", server.uri(""))
    assert "vm2" in listed
    assert "vm1" not in listed
    [line] = log_lines(server, "nbd client not let in")
    assert "volume=vm1" in line


def test_addresses_are_told_apart(server: Daemon, libnbd: None) -> None:
    allow(server, "--address", "127.0.0.0/30")
    server.run("volume", "access", "deny", "vm1", "--address", "127.0.0.3")
    run_libnbd(
        server.uri("vm1"),
        f"""
import socket
def attaches(source):
    connected = socket.create_connection({server.host_port!r}, source_address=(source, 0))
    h = nbd.NBD()
    h.set_export_name("vm1")
    try:
        h.connect_socket(connected.detach())
    except nbd.Error:
        return False
    return h.pread(512, 0) == bytes(512)
found = [attaches("127.0.0.%d" % last) for last in range(1, 6)]
assert found == [True, True, False, False, False], found
""",
    )


def test_users_of_a_unix_socket(server: Daemon, client_tool: FindTool) -> None:
    nbdinfo = client_tool("nbdinfo")
    allow(server, "--uid", str(os.getuid()))
    assert run_tool(nbdinfo, "--size", server.unix_uri("vm1")).strip() == str(16 * MiB)
    assert finish_tool(nbdinfo, "--size", server.uri("vm1")).returncode, "TCP tells no user"
    server.run("volume", "access", "remove", "vm1", "1")
    allow(server, "--uid", str(OTHER_UID))
    assert finish_tool(nbdinfo, "--size", server.unix_uri("vm1")).returncode


def test_an_export_that_is_not_let_in_says_what_to_do(
    server: Daemon, client_tool: FindTool, tmp_path: Path
) -> None:
    client_tool("qemu-img")
    image = str(tmp_path / "vm1.qcow2")
    allow(server, "--address", "127.0.0.1")
    done = server.finish("export", "vm1", image)
    assert done.returncode
    assert f"blockd volume access allow vm1 --uid {os.getuid()}" in done.stderr.decode()
    allow(server, "--uid", str(os.getuid()), "--read-only")
    server.run("export", "vm1", image)


def test_a_list_outlives_kill_9_and_holds_for_clones_and_past_versions(
    server: Daemon, client_tool: FindTool
) -> None:
    nbdinfo = client_tool("nbdinfo")
    server.run("snapshot", "create", "vm1@monday")
    allow(server, "--address", "127.0.0.2")
    server.run("volume", "clone", "vm1@monday", "copy")
    server.kill()
    server.start()
    for name in ("vm1", "vm1@monday", "copy"):
        assert finish_tool(nbdinfo, "--size", server.uri(name)).returncode, name
    server.run("volume", "access", "clear", "vm1")
    for name in ("vm1", "vm1@monday"):
        assert run_tool(nbdinfo, "--size", server.uri(name)).strip() == str(16 * MiB)
    assert finish_tool(nbdinfo, "--size", server.uri("copy")).returncode


def test_a_reader_reads_and_does_not_write(server: Daemon, libnbd: None) -> None:
    allow(server, "--address", "127.0.0.0/8", "--read-only")
    run_libnbd(
        server.uri("vm1"),
        """
h = nbd.NBD()
h.set_strict_mode(0)
h.connect_uri(uri)
assert h.is_read_only()
assert h.pread(4096, 0) == bytes(4096)
try:
    h.pwrite(b"x" * 4096, 0)
except nbd.Error:
    sys.exit(0)
raise AssertionError("written")
""",
    )


def test_a_change_cuts_who_is_attached(server: Daemon, libnbd: None) -> None:
    """The client is in the request loop by then."""
    command = [sys.executable, "-m", "blockd", "volume", "access", "allow", "vm1"]
    command += ["--address", "127.0.0.2", "--control", str(server.ready["control"])]
    run_libnbd(
        server.uri("vm1"),
        f"""
import subprocess
h = nbd.NBD()
h.connect_uri(uri)
for _ in range(100):
    h.pwrite(b"a" * 4096, 0)
done = subprocess.run({command!r}, capture_output=True, text=True, check=True)
assert "cut: nbd-1" in done.stdout, done
try:
    h.pwrite(b"b" * 4096, 0)
except nbd.Error:
    pass
else:
    raise AssertionError("written")
try:
    nbd.NBD().connect_uri(uri)
except nbd.Error:
    sys.exit(0)
raise AssertionError("attached again")
""",
    )
    assert log_lines(server, "nbd client ended, it is not let in any more")
    server.run("volume", "access", "clear", "vm1")
    run_libnbd(
        server.uri("vm1"),
        """
h = nbd.NBD()
h.connect_uri(uri)
assert h.pread(4096, 0) == b"a" * 4096
""",
    )


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> TlsFiles:
    """An authority, a server, the client alice; bob is in a folder of his own."""
    files = make_tls_files(tmp_path_factory.mktemp("keys"))
    bob = files.folder / "bob"
    bob.mkdir()
    bob.joinpath("ca-cert.pem").write_bytes(files.ca.read_bytes())
    files.authority.client("bob").write(bob / "client-cert.pem", bob / "client-key.pem")
    return files


def test_certificates_and_keys(daemon: StartDaemon, client_tool: FindTool, keys: TlsFiles) -> None:
    nbdinfo, openssl = client_tool("nbdinfo"), client_tool("openssl")
    server = daemon(
        *("--volume", "vm1=16M", "--tls", "require", "--tls-psk", str(keys.psk)),
        *("--tls-cert", str(keys.server_certificate), "--tls-key", str(keys.server_key)),
        *("--tls-client-ca", str(keys.ca)),
    )
    host, port = server.host_port
    folders = {"alice": keys.folder, "bob": keys.folder / "bob"}

    def may(name: str) -> bool:
        uri = f"nbds://{host}:{port}/vm1?tls-certificates={folders[name]}"
        return finish_tool(nbdinfo, "--size", uri).returncode == 0

    def may_by_key() -> bool:
        uri = f"nbds://alice@{host}:{port}/vm1?tls-psk-file={keys.psk}"
        return finish_tool(nbdinfo, "--size", uri).returncode == 0

    certificate = str(folders["bob"] / "client-cert.pem")
    fingerprint = run_tool(
        openssl, "x509", "-in", certificate, "-noout", "-fingerprint", "-sha256"
    ).strip()
    for options, wanted in (
        (("--certificate", "alice"), (True, False, False)),
        (("--fingerprint", fingerprint), (False, True, False)),
        (("--psk", "alice"), (False, False, True)),
        (("--certificate", "alice", "--address", "127.0.0.2"), (False, False, False)),
        (("--everybody",), (True, True, True)),
    ):
        allow(server, *options)
        assert (may("alice"), may("bob"), may_by_key()) == wanted, options
        server.run("volume", "access", "clear", "vm1")


# --- iSCSI --------------------------------------------------------------------------------------


def test_initiators(server: Daemon, client_tool: FindTool) -> None:
    ls, inquire = client_tool("iscsi-ls"), client_tool("iscsi-inq")
    portal = f"iscsi://{server.iscsi_address}"
    allow(server, "--initiator", HOST)
    assert VM1 in run_tool(ls, "-i", HOST, portal)
    assert "BLOCKD" in run_tool(inquire, "-i", HOST, server.iscsi_url("vm1"))
    others = run_tool(ls, "-i", HOST + "x", portal)
    assert IQN_PREFIX + "vm2" in others
    assert VM1 not in others
    kept_out = finish_tool(inquire, "-i", HOST + "x", server.iscsi_url("vm1"))
    unknown = finish_tool(inquire, "-i", HOST + "x", server.iscsi_url("none"))
    assert kept_out.returncode
    assert "not found" in kept_out.stderr.lower(), kept_out.stderr
    assert kept_out.stderr.replace("vm1", "X") == unknown.stderr.replace("none", "X")
    [line] = log_lines(server, "the access list of volume vm1 keeps")
    assert HOST + "x" in line


def test_units_of_a_target(server: Daemon, client_tool: FindTool) -> None:
    ls = client_tool("iscsi-ls")
    server.run("target", "create", "db", "--lun", "vm1", "--lun", "vm2")
    allow(server, "--initiator", HOST)
    portal = f"iscsi://{server.iscsi_address}"
    for initiator, wanted in ((HOST, {0, 1}), (HOST + "x", {1})):
        told = run_tool(ls, "-s", "-i", initiator, portal)
        listed = told.partition(f"Target:{IQN_PREFIX}db")[2].partition("Target:")[0]
        found = {lun for lun in (0, 1) if f"Lun:{lun} " in listed}
        assert found == wanted, told


def test_qemu_attaches_what_it_may(server: Daemon, client_tool: FindTool) -> None:
    qemu_img = client_tool("qemu-img")
    image = f"driver=raw,file.driver=iscsi,file.transport=tcp,file.portal={server.iscsi_address}"
    image += f",file.target={VM1},file.lun=0,file.initiator-name={HOST}"
    allow(server, "--initiator", HOST + "x")
    refused = finish_tool(qemu_img, "info", "--image-opts", image)
    assert refused.returncode
    allow(server, "--initiator", HOST)
    assert "16 MiB" in run_tool(qemu_img, "info", "--image-opts", image)


def test_chap_users(daemon: StartDaemon, client_tool: FindTool, tmp_path: Path) -> None:
    inquire = client_tool("iscsi-inq")
    secrets = tmp_path / "chap"
    secrets.write_text("one:a secret of one\ntwo:a secret of two\n")
    secrets.chmod(0o600)
    server = daemon(
        *("--volume", "vm1=16M", "--iscsi", "127.0.0.1:0", "--iscsi-chap", str(secrets))
    )
    allow(server, "--chap-user", "one")
    for user, let_in in (("one", True), ("two", False)):
        url = server.iscsi_url("vm1").replace("iscsi://", f"iscsi://{user}%a secret of {user}@")
        done = finish_tool(inquire, "-i", HOST, url)
        assert (done.returncode == 0) is let_in, done.stderr


# --- the control socket -------------------------------------------------------------------------


def test_a_group_may_use_the_control_socket(daemon: StartDaemon, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir(mode=0o755)
    config = tmp_path / "blockd.toml"
    group = os.getegid()
    config.write_text(f'[control]\nsocket = "{folder}/c"\ngroup = "{group}"\n[store]\n{STORE}')
    server = daemon("--config", str(config))
    status = (folder / "c").stat()
    assert (status.st_mode & 0o777, status.st_gid) == (0o660, group)
    server.run("volume", "create", "vm1", "1M")
    [line] = log_lines(server, "control request")
    assert "method=POST path=/v1/volumes status=201" in line
    assert f"uid={os.getuid()}" in line


@pytest.mark.parametrize(
    ("mode", "settings", "told"),
    [
        (0o777, "", "others may write to"),
        (0o755, 'group = "no-such-group-here"', "there is none of that name"),
        (0o755, 'group = "4294967295"', "a number of a group is at most"),
    ],
)
def test_what_would_not_be_safe_is_not_listened_on(
    daemon: StartDaemon, tmp_path: Path, mode: int, settings: str, told: str
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    folder.chmod(mode)
    config = tmp_path / "blockd.toml"
    config.write_text(f'[control]\nsocket = "{folder}/c"\n{settings}\n')
    server = daemon("--config", str(config), start=False)
    done = subprocess.run(server.command(), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode
    assert told in done.stderr
    assert not (folder / "c").exists()
