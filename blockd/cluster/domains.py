"""Where nodes stand: which of them one failure may hit together.

By the device map each node's devices stand in a host, a rack and a site, by the names that people
gave them; beside that, nodes with the same address are on one machine. Of a node without a device
in the map only its address is known.
"""

from collections.abc import Collection, Mapping

from transport.devicemap import DeviceMap
from volume.metastore import Stored
from volume.metastore_records import NodeRecord

Shared = tuple[bool, bool, bool]
"""Of machine, rack, site: whether it is one of others', too."""


class Domains:
    def __init__(self, nodes: Mapping[str, Stored[NodeRecord]], devices: DeviceMap) -> None:
        self._machines = {
            node: found.record.addresses[0].rpartition(":")[0] for node, found in nodes.items()
        }
        self._places: dict[str, list[tuple[str, str, str]]] = {}
        for device in devices.devices.values():
            place = (device.site, device.rack, device.host)
            self._places.setdefault(device.node_id, []).append(place)

    def shared(self, node: str, others: Collection[str]) -> Shared:
        """Whether it stands on the machine, in the rack, at the site of one of the others."""
        machines = {self._machines.get(other, other) for other in others}
        machine = self._machines.get(node, node) in machines
        host, rack, site = (self._meets(node, others, depth) for depth in (3, 2, 1))
        return machine or host, rack, site

    def _meets(self, node: str, others: Collection[str], depth: int) -> bool:
        own = {place[:depth] for place in self._places.get(node, ())}
        return any(
            place[:depth] in own for other in others for place in self._places.get(other, ())
        )

    def spread(self, first: str, others: Collection[str], count: int) -> tuple[str, ...]:
        """So many nodes, `first` among them, each with as little shared with those before it as
        there is; by id where that is equal."""
        chosen = [first]
        left = sorted(set(others) - {first})
        while len(chosen) < count and left:
            best = min(left, key=lambda node: (self.shared(node, chosen), node))
            chosen.append(best)
            left.remove(best)
        return tuple(chosen)
