"""The replicas of a store: this node's parts of volumes that other nodes have as well."""

import threading
from collections.abc import Iterator, Mapping

from native import Syncer
from volume.errors import ReplicaError, VolumeExists
from volume.historyrows import state_put
from volume.replica import Replica
from volume.replicarow import ROW_PREFIX, Row, row_name
from volume.replicastate import MAX_VOLUME_EPOCH, ReplicaParts


class Replicas:
    """The replicas of a store, by uuid. Any thread."""

    def __init__(self, parts: ReplicaParts) -> None:
        """CorruptData: a row makes no sense."""
        self._parts = parts
        self._lock = threading.Lock()
        self._replicas: dict[bytes, Replica] = {}
        volumes = {volume.record.uuid: volume for volume in parts.catalog.all()}
        for name, data in parts.history.states(ROW_PREFIX):
            row = Row.decode(name, data)
            volume = volumes.get(bytes.fromhex(name.removeprefix(ROW_PREFIX)))
            if volume is not None:  # else it was rebuilt without it, or deleted
                parts.catalog.replicated.add(volume.record.number)
                self._replicas[volume.record.uuid] = Replica(parts, volume, row)

    def get(self, uuid: bytes) -> Replica | None:
        return self._replicas.get(uuid)

    def syncer(self) -> Syncer:
        """Syncs of the store's journal for a thread that must not wait; to be closed before the
        store is."""
        return Syncer(self._parts.journal)

    def remove(self, uuid: bytes) -> None:
        """Forget this node's part of a volume that was deleted; durable on return. Its clients get
        ESHUTDOWN."""
        with self._lock:
            replica = self._replicas.get(uuid)
            if replica is not None:
                replica.remove()
                del self._replicas[uuid]

    def __iter__(self) -> Iterator[Replica]:
        return iter(list(self._replicas.values()))

    def create(
        self, uuid: bytes, name: str, size: int, block_size: int, chunk_size: int, epoch: int
    ) -> Replica:
        """Make this node's part of a volume, empty, with `epoch` promised; durable on return.
        Again is no harm, also where a part has another size by now. InvalidName, InvalidSize,
        VolumeExists, StaleEpoch."""
        with self._lock:
            found = self._replicas.get(uuid)
            if found is not None:
                record = found.volume.record
                kept = (record.block_size, record.chunk_size)
                first = epoch == 1 and (record.name, record.size) != (name, size)
                if first or kept != (block_size, chunk_size):  # later it may have another size
                    raise VolumeExists(name)
                found.promise(epoch)
                return found
            row = Row(epoch, ((1, 0),))
            if not 1 <= epoch <= MAX_VOLUME_EPOCH:
                raise ReplicaError(f"volume {name}: epoch {epoch} does not fit into a record")
            put: Mapping[bytes, bytes] = state_put(row_name(uuid), row.encode())
            parts = self._parts
            parts.catalog.create_replica(name, uuid, size, block_size, chunk_size, put)
            replica = Replica(parts, parts.catalog.named(name), row)
            self._replicas[uuid] = replica
            return replica
