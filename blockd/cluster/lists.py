"""Access lists of volumes that several nodes have: rows of the MetaStore, the same for all of them.

A node that changes a list has the row changed first, and keeps the list after that; the others look
at the rows of the volumes that they have every `LOOK_S`, and at once when they begin to serve one.
What they found is kept like lists of their own (`blockd.access`), so that it holds while the
MetaStore does not answer. A volume without a row has the list that the node itself has for it. A
row that cannot be read lets nobody in.
"""

from typing import Final

from blockd.access import kept
from blockd.access.book import Take, revision
from blockd.access.rules import AccessChanged, AccessList
from blockd.cluster.rounds import Rounds
from volume.metastore import TRIES, ClusterRecords, Done, MetaStoreUnavailable, Stored
from volume.metastore_records import AccessRecord, CorruptRecord
from volume.replicas import Replicas

LOOK_S: Final = 5.0  # as for nodes (blockd.cluster.membership)
PAGE: Final = 16  # rows at a time: a list of 256 rules is up to 64 KiB


class SharedLists:
    """See the module's text. `look` and `share` are for any thread."""

    def __init__(self, records: ClusterRecords, replicas: Replicas, look_s: float = LOOK_S) -> None:
        self._records = records
        self._replicas = replicas
        self._take: Take | None = None
        trouble = "access lists of other nodes not read"  # what was found before holds
        self._rounds = Rounds("blockd-lists", self._look, trouble, look_s)

    def start(self, take: Take) -> None:
        self._take = take
        self._rounds.start()

    def stop(self) -> None:
        self._rounds.stop()

    def look(self) -> None:
        """Soon."""
        self._rounds.look()

    def share(
        self, volume: bytes, access: AccessList | None, expected: str | None = None
    ) -> int | None:
        """See `blockd.access.book.Share`."""
        replica = self._replicas.get(volume)
        if replica is None:
            return None
        rules = "" if access is None else kept.encode(kept.volume_key(volume), access).decode()
        wanted = AccessRecord(volume.hex(), rules)
        for _ in range(TRIES):
            try:
                old = self._records.access(wanted.volume_id)
            except CorruptRecord as error:
                raise MetaStoreUnavailable(f"access list: {error}") from error
            if None not in (old, expected) and revision(_list(volume, old)) != expected:
                self.look()
                raise AccessChanged(replica.name)
            outcome = self._records.settle(self._records.put_access(old, wanted), TRIES)
            if isinstance(outcome, Done):
                [row] = outcome.rows
                assert row is not None
                return row.revision
        raise MetaStoreUnavailable(
            f"access list of volume {volume.hex()}: the metastore could not be told, and other "
            "nodes would not know of it; try again"
        )

    def _look(self) -> None:
        assert self._take is not None
        volumes = {AccessRecord.prefix + each.uuid.hex(): each.uuid for each in self._replicas}
        for row in self._records.rows(AccessRecord, PAGE) if volumes else ():
            volume = volumes.get(row.key)
            if volume is None:
                continue
            try:
                access = _list(volume, self._records.stored(AccessRecord, row))
            except CorruptRecord:
                access = kept.DAMAGED
            self._take(volume, access, row.revision)


def _list(volume: bytes, stored: Stored[AccessRecord] | None) -> AccessList | None:
    rules = "" if stored is None else stored.record.rules
    return kept.decode(kept.volume_key(volume), rules.encode()) if rules else None
