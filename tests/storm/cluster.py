"""scripts/cluster-storm: three daemons, an etcd, a volume on all three, and a client that writes
numbered blocks to whichever node serves it, while nodes are killed, stopped, paused and restarted,
the volume is moved and etcd goes away. With --machines each node, each of three members of etcd and
the client is in a network namespace of its own, and they are cut off from each other as well.

After each round the whole volume is read: each block has what was acknowledged last, or something
newer that was tried. Now and then, and at the end, all three copies have to be complete again.
The same seed has the same rounds, though not at the same moments. The directories of a failure are
kept, and the status and the log of each node are printed.
"""

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.clients import find_tool
from tests.cluster_daemons import Nodes
from tests.etcd_cluster import EtcdCluster, etcd_cluster
from tests.failover_rig import (
    NAMES,
    SLOW_S,
    VOLUME,
    Writer,
    created,
    serving,
    volume,
)
from tests.lan_cluster import lan_cluster
from tests.namespaces import Lan, missing
from tests.peer_nodes import until

WRITES = 30  # that have to be acknowledged before and after each act
PAUSES_S = (1.0, 8.0, 20.0)  # below, about and above what a lease lasts
LATER_S = (0.0, 0.3, 2.0, 12.0)  # until a dead node is started again
LOG_BYTES = 8000


@dataclass
class Scene:
    """What an act may use."""

    rng: random.Random
    nodes: Nodes
    etcd: EtcdCluster
    primary: str
    lan: Lan | None = None

    @property
    def others(self) -> list[str]:
        return [name for name in NAMES if name != self.primary]

    def kill(self, *names: str) -> Sequence[str]:
        for name in names:
            self.nodes.daemons[name].kill()
        return names

    def stop(self, name: str) -> Sequence[str]:
        self.nodes.daemons[name].stop()
        return (name,)

    def pause(self, name: str) -> Sequence[str]:
        pid = self.nodes.daemons[name].pid
        os.kill(pid, signal.SIGSTOP)
        time.sleep(self.rng.choice(PAUSES_S))
        os.kill(pid, signal.SIGCONT)
        return ()

    def move(self) -> Sequence[str]:
        # It may be refused: who is to have it has just come back.
        to = self.rng.choice(self.others)
        self.nodes.daemons[self.primary].finish("volume", "move", VOLUME, to)
        return ()

    def lose_etcd(self) -> Sequence[str]:
        members = range(len(self.etcd.endpoints))
        for member in members:
            self.etcd.kill(member)
        time.sleep(self.rng.choice(LATER_S))
        for member in members:
            self.etcd.start(member)
        return ()

    def lose_a_member_of_etcd(self) -> Sequence[str]:
        member = self.rng.randrange(len(self.etcd.endpoints))
        self.etcd.kill(member)
        time.sleep(self.rng.choice(LATER_S))
        self.etcd.start(member)
        return ()

    def cut(self, name: str, *nets: str) -> Sequence[str]:
        assert self.lan is not None
        self.lan.cut(name, *nets)
        return self._heal()

    def lose(self, name: str, *, sends: bool) -> Sequence[str]:
        """In one direction only: what a node sends to the others, or what it is sent."""
        assert self.lan is not None
        for other in NAMES:
            if other != name:
                self.lan.lose(*((name, other) if sends else (other, name)), "peers")
        return self._heal()

    def _heal(self) -> Sequence[str]:
        assert self.lan is not None
        time.sleep(self.rng.choice(PAUSES_S))
        self.lan.heal()
        return ()


ACTS: dict[str, Callable[[Scene], Sequence[str]]] = {
    "kill the primary": lambda s: s.kill(s.primary),
    "kill another one": lambda s: s.kill(s.rng.choice(s.others)),
    "kill two": lambda s: s.kill(*s.rng.sample(NAMES, 2)),
    "kill all": lambda s: s.kill(*NAMES),
    "stop the primary": lambda s: s.stop(s.primary),
    "stop another one": lambda s: s.stop(s.rng.choice(s.others)),
    "pause the primary": lambda s: s.pause(s.primary),
    "pause another one": lambda s: s.pause(s.rng.choice(s.others)),
    "move": Scene.move,
    "lose etcd": Scene.lose_etcd,
}
"""Each gives the names of the nodes that have to be started again."""

BETWEEN_MACHINES: dict[str, Callable[[Scene], Sequence[str]]] = {
    "cut the primary off from the others": lambda s: s.cut(s.primary, "peers"),
    "cut the primary off from all but clients": lambda s: s.cut(s.primary, "peers", "store"),
    "cut another one off": lambda s: s.cut(s.rng.choice(s.others), "peers", "store"),
    "cut the primary off from etcd": lambda s: s.cut(s.primary, "store"),
    "lose what the primary sends": lambda s: s.lose(s.primary, sends=True),
    "lose what the primary is sent": lambda s: s.lose(s.primary, sends=False),
    "lose what another one sends": lambda s: s.lose(s.rng.choice(s.others), sends=True),
    "lose a member of etcd": Scene.lose_a_member_of_etcd,
}
"""With --machines."""


