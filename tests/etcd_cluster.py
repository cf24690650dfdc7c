"""Real etcd members on loopback, and a proxy that loses answers on purpose."""

import os
import signal
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx

from tests.ports import free_ports
from transport.etcd.client import EtcdMetaStore, EtcdSettings
from volume.metastore import MetaStoreUnavailable

START_S = 60.0  # two or three; a busy machine takes longer


@dataclass(frozen=True, slots=True)
class EtcdPlace:
    """Where a member runs: on this machine, unless it says otherwise."""

    prefix: tuple[str, ...] = ()
    """Before its command, that it runs there."""
    host: str = "127.0.0.1"


@contextmanager
def etcd_cluster(
    program: str, folder: Path, count: int, places: Sequence[EtcdPlace] = ()
) -> Iterator["EtcdCluster"]:
    """So many members that are ready; they end with the context."""
    cluster = EtcdCluster(program, folder, count, places=places)
    try:
        cluster.wait_ready()
        yield cluster
    finally:
        cluster.close()


class EtcdCluster:
    """Members of one cluster; they can be paused, killed and started again."""

    def __init__(
        self,
        program: str,
        folder: Path,
        count: int,
        *,
        certificate: tuple[Path, Path] | None = None,
        places: Sequence[EtcdPlace] = (),
    ) -> None:
        """`certificate`: certificate and key, and clients then have to use TLS."""
        self._program = program
        self._certificate = certificate
        scheme = "http" if certificate is None else "https"
        self._folder = folder
        ports = free_ports(2 * count)
        self._places = places or [EtcdPlace()] * count
        hosts = [place.host for place in self._places]
        self._clients = [
            f"{scheme}://{host}:{port}" for host, port in zip(hosts, ports[:count], strict=True)
        ]
        self._peers = [
            f"http://{host}:{port}" for host, port in zip(hosts, ports[count:], strict=True)
        ]
        self._running: list[subprocess.Popen[bytes] | None] = [None] * count
        for index in range(count):
            self.start(index)

    @property
    def endpoints(self) -> tuple[str, ...]:
        return tuple(self._clients)

    def start(self, index: int) -> None:
        assert self._running[index] is None
        members = ",".join(f"m{number}={url}" for number, url in enumerate(self._peers))
        with (self._folder / f"m{index}.log").open("ab") as log:
            self._running[index] = subprocess.Popen(
                [
                    *self._places[index].prefix,
                    self._program,
                    *("--name", f"m{index}", "--data-dir", str(self._folder / f"m{index}")),
                    *("--listen-client-urls", self._clients[index]),
                    *("--advertise-client-urls", self._clients[index]),
                    *("--listen-peer-urls", self._peers[index]),
                    *("--initial-advertise-peer-urls", self._peers[index]),
                    *("--initial-cluster", members, "--initial-cluster-token", "blockd-test"),
                    *self._tls_options(),
                    *("--heartbeat-interval", "50", "--election-timeout", "500"),
                ],
                stdout=log,
                stderr=log,
                env={**os.environ, "ETCD_UNSUPPORTED_ARCH": os.uname().machine},
            )

    def _tls_options(self) -> tuple[str, ...]:
        if self._certificate is None:
            return ()
        certificate, key = self._certificate
        return ("--cert-file", str(certificate), "--key-file", str(key))

    def wait_ready(self, tls: ssl.SSLContext | None = None) -> None:
        """Until a linearizable read is answered."""
        settings = EtcdSettings(self.endpoints, timeout_s=1.0, attempt_s=0.5, tls=tls)
        store = EtcdMetaStore(settings)
        deadline = time.monotonic() + START_S
        try:
            while True:
                try:
                    store.read("ready")
                    return
                except MetaStoreUnavailable:
                    if time.monotonic() > deadline:
                        raise
                    threading.Event().wait(0.1)  # refused connections come at once
        finally:
            store.close()

    def pause(self, index: int) -> None:
        self._process(index).send_signal(signal.SIGSTOP)

    def resume(self, index: int) -> None:
        self._process(index).send_signal(signal.SIGCONT)

    def kill(self, index: int) -> None:
        process = self._process(index)
        process.kill()
        process.wait()
        self._running[index] = None

    def close(self) -> None:
        for index, process in enumerate(self._running):
            if process is not None:
                self.kill(index)

    def _process(self, index: int) -> subprocess.Popen[bytes]:
        process = self._running[index]
        assert process is not None
        return process


class AnswerLoser:
    """An HTTP proxy before one endpoint; of the next `lose` POSTs the answer is not passed on."""

    def __init__(self, target: str) -> None:
        self.lose = 0
        self.passed: list[str] = []
        """Paths of the requests that reached the target."""
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                answer = httpx.post(
                    target + self.path, content=body, trust_env=False, timeout=START_S
                )
                proxy.passed.append(self.path)
                if proxy.lose:
                    proxy.lose -= 1
                    self.close_connection = True
                    return
                self.send_response(answer.status_code)
                self.send_header("Content-Length", str(len(answer.content)))
                self.end_headers()
                self.wfile.write(answer.content)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
