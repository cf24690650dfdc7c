"""Which stripes writes may find their chunks in: those that can be read, as far as can be seen.

A write that finds its chunk in a stripe is not stored anew, and its log goes. So whatever was
acknowledged after a stripe became unreadable must not be taken for stored by it. Looked at is, in
each round, where shards are and what every node says of those on its device; a node that does not
say counts as away. Between two rounds trust only shrinks:

    a node's session ends              in all stripes, until they are looked at again
    a read lacks shards                in that stripe, until the next round

also when either comes while it is being looked: `Looks` keeps what came since.
"""

from collections.abc import Callable, Collection, Iterable, Mapping

from transport.devicemap import DeviceMap
from transport.packrow import PackRow
from transport.shardfile import ShardName
from transport.stripetally import READABLE, Judge
from volume.stripedpack import StripedPacks

Told = Mapping[str, Collection[ShardName]]
"""By node that has said it: shards that are damaged or not there on its device."""


class StripeTrust:
    """`look` on the thread of the rounds; the rest on any."""

    def __init__(
        self,
        me: str,
        striped: Callable[[], StripedPacks],
        told: Callable[[], Told],
        reachable: Callable[[str], bool],
    ) -> None:
        """`told` asks other nodes, and waits. `reachable`: a device, just now."""
        self._me = me
        self._striped = striped
        self._ask = told
        self._reachable = reachable
        self.told: Told = {}
        """By the last round."""
        self.stale = False
        """Nothing is trusted, since a node has gone: it is to be looked at again."""

    def node_gone(self) -> None:
        """Some session has ended."""
        self._striped().suspect(None)
        self.stale = True

    def ask(self) -> None:
        """Have nodes say how their shards are; it counts for what follows."""
        self.told = self._ask()

    def look(self, rows: Iterable[PackRow], devices: DeviceMap, own: Collection[ShardName]) -> None:
        """`own`: what is damaged or not there on this node's device."""
        striped = self._striped()
        self.stale = False  # first: who comes after it has all looked at once more
        striped.begin_look()
        told = {**self.told, self._me: own}
        judge = Judge(
            devices,
            lambda device: device.node_id not in told or not self._reachable(device.device_id),
            {(node, name) for node, names in told.items() for name in names},
        )
        known = {row.pack_id: row for row in rows}
        trusted = set()
        for stub in striped.all():
            row = known.get(stub.pack_id)
            if row is None or not row.shards or row.removing or row.given_up:
                continue
            if judge.state(row) in READABLE:
                trusted.add(stub.number)
        striped.trust(trusted)