class Storm:
    def __init__(
        self, nodes: Nodes, etcd: EtcdCluster, rng: random.Random, lan: Lan | None = None
    ) -> None:
        self.acts = ACTS if lan is None else {**ACTS, **BETWEEN_MACHINES}
        self._nodes = nodes
        self._etcd = etcd
        self._rng = rng
        self._lan = lan
        self._before: Writer | None = None

    @property
    def written(self) -> int:
        return 0 if self._before is None else self._before.last

    def round(self, acts: Sequence[str]) -> float:
        """The longest time that the client waited for an acknowledged write."""
        writer = Writer(self._nodes)
        if before := self._before:
            writer.acked, writer.tried, writer.last = before.acked, before.tried, before.last
        with writer:
            writer.wait_for_more(WRITES)
            for act in acts:
                scene = Scene(self._rng, self._nodes, self._etcd, writer.at, self._lan)
                dead = self.acts[act](scene)
                time.sleep(self._rng.choice(LATER_S))
                for name in dead:
                    self._nodes.start(name)
                writer.wait_for_more(WRITES)
        self._before = writer
        _, client = serving(self._nodes, *NAMES)
        with client:
            writer.check(client)
        return max(end - begin for begin, end in writer.gaps)

    def wait_for_copies(self) -> float:
        """Until all members have all of it; how long that took."""
        began = time.monotonic()

        def complete() -> bool:
            return any(volume(self._nodes, name)["copies"] == len(NAMES) for name in NAMES)

        until(complete, "all copies are complete", 2 * SLOW_S)
        return time.monotonic() - began

    def tell(self) -> None:
        """What there is to see after a failure."""
        for name in NAMES:
            daemon = self._nodes.daemons[name]
            if daemon.running and daemon.ready:
                print(daemon.finish("cluster", "status", "--copies").stdout.decode())
            print(f"--- stderr of {name}\n{daemon.stderr()[-LOG_BYTES:]}")


def main() -> int:
    """0: nothing was lost; 1: something was, or the volume was not served again."""
    parser = argparse.ArgumentParser(prog="scripts/cluster-storm", description=__doc__)
    parser.add_argument("--rounds", type=int, default=20, help="of one or two acts [20]")
    parser.add_argument(
        "--act", choices=[*ACTS, *BETWEEN_MACHINES], metavar="NAME", help="only this"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--machines", action="store_true", help="network namespaces; needs root")
    given = parser.parse_args()
    if given.act in BETWEEN_MACHINES and not given.machines:
        parser.error(f"--act {given.act!r} needs --machines")
    program = find_tool("etcd")
    assert program is not None, "there is no etcd here"
    if given.machines and (why := missing()):
        parser.error(f"--machines: {why}")
    folder = Path(tempfile.mkdtemp(prefix="storm-"))
    print(f"directories in {folder}", flush=True)
    rng = random.Random(given.seed)
    with _cluster(program, folder, machines=given.machines) as (nodes, etcd, lan):
        storm = Storm(nodes, etcd, random.Random(given.seed), lan)
        try:
            _rounds(storm, rng, given.rounds, given.act)
        except BaseException:
            traceback.print_exc()
            storm.tell()
            return 1
    shutil.rmtree(folder)
    print(f"{given.rounds} rounds, {storm.written} writes, no acknowledged one lost")
    return 0


@contextmanager
def _cluster(
    program: str, folder: Path, *, machines: bool
) -> Iterator[tuple[Nodes, EtcdCluster, Lan | None]]:
    if machines:
        with lan_cluster(program, folder) as cluster:
            yield cluster.nodes, cluster.etcd, cluster.lan
        return
    places = [folder / "etcd", folder / "nodes"]
    for place in places:
        place.mkdir()
    with etcd_cluster(program, places[0], 1) as etcd:
        nodes = Nodes(places[1], etcd, "storm")
        try:
            yield created(nodes), etcd, None
        finally:
            for daemon in nodes.daemons.values():
                daemon.discard()


def _rounds(storm: Storm, rng: random.Random, count: int, only: str | None) -> None:
    names: list[str] = []
    for number in range(count):
        acts = []
        for _ in range(rng.randint(1, 2)):
            names = names or rng.sample(list(storm.acts), len(storm.acts))
            acts.append(only or names.pop())
        print(f"{number + 1}/{count} {', '.join(acts)}", flush=True)
        gap_s = storm.round(acts)
        print(f"  {storm.written} writes, longest wait {gap_s:.1f} s", flush=True)
        if rng.random() < 0.5 or number == count - 1:
            print(f"  all copies complete after {storm.wait_for_copies():.1f} s", flush=True)


if __name__ == "__main__":
    sys.exit(main())
