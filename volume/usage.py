"""Usage: who holds how much of the packs, to the byte.

A *root* is what the answer has a row for: the head of a volume, a snapshot, or all of a volume's
versions without a name together. It reaches pack entries: commits, manifest nodes and chunks. What
a root shares, and with whom, follows from the set of roots that reach each entry:

    stored      of a root: entries whose set has it
    exclusive   of a root: entries whose set is it alone
    freed       by deleting a volume with all its versions: entries whose set has its roots only
    garbage     entries that no root reaches

One pass finds all sets. Trees are gone through level by level, from the top: when a level is begun,
every root that reaches a node of it is known (all nodes above have said so), hence each distinct
node is read once, however many versions share it, and passes its set on to its children. Sets are
kept as sorted runs of root numbers (a node lives from one version to another: one run, mostly), and
each distinct set once; an entry holds its number in 4 bytes. So memory is 4 bytes for each entry,
some 200 for each node, and the sets; those that nothing holds any more are dropped as they pile up.

Counted are entries as they lie in the packs, with headers and page tables. Every byte of a pack is
then header, footer, live (some root reaches it) or garbage.

Threads: any. Rounds may go on meanwhile: what they put is in none of the roots, nor in the total.
gc should not: it moves entries, which would be counted twice. That is noticed, and counted anew a
few times. `roots` must stay protected from gc, as always.
"""

from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

from volume.chunks import ChunkStore
from volume.errors import CorruptChunk, CorruptPack, VolumeError
from volume.gc import Root
from volume.layout import ZERO_ID, ChunkId
from volume.manifest import Manifests
from volume.model import SpaceRow
from volume.packfile import entry_length
from volume.packs import Packs

MAX_TRIES = 4  # counts before PacksMoving: gc moves a pack of at most 64 MiB, then rests
BATCH = 256  # nodes looked up in the index at once
MAX_RUNS = 4_000_000  # in all sets, held ones and others, before the others are dropped: 0.5 GiB
MAX_JOINS = 1_000_000  # remembered: 0.2 GiB

_Runs = tuple[tuple[int, int], ...]


class PacksMoving(VolumeError):
    """gc moved chunks again and again while their places were needed to stay."""

    code = "packs_moving"


@dataclass(frozen=True, slots=True)
class UsageRoot:
    """What gets a row of its own."""

    volume: str
    kind: str
    """As `SpaceRow.kind`."""
    name: str | None
    trees: tuple[Root, ...]
    chunk_size: int
    pinned_by: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Usage:
    """The parts of `SpaceReport` that are about packs. Bytes are of entries."""

    rows: tuple[SpaceRow, ...]
    """In the order of the roots."""
    volumes: tuple[tuple[str, int], ...]
    """(volume, bytes freed by deleting it with all its versions), in the order of the roots."""
    live_bytes: int
    garbage_bytes: int


def account(
    chunks: ChunkStore,
    manifests: Manifests,
    roots: Sequence[UsageRoot],
    check: Callable[[], None] | None = None,
) -> Usage:
    """Who holds what. `logical_bytes` of a row is summed over its trees.

    Fastest when the roots of a volume come in the order of their versions. `check` is called
    between nodes; what it raises ends the count.
    CorruptData: a tree cannot be walked, or a pack is gone. PacksMoving: gc was in the way."""
    for _ in range(MAX_TRIES):
        try:
            return _Count(chunks, manifests, roots, check or _nothing).run()
        except _Moved:
            continue
    raise PacksMoving(
        f"space: gc moved chunks during each of {MAX_TRIES} counts; ask again in a while"
    )


class _Moved(Exception):
    """An entry is where none was when the count began: something moved it."""


