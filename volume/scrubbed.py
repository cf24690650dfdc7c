"""What scrub knows of a store beside its packs: where its memory is kept, and what has a name."""

from collections.abc import Iterator

from volume.catalog import Catalog
from volume.history import History
from volume.locate import NamedRoot
from volume.thinning import commits_of


class KeptScrubState:
    """Where scrub's memory is kept: see `volume.scrub.ScrubState`."""

    def __init__(self, history: History) -> None:
        self._history = history

    def load(self) -> bytes | None:
        return self._history.load_state("scrub")

    def save(self, state: bytes) -> None:
        self._history.save_state("scrub", state)


def named_roots(catalog: Catalog, history: History) -> Iterator[NamedRoot]:
    """Trees that have a name: heads and versions of all volumes."""
    for volume in sorted(catalog.all(), key=lambda volume: volume.name):
        record = volume.record
        head, chunk_size = record.head, record.chunk_size
        yield NamedRoot(
            *(volume.name, head.root, head.height, record.size, chunk_size),
            commits_of(head.commit),
        )
        names = {snapshot.seq: snapshot.name for snapshot in history.snapshots(record.number)}
        for row in history.versions(record.number):
            ref = names.get(row.seq, f"seq:{row.seq}")
            yield NamedRoot(
                *(f"{volume.name}@{ref}", row.root, row.height, row.size, chunk_size),
                commits_of(row.commit),
            )
