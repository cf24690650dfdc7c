"""Properties of the whole engine: pieces do not matter, a bytearray is the model, garbage is safe.

Replies may come in any order, so they are compared by cookie.
"""

import itertools
from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from blockd.nbd import wire
from blockd.nbd.limits import Limits
from tests.fakes import MemoryDevice, Seen
from tests.nbd_client import (
    OptionReply,
    Reply,
    Session,
    context_query,
    export_query,
    option,
    request,
)
from tests.nbd_engine import Engine, open_export

SIZE = 64 * 1024
HELLO = wire.CLIENT_FLAGS.pack(wire.FLAG_C_FIXED_NEWSTYLE | wire.FLAG_C_NO_ZEROES)
SELECT = option(wire.OPT_SET_META_CONTEXT, context_query("disk", "base:allocation"))
COMMANDS = (
    wire.CMD_READ,
    wire.CMD_WRITE,
    wire.CMD_FLUSH,
    wire.CMD_TRIM,
    wire.CMD_CACHE,
    wire.CMD_WRITE_ZEROES,
    wire.CMD_BLOCK_STATUS,
    31,
)

offsets = st.one_of(st.integers(0, SIZE), st.sampled_from([0, 4096, SIZE - 1, 1 << 63]))
lengths = st.one_of(st.integers(0, 9000), st.sampled_from([1, 512, 4096, SIZE]))
flags = st.sampled_from([0, 0, 0, wire.CMD_FLAG_FUA, wire.CMD_FLAG_DF, wire.CMD_FLAG_REQ_ONE, 0x40])
styles = st.sampled_from([(False, False), (True, False), (False, True)])