class _RootSets:
    """Sets of root numbers, each known by a small number of its own; EMPTY is none."""

    EMPTY = 0

    def __init__(self) -> None:
        self.runs: list[_Runs] = [()]
        """Of each set: half-open, ascending, no two touch."""
        self.run_count = 0
        self._numbers: dict[_Runs, int] = {(): self.EMPTY}
        self._joins: dict[tuple[int, int], int] = {}
        self._free: list[int] = []

    def single(self, root: int) -> int:
        return self._number(((root, root + 1),))

    def join(self, a: int, b: int) -> int:
        """The union of two sets."""
        if a == b or b == self.EMPTY:
            return a
        if a == self.EMPTY:
            return b
        pair = (a, b) if a < b else (b, a)
        union = self._joins.get(pair)
        if union is None:
            if len(self._joins) >= MAX_JOINS:
                self._joins.clear()
            union = self._joins[pair] = self._number(_union(self.runs[a], self.runs[b]))
        return union

    def keep(self, held: set[int]) -> None:
        """Drop all sets but those."""
        self._joins.clear()
        for runs, number in list(self._numbers.items()):
            if number != self.EMPTY and number not in held:
                del self._numbers[runs]
                self.runs[number] = ()
                self.run_count -= len(runs)
                self._free.append(number)

    def _number(self, runs: _Runs) -> int:
        number = self._numbers.get(runs)
        if number is None:
            if self._free:
                number = self._free.pop()
                self.runs[number] = runs
            else:
                number = len(self.runs)
                self.runs.append(runs)
            self._numbers[runs] = number
            self.run_count += len(runs)
        return number


