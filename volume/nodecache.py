"""Decoded manifest nodes in memory: least recently used first out, under a byte budget.

Nodes never change, so an entry can be wrong only if its id is; nothing is ever invalidated.
Thread-safe.
"""

import threading
from collections import OrderedDict

from volume.layout import NODE_IDS_LENGTH, ChunkId
from volume.sites import rare

NODE_COST = NODE_IDS_LENGTH + 320  # bytes of one entry: its ids, id, key, and the dict's share


class NodeCache:
    """(node id, level) -> its 256 ids. The level is part of the key: what was checked at one level
    must not be taken for a node of another."""

    def __init__(self, budget: int) -> None:
        self._limit = budget // NODE_COST
        self._nodes: OrderedDict[tuple[ChunkId, int], bytes] = OrderedDict()
        self._lock = threading.Lock()
        self.hits = 0
        self.misses = 0

    def get(self, node: ChunkId, level: int) -> bytes | None:
        with self._lock:
            ids = None if rare("nodes.forget") else self._nodes.get((node, level))
            if ids is None:
                self.misses += 1
                return None
            self.hits += 1
            self._nodes.move_to_end((node, level))
            return ids

    def peek(self, node: ChunkId, level: int) -> bytes | None:
        """As `get`, but without a trace."""
        with self._lock:
            return self._nodes.get((node, level))

    def put(self, node: ChunkId, level: int, ids: bytes) -> None:
        with self._lock:
            self._nodes[node, level] = ids
            self._nodes.move_to_end((node, level))
            while len(self._nodes) > self._limit:
                self._nodes.popitem(last=False)

    def clear(self) -> None:
        with self._lock:
            self._nodes.clear()

    @property
    def size(self) -> int:
        """Bytes in use."""
        return len(self._nodes) * NODE_COST
