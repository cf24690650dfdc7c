"""A cluster on one machine, to try things with: one etcd and several nodes on loopback.

Everything is below one folder, and goes on where it was when that is used again: `etcd`, and for
each node a data directory with its configuration (`n1`, `n2`, ...). Ports are chosen once, and
stand in the configurations. Nodes join as they do on machines of their own, by tokens.

Ctrl-C ends what was started here, and nothing else: nodes first, all at once, then etcd. A node
that ends by itself, or is killed to see what happens, is told, with the command that starts it.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx

from blockd.api.client import Client

ROOT = Path(__file__).parents[2]
BLOCKD = (sys.executable, "-m", "blockd")
MAX_NODES = 9
START_S = 60.0
STOP_S = 30.0
POLL_S = 0.1
PORTS = range(20000, 30000)  # below those that the kernel picks for clients
CONFIG = """\
# Written by scripts/serve --cluster; changes stay.

[nbd]
listen = ["127.0.0.1:{nbd}"]

[iscsi]
listen = ["127.0.0.1:{iscsi}"]

[cluster]
etcd = ["{etcd}"]
listen = ["127.0.0.1:{peers}"]
"""


class Trouble(Exception):
    """Something that a person has to look at; the message says what."""


@dataclass
class Started:
    """A process of ours, that Ctrl-C on the terminal does not reach by itself."""

    name: str
    command: Sequence[str]
    log: Path
    process: subprocess.Popen[bytes]

    def ended(self) -> int | None:
        return self.process.poll()


class Cluster:
    def __init__(self, folder: Path, count: int) -> None:
        self._folder = folder
        self._count = count
        self._running: list[Started] = []

    @property
    def nodes(self) -> list[str]:
        return [f"n{number}" for number in range(1, self._count + 1)]

    # -- up

    def start(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        endpoint = self._start_etcd()
        for name in self.nodes:
            self._configure(name, endpoint)
        first, *others = self.nodes
        if not self._is_node(first):
            say(f"making a cluster with its first node {first}")
            self._blockd("cluster", "init", first, "--data", str(self._folder / first))
        self._start_node(first)
        for name in others:
            if not self._is_node(name):
                say(f"node {name} joins by a token")
                token = self._blockd("cluster", "token", *self._at(first))
                data = str(self._folder / name)
                self._blockd("cluster", "join", "-", "--name", name, "--data", data, given=token)
            self._start_node(name)
        self._wait_connected()

    def _start_etcd(self) -> str:
        program = shutil.which("etcd")
        if program is None:
            raise Trouble("no etcd here; scripts/serve --cluster fetches it")
        client, peer = self._ports("etcd", 2)
        endpoint = f"http://127.0.0.1:{client}"
        say(f"starting etcd on {endpoint}")
        self._start(
            "etcd",
            [
                *(program, "--name", "etcd", "--data-dir", str(self._folder / "etcd")),
                *("--listen-client-urls", endpoint, "--advertise-client-urls", endpoint),
                *("--listen-peer-urls", f"http://127.0.0.1:{peer}"),
                *("--initial-advertise-peer-urls", f"http://127.0.0.1:{peer}"),
                *("--initial-cluster", f"etcd=http://127.0.0.1:{peer}"),
            ],
            {"ETCD_UNSUPPORTED_ARCH": os.uname().machine},
        )
        with httpx.Client(trust_env=False) as http:

            def healthy() -> bool:
                with contextlib.suppress(httpx.HTTPError):
                    return http.get(endpoint + "/health", timeout=1.0).is_success
                return False

            self._until(healthy, self._running[-1], "etcd answers")
        return endpoint

    def _configure(self, name: str, endpoint: str) -> None:
        data = self._folder / name
        file = data / "blockd.toml"
        if not file.exists():
            data.mkdir(mode=0o700, exist_ok=True)
            nbd, iscsi, peers = self._ports(name, 3)
            file.write_text(CONFIG.format(nbd=nbd, iscsi=iscsi, peers=peers, etcd=endpoint))

    def _start_node(self, name: str) -> None:
        say(f"starting node {name}")
        ready = self._folder / f"{name}.ready"
        ready.unlink(missing_ok=True)
        data = str(self._folder / name)
        command = [*BLOCKD, "serve", "--data", data, "--ready-file", str(ready)]
        started = self._start(name, command)
        self._until(ready.exists, started, f"node {name} serves")

    def _wait_connected(self) -> None:
        say("waiting for all to be connected to all")
        by_name = {each.name: each for each in self._running}

        def connected() -> bool:
            for name in self.nodes:
                with Client(self._control(name)) as client:
                    seen = client.cluster().nodes
                if sum(each.connected for each in seen) < self._count:
                    return False
            return True

        self._until(connected, by_name[self.nodes[-1]], "the nodes are connected")

    # -- while it runs

    def explain(self) -> None:
        first, last = self.nodes[0], self.nodes[-1]
        say("")
        print(self._blockd("cluster", "show", *self._at(first)), flush=True)
        nbd = {name: self._ready(name)["nbd"][0] for name in self.nodes}
        lines = ["Nodes:"]
        for name in self.nodes:
            iscsi = self._ready(name)["iscsi"][0]
            log = self._folder / f"{name}.log"
            lines.append(f"  {name}  nbd {nbd[name]}  iscsi {iscsi}  log {log}")
        copies = min(self._count, 3)
        lines += [
            "Try, in another terminal:",
            f"  export PATH={ROOT}/.venv/bin:$PATH BLOCKD_CONTROL={self._control(first)}",
            f"  blockd cluster create demo 1G --replicas {copies}     # {first} serves it",
            f"  nbdinfo nbd://{nbd[first]}/demo",
            "  blockd cluster status --copies",
        ]
        if self._count > 1:
            lines += [
                f"  kill -9 {self._pid(first)}     # {first}; in 10 s another node serves it:",
                f"  BLOCKD_CONTROL={self._control(last)} blockd cluster status --copies",
            ]
        lines.append("Ctrl-C ends all of it; the same command goes on with the same data.")
        print("\n".join(lines), flush=True)

    def watch(self) -> None:
        """Until a signal comes: tell of what ends by itself."""
        while self._running:
            for each in list(self._running):
                status = each.ended()
                if status is not None:
                    self._running.remove(each)
                    say(f"{each.name} ended with status {status}, see {each.log}; again:")
                    say("  " + " ".join(each.command))
            time.sleep(POLL_S)

    # -- down

    def stop(self) -> None:
        nodes = [each for each in self._running if each.name != "etcd"]
        for group in (nodes, [each for each in self._running if each.name == "etcd"]):
            for each in group:
                if each.ended() is None:
                    say(f"ending {each.name}")
                    each.process.terminate()
            for each in group:
                try:
                    each.process.wait(STOP_S)
                except subprocess.TimeoutExpired:
                    say(f"{each.name} does not end; killing process {each.process.pid}")
                    each.process.kill()
                    each.process.wait()
        self._running.clear()

    # -- inner

    def _start(
        self, name: str, command: Sequence[str], environ: dict[str, str] | None = None
    ) -> Started:
        path = self._folder / f"{name}.log"
        with path.open("ab") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=ROOT,
                env={**os.environ, **(environ or {})},
                start_new_session=True,
            )
        self._running.append(Started(name, command, path, process))
        return self._running[-1]

    def _until(self, reached: Callable[[], bool], started: Started, what: str) -> None:
        deadline = time.monotonic() + START_S
        while not reached():
            if started.ended() is not None:
                last = started.log.read_text(errors="replace").splitlines()[-3:]
                raise Trouble("\n".join([f"{started.name} ended: {started.log} says", *last]))
            if time.monotonic() > deadline:
                raise Trouble(f"not within {START_S:g} s: {what}; see {started.log}")
            time.sleep(POLL_S)

    def _blockd(self, *arguments: str, given: str = "") -> str:
        done = subprocess.run(
            [*BLOCKD, *arguments], input=given, capture_output=True, text=True, cwd=ROOT
        )
        if done.returncode:
            raise Trouble(f"blockd {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout

    def _control(self, name: str) -> Path:
        return self._folder / name / "control.sock"

    def _at(self, name: str) -> tuple[str, str]:
        return ("--control", str(self._control(name)))

    def _ready(self, name: str) -> dict[str, list[str]]:
        found: dict[str, list[str]] = json.loads((self._folder / f"{name}.ready").read_text())
        return found

    def _is_node(self, name: str) -> bool:
        path = self._folder / name / "node.json"
        return path.exists() and bool(json.loads(path.read_text())["joined"])

    def _pid(self, name: str) -> int:
        return next(each.process.pid for each in self._running if each.name == name)

    def _ports(self, name: str, count: int) -> list[int]:
        """Free ones, the same each time: of those that the kernel gives to nobody by itself, since
        they are let go of whenever nothing runs."""
        path = self._folder / f"{name}.ports"
        if path.exists():
            return [int(port) for port in path.read_text().split()]
        given = {each for file in self._folder.glob("*.ports") for each in file.read_text().split()}
        ports: list[int] = []
        for port in random.sample(PORTS, len(PORTS)):
            if str(port) in given:
                continue
            with contextlib.suppress(OSError), socket.socket() as probe:
                probe.bind(("127.0.0.1", port))
                ports.append(port)
            if len(ports) == count:
                break
        path.write_text(" ".join(map(str, ports)) + "\n")
        return ports


def say(text: str) -> None:
    print(f"==> {text}" if text else "", file=sys.stderr, flush=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/serve --cluster", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("nodes", type=int, metavar="N", help=f"how many nodes, 1 to {MAX_NODES}")
    parser.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        default=ROOT / "build" / "cluster",
        help="where everything is (default: build/cluster)",
    )
    options = parser.parse_args()
    if not 1 <= options.nodes <= MAX_NODES:
        parser.error(f"{options.nodes} nodes; say 1 to {MAX_NODES}")
    return options


def main() -> int:
    options = arguments()
    cluster = Cluster(options.data.absolute(), options.nodes)
    # A terminal, a service manager and a test all end it in order.
    for ends in (signal.SIGINT, signal.SIGTERM):  # a shell's background jobs ignore the first
        signal.signal(ends, signal.default_int_handler)
    try:
        cluster.start()
        cluster.explain()
        cluster.watch()
        return 1
    except KeyboardInterrupt:
        return 0
    except Trouble as trouble:
        say(str(trouble))
        return 1
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        cluster.stop()


if __name__ == "__main__":
    sys.exit(main())