@dataclass(frozen=True)
class Ask:
    command: int
    offset: int
    length: int
    flags: int

    def encode(self, extended: bool, cookie: int) -> bytes:
        writing = self.command == wire.CMD_WRITE
        return request(
            self.command,
            self.offset,
            0 if self.command == wire.CMD_FLUSH else self.length,
            flags=self.flags | (wire.CMD_FLAG_PAYLOAD_LEN if extended and writing else 0),
            cookie=cookie,
            payload=self.payload if writing else b"",
            extended=extended,
        )

    @property
    def payload(self) -> bytes:
        pattern = (self.offset * 31 + self.length).to_bytes(9, "big")
        return (pattern * (self.length // 9 + 1))[: self.length]


asks = st.lists(st.builds(Ask, st.sampled_from(COMMANDS), offsets, lengths, flags), max_size=12)
option_bytes = st.sampled_from(
    [
        option(wire.OPT_LIST),
        option(wire.OPT_LIST, b"data"),
        option(wire.OPT_INFO, export_query("disk", wire.INFO_NAME, wire.INFO_BLOCK_SIZE)),
        option(wire.OPT_INFO, export_query("other")),
        option(wire.OPT_GO, b"broken"),
        SELECT,
        option(wire.OPT_LIST_META_CONTEXT, context_query("disk")),
        option(wire.OPT_INFO, export_query("disk@snap")),
        option(wire.OPT_INFO, export_query("disk@nosuch")),
        option(wire.OPT_SET_META_CONTEXT, context_query("disk", "qemu:dirty-bitmap:snap")),
        option(wire.OPT_STARTTLS),
        option(1000, b"x" * 300),
    ]
)


@dataclass
class Outcome:
    """What a run of the engine can be judged by."""

    negotiation: list[OptionReply]
    replies: dict[int, Reply]
    seen: list[Seen]
    closed: object
    counters: list[int]


def run(
    pieces: list[bytes],
    limits: Limits,
    style: tuple[bool, bool],
    asks: list[Ask],
    *,
    slow_disk: bool = False,
) -> Outcome:
    disk = MemoryDevice(size=SIZE)
    disk.snapshot("snap")
    engine = Engine(disk, limits=limits)
    engine.slow_disk = slow_disk
    for piece in pieces:
        engine.connection.feed(piece)
        engine.pump()
    while engine.question is not None:  # all that followed came while the disk was asked
        engine.answer()
    stats = engine.connection.stats
    counters = [*stats.requests, stats.read_bytes, stats.written_bytes, stats.errors]
    client = Session(engine.send, engine.take)
    client.structured, client.extended = style
    client.contexts = {"base:allocation": 1} if any(style) else {}
    for cookie, ask in enumerate(asks):
        length = 0 if ask.command == wire.CMD_FLUSH else ask.length
        client.prepare(ask.command, ask.offset, length, ask.flags, cookie=cookie)
    engine.take(wire.GREETING.size)
    negotiation = [client.read_option_reply()]
    while (negotiation[-1].option, negotiation[-1].reply) != (wire.OPT_GO, wire.REP_ACK):
        negotiation.append(client.read_option_reply())
    replies = {reply.cookie: reply for reply in (client.read_reply() for _ in asks)}
    assert not engine.sent
    return Outcome(negotiation, replies, engine.device.seen, engine.closed, counters)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(option_bytes, max_size=5),
    styles,
    asks,
    st.sampled_from([b"", b"\0" * 40]),
    st.lists(st.integers(0, 40000), max_size=25),
    st.sampled_from([1, 2, 1024]),
)
def test_any_split_of_the_same_bytes_gives_the_same_events_and_output(
    options: list[bytes],
    style: tuple[bool, bool],
    wanted: list[Ask],
    tail: bytes,
    cuts: list[int],
    max_requests: int,
) -> None:
    structured, extended = style
    if structured:
        options = [*options, option(wire.OPT_STRUCTURED_REPLY), SELECT]
    if extended:
        options = [*options, option(wire.OPT_EXTENDED_HEADERS), SELECT]
    stream = HELLO + b"".join(options) + option(wire.OPT_GO, export_query("disk"))
    stream += b"".join(ask.encode(extended, number) for number, ask in enumerate(wanted)) + tail
    limits = Limits(max_in_flight_requests=max_requests, base_buffer_bytes=4096)
    at = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    pieces = [stream[start:end] for start, end in itertools.pairwise(at)]
    at_once = run([stream], Limits(), style, wanted)
    assert run(pieces, limits, style, wanted) == at_once
    assert run(pieces, limits, style, wanted, slow_disk=True) == at_once
    assert len(at_once.replies) == len(wanted)


@settings(max_examples=60, deadline=None)
@given(styles, asks, st.booleans(), st.integers(1, 5000))
def test_requests_against_the_device_equal_a_bytearray(
    style: tuple[bool, bool], wanted: list[Ask], deferred: bool, piece: int
) -> None:
    structured, extended = style
    engine = Engine(MemoryDevice(size=SIZE, deferred=deferred), piece=piece)
    contexts = ("base:allocation",) if structured or extended else ()
    client = open_export(engine, structured=structured, extended=extended, contexts=contexts)
    model = bytearray(SIZE)
    for ask in wanted:
        expected = expected_error(ask, structured or extended)
        length = 0 if ask.command == wire.CMD_FLUSH else ask.length
        payload = ask.payload if ask.command == wire.CMD_WRITE else b""
        offset = 0 if ask.command == wire.CMD_FLUSH else ask.offset
        client.send_request(ask.command, offset, length, flags=ask.flags, payload=payload)
        engine.finish()
        reply = client.read_reply()
        assert bool(reply.error) == expected, (ask, reply)
        if expected:
            continue
        if ask.command == wire.CMD_READ:
            assert reply.data == bytes(model[offset : offset + length])
        elif ask.command == wire.CMD_WRITE:
            model[offset : offset + length] = payload
        elif ask.command in (wire.CMD_TRIM, wire.CMD_WRITE_ZEROES):
            model[offset : offset + length] = bytes(length)
        assert len(model) == SIZE
    assert engine.device.read(0, SIZE) == model


def expected_error(ask: Ask, chunks: bool) -> bool:
    """Whether a request must fail, said as briefly as the rules allow."""
    allowed = wire.CMD_FLAG_FUA
    if ask.command == wire.CMD_READ and chunks:
        allowed |= wire.CMD_FLAG_DF
    if ask.command == wire.CMD_BLOCK_STATUS:
        allowed |= wire.CMD_FLAG_REQ_ONE
    if ask.flags & ~allowed or ask.command == 31:
        return True
    if ask.command == wire.CMD_FLUSH:
        return False
    if ask.command == wire.CMD_BLOCK_STATUS and (not chunks or not ask.length):
        return True
    return ask.offset + ask.length > SIZE


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=300), st.booleans())
def test_garbage_is_parsed_or_closes(garbage: bytes, negotiated: bool) -> None:
    engine = Engine(MemoryDevice(size=SIZE))
    client: Session | None = open_export(engine) if negotiated else None
    engine.send(garbage)
    assert engine.closed is not None or engine.connection.wants_input
    engine.eof()
    assert engine.closed is not None
    assert client is None or engine.device.clients == []
