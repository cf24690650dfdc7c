"""Messages of peers for tests: strategies that follow the kinds of their fields, and examples."""

from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from transport.group.chain import MAX_EPOCHS
from transport.peer.fields import Int, Kind, Many, Raw, Text
from transport.peer.messages import (
    ALL,
    Ack,
    Adopt,
    Append,
    AppendBrief,
    ChunkList,
    Chunks,
    Hello,
    Log,
    Looked,
    PutShard,
    Sealed,
    ShardPart,
    Stream,
    Welcome,
)
from transport.peer.wire import Envelope, Message, layout

IDS = st.binary(min_size=32, max_size=32)
SEQS = st.integers(0, (1 << 63) - 1)


def field_values(kind: Kind) -> st.SearchStrategy[Any]:
    """What a field of this kind may be; lists are short."""
    match kind:
        case Int():
            return st.integers(kind.low, kind._high)
        case Raw():
            return st.binary(min_size=kind.size, max_size=kind.size)
        case Text():
            text = st.text(max_size=12)
            return text.filter(lambda each: len(each.encode(errors="replace")) <= kind.longest)
        case Many():
            parts = [field_values(part) for part in kind.parts]
            item = st.tuples(*parts) if len(parts) > 1 else parts[0]
            return st.lists(item, max_size=min(4, kind.count)).map(tuple)
    raise AssertionError(kind)


def messages_of(kind: type[Message]) -> st.SearchStrategy[Message]:
    """Any message of one kind that may be sent."""
    if kind in _TOGETHER:
        return _TOGETHER[kind]()
    values = {name: field_values(field) for name, field in layout(kind)}
    return st.builds(kind, **values)


def _hellos() -> st.SearchStrategy[Message]:
    def hello(values: dict[str, Any]) -> Message:
        low, high = sorted((values["oldest"], values["newest"]))
        features = values["requires"] & values["offers"]
        return Hello(**{**values, "oldest": low or 1, "newest": high or 1, "requires": features})

    return _fields(Hello).map(hello)