class _Count:
    """One count. Roots are numbered so that those of a volume are neighbours."""

    def __init__(
        self,
        chunks: ChunkStore,
        manifests: Manifests,
        roots: Sequence[UsageRoot],
        check: Callable[[], None],
    ) -> None:
        self._index = chunks.index
        self._manifests = manifests
        self._roots = roots
        self._check = check
        by_volume: dict[str, list[int]] = {}
        for at, root in enumerate(roots):
            by_volume.setdefault(root.volume, []).append(at)
        self._order = [at for numbers in by_volume.values() for at in numbers]
        """Number -> index in `roots`."""
        self._volumes = [(volume, len(numbers)) for volume, numbers in by_volume.items()]
        self._sets = _RootSets()
        self._max_runs = MAX_RUNS
        self._stored: list[int] = [0]
        """Bytes of the entries of each set."""
        self._raw: list[int] = [0]
        height = max((tree.height for root in roots for tree in root.trees), default=0)
        self._levels: list[dict[ChunkId, int]] = [{} for _ in range(height)]
        """Nodes of each level still to be gone through -> the set of roots that reach it."""
        self._present: dict[ChunkId, int] = {}
        """Nodes -> how many chunks below are not holes."""
        self._total = 0
        self._entries: dict[int, array[int]] = {}
        """Pack -> the set of each entry."""
        for number in chunks.packs.numbers():
            count, length = _entries(chunks.packs, number)
            self._entries[number] = array("I", bytes(4 * count))
            self._total += length

    def run(self) -> Usage:
        self._begin()
        for level in range(len(self._levels) - 1, -1, -1):
            self._pass_down(level)
            self._levels[level] = {}
        return self._result()

    def _begin(self) -> None:
        """The roots reach their commits and the tops of their trees."""
        for number, at in enumerate(self._order):
            reached = self._sets.single(number)
            for tree in self._roots[at].trees:
                self._reach([one for one in tree.commits if one != ZERO_ID], reached)
                if tree.root != ZERO_ID:
                    self._add(self._levels[tree.height - 1], [tree.root], reached)

    def _pass_down(self, level: int) -> None:
        nodes = iter(self._levels[level].items())
        while batch := list(islice(nodes, BATCH)):
            for node, reached in batch:
                self._check()
                self._reach([node], reached)
                children = self._manifests.children(node, level)
                if level > 0:
                    self._add(self._levels[level - 1], children, reached)
                else:
                    self._present[node] = len(children)
                    self._reach(list(dict.fromkeys(children)), reached)
            self._drop_sets()

    def _add(self, nodes: dict[ChunkId, int], found: Iterable[ChunkId], reached: int) -> None:
        for node in found:
            before = nodes.get(node, _RootSets.EMPTY)
            if before != reached:
                nodes[node] = self._sets.join(before, reached)

    def _reach(self, chunk_ids: list[ChunkId], reached: int) -> None:
        """The roots of set `reached` reach the entries of these chunks."""
        entries, stored, raw = self._entries, self._stored, self._raw
        for chunk_id, place in zip(chunk_ids, self._index.get_many(chunk_ids), strict=True):
            if place is None:
                raise CorruptChunk(
                    f"chunk {chunk_id.hex()}: is needed, but no pack has it; restore it from a "
                    "copy or a peer"
                )
            try:
                before = entries[place.pack][place.ordinal]
            except LookupError:
                raise _Moved from None
            if before == reached:
                continue
            after = self._sets.join(before, reached)
            if after == before:
                continue
            if after >= len(stored):
                stored.extend(0 for _ in range(after + 1 - len(stored)))
                raw.extend(0 for _ in range(after + 1 - len(raw)))
            length = entry_length(place.stored_length)
            if before != _RootSets.EMPTY:
                stored[before] -= length
                raw[before] -= place.raw_length
            stored[after] += length
            raw[after] += place.raw_length
            entries[place.pack][place.ordinal] = after

    def _drop_sets(self) -> None:
        """Forget the sets that were on the way to others only, when there are many."""
        if self._sets.run_count <= self._max_runs:
            return
        held: set[int] = set()
        for numbers in (*self._entries.values(), *(level.values() for level in self._levels)):
            held.update(numbers)
        self._sets.keep(held)
        self._max_runs = max(MAX_RUNS, 2 * self._sets.run_count)

    def _result(self) -> Usage:
        count = len(self._order)
        stored, raw = [0] * (count + 1), [0] * (count + 1)  # differences to the root before
        exclusive = [0] * count
        freed = dict.fromkeys((volume for volume, _ in self._volumes), 0)
        volume_of = [self._roots[at].volume for at in self._order]
        for runs, length, raw_length in zip(self._sets.runs, self._stored, self._raw, strict=False):
            if length == 0:
                continue
            for first, end in runs:
                stored[first] += length
                stored[end] -= length
                raw[first] += raw_length
                raw[end] -= raw_length
            first, last = runs[0][0], runs[-1][1] - 1
            if first == last:
                exclusive[first] += length
            if volume_of[first] == volume_of[last]:
                freed[volume_of[first]] += length
        rows: dict[int, SpaceRow] = {}
        stored_length = raw_length = 0
        for number, at in enumerate(self._order):
            stored_length += stored[number]
            raw_length += raw[number]
            rows[at] = self._row(at, stored_length, raw_length, exclusive[number])
        live = sum(self._stored)
        return Usage(
            tuple(rows[at] for at in range(count)), tuple(freed.items()), live, self._total - live
        )

    def _row(self, at: int, stored: int, raw: int, exclusive: int) -> SpaceRow:
        root = self._roots[at]
        present = sum(self._count_present(tree.root, tree.height - 1) for tree in root.trees)
        return SpaceRow(
            volume=root.volume,
            kind=root.kind,
            name=root.name,
            logical_bytes=present * root.chunk_size,
            raw_bytes=raw,
            stored_bytes=stored,
            exclusive_bytes=exclusive,
            shared_bytes=stored - exclusive,
            pinned_by=root.pinned_by,
        )

    def _count_present(self, node: ChunkId, level: int) -> int:
        """Chunks below a node that are not holes. Reads nodes above the leaves a second time."""
        if node == ZERO_ID:
            return 0
        count = self._present.get(node)
        if count is None:
            self._check()
            children = self._manifests.children(node, level)
            count = sum(self._count_present(child, level - 1) for child in children)
            self._present[node] = count
        return count


def _entries(packs: Packs, number: int) -> tuple[int, int]:
    try:
        return packs.entries(number)
    except (KeyError, CorruptPack):
        if number in packs.numbers():
            raise
        raise _Moved from None  # gc has removed the pack since it was listed


def _union(a: _Runs, b: _Runs) -> _Runs:
    runs: list[tuple[int, int]] = []
    for first, end in sorted((*a, *b)):
        if runs and first <= runs[-1][1]:
            runs[-1] = (runs[-1][0], max(runs[-1][1], end))
        else:
            runs.append((first, end))
    return tuple(runs)


def _nothing() -> None:
    pass
