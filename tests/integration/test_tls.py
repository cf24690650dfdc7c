"""TLS through libnbd (GnuTLS): certificates, pre-shared keys, and who is turned away."""

import subprocess
from pathlib import Path

import pytest

from tests.clients import FindTool, finish_tool, run_libnbd, run_tool
from tests.daemon import Daemon, StartDaemon

pytestmark = pytest.mark.usefixtures("libnbd")

WRITE_AND_READ = """
h = nbd.NBD()
h.set_uri_allow_local_file(True)
h.set_tls_verify_peer(True)
h.connect_uri(uri)
assert h.get_tls_negotiated()
data = bytes(range(256)) * 4096
for number in range(16):
    h.pwrite(data, number << 20)
h.flush()
for number in range(16):
    assert h.pread(1 << 20, number << 20) == data
for number in range(100):
    h.pwrite(b"s" * 4096, number * 4096)
    assert h.pread(4096, number * 4096) == b"s" * 4096
h.shutdown()
"""


class Keys:
    """A certificate authority and what it signed, in the files that libnbd looks for."""

    def __init__(self, openssl: str, folder: Path) -> None:
        self._openssl = openssl
        self.folder = folder
        folder.mkdir()
        self._run("req", "-x509", *self._new_key("ca"), "-subj", "/CN=authority", "-days", "2")
        self._sign("server", "/CN=localhost", "subjectAltName=DNS:localhost,IP:127.0.0.1")
        self._sign("client", "/CN=alice", "subjectAltName=DNS:alice")

    def file(self, name: str) -> str:
        return str(self.folder / name)

    def _new_key(self, name: str) -> list[str]:
        key = "ca-key.pem" if name == "ca" else f"{name}-key.pem"
        out = "ca-cert.pem" if name == "ca" else f"{name}.csr"
        curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        return [*curve, "-keyout", self.file(key), "-out", self.file(out)]

    def _sign(self, name: str, subject: str, extension: str) -> None:
        self._run("req", *self._new_key(name), "-subj", subject)
        (self.folder / "extensions").write_text(extension + "\n")
        self._run(
            "x509", "-req", "-in", self.file(f"{name}.csr"), "-days", "2",
            "-CA", self.file("ca-cert.pem"), "-CAkey", self.file("ca-key.pem"),
            "-extfile", self.file("extensions"), "-out", self.file(f"{name}-cert.pem"),
        )  # fmt: skip

    def _run(self, *arguments: str) -> None:
        subprocess.run([self._openssl, *arguments], check=True, capture_output=True)


@pytest.fixture(scope="session")
def keys(client_tool: FindTool, tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return Keys(client_tool("openssl"), tmp_path_factory.mktemp("keys") / "pki")


@pytest.fixture
def certificates(keys: Keys) -> list[str]:
    return ["--tls-cert", keys.file("server-cert.pem"), "--tls-key", keys.file("server-key.pem")]


def tls_uri(server: Daemon, query: str) -> str:
    host, port = server.host_port
    return f"nbds://{host}:{port}/demo?{query}"


def test_certificates_protect_data_both_ways(
    daemon: StartDaemon, keys: Keys, certificates: list[str]
) -> None:
    server = daemon("--volume", "demo=64M", "--tls", "require", *certificates)
    run_libnbd(tls_uri(server, f"tls-certificates={keys.folder}"), WRITE_AND_READ)


def test_plain_clients_are_refused_where_tls_is_required(
    client_tool: FindTool, daemon: StartDaemon, certificates: list[str]
) -> None:
    server = daemon("--volume", "demo=64M", "--tls", "require", *certificates)
    done = finish_tool(client_tool("nbdinfo"), "--size", server.uri())
    assert done.returncode != 0
    assert "TLS" in done.stderr


def test_plain_clients_are_served_where_tls_is_allowed(
    client_tool: FindTool, daemon: StartDaemon, keys: Keys, certificates: list[str]
) -> None:
    server = daemon("--volume", "demo=64M", "--tls", "allow", *certificates)
    assert run_tool(client_tool("nbdinfo"), "--size", server.uri()).strip() == str(64 << 20)
    run_libnbd(tls_uri(server, f"tls-certificates={keys.folder}"), WRITE_AND_READ)


def test_clients_need_a_certificate_of_the_authority(
    daemon: StartDaemon, keys: Keys, certificates: list[str], tmp_path: Path
) -> None:
    authority = ("--tls-client-ca", keys.file("ca-cert.pem"))
    server = daemon("--volume", "demo=64M", "--tls", "require", *certificates, *authority)
    run_libnbd(tls_uri(server, f"tls-certificates={keys.folder}"), WRITE_AND_READ)
    (tmp_path / "ca-cert.pem").write_bytes((keys.folder / "ca-cert.pem").read_bytes())
    run_libnbd(
        tls_uri(server, f"tls-certificates={tmp_path}"),
        """
h = nbd.NBD()
h.set_uri_allow_local_file(True)
try:
    h.connect_uri(uri)
    h.pread(4096, 0)
except nbd.Error:
    sys.exit(0)
raise AssertionError("a client without a certificate was served")
""",
    )
    run_libnbd(tls_uri(server, f"tls-certificates={keys.folder}"), WRITE_AND_READ)


@pytest.mark.parametrize("mode", [0o640, 0o620, 0o604, 0o602])
def test_a_server_key_that_others_get_at_is_not_served(
    daemon: StartDaemon, keys: Keys, certificates: list[str], tmp_path: Path, mode: int
) -> None:
    key = tmp_path / "server-key.pem"
    key.touch(mode=0o600)
    key.write_bytes((keys.folder / "server-key.pem").read_bytes())
    options = ["--volume", "demo=64M", "--tls", "require", *certificates[:2], "--tls-key", str(key)]
    key.chmod(mode)
    server = daemon(*options, start=False)
    for more in ([], ["--check-config"]):
        done = finish_tool(*server.command(), *more)
        assert done.returncode == 2
        assert f"mode {mode:04o} opens it to others; run: chmod 600 {key}" in done.stderr
    key.chmod(0o600)
    server.start()
    uri = tls_uri(server, f"tls-certificates={keys.folder}")
    run_libnbd(uri, WRITE_AND_READ)
    key.chmod(mode)  # while it is served: a reload does not take it, the one in memory goes on
    run_libnbd(uri, WRITE_AND_READ)
    assert "tls files changed, old ones stay" in server.stderr()


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "keys.psk"
    path.write_text("alice:" + "5a" * 32 + "\n")
    path.chmod(0o600)
    return path


def test_pre_shared_keys_protect_data_both_ways(daemon: StartDaemon, key_file: Path) -> None:
    server = daemon("--volume", "demo=64M", "--tls", "require", "--tls-psk", str(key_file))
    host, port = server.host_port
    run_libnbd(f"nbds://alice@{host}:{port}/demo?tls-psk-file={key_file}", WRITE_AND_READ)


def test_a_wrong_pre_shared_key_is_refused(
    client_tool: FindTool, daemon: StartDaemon, key_file: Path, tmp_path: Path
) -> None:
    server = daemon("--volume", "demo=64M", "--tls", "require", "--tls-psk", str(key_file))
    wrong = tmp_path / "wrong.psk"
    wrong.write_text("alice:" + "a5" * 32 + "\n")
    host, port = server.host_port
    uri = f"nbds://alice@{host}:{port}/demo?tls-psk-file={wrong}"
    done = finish_tool(client_tool("nbdinfo"), "--size", uri)
    assert done.returncode != 0
    assert "TLS" in done.stderr or "handshake" in done.stderr, done.stderr