def _fields(kind: type[Message]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({name: field_values(field) for name, field in layout(kind)})


def _acks() -> st.SearchStrategy[Message]:
    seqs = st.tuples(SEQS, SEQS).map(sorted)
    epochs = st.integers(1, (1 << 63) - 1)
    return st.builds(lambda epoch, pair: Ack(epoch, pair[1], pair[0]), epochs, seqs)


def _looks() -> st.SearchStrategy[Message]:
    def looked(values: dict[str, Any]) -> Message:
        durable, received = sorted((values["durable"], values["received"]))
        return Looked(**{**values, "durable": durable, "received": received})

    return _fields(Looked).map(looked)


def _appends() -> st.SearchStrategy[Message]:
    def append(values: dict[str, Any], records: list[bytes]) -> Message:
        first, last = sorted((values["first_seq"], values["last_seq"]))
        values = {**values, "first_seq": first, "last_seq": last}
        values["written"], values["epoch"] = sorted((values["written"], values["epoch"]))
        return Append(**values, payload=tuple(records))

    frames = st.lists(st.binary(min_size=1, max_size=300), min_size=1, max_size=3)
    return st.builds(append, _fields(Append), frames)


def _brief_appends() -> st.SearchStrategy[Message]:
    def brief(values: dict[str, Any], spots: set[int], chunk_id: bytes) -> Message:
        first, last = sorted((values["first_seq"], values["last_seq"]))
        values = {**values, "first_seq": first, "last_seq": last}
        values["written"], values["epoch"] = sorted((values["written"], values["epoch"]))
        rows = tuple((spot % 2, spot // 2, chunk_id) for spot in spots)
        values = {**values, "references": tuple(sorted(rows)), "chunk_size": 4096}
        return AppendBrief(**values, payload=(b"header", b"other"))

    spots = st.sets(st.integers(0, 1 << 22), max_size=3)
    return st.builds(brief, _fields(AppendBrief), spots, IDS)


def _logs() -> st.SearchStrategy[Message]:
    frames = st.lists(st.binary(min_size=1, max_size=99), max_size=1).map(tuple)
    return st.builds(lambda values, payload: Log(**values, payload=payload), _fields(Log), frames)


def _parts(kind: Callable[..., Message], least: int) -> st.SearchStrategy[Message]:
    frames = st.lists(st.binary(min_size=1, max_size=99), min_size=least, max_size=1).map(tuple)
    fields = _fields(PutShard if least else ShardPart)
    return st.builds(lambda values, payload: kind(**values, payload=payload), fields, frames)


def _seals() -> st.SearchStrategy[Message]:
    def sealed(epoch: int, quiet: int, start: int, steps: list[tuple[int, int]]) -> Message:
        ends, at = [], (0, start)
        for epochs, seqs in steps:
            at = (at[0] + epochs, at[1] + seqs)
            ends.append(at)
        return Sealed(epoch, quiet, start, tuple(ends))

    steps = st.lists(st.tuples(st.integers(1, 9), st.integers(0, 99)), max_size=MAX_EPOCHS)
    quiet = st.integers(0, (1 << 32) - 1)
    return st.builds(sealed, st.integers(1, 1 << 40), quiet, st.integers(0, 1 << 40), steps)


def _adopts() -> st.SearchStrategy[Message]:
    def adopt(volume: bytes, start: int, steps: list[tuple[int, int]], keep: int) -> Message:
        ends, at = [], (0, start)
        for epochs, seqs in steps:
            at = (at[0] + epochs, at[1] + seqs)
            ends.append(at)
        return Adopt(volume, at[0], min(keep, at[1]), start, tuple(ends))

    steps = st.tuples(st.integers(1, 9), st.integers(0, 99))
    chain = st.lists(steps, min_size=1, max_size=MAX_EPOCHS)
    some = st.integers(0, 1 << 40)
    return st.builds(adopt, st.binary(min_size=16, max_size=16), some, chain, some)


def _streams() -> st.SearchStrategy[Message]:
    data = st.binary(min_size=1, max_size=99)
    return st.builds(lambda values, each: Stream(**values, payload=(each,)), _fields(Stream), data)


def _chunks(kind: Callable[..., Message], least: int) -> st.SearchStrategy[Message]:
    def message(chunks: list[tuple[bytes, int, int, bytes, int]]) -> Message:
        rows = tuple((each[0], each[1], each[2], len(each[3]) + each[4]) for each in chunks)
        return kind(chunks=rows, payload=tuple(each[3] for each in chunks))

    data = st.binary(min_size=1, max_size=99)
    chunk = st.tuples(IDS, st.integers(1, 4), st.integers(0, 255), data, st.integers(0, 99))
    return st.lists(chunk, min_size=least, max_size=3).map(message)


_TOGETHER: dict[type[Message], Callable[[], st.SearchStrategy[Message]]] = {
    Hello: _hellos,
    Ack: _acks,
    Adopt: _adopts,
    Append: _appends,
    AppendBrief: _brief_appends,
    Log: _logs,
    Looked: _looks,
    Sealed: _seals,
    Stream: _streams,
    Chunks: lambda: _chunks(Chunks, 1),
    ChunkList: lambda: _chunks(ChunkList, 0),
    PutShard: lambda: _parts(PutShard, 1),
    ShardPart: lambda: _parts(ShardPart, 0),
}
"""Kinds whose fields have to go together."""

MESSAGES = st.one_of(*(messages_of(kind) for kind in ALL))
ENVELOPES = st.builds(
    Envelope,
    sender=st.integers(0, (1 << 64) - 1),
    to=st.integers(0, (1 << 64) - 1),
    request=st.integers(0, (1 << 64) - 1),
)


def hello(node: bytes = b"a" * 16, cluster: bytes = b"c" * 16) -> Hello:
    return Hello(node, cluster, 1, 1, 0, 0, "test")


def welcome(node: bytes = b"b" * 16, cluster: bytes = b"c" * 16, requests: int = 8) -> Welcome:
    return Welcome(node, cluster, 1, 0, requests, 16 << 20, "test")
