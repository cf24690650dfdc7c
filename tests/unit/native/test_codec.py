"""The C codecs against their Python twins, and on bytes that are not theirs."""

import contextlib
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import native
from native import reference

CODECS = [1, 2, 3]
PHRASES = st.sampled_from([b"volume", b" and ", b"\0" * 40, b"journal", bytes(range(50))])
TEXTS = st.lists(PHRASES | st.binary(max_size=20), min_size=1, max_size=200).map(b"".join)


def encoded(codec: int, raw: bytes) -> bytes:
    stored = native.encode(codec, raw, len(raw) + 1024)
    assert stored is not None
    return stored


@pytest.mark.parametrize("codec", CODECS)
@given(TEXTS.filter(bool))
@settings(max_examples=60)
def test_both_decode_what_was_encoded(codec: int, raw: bytes) -> None:
    stored = encoded(codec, raw)
    assert native.decode(codec, stored, len(raw)) == raw
    assert reference.decode(codec, stored, len(raw)) == raw


@pytest.mark.parametrize("length", [512, 4096, 65536, 1 << 20])
@pytest.mark.parametrize("codec", CODECS)
def test_chunk_sizes(codec: int, length: int) -> None:
    raw = (b"a line of text, " * 7 + bytes(range(256))) * (length // 368 + 1)
    raw = raw[:length]
    stored = encoded(codec, raw)
    assert len(stored) < length
    assert native.decode(codec, stored, length) == raw


@pytest.mark.parametrize("codec", CODECS)
@given(TEXTS.filter(bool), st.data())
@settings(max_examples=60)
def test_damaged_bytes_are_refused_or_are_what_the_twin_finds(
    codec: int, raw: bytes, draw: st.DataObject
) -> None:
    stored = bytearray(encoded(codec, raw))
    at = draw.draw(st.integers(0, len(stored) - 1))
    stored[at] ^= draw.draw(st.integers(1, 255))
    try:
        found = native.decode(codec, stored, len(raw))
    except ValueError:
        return
    assert len(found) == len(raw)
    if codec == 2:  # zstandard is stricter about frames than the one-shot call of the library
        return
    with contextlib.suppress(reference.ZeroDistance):
        assert reference.decode(codec, bytes(stored), len(raw)) == found


def test_a_match_without_a_distance_is_nobodys_data() -> None:
    block = b"\x10a\0\0" + b"\xc0" + b"and no more."  # a literal, a match of 4 bytes, literals
    with pytest.raises(reference.ZeroDistance):
        reference.decode(1, block, 17)
    assert native.decode(1, block, 17).endswith(b"and no more.")


@pytest.mark.parametrize("codec", CODECS)
@given(st.binary(max_size=300), st.integers(1, 3000))
def test_garbage_is_refused_or_has_the_length(codec: int, stored: bytes, raw_length: int) -> None:
    try:
        found = native.decode(codec, stored, raw_length)
    except ValueError:
        return
    assert len(found) == raw_length


@pytest.mark.parametrize("codec", CODECS)
def test_other_raw_lengths_are_refused(codec: int) -> None:
    stored = encoded(codec, b"0123456789" * 100)
    for raw_length in (1, 999, 1001, 2000, 16 << 20):
        with pytest.raises(ValueError, match="not the bytes"):
            native.decode(codec, stored, raw_length)


@pytest.mark.parametrize("codec", CODECS)
def test_what_takes_more_than_the_capacity_is_not_encoded(codec: int) -> None:
    raw = bytes(at * at % 251 for at in range(4096))
    stored = encoded(codec, raw)
    assert native.encode(codec, raw, len(stored) - 1) is None
    assert native.encode(codec, raw, 0) is None


def test_codec_none_is_a_copy() -> None:
    assert native.encode(0, b"abc", 3) == b"abc"
    assert native.encode(0, b"abc", 2) is None
    assert native.decode(0, b"abc", 3) == reference.decode(0, b"abc", 3) == b"abc"
    for decode in (native.decode, reference.decode):
        with pytest.raises(ValueError, match="bytes"):
            decode(0, b"abc", 4)


@pytest.mark.parametrize("decode", [native.decode, reference.decode])
def test_an_unknown_codec(decode: object) -> None:
    assert callable(decode)
    with pytest.raises(ValueError, match="codec 4"):
        decode(4, b"abc", 3)


def test_lengths_that_no_chunk_has() -> None:
    for raw_length in (-1, 0, (16 << 20) + 1, 1 << 40):
        with pytest.raises(ValueError, match="length"):
            native.decode(1, b"abc", raw_length)
    for capacity in (-1, 1 << 40):
        with pytest.raises(ValueError, match="length"):
            native.encode(1, b"abc", capacity)
    with pytest.raises(ValueError, match="length"):
        native.encode(1, b"", 10)


def test_threads_have_working_memory_of_their_own() -> None:
    raw = b"some words, " * 5000
    wrong: list[int] = []

    def work(codec: int) -> None:
        for _ in range(50):
            if native.decode(codec, encoded(codec, raw), len(raw)) != raw:
                wrong.append(codec)

    threads = [threading.Thread(target=work, args=(codec,)) for codec in CODECS * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
