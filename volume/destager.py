"""The destager: moves what is hot (in the journal only) into chunks, in rounds.

A round, and what a crash after each step leaves:

    1  freeze    one position of the log is chosen (the cut), all hot maps    nothing has changed
                 freeze there; new writes go to fresh maps
    2  build     points (versions that somebody named) are replayed from      unused entries in
                 the log; they, and the frozen extents, over the old          packs; gc takes them
                 chunks, become new chunks; manifest nodes and a commit
                 for each follow
    3  chunks    packs synced, then the index                                 the same
    4  journal   HEAD records appended; journal synced: the segment that      the same
                 the checkpoint will name is durable
    5  meta      heads and checkpoint move, points become versions, and the   the new heads; replay
                 round is noted, in one synced transaction                    begins at the cut
    6  memory    frozen maps dropped, places of new chunks cached, segments   the same
                 before the cut are the window's

A round that fails keeps its frozen maps, reads go on through them, and the round is tried again
from step 2. Out of space: `abandon`, then gc, then again. Nothing is lost meanwhile: it is all in
the journal. One thread runs rounds and gc; see `volume.chunks` for who else may read.

Damaged data does not stop a round: see `volume.builder`. What is lost by it is said in the log, and
known to scrub from then on. A damaged manifest node below a write does stop its volume, and so
does, where there are other nodes, a damaged chunk below a write in part, until one of them has
given it or all have said that they do not have it. Such a volume is *stuck*, `held_up` says so, and
it is tried again at intervals, and when other nodes have answered, until it is repaired, restored
or deleted. Meanwhile rounds are of the other volumes. They move heads and settle points, but
neither the checkpoint nor a place where a replay may begin: both say that everything before them is
in chunks. So a crash leaves the log from the old checkpoint on, of which the replay skips what the
heads have already; and the log from there on stays, for as long as a volume is stuck.
`volume.upkeep` says how much that may be.

A volume whose head was replaced (a restore) while its hot map was frozen gets a version of what was
frozen, since the log after the cut will only be read from the cut on; its head stays as it is. Not
so one whose records were undone, or that came anew from another node (`Catalog.rewind`) while it
was stuck: what was frozen is of no history that it has, and goes. A
point that cannot be built, because the log is damaged there, is left as it is and said so; the
round goes on.
"""

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

from native import Journal, VolumeCore
from volume.builder import BuildInput, Built, Lost, PackedIds, TreeBuilder
from volume.checkpoint import Checkpoint
from volume.chunks import ChunkStore
from volume.commits import Commit, put_commit
from volume.disk import Clock
from volume.errors import ChunkAwaited, CorruptData, NoSuchVersion, VolumeError
from volume.headrecord import SITE, WRITER, described, payload
from volume.history import History
from volume.historyrows import RoundRow, VersionRow, point_key, round_put, versions_put
from volume.layout import ZERO_ID
from volume.meta import Head, Meta, VolumeRecord
from volume.past import PastVersions
from volume.reader import ChunkResolver, HeadState
from volume.sites import fail_point, rare
from volume.volume import Volume

log = logging.getLogger(__name__)

RETRY_S = 1.0  # before a volume that is stuck is tried again; then twice as long, up to
RETRY_MAX_S = 30.0


@dataclass(frozen=True, slots=True)
class _Built:
    """What a round made of one volume."""

    volume: Volume
    row: VersionRow
    commit: Commit
    chunks: PackedIds
    """Where bytes were written."""

    @property
    def head(self) -> Head:
        return Head(self.row.commit, self.row.root, self.row.height, self.row.seq)


@dataclass(slots=True)
class _Round:
    """What was frozen together: the cut, when, and each volume with its seq and size there."""

    checkpoint: Checkpoint
    time_ns: int
    volumes: list[tuple[Volume, int, int]]
    others: list[Volume]
    """Those that had nothing to freeze."""
    whole: bool
    """Nobody was left out: what is hot before the cut is in it."""
    again: bool = False
    """It is of a volume that is stuck, alone."""


class _Why(NamedTuple):
    """Why a volume cannot be built."""

    text: str
    awaited: bool
    """It waits for what other nodes may have."""


