"""Who is hit by damage: the parts of volumes and versions that need a damaged chunk."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from volume.chunks import ChunkStore
from volume.damage import Damage
from volume.errors import CorruptData
from volume.layout import CHUNK_ID_LENGTH, FAN_OUT, ZERO_ID, ChunkId
from volume.manifest import Manifests
from volume.marks import Marks


@dataclass(frozen=True, slots=True)
class Location:
    """Where damage shows."""

    name: str
    """Of the root: a volume, or volume@version."""
    chunk_id: ChunkId
    offset: int | None
    """Bytes in the volume; None: its commit, so that the version's history is damaged only."""
    length: int
    what: str


class NamedRoot(NamedTuple):
    """A tree that `locate` looks at."""

    name: str
    root: ChunkId
    height: int
    size: int
    """Of the volume, bytes."""
    chunk_size: int
    commits: tuple[ChunkId, ...] = ()


def locate(
    chunks: ChunkStore,
    manifests: Manifests,
    damages: Iterable[Damage],
    roots: Iterable[NamedRoot],
    *,
    absent: bool = False,
) -> Iterator[Location]:
    """Which parts of which roots need a damaged chunk, root by root. Lazy, any thread.

    Reads the trees; a subtree without any is looked at once, however many versions share it. A
    node that cannot be read shows as all that is below it, whether scrub knew of it or not.
    `absent`: what is in no pack is damage as well, which takes a lookup for each chunk."""
    search = _Search(chunks, manifests, damages, absent)
    for root in roots:
        yield from search.run(root)


class _Search:
    def __init__(
        self,
        chunks: ChunkStore,
        manifests: Manifests,
        damages: Iterable[Damage],
        absent: bool,
    ) -> None:
        self._index = chunks.index
        self._manifests = manifests
        self._absent = absent
        self._by_id: dict[ChunkId, str] = {}
        self._by_pack: dict[int, str] = {}
        for damage in damages:
            if damage.chunk_id is not None:
                self._by_id[damage.chunk_id] = damage.what
            elif damage.gone:  # a damaged header or footer alone hits nobody
                self._by_pack[damage.pack] = damage.what
        self._clean = Marks()

    def run(self, root: NamedRoot) -> Iterator[Location]:
        commits = [commit for commit in root.commits if commit != ZERO_ID]
        for commit, what in zip(commits, self._damaged(commits), strict=True):
            if what is not None:
                yield Location(root.name, commit, None, 0, what)
        if root.root != ZERO_ID:
            (what,) = self._damaged([root.root])
            yield from self._visit(root, root.root, root.height - 1, 0, what)

    def _visit(
        self, root: NamedRoot, node: ChunkId, level: int, first: int, what: str | None
    ) -> Iterator[Location]:
        """`first`: index of the first chunk below the node; `what`: is wrong with the node."""
        slot = None if what is not None else self._index.slots([node])[0]
        if slot is not None and self._clean.marked(slot):
            return
        ids = b""
        if what is None:
            try:
                ids = self._manifests.node_ids(node, level)
            except (CorruptData, OSError) as error:
                what = str(error)
        span = FAN_OUT**level
        if what is not None:
            yield from self._location(root, node, first, span * FAN_OUT, what)
            return
        hit = False
        children = [
            (at // CHUNK_ID_LENGTH, child)
            for at in range(0, len(ids), CHUNK_ID_LENGTH)
            if (child := ids[at : at + CHUNK_ID_LENGTH]) != ZERO_ID
        ]
        wrong = self._damaged([child for _, child in children])
        for (number, child), damage in zip(children, wrong, strict=True):
            start = first + number * span
            if level == 0 and damage is not None:
                hit = True
                yield from self._location(root, child, start, 1, damage)
            elif level > 0:
                for location in self._visit(root, child, level - 1, start, damage):
                    hit = True
                    yield location
        if not hit and slot is not None:
            self._clean.mark(slot)

    def _location(
        self, root: NamedRoot, chunk_id: ChunkId, first: int, count: int, what: str
    ) -> Iterator[Location]:
        """The part that is within the volume: it may have shrunk."""
        offset = first * root.chunk_size
        length = min(count * root.chunk_size, root.size - offset)
        if length > 0:
            yield Location(root.name, chunk_id, offset, length, what)

    def _damaged(self, chunk_ids: list[ChunkId]) -> list[str | None]:
        """What is wrong with each."""
        by_place = bool(self._by_pack) or self._absent
        if not by_place and self._by_id.keys().isdisjoint(chunk_ids):
            return [None] * len(chunk_ids)
        wrong = [self._by_id.get(chunk_id) for chunk_id in chunk_ids]
        if by_place:
            for at, slot in enumerate(self._index.slots(chunk_ids)):
                if slot is None:
                    wrong[at] = wrong[at] or ("no pack has it" if self._absent else None)
                else:
                    wrong[at] = wrong[at] or self._by_pack.get(slot.pack)
        return wrong
