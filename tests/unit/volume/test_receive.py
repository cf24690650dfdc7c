"""Receiving: whole versions, differences, interruptions at every frame, gc meanwhile, damage."""

import errno
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.sim.crash import CrashPlanner
from tests.sim.faults import Fail, Fault
from tests.unit.volume.rig import Rig, chunk
from tests.unit.volume.stream_rig import CHUNK, NAME, Site, boundaries, frames, stored
from volume import receive as receive_module
from volume.chunks import StoredChunk, chunk_id_of
from volume.codecs import CODEC_LZ4
from volume.commits import encode, get_commit, put_commit
from volume.errors import InvalidName, OutOfSpace, VolumeError, VolumeExists
from volume.forest import Forest
from volume.kv import MemoryKeyValue
from volume.layout import KIND_DATA, KIND_NODE, ZERO_ID, ChunkId
from volume.manifest import encode_node
from volume.receive import KEY_PREFIX, MAX_IDLE_NS, MAX_RECEIVES, Progress, Receives, resume_command
from volume.stream_errors import InvalidStream, StreamInterrupted, StreamRefused
from volume.stream_wire import Encoder, Position, ResumeToken, break_frame

SPARSE = {at: at + 1 for at in range(0, 900, 3)}


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every frame is a batch of its own: all that was fed is stored."""
    monkeypatch.setattr(receive_module, "BATCH_FRAMES", 1)


def sent(source: Site, *pairs: tuple[ChunkId, ChunkId | None]) -> list[bytes]:
    return [source.stream(target, base) for target, base in pairs]


# -- what arrives


def test_a_whole_version_arrives_with_its_id() -> None:
    source, sink = Site(), Site()
    target = source.commit(SPARSE)
    info = sink.receive(source.stream(target))
    assert (info.name, info.commit) == (NAME, target.hex())
    assert sink.heads == {NAME: target}
    assert sink.contents(target) == source.contents(target)
    assert sink.receives.infos() == []


def test_differences_follow_each_other() -> None:
    source, sink = Site(), Site()
    first = source.commit(SPARSE)
    second = source.commit({300: 5000, 301: 0, 999: 0, 0: 0}, onto=first)
    third = source.commit(dict.fromkeys(SPARSE, 0) | {700: 3}, onto=second)
    for data in sent(source, (first, None), (second, first), (third, second)):
        sink.receive(data)
    assert sink.heads == {NAME: third}
    for target in (first, second, third):
        assert sink.contents(target) == source.contents(target)


@pytest.mark.parametrize(("before", "after"), [(200, 70_000), (70_000, 200)])
def test_a_difference_may_change_the_height(before: int, after: int) -> None:
    source, sink = Site(), Site()
    base = source.commit({at: at + 1 for at in range(0, 200, 7)}, chunks=before)
    changed = {3: 900} | ({69_000: 901} if after > before else {})
    if after > before:
        target = source.commit(changed, chunks=after, onto=base)
    else:
        target = source.commit({at: at + 1 for at in range(0, 200, 7)} | changed, chunks=after)
    data = source.stream(target, base)
    assert sum(frame.position.rank == 0 for frame in frames(data)) == len(changed)
    sink.receive(source.stream(base), "base")
    sink.receive(data)
    assert sink.contents(target) == source.contents(target)


@pytest.mark.parametrize("height", [1, 3])
def test_an_empty_volume_arrives(height: int) -> None:
    source, sink = Site(), Site()
    target = source.commit({}, chunks=10, height=height)
    sink.receive(source.stream(target))
    assert get_commit(sink.rig.store, target).height == height


def test_what_is_here_already_is_not_stored_twice() -> None:
    source, sink = Site(), Site()
    target = source.commit(SPARSE)
    sink.receive(source.stream(target))
    before = sink.rig.store.counters.stored_count
    sink.receive(source.stream(target), "again")
    other = source.commit({at + 1: number for at, number in SPARSE.items()}, chunks=2000)
    sink.receive(source.stream(other), "moved")
    nodes = sum(frame.position.rank > 0 for frame in frames(source.stream(other)))
    assert sink.rig.store.counters.stored_count == before + nodes + 1  # and a commit
    assert sink.contents(other) == source.contents(other)


def test_compressed_chunks_arrive_as_they_are() -> None:
    source, sink = Site(Rig(codec=CODEC_LZ4)), Site()
    text = b"the same words again and again, " * (CHUNK // 32)
    number = source.rig.store.put(text)
    target = source.commit({3: 1})
    before = get_commit(source.rig.store, target)
    root = source.rig.manifests.update(before.root, before.height, {4: number})
    source.rig.store.sync()
    data = stream_of(source, root, before.height)
    sink.receive(data)
    assert sink.rig.store.get(number, verify=True) == text
    place = sink.rig.store.place(number)
    assert place is not None
    assert (place.codec, place.stored_length) == (
        CODEC_LZ4,
        len(source.rig.store.stored(number).stored),
    )


def stream_of(source: Site, root: ChunkId, height: int) -> bytes:
    """The stream of a tree, in a commit like those of `Site.commit`."""
    commit = replace(get_commit(source.rig.store, source.commit({})), root=root, height=height)
    commit_id = put_commit(source.rig.store, commit)
    source.rig.store.sync()
    return source.stream(commit_id)


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_any_history_arrives_in_any_pieces(data: st.DataObject) -> None:
    source, sink = Site(), Site()
    base: ChunkId | None = None
    for _ in range(data.draw(st.integers(1, 3))):
        contents = data.draw(st.dictionaries(st.integers(0, 999), st.integers(0, 30), max_size=12))
        target = source.commit(contents, onto=base)
        stream = source.stream(target, base)
        sink.receive(stream, piece=data.draw(st.sampled_from([77, 4096, 1 << 20])))
        assert sink.contents(target) == source.contents(target)
        base = target


# -- interruptions


def cut_and_resume(
    source: Site, sink: Site, target: ChunkId, base: ChunkId | None, cut: int, *, crash: bool
) -> Site:
    """Receive the first `cut` bytes, lose the connection (or the machine), go on by token."""
    whole = source.stream(target, base)
    receiver = sink.receiver()
    receiver.feed(whole[:cut])
    if crash:
        sink = sink.killed()
        (info,) = sink.receives.infos()
        token = info.token
    else:
        with pytest.raises(StreamInterrupted) as caught:
            receiver.end()
        receiver.close()
        token = caught.value.token
        assert f"--resume {token}" in str(caught.value)
    sink.collect()
    rest = source.stream(target, base, token)
    assert len(rest) < len(whole)
    sink.receive(rest)
    return sink


@pytest.mark.parametrize("crash", [False, True])
@pytest.mark.usefixtures("small_batches")
def test_a_stream_goes_on_after_every_frame(crash: bool) -> None:
    source = Site()
    base = source.commit({at: at + 1 for at in range(0, 900, 30)})
    target = source.commit(
        {at: at // 3 + 4000 for at in range(252, 262)} | {700: 5, 701: 0}, onto=base
    )
    start = Site()
    start.receive(source.stream(base), "base")
    ends = boundaries(source.stream(target, base))[1:-1]
    for frame_count, cut in enumerate(ends, start=1):
        sink = start.killed()
        before = sink.rig.store.counters.stored_count
        sink = cut_and_resume(source, sink, target, base, cut, crash=crash)
        assert sink.contents(target) == source.contents(target), frame_count
        assert sink.receives.infos() == []
        if not crash:  # nothing was stored twice
            new = sink.rig.store.counters.stored_count - before
            assert new == len([f for f in frames(source.stream(target, base)) if f.chunk]) + 1
        sink.collect()
        assert sink.contents(target) == source.contents(target)


def test_the_same_whole_stream_goes_on_as_well() -> None:
    source, sink = Site(), Site()
    target = source.commit(SPARSE)
    data = source.stream(target)
    with sink.receiver() as receiver:
        receiver.feed(data[: len(data) // 2])
    stored_before = sink.rig.store.counters.stored_count
    assert stored_before > 100
    sink.receive(data)
    assert sink.rig.store.counters.stored_count == len(frames(data)) + 1
    assert sink.contents(target) == source.contents(target)


def test_a_stream_cut_anywhere_leaves_nothing_visible(small_batches: None) -> None:
    source = Site()
    data = source.stream(source.commit({at: at + 1 for at in range(0, 300, 60)}))
    for cut in range(0, len(data), 211):
        sink = Site()
        with sink.receiver() as receiver:
            receiver.feed(data[:cut])
            with pytest.raises((StreamInterrupted, InvalidStream)):
                receiver.end()
        assert sink.heads == {}
        sink.receive(data)


class MarkedReceives(Receives):
    """Notes in the trace of the disk what index and meta hold once progress is saved."""

    def __init__(self, site: Site) -> None:
        super().__init__(site.meta, site.clock)
        self._site = site

    def save(self, progress: Progress) -> None:
        super().save(progress)
        self._site.rig.disk.mark(self._site.meta.snapshot())


def test_every_crash_of_the_disk_can_be_gone_on_from(small_batches: None) -> None:
    source = Site()
    target = source.commit({at: at + 1 for at in range(250, 262, 2)})
    sink = Site()
    sink.receives = MarkedReceives(sink)
    with sink.receiver() as receiver:
        receiver.feed(source.stream(target)[:-1])
    tried = 0
    for image in CrashPlanner(sink.rig.disk.trace).images():
        marks = sink.rig.disk.trace.marks(image.point)
        if not marks:
            continue
        meta = marks[-1]
        assert isinstance(meta, dict)
        again = Site(Rig(image), MemoryKeyValue(meta))
        (info,) = again.receives.infos()
        again.collect()
        again.receive(source.stream(target, None, info.token))
        assert again.contents(target) == source.contents(target), image.why
        tried += 1
    assert tried > 20


def test_a_rest_that_nothing_here_fits_is_refused() -> None:
    source, sink = Site(), Site()
    target = source.commit(SPARSE)
    middle = frames(source.stream(target))[100].position
    rest = source.stream(target, None, ResumeToken(target, None, middle).encode())
    with pytest.raises(StreamRefused, match="without --resume"):
        sink.receive(rest)
    with sink.receiver() as receiver:
        receiver.feed(source.stream(target)[:60_000])
    (info,) = sink.receives.infos()
    with pytest.raises(StreamRefused, match="goes on behind what is here") as caught:
        sink.receive(rest)
    assert info.token in str(caught.value)


def test_progress_is_shown_with_the_command_that_goes_on() -> None:
    source, sink = Site(), Site()
    target = source.commit({at: at + 1 for at in range(500)})
    with sink.receiver() as receiver:
        receiver.feed(source.stream(target)[: 256 * 4200])
        assert sink.receives.infos()[0].active
    (info,) = sink.receives.infos()
    assert not info.active
    assert (info.name, info.source, info.commit) == (NAME, "origin", target.hex())
    assert (info.size, info.base) == (1000 * CHUNK, None)
    assert 0.25 < info.fraction < 0.26
    assert info.received_bytes == info.stored_bytes
    assert resume_command(info) == (
        f"blockd send origin@commit:{target.hex()[:16]} --resume {info.token} "
        f"| blockd receive {NAME}"
    )


def test_another_stream_takes_the_place_of_an_unfinished_one() -> None:
    source, sink = Site(), Site()
    first, second = source.commit({at: at + 1 for at in range(30)}), source.commit({1: 99})
    with sink.receiver() as receiver:
        receiver.feed(source.stream(first)[:50_000])
    sink.receive(source.stream(second))
    assert sink.heads == {NAME: second}
    sink.collect()
    assert sink.rig.index.count() == 4  # one chunk, two nodes, the commit


# -- gc


@pytest.mark.usefixtures("small_batches")
def test_gc_keeps_exactly_what_came_and_the_base() -> None:
    source, sink = Site(), Site()
    base = source.commit({at: at + 1 for at in range(40)})
    target = source.commit({at: at + 500 for at in range(20, 300)}, onto=base)
    sink.receive(source.stream(base), "base")
    data = source.stream(target, base)
    ends = boundaries(data)
    with sink.receiver() as receiver:
        receiver.feed(data[: ends[200]])
    del sink.heads["base"]  # as if deleted meanwhile: the receive still needs it
    report = sink.collect()
    assert report.chunks_removed == 0
    sink.heads["base"] = base
    (info,) = sink.receives.infos()
    sink.receive(source.stream(target, base, info.token))
    assert sink.contents(target) == source.contents(target)


def test_a_receive_that_nobody_goes_on_with_is_forgotten() -> None:
    source, sink = Site(), Site()
    with sink.receiver() as receiver:
        receiver.feed(source.stream(source.commit(SPARSE))[:100_000])
        sink.clock.advance(2 * MAX_IDLE_NS / 1e9)
        sink.receives.roots()
        assert len(sink.receives.infos()) == 1  # somebody is at it
    assert sink.receives.roots()
    sink.clock.advance(2 * MAX_IDLE_NS / 1e9)
    assert not sink.receives.roots()
    assert sink.receives.infos() == []
    assert Receives(sink.meta, sink.clock).infos() == []
    sink.collect()
    assert sink.rig.index.count() == 0


def test_a_receive_can_be_given_up() -> None:
    source, sink = Site(), Site()
    receiver = sink.receiver()
    receiver.feed(source.stream(source.commit(SPARSE))[:100_000])
    with pytest.raises(StreamRefused, match="is coming in"):
        sink.receives.abort(NAME)
    receiver.close()
    sink.receives.abort(NAME)
    assert sink.receives.infos() == []
    with pytest.raises(StreamRefused, match="no stream"):
        sink.receives.abort(NAME)


def test_a_damaged_progress_record_is_forgotten() -> None:
    source, sink = Site(), Site()
    with sink.receiver() as receiver:
        receiver.feed(source.stream(source.commit(SPARSE))[:100_000])
    ((key, value),) = sink.meta.items(KEY_PREFIX)
    for at in range(0, len(value), 7):
        damaged = bytearray(value)
        damaged[at] ^= 4
        meta = MemoryKeyValue({key: bytes(damaged)})
        assert Receives(meta, sink.clock).infos() == []
        assert meta.get(key) is None
    assert len(Receives(sink.meta, sink.clock).infos()) == 1


# -- refusals


def test_a_volume_that_exists_is_not_overwritten() -> None:
    source, sink = Site(), Site()
    target = source.commit({1: 1})
    sink.receive(source.stream(target))
    with pytest.raises(VolumeExists):
        sink.receive(source.stream(target))


def test_a_difference_to_what_is_not_here_is_refused() -> None:
    source, sink = Site(), Site()
    base = source.commit({1: 1})
    target = source.commit({2: 2}, onto=base)
    with pytest.raises(StreamRefused, match="is not here"):
        sink.receive(source.stream(target, base))
    assert sink.receives.infos() == []


def test_one_stream_at_a_time_into_a_volume_and_few_in_all() -> None:
    sink = Site()
    with sink.receiver("a"):
        with pytest.raises(StreamRefused, match="another stream"):
            sink.receiver("a")
        others = [sink.receiver(f"b{number}") for number in range(MAX_RECEIVES - 1)]
        with pytest.raises(StreamRefused, match="already"):
            sink.receiver("c")
        for other in others:
            other.close()
    with pytest.raises(InvalidName):
        sink.receiver("../x")


def test_without_room_nothing_is_stored_and_it_goes_on_later() -> None:
    source, sink = Site(), Site()
    target = source.commit(SPARSE)
    data = source.stream(target)
    sink.room = 1000
    with pytest.raises(OutOfSpace, match="--resume"):
        sink.receive(data)
    assert sink.rig.packs.total_bytes < 10_000
    sink.room = 1 << 40
    sink.receive(data)
    assert sink.contents(target) == source.contents(target)


def test_a_full_disk_abandons_the_batch() -> None:
    source, sink = Site(), Site()
    target = source.commit(SPARSE)
    sink.rig.disk.faults.add(Fault("pwrite", Fail(errno.ENOSPC), "packs/*"))
    with pytest.raises(OutOfSpace):
        sink.receive(source.stream(target))
    assert sink.rig.store.pending_count == 0
    sink.receive(source.stream(target))
    assert sink.contents(target) == source.contents(target)


def test_the_end_of_nothing_is_an_error() -> None:
    with Site().receiver() as receiver, pytest.raises(InvalidStream, match="before it said"):
        receiver.end()


# -- damage and malice


def test_a_flipped_bit_anywhere_is_a_clean_error() -> None:
    source = Site()
    target = source.commit({0: 1, 1: 1, 300: 2})
    data = source.stream(target)
    for at in range(0, len(data), 41):
        damaged = bytearray(data)
        damaged[at] ^= 1 << at % 8
        sink = Site()
        with pytest.raises((InvalidStream, StreamInterrupted)):
            sink.receive(bytes(damaged))
        assert sink.heads == {}
        sink.receive(data)  # and what came before the damage helps
        assert sink.contents(target) == source.contents(target)


@pytest.mark.parametrize("piece", [1 << 20, 1])
def test_bytes_behind_the_end_spoil_a_stream(piece: int) -> None:
    source, sink = Site(), Site()
    data = source.stream(source.commit({1: 1}))
    with pytest.raises(InvalidStream, match=r"follow its end.*go on with"):
        sink.receive(data + b"x", piece=piece)
    assert sink.heads == {}
    sink.receive(data)


def test_damage_on_the_way_names_the_byte_and_the_way_on() -> None:
    source, sink = Site(), Site()
    data = bytearray(source.stream(source.commit(SPARSE)))
    ends = boundaries(bytes(data))
    data[ends[100] + 200] ^= 1
    with pytest.raises(InvalidStream, match=f"damaged at byte {ends[100]}.*--resume"):
        sink.receive(bytes(data))
    (info,) = sink.receives.infos()
    assert 90 * CHUNK < info.received_bytes <= 100 * CHUNK


def test_a_sender_that_breaks_off_says_why_and_the_stream_goes_on_later() -> None:
    source, sink = Site(), Site()
    target = source.commit(SPARSE)
    data = source.stream(target)
    cut = data[: boundaries(data)[100]] + break_frame("chunk 3f is damaged")
    with pytest.raises(StreamInterrupted, match=r"off \(chunk 3f is damaged\).*--resume"):
        sink.receive(cut)
    assert sink.heads == {}
    (info,) = sink.receives.infos()
    sink.receive(source.stream(target, token=info.token))
    assert sink.contents(target) == source.contents(target)


class Forger:
    """Writes streams that are sound frame by frame."""

    def __init__(self, source: Site, *, chunks: int = 1000, height: int = 2) -> None:
        self.encoder = Encoder()
        commit = get_commit(source.rig.store, source.commit({}, chunks=chunks, height=height))
        self.commit = commit
        self.parts: list[bytes] = []

    def begin(self, root: ChunkId) -> "Forger":
        data = encode(replace(self.commit, root=root))
        self.parts.append(self.encoder.header(chunk_id_of(data), data))
        return self

    def data(self, end: int, number: int, chunk_id: ChunkId | None = None) -> "Forger":
        chunk_id = chunk_id or chunk_id_of(chunk(number))
        self.parts.append(self.encoder.frame(Position(end, 0), chunk_id, stored(number)))
        return self

    def raw(self, end: int, rank: int, content: bytes, codec: int = 0) -> "Forger":
        kind = KIND_NODE if rank else KIND_DATA
        piece = StoredChunk(kind, codec, len(content), content)
        position = Position(end, rank)
        self.parts.append(self.encoder.frame(position, chunk_id_of(content), piece))
        return self

    def repeated(self, end: int, rank: int, chunk_id: ChunkId) -> "Forger":
        self.parts.append(self.encoder.repeated(Position(end, rank), chunk_id))
        return self

    def stream(self) -> bytes:
        return b"".join([*self.parts, self.encoder.end()])


def node(level: int, children: dict[int, ChunkId]) -> bytes:
    return encode_node(level, b"".join(children.get(slot, ZERO_ID) for slot in range(256)))


A, B = chunk_id_of(chunk(1)), chunk_id_of(chunk(2))
LEAF = node(0, {0: A})
LEAF_ID = chunk_id_of(LEAF)
TOP = node(1, {0: LEAF_ID})
TOP_ID = chunk_id_of(TOP)

MALICE: dict[str, tuple[str, Callable[[Forger], Forger]]] = {
    "wrong id": ("hash to", lambda f: f.begin(TOP_ID).data(1, 1, B)),
    "out of order": ("out of order", lambda f: f.begin(TOP_ID).data(2, 2).data(1, 1)),
    "twice": ("out of order", lambda f: f.begin(TOP_ID).data(1, 1).data(1, 1)),
    "leaf without its chunk": ("neither came", lambda f: f.begin(TOP_ID).raw(256, 1, LEAF)),
    "another chunk": ("does not name", lambda f: f.begin(TOP_ID).data(1, 2).raw(256, 1, LEAF)),
    "chunk too many": (
        "does not name",
        lambda f: f.begin(TOP_ID).data(1, 1).data(2, 2).raw(256, 1, LEAF),
    ),
    "chunks of two leaves": (
        "before the node that its predecessors",
        lambda f: f.begin(TOP_ID).data(1, 1).data(257, 2),
    ),
    "leaf of another place": (
        "not under it",
        lambda f: f.begin(TOP_ID).data(1, 1).raw(512, 1, LEAF),
    ),
    "open leaf below": (
        "still open below",
        lambda f: f.begin(TOP_ID).data(1, 1).raw(65536, 2, TOP),
    ),
    "top without its leaf": ("neither came", lambda f: f.begin(TOP_ID).raw(65536, 2, TOP)),
    "node of another level": (
        "of level 0, where level 1",
        lambda f: f.begin(TOP_ID).raw(65536, 2, LEAF),
    ),
    "no node": ("not known", lambda f: f.begin(TOP_ID).raw(256, 1, bytes(range(1, 81)))),
    "zeros": ("zeros", lambda f: f.begin(TOP_ID).raw(1, 0, bytes(CHUNK))),
    "unheard node": ("has not come", lambda f: f.begin(TOP_ID).repeated(256, 1, LEAF_ID)),
    "unfinished": ("before its tree", lambda f: f.begin(TOP_ID).data(1, 1).raw(256, 1, LEAF)),
    "empty": ("before its tree", lambda f: f.begin(TOP_ID)),
    "more than the root": (
        "before its tree",
        lambda f: f.begin(ZERO_ID).data(1, 1).raw(256, 1, LEAF).raw(65536, 2, TOP),
    ),
    "another root": (
        "before its tree",
        lambda f: f.begin(B).data(1, 1).raw(256, 1, LEAF).raw(65536, 2, TOP),
    ),
}


@pytest.mark.parametrize("name", MALICE)
def test_a_forged_stream_is_refused(name: str) -> None:
    message, forge = MALICE[name]
    sink = Site()
    with pytest.raises(InvalidStream, match=message):
        sink.receive(forge(Forger(Site())).stream())
    assert sink.heads == {}
    sink.receives.roots()
    sink.collect()  # its roots can be walked


def test_the_forger_can_be_honest_too() -> None:
    sink = Site()
    forger = Forger(Site()).begin(TOP_ID).data(1, 1).raw(256, 1, LEAF).raw(65536, 2, TOP)
    assert sink.contents(bytes.fromhex(sink.receive(forger.stream()).commit or "")) == {0: chunk(1)}


def test_an_unknown_codec_is_refused_by_name() -> None:
    forger = Forger(Site()).begin(TOP_ID).raw(1, 0, chunk(1), codec=77)
    with pytest.raises(InvalidStream, match="codec 77"):
        Site().receive(forger.stream())


def test_chunks_of_another_size_cannot_be_named() -> None:
    """A chunk that is here, but of a volume with larger chunks."""
    sink = Site()
    big = sink.rig.store.put(chunk(5, 2 * CHUNK))
    sink.rig.store.sync()
    leaf = node(0, {0: big})
    with pytest.raises(InvalidStream, match="neither came"):
        sink.receive(Forger(Site()).begin(TOP_ID).raw(256, 1, leaf).stream())


def test_a_forest_stays_small_whatever_comes() -> None:
    forest = Forest(6)
    most = 0
    for rank in range(6, -1, -1):
        copy = forest.copy()
        for index in range(1, 300):
            try:
                copy._join(Position(index * 256**rank, rank), A)
            except InvalidStream:
                break
        most = max(most, len(copy._ranks[rank]))
    assert most == 256


def test_a_forest_comes_back() -> None:
    forest = Forest(2)
    forest.add_chunk(Position(1, 0), A)
    forest.add_node(Position(256, 1), LEAF_ID, bytes(A + bytes(255 * 32)), none, never)
    forest.add_chunk(Position(300, 0), B)
    again = Forest.decode(forest.encode())
    assert again.encode() == forest.encode()
    assert again.roots() == forest.roots()
    assert [root.root for root in forest.roots()] == [ZERO_ID, LEAF_ID]
    for length in range(len(forest.encode())):
        with pytest.raises(VolumeError):
            Forest.decode(forest.encode()[:length])


def none(_position: Position) -> bytes:
    return bytes(256 * 32)


def never(chunk_ids: list[ChunkId]) -> list[bool]:
    return [False for _ in chunk_ids]
