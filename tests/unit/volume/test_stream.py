"""Sending: what is in a stream, and what is left out."""

import pytest

from tests.unit.volume.rig import chunk
from tests.unit.volume.stream_rig import Site, boundaries, events, frames
from volume import stream
from volume.errors import CorruptChunk
from volume.layout import ZERO_ID
from volume.stream import Tree, send
from volume.stream_errors import StreamRefused
from volume.stream_wire import Frame, Position, ResumeToken, StreamHeader


def sent_chunks(data: bytes) -> list[bytes]:
    """The data chunks in a stream."""
    return [
        frame.chunk.stored
        for frame in frames(data)
        if frame.chunk is not None and frame.position.rank == 0
    ]


def test_a_whole_version_is_sent_children_first() -> None:
    site = Site()
    target = site.commit({0: 1, 255: 2, 256: 3, 999: 4})
    order = [frame.position for frame in frames(site.stream(target))]
    leaves = [Position(256, 1), Position(512, 1), Position(1024, 1)]
    chunks = [Position(end, 0) for end in (1, 256, 257, 1000)]
    assert order == sorted([*chunks, *leaves, Position(65536, 2)])


def test_holes_are_not_sent() -> None:
    site = Site()
    assert frames(site.stream(site.commit({}))) == []


def test_a_difference_holds_what_is_new_only() -> None:
    site = Site()
    base = site.commit({at: at + 1 for at in range(0, 900, 3)})
    target = site.commit({300: 5000, 301: 0}, onto=base)
    data = site.stream(target, base)
    assert sent_chunks(data) == [chunk(5000)]
    assert len(frames(data)) == 3  # with its leaf and the root
    assert len(frames(site.stream(target, target))) == 0


def test_the_same_bytes_are_sent_once_wherever_they_are() -> None:
    site = Site()
    target = site.commit(dict.fromkeys(range(1000), 7))
    data = site.stream(target)
    assert sent_chunks(data) == [chunk(7)]
    leaves = [frame for frame in frames(data) if frame.position.rank == 1]
    assert [leaf.chunk is None for leaf in leaves] == [False, True, True, False]


def test_what_the_base_has_elsewhere_is_not_sent() -> None:
    site = Site()
    base = site.commit({at: at + 1 for at in range(20)})
    target = site.commit({at + 500: at + 1 for at in range(20)}, onto=base)
    assert sent_chunks(site.stream(target, base)) == []


def test_marking_the_base_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "BASE_SHARE", 0)
    site = Site()
    base = site.commit({at: at + 1 for at in range(20)})
    target = site.commit({at + 500: at + 1 for at in range(20)}, onto=base)
    assert len(sent_chunks(site.stream(target, base))) == 20


def test_the_header_says_how_long_the_stream_is() -> None:
    site = Site()
    base = site.commit({at: at % 50 + 1 for at in range(0, 900, 3)})
    target = site.commit({at: at + 5000 for at in range(250, 260)}, onto=base)
    for data in (site.stream(target), site.stream(target, base)):
        header, *others, _ = events(data)
        assert isinstance(header, StreamHeader)
        assert header.length == len(data)
        assert header.frame_count == len(others)


def test_a_large_difference_is_not_counted_before_it_is_sent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stream, "COUNT_LEAVES", 2)
    site = Site()
    header, *_ = events(site.stream(site.commit({0: 1, 300: 2, 600: 3})))
    assert isinstance(header, StreamHeader)
    assert header.length is None


def test_a_stream_is_the_same_each_time() -> None:
    site = Site()
    target = site.commit({at: at + 1 for at in range(30)})
    first = site.stream(target)
    assert site.stream(target) == first
    site.heads["it"] = target
    site.collect()
    assert site.stream(target) == first


def test_resumed_at_any_frame_a_stream_is_the_rest_of_it() -> None:
    site = Site()
    base = site.commit({at: at + 1 for at in range(0, 900, 3)})
    target = site.commit({at: at // 2 + 3000 for at in range(250, 260)}, onto=base)
    whole = frames(site.stream(target, base))
    for count, frame in enumerate(whole, start=1):
        token = ResumeToken(target, base, frame.position).encode()
        rest = site.stream(target, base, token)
        assert frames(rest) == whole[count:]
        header = events(rest)[0]
        assert isinstance(header, StreamHeader)
        assert header.length == len(rest)
        assert header.resume == frame.position


def test_a_token_of_another_version_is_refused() -> None:
    site = Site()
    first, second = site.commit({1: 1}), site.commit({1: 2})
    token = ResumeToken(first, None, Position(2, 0)).encode()
    for target, base in ((second, None), (first, second)):
        with pytest.raises(StreamRefused, match="token is for commit"):
            site.stream(target, base, token)


def test_a_base_with_other_chunks_is_refused_before_anything_is_sent() -> None:
    site = Site()
    base = site.commit({1: 1}, chunk_size=8192)
    target = site.commit({1: 1})
    with pytest.raises(StreamRefused, match="share nothing"):
        send(site.rig.store, site.rig.manifests, target, base)


def test_a_chunk_that_is_gone_ends_the_stream() -> None:
    site = Site()
    target = site.commit({at: at + 1 for at in range(5)})
    site.rig.index.remove([site.rig.store.put(chunk(3))])
    with pytest.raises(CorruptChunk, match="no pack has it"):
        site.stream(target)


def test_pieces_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "PIECE_BYTES", 10_000)
    site = Site()
    target = site.commit({at: at + 1 for at in range(30)})
    pieces = list(send(site.rig.store, site.rig.manifests, target))
    assert all(10_000 <= len(piece) <= 10_000 + 9000 for piece in pieces[:-1])
    assert boundaries(b"".join(pieces))


def test_a_tree_is_found_by_position_at_any_height() -> None:
    site = Site()
    rig = site.rig
    chunk_id = rig.store.put(chunk(1))
    root = rig.manifests.update(ZERO_ID, 2, {300: chunk_id})
    tree = Tree(rig.manifests, root, 2)
    assert tree.subtree(Position(65536, 2)) == root
    assert tree.subtree(Position(301, 0)) == chunk_id
    assert tree.subtree(Position(302, 0)) == ZERO_ID
    assert tree.subtree(Position(131072, 2)) == ZERO_ID
    assert tree.subtree(Position(65536 + 301, 0)) == ZERO_ID
    assert tree.subtree(Position(1 << 24, 3)) == ZERO_ID
    assert tree.children(Position(1 << 24, 3)) == root + bytes(255 * 32)
    assert tree.children(Position(2 << 24, 3)) == bytes(256 * 32)
    assert tree.children(Position(1 << 32, 4)) == bytes(256 * 32)
    leaf = tree.subtree(Position(512, 1))
    assert tree.children(Position(65536, 2))[32:64] == leaf


def test_frames_say_what_they_hold() -> None:
    site = Site()
    data = site.stream(site.commit({0: 1}, chunks=1))
    first, second = frames(data)
    assert first == Frame(Position(1, 0), first.chunk_id, first.chunk)
    assert second.position == Position(256, 1)
