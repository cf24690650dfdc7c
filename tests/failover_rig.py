"""A volume on three real daemons, and an NBD client that writes to whoever serves it."""

import struct
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from tests.cluster_daemons import Nodes, up
from tests.nbd_client import NbdClient, OptionError, ProtocolError, RequestError
from tests.peer_nodes import until

VOLUME = "vm1"
BLOCK = 4096
BLOCKS = 256
NAMES = ("n1", "n2", "n3")
REST_S = 0.002  # between writes: as fast as it can, a client takes all of the daemons' time
SLOW_S = 60.0  # on a busy machine; what is measured is printed, not asserted


def created(nodes: Nodes) -> Nodes:
    up(nodes, *NAMES)
    nodes.daemons["n1"].run("cluster", "create", VOLUME, str(BLOCK * BLOCKS))
    until(lambda: volume(nodes, "n1")["primary"] == "n1", "n1 serves it")
    return nodes


class SharedNodes:
    """The nodes of one test after the other: each finds them as `created` leaves them, but for the
    epoch of the volume, and what their logs have said."""

    def __init__(self, make: Callable[[], Nodes]) -> None:
        """`make`: nodes that have no cluster yet."""
        self._make = make
        self._nodes: Nodes | None = None

    def ready(self) -> Nodes:
        nodes = self._nodes
        try:
            if nodes is None:
                self._nodes = nodes = self._make()
                created(nodes)
            else:
                _as_created(nodes)
        except BaseException:
            self.drop()
            raise
        return nodes

    def drop(self) -> None:
        """The next test has new ones."""
        nodes, self._nodes = self._nodes, None
        if nodes is not None:
            nodes.close()


def _as_created(nodes: Nodes) -> None:
    for name in NAMES:
        if not nodes.daemons[name].running:
            nodes.start(name)
    at, client = serving(nodes, *NAMES)
    with client:
        client.write(0, bytes(BLOCK * BLOCKS))
    until(lambda: volume(nodes, at)["copies"] == len(NAMES), "all have all", SLOW_S)
    if at != "n1":
        nodes.daemons[at].run("volume", "move", VOLUME, "n1")
        until(lambda: volume(nodes, "n1")["primary"] == "n1", "n1 serves it", SLOW_S)


def volume(nodes: Nodes, at: str) -> dict[str, Any]:
    """The volume as `blockd cluster status --json` shows it at a node."""
    with nodes.daemons[at].control() as client:  # often asked: a process each time would cost more
        volumes = client.cluster_status().volumes
    return asdict(next(each for each in volumes if each.name == VOLUME))


def attached(nodes: Nodes, name: str, timeout_s: float = 5.0) -> NbdClient:
    """A client of the volume at one node. OSError, OptionError: not there."""
    ready = nodes.daemons[name].ready
    if not ready:
        raise ConnectionError(f"{name} is starting")
    host, _, port = ready["nbd"][0].rpartition(":")
    client = NbdClient((host, int(port)), timeout_s=timeout_s)
    try:
        client.greet()
        client.go(VOLUME)
        client.read(0, BLOCK)  # where it is not served that fails
    except BaseException:
        client.close()
        raise
    return client


LOST = (OSError, EOFError, OptionError, ProtocolError, RequestError)


class Writer:
    """Writes numbered blocks, one after the other, to whichever node serves the volume."""

    def __init__(
        self, nodes: Nodes, blocks: range = range(BLOCKS), names: Sequence[str] = NAMES
    ) -> None:
        """`blocks`: those that it writes; others may be somebody else's."""
        self._nodes = nodes
        self._blocks = blocks
        self._names = names
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.acked = [0] * BLOCKS
        """Number in each block that was acknowledged last."""
        self.tried = [0] * BLOCKS
        """Number that it was last asked to have: may be there, acknowledged or not."""
        self.last = 0
        self.at = ""
        self.refused: list[str] = []
        """What was answered with an error, while attached."""
        self.gaps: list[tuple[float, float]] = []
        """(from the last acknowledged write before, until the first one after) each new attach."""

    def __enter__(self) -> "Writer":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    def wait_for_more(self, count: int = 50) -> None:
        goal = self.last + count
        until(lambda: self.last >= goal, f"{count} more writes", SLOW_S)

    def _run(self) -> None:
        since = time.monotonic()
        while not self._stop.is_set():
            for name in self._names:
                if not self._nodes.daemons[name].running:
                    continue
                try:
                    with attached(self._nodes, name) as client:
                        self.at = name
                        since = self._write(client, since)
                except LOST:
                    continue
            time.sleep(0.02)

    def _write(self, client: NbdClient, since: float) -> float:
        first = True
        try:
            while not self._stop.is_set():
                number = self.last + 1
                block = self._blocks[number % len(self._blocks)]
                self.tried[block] = number
                client.write(block * BLOCK, struct.pack("<Q", number) * (BLOCK // 8))
                self.acked[block] = self.last = number
                if first:
                    self.gaps.append((since, time.monotonic()))
                    first = False
                since = time.monotonic()
                self._stop.wait(REST_S)
        except LOST as error:
            if isinstance(error, RequestError):
                self.refused.append(f"block {block}: {error}")
            self.last += 1  # that one may be there or not: never the same number again
        return since

    def check(self, client: NbdClient) -> None:
        """Every block has what was acknowledged last, or what came after that."""
        for block in self._blocks:
            data = client.read(block * BLOCK, BLOCK)
            numbers = set(struct.unpack(f"<{BLOCK // 8}Q", data))
            assert len(numbers) == 1, f"block {block} is torn: {numbers}"
            (number,) = numbers
            assert self.acked[block] <= number <= self.tried[block], block


def serving(nodes: Nodes, *names: str) -> tuple[str, NbdClient]:
    """Whoever of these serves the volume, as soon as one does."""
    deadline = time.monotonic() + SLOW_S
    while time.monotonic() < deadline:
        for name in names:
            try:
                return name, attached(nodes, name)
            except LOST:
                time.sleep(0.05)
    raise AssertionError(f"none of {names} serves the volume")
