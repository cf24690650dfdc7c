"""Bytes that cross between three nodes for what a client writes: new data, and the same again.

Counted by the nodes themselves, of all messages between them, before encryption: what
`blockd_peer_sent_bytes_total` shows of a cluster in use. Members that have a chunk already get its
id (docs/cluster.md, "What is there already is not sent"), so the same data again costs little.
"""

import os
from collections import Counter
from collections.abc import Callable

from tests.cluster_daemons import Nodes
from tests.failover_rig import SLOW_S
from tests.nbd_client import NbdClient
from tests.peer_nodes import until

MIB = 1 << 20
MOST = 64 * MIB
WANTED = 0.02


def report(nodes: Nodes, volume: str, size: int, settle: Callable[[], None]) -> list[str]:
    """A section of the page: one table."""
    length = min(MOST, size // 2)
    data = os.urandom(length)
    host, _, port = nodes.daemons["n1"].ready["nbd"][0].rpartition(":")
    rows = []
    client = NbdClient((host, int(port)), timeout_s=SLOW_S)
    try:
        client.greet()
        client.go(volume)
        for what, offset in (("new data", 0), ("the same again, elsewhere", length)):
            settle()
            before = _sent(nodes)
            for at in range(0, length, MIB):
                client.write(offset + at, data[at : at + MIB])
            client.flush()
            until(lambda: _copies(nodes, volume) == len(nodes.daemons), "all have it", SLOW_S)
            crossed = _sent(nodes)
            crossed.subtract(before)
            rows.append(_row(what, length, crossed))
    finally:
        client.close()
    return [
        "### Bytes on the wire",
        "",
        f"{length // MIB} MiB of random bytes in writes of 1 MiB, to three members; wanted of the "
        f"same again: less than {WANTED:.0%} of the payload.",
        "",
        "| written | crossed, bytes | of the payload | most of it |",
        "| --- | ---: | ---: | --- |",
        *rows,
        "",
    ]


def _sent(nodes: Nodes) -> Counter[str]:
    found: Counter[str] = Counter()
    for name in nodes.daemons:
        found.update(dict(nodes.show(name).sent))
    return found


def _copies(nodes: Nodes, volume: str) -> int:
    with nodes.daemons["n1"].control() as client:
        found = client.cluster_status().volumes
    return next((each.copies for each in found if each.name == volume), 0)


def _row(what: str, length: int, crossed: Counter[str]) -> str:
    total = sum(crossed.values())
    kinds = ", ".join(f"{kind} {count:,}" for kind, count in crossed.most_common(3) if count)
    return f"| {what} | {total:,} | {total / length:.2%} | {kinds} |"
