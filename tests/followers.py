"""Other people's clients that stay attached while one node serves the volume, and then another.

`Follower` is what stands between such a client and the nodes where it knows one address only, as a
load balancer with a health check does: each connection goes to whoever serves the volume then.
`QemuWriter` is a qemu behind it that writes, one request after the other, and repeats by itself
what was not answered when its connection ended (`reconnect-delay`).
"""

import socket
import subprocess
import threading
import time
from contextlib import suppress
from types import TracebackType

from tests.cluster_daemons import Nodes
from tests.failover_rig import LOST, NAMES, SLOW_S, VOLUME, attached
from tests.peer_nodes import until

PIECE = 1 << 16
RUN = 64 << 10
"""Bytes of one write of qemu."""
END_S = 60.0


class Follower:
    """Listens at `address`."""

    def __init__(self, nodes: Nodes) -> None:
        self._nodes = nodes
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._ended = threading.Event()
        self._sockets: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self.address: tuple[str, int] = self._listener.getsockname()
        self._threads[0].start()

    def close(self) -> None:
        self._ended.set()
        for each in (self._listener, *self._sockets):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for each in (self._listener, *self._sockets):
            each.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            node = self._connected()
            if node is None:
                client.close()
                continue
            self._sockets += (client, node)
            for source, sink in ((client, node), (node, client)):
                thread = threading.Thread(target=_pump, args=(source, sink))
                self._threads.append(thread)
                thread.start()

    def _connected(self) -> socket.socket | None:
        deadline = time.monotonic() + SLOW_S
        while time.monotonic() < deadline and not self._ended.is_set():
            for name in NAMES:
                if not self._nodes.daemons[name].running:
                    continue
                try:
                    attached(self._nodes, name).close()
                    return socket.create_connection(self._nodes.daemons[name].host_port)
                except LOST:
                    continue
            self._ended.wait(0.02)
        return None


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(PIECE):
            sink.sendall(data)
    for each in (source, sink):
        with suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)


class QemuWriter:
    """Writes the first bytes of the volume, one run of them after the other. `qemu_io`: its path.

    On leaving the context it has read all again. AssertionError with what qemu said, if that was
    ever an error.
    """

    def __init__(self, qemu_io: str, address: tuple[str, int], runs: int) -> None:
        image = f"driver=raw,file.driver=nbd,file.host={address[0]},file.port={address[1]}"
        image += f",file.export={VOLUME},file.reconnect-delay={END_S:g}"
        self._runs = runs
        self._stop = threading.Event()
        self._said: list[str] = []
        self.count = 0
        """Writes that were answered."""
        self.longest_s = 0.0
        """For one write."""
        self._qemu = subprocess.Popen(
            [qemu_io, "--image-opts", image],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            bufsize=1,
        )
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "QemuWriter":
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()
        try:
            reads = [
                f"read -P {self._pattern(number)} {number % self._runs * RUN} {RUN}"
                for number in range(max(0, self.count - self._runs), self.count)
            ]
            said, _ = self._qemu.communicate("\n".join([*reads, "quit", ""]), END_S)
        finally:
            self._qemu.kill()
            self._qemu.wait()
        self._said.append(said)
        if error is None:
            whole = "".join(self._said)
            assert "failed" not in whole.lower(), whole
            assert "error" not in whole.lower(), whole
            assert said.count(f"read {RUN}/{RUN}") == len(reads), whole

    def wait_for_more(self, count: int = 10) -> None:
        goal = self.count + count
        until(lambda: self.count >= goal or not self._thread.is_alive(), f"{count} writes", SLOW_S)
        assert self._thread.is_alive(), f"qemu has given up:\n{''.join(self._said)}"

    @staticmethod
    def _pattern(number: int) -> int:
        return number % 251 + 1

    def _run(self) -> None:
        stdin, stdout = self._qemu.stdin, self._qemu.stdout
        assert stdin is not None
        assert stdout is not None
        while not self._stop.is_set():
            began = time.monotonic()
            offset = self.count % self._runs * RUN
            stdin.write(f"write -P {self._pattern(self.count)} {offset} {RUN}\n")
            while "ops;" not in (line := stdout.readline()):  # the last line of what it says of one
                self._said.append(line)
                if "failed" in line or not line:
                    return
            self.longest_s = max(self.longest_s, time.monotonic() - began)
            self.count += 1
