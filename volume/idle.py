"""What a store keeps in memory when nobody asks it for anything: little more than after its start.

Under load its caches fill up to their budgets (chunk places and decoded chunks, manifest nodes),
and heaps grow by what rounds, batches and replies take. When nobody has asked for anything for
REST_S, and after what gc does meanwhile,

    the caches are emptied, as a whole: entries are small, and a few that stayed would keep nearly
    every page of the heap;
    and what is free then goes back to the system (`volume.memory`). What Python has for small
    objects goes back by the MiB only, where nothing that stays lies between.

It costs time only, and only who comes back: a read looks its place up once more, through manifest
and index. When some reads had to (WAKE_MISSES), the places of volumes that have clients are looked
up ahead, as they are at a volume's first client (`volume.upkeep`). Who asks once in a while finds
the few places that he needs, and does not have thousands looked up each time.

`look` on one thread; `wants_warming` on one, the same or another.
"""

import gc
from typing import Protocol

from native import PlaceTable
from volume import memory
from volume.nodecache import NodeCache

REST_S = 10.0
"""Without requests, until memory is given back. Longer than a client's pauses between two batches,
and than what destaging waits for when nobody writes, so that it comes after its round."""
WAKE_MISSES = 64
"""Places looked up one by one since then, before those of whole volumes are looked up ahead."""


class Attachable(Protocol):
    """What is looked at of a volume."""

    @property
    def has_clients(self) -> bool: ...


class Idle:
    """Empties caches when a store comes to rest, and says when they are worth filling again."""

    def __init__(self, table: PlaceTable, nodes: NodeCache) -> None:
        self._table = table
        self._nodes = nodes
        self._resting = False
        self._misses = 0  # of the table, when it was emptied last
        self._warmed: dict[int, int] = {}  # number of a volume: `rests` when it was warmed
        self.rests = 0
        """How often caches were emptied."""

    def look(self, quiet_s: float, *, working: bool) -> bool:
        """Nobody has asked for anything for so long; `working`: gc is under way. Whether memory has
        been given back, which happens once until there is work again."""
        if working or quiet_s < REST_S:
            self._resting = False
            return False
        if self._resting:
            return False
        self._resting = True
        self._misses = self._table.stats()[4]
        self.rests += 1
        self._table.clear()
        self._nodes.clear()
        gc.collect()  # the interpreter's lists of free objects go with it
        memory.give_back()
        return True

    def wants_warming(self, number: int, volume: Attachable) -> bool:
        """Whether the places of a volume are to be looked up ahead, now: when it has its first
        client, and when clients have come back after a rest. True once each time."""
        warmed_at = self._warmed.get(number)
        if warmed_at == self.rests:
            return False
        if not volume.has_clients:
            self._warmed.pop(number, None)  # those who come to it then are its first ones
            return False
        if warmed_at is not None and self._table.stats()[4] - self._misses < WAKE_MISSES:
            return False
        self._warmed[number] = self.rests
        return True
