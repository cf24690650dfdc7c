"""Access lists of volumes that several nodes have: rows of the MetaStore, the same for all of them.

A node that changes a list has the row changed first, and keeps the list after that; the others look
at the rows of the volumes that they have every `LOOK_S`, and at once when they begin to serve one.
What they found is kept like lists of their own (`blockd.access`), so that it holds while the
MetaStore does not answer. A volume without a row has the list that the node itself has for it. A
row that cannot be read lets nobody in.
"""

import logging
import threading
from collections.abc import Iterator
from typing import Final

from blockd.access import kept
from blockd.access.book import Take, revision
from blockd.access.rules import AccessChanged, AccessList
from volume.errors import VolumeError
from volume.metastore import ClusterRecords, Done, MetaStoreUnavailable, Row, Stored
from volume.metastore_records import AccessRecord, CorruptRecord
from volume.replica import Replicas

logger = logging.getLogger(__name__)

LOOK_S: Final = 5.0  # as for nodes (blockd.cluster.membership)
PAGE: Final = 16  # rows at a time: a list of 256 rules is up to 64 KiB
TRIES: Final = 8  # to write a row, while answers are lost or others write it


class SharedLists:
    """See the module's text. `look` and `share` are for any thread."""

    def __init__(self, records: ClusterRecords, replicas: Replicas, look_s: float = LOOK_S) -> None:
        self._records = records
        self._replicas = replicas
        self._look_s = look_s
        self._wake = threading.Event()
        self._stopped = False
        self._problem = ""
        self._thread: threading.Thread | None = None

    def start(self, take: Take) -> None:
        self._thread = threading.Thread(target=self._run, args=(take,), name="blockd-lists")
        self._thread.start()

    def stop(self) -> None:
        self._stopped = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join()

    def look(self) -> None:
        """Soon."""
        self._wake.set()

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

    def _run(self, take: Take) -> None:
        while not self._stopped:
            try:
                self._look(take)
                self._tell("")
            except (VolumeError, OSError) as error:  # what was found before holds
                self._tell(str(error))
            self._wake.wait(self._look_s)
            self._wake.clear()

    def _look(self, take: Take) -> None:
        volumes = {AccessRecord.prefix + each.uuid.hex(): each.uuid for each in self._replicas}
        for row in self._rows() if volumes else ():
            volume = volumes.get(row.key)
            if volume is None:
                continue
            try:
                access = _list(volume, self._records.stored(AccessRecord, row))
            except CorruptRecord:
                access = kept.DAMAGED
            take(volume, access, row.revision)

    def _rows(self) -> Iterator[Row]:
        """Volumes without a list cost nothing."""
        after = ""
        while True:
            rows = self._records.store.list(AccessRecord.prefix, after, PAGE)
            yield from rows
            if len(rows) < PAGE:
                return
            after = rows[-1].key

    def _tell(self, problem: str) -> None:
        """In the log, once."""
        if problem and problem != self._problem:
            logger.warning("access lists of other nodes not read", extra={"reason": problem})
        self._problem = problem


def _list(volume: bytes, stored: Stored[AccessRecord] | None) -> AccessList | None:
    rules = "" if stored is None else stored.record.rules
    return kept.decode(kept.volume_key(volume), rules.encode()) if rules else None