@dataclass(slots=True)
class _Results:
    heads: list[_Built]
    settled: dict[tuple[int, int], VersionRow]
    """Points (volume number, seq) that are in chunks now."""
    stuck: dict[Volume, _Why]
    """Volumes that cannot be built."""
    news: int
    """Of other nodes, as counted before anything was built."""

    @property
    def got_through(self) -> bool:
        """Whether there is anything to commit."""
        return bool(self.heads or self.settled or not self.stuck)


@dataclass(slots=True)
class _Stuck:
    """A volume that is frozen and cannot be built."""

    round: _Round
    """Of it alone, at the cut where it was frozen."""
    why: _Why
    news: int
    """Of other nodes, as counted before it was tried."""
    tried_at: float
    """Monotonic, as `again_at`."""
    again_at: float
    """When it is tried again, whatever happens."""
    since: float
    """When it could not be built first."""
    wait_s: float = RETRY_S

    @property
    def volume(self) -> Volume:
        return self.round.volumes[0][0]


@dataclass(frozen=True, slots=True)
class HeldUp:
    """A volume that is not destaged."""

    number: int
    name: str
    why: str
    since: float
    """Monotonic."""

    def __str__(self) -> str:
        return f"volume {self.name} is not destaged: {self.why}"


class Destager:
    """Runs rounds. All methods on one thread; the public attributes are for any."""

    def __init__(
        self,
        journal: Journal,
        chunks: ChunkStore,
        builder: TreeBuilder,
        resolver: ChunkResolver,
        meta: Meta,
        history: History,
        past: PastVersions,
        clock: Clock,
        segment_bytes: int,
        *,
        freed: Callable[[list[int]], None],
        control: threading.Lock,
        damaged: Callable[[list[Lost]], None] = lambda _: None,
    ) -> None:
        """`control` is held while volumes come, go or change, and while a round freezes them or
        moves their heads. `damaged`: told what a round has lost, once the loss is durable."""
        self._journal = journal
        self._chunks = chunks
        self._builder = builder
        self._resolver = resolver
        self._meta = meta
        self._history = history
        self._past = past
        self._clock = clock
        self._segment_bytes = segment_bytes
        self._freed = freed
        self._control = control
        self._damaged = damaged
        self._lost: list[Lost] = []
        self._head_in: dict[int, int] = {}  # volume number -> sequence that has a HEAD, or later
        self._round: _Round | None = None
        self._stuck: list[_Stuck] = []
        self.rounds = 0
        self.unsettled = 0
        """Points that the last round could not build."""
        self.held_up: tuple[HeldUp, ...] = ()
        """Volumes that rounds leave out."""
        self.passed: Checkpoint | None = None
        """The last cut before which everything but stuck volumes is in chunks; None when that is
        the checkpoint."""

    @property
    def standing(self) -> bool:
        """Whether a round has failed, and the next call of `run` tries it again."""
        return self._round is not None

    def run(self, volumes: Callable[[], list[Volume]]) -> bool:
        """One round over whatever is hot in `volumes()`; whether anything came of it. Volumes that
        are stuck are left out, or tried again when that is due.

        OutOfSpace: the round stands and is tried again by the next call. CorruptData: likewise.
        OSError: the disk failed; seal."""
        did = False
        for stuck in [each for each in self._stuck if self._is_due(each)]:
            did = self._try_again(stuck) or did
        current = self._round = self._round or self._freeze(volumes)
        if current is None:
            return did
        fail_point("destage.frozen")
        results = self._carry_out(current)
        self._round = None
        return did or results.got_through

    def _carry_out(self, current: _Round) -> _Results:
        """Steps 2 to 6. Whatever is raised, nothing has come of it."""
        self._chunks.begin_batch()  # all that is frozen was acknowledged before
        try:
            results = self._build(current)
            fail_point("destage.built")
            if rare("destage.fails"):
                raise VolumeError("the test rig lets this round fail")
            self._chunks.sync()
        except Exception:  # whatever it was (a shrink under its hands, too): it starts again here
            self._chunks.abandon()
            raise
        whole = current.whole and not results.stuck
        if results.got_through:
            self._commit(current, results, whole=whole)
        self._note_stuck(current, results)
        if not current.again:
            self.passed = None if whole else current.checkpoint
        if whole:
            self._freed(self._journal.release(current.checkpoint.lsn))
        return results

    # -- volumes that are stuck

    def is_stuck(self, volume: Volume) -> bool:
        return any(each.volume is volume for each in self._stuck)

    @property
    def retry_due(self) -> bool:
        """Whether a stuck volume is to be tried again."""
        return any(self._is_due(each) for each in self._stuck)

    def _is_due(self, stuck: _Stuck) -> bool:
        now = self._clock.monotonic()
        has_news = stuck.why.awaited and self._chunks.rescue.news != stuck.news
        soonest_at = stuck.tried_at + RETRY_S if has_news else stuck.again_at
        return stuck.volume.deleted or now >= min(soonest_at, stuck.again_at)

    def _try_again(self, stuck: _Stuck) -> bool:
        """Whether it has got through, or need not any more."""
        results = self._carry_out(stuck.round)
        if results.stuck:
            stuck.why, stuck.news = results.stuck[stuck.volume], results.news
            self._tell_stuck()
            stuck.wait_s = min(2 * stuck.wait_s, RETRY_MAX_S)
            stuck.tried_at = self._clock.monotonic()
            stuck.again_at = stuck.tried_at + stuck.wait_s
            return False
        self._stuck.remove(stuck)
        self._tell_stuck()
        log.info("destaging goes on volume=%s", stuck.volume.name)
        return True

    def _note_stuck(self, current: _Round, results: _Results) -> None:
        """They stay frozen at the cut of this round."""
        found, now = results.stuck, self._clock.monotonic()
        for volume, seq, size in current.volumes:
            if volume in found and not self.is_stuck(volume):
                at = (current.checkpoint, current.time_ns)
                alone = _Round(*at, [(volume, seq, size)], [], whole=False, again=True)
                why = found[volume]
                self._stuck.append(_Stuck(alone, why, results.news, now, now + RETRY_S, now))
                log.error("destaging is held up volume=%s error=%s", volume.name, why.text)
        self._tell_stuck()

    def _stuck_numbers(self) -> set[int]:
        return {each.volume.record.number for each in self._stuck}

    def _tell_stuck(self) -> None:
        self.held_up = tuple(
            HeldUp(each.volume.record.number, each.volume.name, each.why.text, each.since)
            for each in self._stuck
        )

    # -- the steps

    def _freeze(self, volumes: Callable[[], list[Volume]]) -> _Round | None:
        """All volumes but those that are stuck, also those that seem cold: a write may come in
        before the cut is made."""
        with self._control:
            everyone = [volume for volume in volumes() if not self.is_stuck(volume)]
            points = self._history.points
            if self._stuck:
                numbers = self._stuck_numbers()
                due = any(number not in numbers for number, _ in list(points))
            else:  # a journal without anything hot: its volumes are gone, or were stuck
                due = bool(points or self._journal.state()[4] or self.passed)
            if not due and not any(volume.core.state()[4] for volume in everyone):
                return None
            cut, seqs = self._journal.freeze([volume.core for volume in everyone])
            changed, others = [], []
            for volume, seq in zip(everyone, seqs, strict=True):
                if seq != volume.record.head.seq:
                    changed.append((volume, seq, volume.record.size))
                else:
                    volume.core.commit(volume.head().generation)  # nothing was frozen
                    others.append(volume)
            checkpoint = Checkpoint(*cut, self._segment_bytes)
            whole = not self._stuck
            return _Round(checkpoint, self._clock.now_ns(), changed, others, whole)

    def _build(self, current: _Round) -> _Results:
        """Step 2 for each volume that still exists, points first."""
        self._lost = []
        news = self._chunks.rescue.news
        settled = {} if current.again else self._settle_points(current)
        heads = []
        stuck: dict[Volume, _Why] = {}
        for volume, seq, size in current.volumes:
            if self._meta.numbered(volume.record.number) is None or volume.undone:
                continue
            try:
                heads.append(self._build_head(volume, seq, size, current, settled))
            except CorruptData as error:
                if not volume.deleted:
                    stuck[volume] = _Why(str(error), isinstance(error, ChunkAwaited))
                    continue
                log.error(
                    "the state before a restore cannot be kept volume=%s seq=%d error=%s",
                    *(volume.name, seq, error),
                )
        for built in heads:  # a point at the cut is the head
            key = (built.row.number, built.row.seq)
            if key in self._history.points:
                settled[key] = built.row
        return _Results(heads, settled, stuck, news)

    def _settle_points(self, current: _Round) -> dict[tuple[int, int], VersionRow]:
        """Versions for the points before the cut, but for those at the cut itself, and those of
        volumes that are stuck: they would be built over the same damage."""
        settled: dict[tuple[int, int], VersionRow] = {}
        self.unsettled = 0
        groups: dict[tuple[int, int], list[tuple[VolumeRecord, VersionRow]]] = {}
        bases: dict[int, list[int]] = {}
        stuck = self._stuck_numbers()
        at_cut = {(volume.record.number, seq) for volume, seq, _ in current.volumes}
        for number, seq in sorted(self._history.points - at_cut):
            record = self._meta.numbered(number)
            point = self._history.point(number, seq)
            if record is None or point is None or point.lsn >= current.checkpoint.lsn:
                continue
            if number in stuck:
                self.unsettled += 1
                continue
            version = self._history.version(number, seq)
            if version is not None:
                settled[number, seq] = version
                continue
            # What one reading of the log serves: points with one start, and for each volume with
            # one version before them. (A restore between two points makes another one of it.)
            start = self._past.start_for(number, seq)
            before = bases.setdefault(number, [])
            base = self._newest_before(number, seq).seq
            if base not in before:
                before.append(base)
            key = (0 if start is None else start.lsn, before.index(base))
            groups.setdefault(key, []).append((record, point))
        for points in groups.values():
            points.sort(key=lambda each: (each[1].lsn, each[1].number, each[1].seq))
            self._settle(points, settled)
        return settled

    def _settle(
        self,
        points: list[tuple[VolumeRecord, VersionRow]],
        settled: dict[tuple[int, int], VersionRow],
    ) -> None:
        """Versions for points to which the log leads from one start, in the order of the log."""
        bases = {}
        for record, point in reversed(points):
            bases[record.number] = self._newest_before(record.number, point.seq)
        records = {record.number: record for record, _ in points}
        done = 0
        try:
            for point, core in self._past.points(points, dict(bases)):
                record, base = records[point.number], bases[point.number]
                row = self._build_point(record, point, base, core)
                settled[point.number, point.seq] = bases[point.number] = row
                done += 1
        except (CorruptData, NoSuchVersion) as error:
            self.unsettled += len(points) - done
            record, point = points[done]
            what = "are not in chunks yet" if isinstance(error, ChunkAwaited) else "cannot be kept"
            log.error(
                f"versions {what} first=%s@seq:%d count=%d error=%s",
                *(record.name, point.seq, len(points) - done, error),
            )

    def _newest_before(self, number: int, seq: int) -> VersionRow:
        base = self._history.base(number, seq)
        assert base is not None, "a volume begins with a version"
        return base

    def _build_point(
        self, record: VolumeRecord, point: VersionRow, base: VersionRow, core: VolumeCore
    ) -> VersionRow:
        built = self._built(
            BuildInput(
                record.name,
                core,
                HeadState(base.root, base.height, 0),
                point.size,
                record.chunk_size,
                self._history.settings(record.number).codec,
            )
        )
        core.commit(core.state()[1] + 1)  # the next point is over this one
        return self._row(record, point, base, built)[0]

    def _build_head(
        self,
        volume: Volume,
        seq: int,
        size: int,
        current: _Round,
        settled: dict[tuple[int, int], VersionRow],
    ) -> _Built:
        record = volume.record
        built = self._built(
            BuildInput(
                record.name,
                volume.core,
                volume.head(),
                size,
                record.chunk_size,
                self._history.settings(record.number).codec,
            )
        )
        lsn = current.checkpoint.lsn - 1
        point = VersionRow(record.number, seq, record.epoch, lsn, current.time_ns, size)
        old = record.head
        base = replace(point, seq=old.seq, commit=old.commit, root=old.root, height=old.height)
        for (number, _), row in settled.items():
            if number == record.number and base.seq < row.seq < seq:
                base = row
        row, commit = self._row(record, point, base, built)
        return _Built(volume, row, commit, built.chunks)

    def _built(self, given: BuildInput) -> Built:
        built = self._builder.build(given)
        self._lost.extend(built.lost)
        return built

    def _row(
        self, record: VolumeRecord, point: VersionRow, base: VersionRow, built: Built
    ) -> tuple[VersionRow, Commit]:
        """The version row of a tree, and its commit, which is stored."""
        commit = Commit(
            volume_uuid=record.uuid,
            name=record.name,
            size=point.size,
            block_size=record.block_size,
            chunk_size=record.chunk_size,
            height=built.height,
            root=built.root,
            parents=() if base.commit == ZERO_ID else (base.commit,),
            first_seq=base.seq + 1,
            last_seq=point.seq,
            time_ns=point.time_ns,
            epoch=point.epoch,
            site=SITE,
            writer=WRITER,
        )
        row = replace(
            point,
            commit=put_commit(self._chunks, commit),
            root=built.root,
            height=built.height,
            changed_bytes=built.changed_chunks * record.chunk_size,
        )
        return row, commit

    def _commit(self, current: _Round, results: _Results, *, whole: bool) -> None:
        """`whole`: everything before the cut is in chunks, so the checkpoint moves there."""
        now_ns = self._clock.now_ns()
        for each in results.heads:
            self._append_head(each, now_ns)
        if whole:
            for volume in current.others:
                self._append_head_again(volume, current.checkpoint.sequence, now_ns)
            self._forget_gone(len(current.volumes) + len(current.others))
        fail_point("destage.heads-appended")
        self._journal.sync()
        fail_point("destage.heads-synced")
        with self._control:  # a record that somebody just read would come back with the old head
            known = [each for each in results.heads if self._known(each.row)]
            heads = {each.row.number: each.head for each in known if not each.volume.deleted}
            settled = [row for row in results.settled.values() if self._known(row)]
            puts = versions_put([*(each.row for each in known), *settled])
            checkpoint = self._meta.checkpoint
            assert checkpoint is not None, "an open store has one"
            if whole:
                cut, checkpoint = current.checkpoint, current.checkpoint.encode()
                puts |= round_put(
                    RoundRow(cut.lsn, cut.sequence, cut.position, cut.chain, current.time_ns)
                )
            gone = [point_key(*key) for key in results.settled]
            self._meta.move_heads(heads, checkpoint, puts, gone)
            fail_point("destage.moved")
            self._history.points.difference_update(results.settled)
            for volume, _, _ in current.volumes:
                if not volume.deleted and volume not in results.stuck:
                    volume.move_head(self._meta.numbered(volume.record.number) or volume.record)
        for each in results.heads:
            volume = each.volume
            if not volume.deleted:
                self._resolver.warm(volume.target(), volume.head(), each.chunks)
        self._tell_lost()
        self.rounds += 1
        fail_point("destage.done")

    def _tell_lost(self) -> None:
        for lost in self._lost:
            log.error(
                "data lost, it reads as an error until it is written again "
                "volume=%s offset=%d length=%d chunk=%s why=%s",
                *(lost.name, lost.offset, lost.length, lost.chunk_id.hex(), lost.why),
            )
        if self._lost:
            self._damaged(self._lost)

    def _known(self, row: VersionRow) -> bool:
        """Whether its volume is still there."""
        return self._meta.numbered(row.number) is not None

    def _append_head(self, built: _Built, now_ns: int) -> None:
        """A HEAD record: commit id and commit, so that losing meta/ loses names, never data."""
        data = payload(built.row.commit, built.commit)
        self._append(built.volume, built.commit.epoch, built.row.seq, data, now_ns)

    def _append_head_again(self, volume: Volume, sequence: int, now_ns: int) -> None:
        """The same for a volume that has not changed, when segments before `sequence` go and its
        last one with them."""
        if self._head_in.get(volume.record.number, 0) >= sequence:
            return
        with self._control:  # what is appended is what meta/ says at this moment
            record = volume.record
            if not volume.deleted:
                data = described(record, now_ns)
                self._append(volume, record.epoch, record.head.seq, data, now_ns)

    def _forget_gone(self, count: int) -> None:
        """Of volumes that are deleted nothing is to be remembered; `count`: those of this round."""
        if len(self._head_in) > 2 * count:
            numbers = [number for number in self._head_in if self._meta.numbered(number)]
            self._head_in = {number: self._head_in[number] for number in numbers}

    def _append(self, volume: Volume, epoch: int, seq: int, data: bytes, now_ns: int) -> None:
        """It is only a second copy: a journal that is full to the last segment goes without it."""
        number = volume.record.number
        _, sequence, *_ = self._journal.cut()
        try:
            self._journal.append_head(number, epoch, seq, data, now_ns)
        except BlockingIOError:
            log.debug("no journal segment for a head record volume=%s", volume.name)
        else:
            self._head_in[number] = sequence
