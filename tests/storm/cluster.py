"""scripts/cluster-storm: three daemons, an etcd, a volume on all three, and a client that writes
numbered blocks to whichever node serves it, while nodes are killed, stopped, paused and restarted,
the volume is moved and etcd goes away.

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
from collections.abc import Callable, Sequence
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
        self.etcd.kill(0)
        time.sleep(self.rng.choice(LATER_S))
        self.etcd.start(0)
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


class Storm:
    def __init__(self, nodes: Nodes, etcd: EtcdCluster, rng: random.Random) -> None:
        self._nodes = nodes
        self._etcd = etcd
        self._rng = rng
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
                scene = Scene(self._rng, self._nodes, self._etcd, writer.at)
                dead = ACTS[act](scene)
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
    parser.add_argument("--act", choices=list(ACTS), metavar="NAME", help="only this one")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    program = find_tool("etcd")
    assert program is not None, "there is no etcd here"
    folder = Path(tempfile.mkdtemp(prefix="storm-"))
    places = [folder / "etcd", folder / "nodes"]
    for place in places:
        place.mkdir()
    print(f"directories in {folder}", flush=True)
    with etcd_cluster(program, places[0], 1) as etcd:
        nodes = Nodes(places[1], etcd, "storm")
        storm = Storm(created(nodes), etcd, random.Random(given.seed))
        try:
            _rounds(storm, random.Random(given.seed), given.rounds, given.act)
        except BaseException:
            traceback.print_exc()
            storm.tell()
            return 1
        finally:
            for daemon in nodes.daemons.values():
                daemon.discard()
    shutil.rmtree(folder)
    print(f"{given.rounds} rounds, {storm.written} writes, no acknowledged one lost")
    return 0


def _rounds(storm: Storm, rng: random.Random, count: int, only: str | None) -> None:
    names: list[str] = []
    for number in range(count):
        acts = []
        for _ in range(rng.randint(1, 2)):
            names = names or rng.sample(list(ACTS), len(ACTS))
            acts.append(only or names.pop())
        print(f"{number + 1}/{count} {', '.join(acts)}", flush=True)
        gap_s = storm.round(acts)
        print(f"  {storm.written} writes, longest wait {gap_s:.1f} s", flush=True)
        if rng.random() < 0.5 or number == count - 1:
            print(f"  all copies complete after {storm.wait_for_copies():.1f} s", flush=True)


if __name__ == "__main__":
    sys.exit(main())
