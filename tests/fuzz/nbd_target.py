"""Fuzz target of the NBD engine: any bytes in, and still

- no exception escapes;
- memory is bounded: receive buffer, bytes and requests held, output not taken;
- what is sent parses as option replies, then as replies of the negotiated kind;
- every request is answered exactly once, and the connection closes when the client goes;
- every version that was opened is closed, exactly once.

Input: one byte of switches (see _Setup), one byte of piece length (0: all at once), then what the
client sends. With a preamble chosen the client is in transmission already.

`nbd_target` takes bytes and returns nothing, as atheris, AFL++ and the corpus replay want it.
"""

from collections import Counter
from dataclasses import dataclass

from blockd.nbd import wire
from blockd.nbd.access import ExportPolicy, TlsMode
from blockd.nbd.contexts import MAX_SELECTED
from blockd.nbd.limits import Limits
from blockd.receive import MESSAGE_SLACK, MIN_ROOM, PAGE
from native import OP_BLOCK_STATUS, OP_READ
from tests.fakes import MemoryDevice
from tests.nbd_engine import Engine, open_export

LIMITS = Limits(
    max_options=64,
    max_option_bytes=4096,
    max_option_skip_bytes=1 << 16,
    max_handshake_output_bytes=4096,
    max_lookups=8,
    max_payload=1 << 16,
    max_in_flight_bytes=1 << 17,
    max_in_flight_requests=16,
    base_buffer_bytes=4096,
    kept_buffer_bytes=16384,
)
STATUS_CHARGE = MAX_SELECTED * 16 * (1 << 14)  # one BLOCK_STATUS may exceed the limit alone
CONTEXTS = ("base:allocation", "qemu:allocation-depth", "qemu:dirty-bitmap:snap")
MAX_REPLY_OVERHEAD = 2048  # headers and text of one reply, data and descriptors aside
MAX_BUFFER = LIMITS.max_payload + wire.EXTENDED_REQUEST.size + MESSAGE_SLACK + MIN_ROOM + PAGE


@dataclass(frozen=True)
class _Setup:
    """The switches in the first byte."""

    preamble: int  # 0 none, 1 simple replies, 2 structured replies, 3 extended headers
    deferred: bool  # requests end at the end, questions are answered before the next piece
    lazy: bool  # takes no replies until the end
    tls: TlsMode
    read_only: bool
    drain: bool  # in the middle of the input


def _setup(switches: int) -> _Setup:
    tls = (TlsMode.OFF, TlsMode.ALLOW, TlsMode.REQUIRE, TlsMode.ALLOW)[switches >> 4 & 3]
    return _Setup(
        preamble=switches & 3,
        deferred=bool(switches & 4),
        lazy=bool(switches & 8),
        tls=TlsMode.OFF if switches & 3 else tls,
        read_only=bool(switches & 64),
        drain=bool(switches & 128),
    )


def nbd_target(data: bytes) -> None:
    """Run one input; raises when an invariant is broken."""
    setup = _setup(data[0] if data else 0)
    sent = data[2:]
    piece = (data[1] if len(data) > 1 else 0) or max(len(sent), 1)
    engine = _engine(setup)
    engine.taking = not setup.lazy
    engine.slow_disk = setup.deferred
    for at in range(0, len(sent), piece):
        _answer(engine)
        if setup.drain and at <= len(sent) // 2 < at + piece:
            engine.drain()
        engine.send(sent[at : at + piece])
        if engine.starttls:
            engine.starttls = 0
            engine.start_tls("alice")
        _check_bounds(engine)
    _finish(engine)
    _check_output(engine, setup)


def _answer(engine: Engine) -> None:
    while engine.question is not None:
        engine.answer()


def _engine(setup: _Setup) -> Engine:
    devices = [
        MemoryDevice("disk", 1 << 20, deferred=setup.deferred, read_only=setup.read_only),
        MemoryDevice("secret", 1 << 60, deferred=setup.deferred),
    ]
    for device in devices:
        device.write(0, b"old" * 2000)
        device.snapshot("snap")
        device.write(4096, b"new" * 1000)
    policies = {"secret": ExportPolicy(tls_required=True, clients=("alice",))}
    engine = Engine(
        *devices, limits=LIMITS, tls=setup.tls, policies=policies, list_versions=not setup.lazy
    )
    if setup.preamble:
        chunks = setup.preamble > 1
        open_export(
            engine,
            structured=setup.preamble == 2,
            extended=setup.preamble == 3,
            contexts=CONTEXTS if chunks else (),
        )
        assert not engine.sent
    return engine


def _check_bounds(engine: Engine) -> None:
    connection = engine.connection
    assert connection._rx.capacity <= max(MAX_BUFFER, LIMITS.kept_buffer_bytes)
    transmission = connection._transmission
    if transmission is not None:
        most = LIMITS.max_in_flight_bytes + STATUS_CHARGE
        assert transmission._held_requests <= LIMITS.max_in_flight_requests
        assert transmission._held_bytes <= most
        output = sum(len(bytes(part)) for part in connection._out)
        # A fragment of a sparse read costs less than the data it stands for.
        assert output <= most + LIMITS.max_in_flight_requests * MAX_REPLY_OVERHEAD


def _finish(engine: Engine) -> None:
    """Let everything that is in flight end, then the client leaves."""
    engine.taking = True
    engine.pump()
    while any(device.waiting for device in [*engine.devices, *engine.exports.opened]):
        engine.finish()
    transmission = engine.connection._transmission
    if transmission is not None:
        assert transmission.device_idle
        unfinished = transmission._skip_refused is not None  # a refused payload that never ended
        assert transmission._held_requests == unfinished
        assert not transmission._held_bytes
        assert not transmission._asides
    engine.eof()
    _answer(engine)  # to a client that is gone
    assert engine.closed is not None
    assert not any(device.clients for device in engine.devices)
    assert engine.exports.leaked == []


def _check_output(engine: Engine, setup: _Setup) -> None:
    output = bytes(engine.sent)
    at = 0
    if not setup.preamble:
        at, entered = _skip_negotiation(output)
        if not entered:
            return
    transmission = engine.connection._transmission
    assert transmission is not None
    terms = transmission.entered
    if terms.structured or terms.extended:
        cookies = _chunked_replies(output, at, extended=terms.extended)
    else:
        cookies = _simple_replies(output, at, engine)
    stats = engine.connection.stats
    assert cookies.total() == sum(stats.requests) + stats.errors
    # A BLOCK_STATUS may be several requests for the device; the line above counts them as one.
    one_each = [request for request in engine.submitted if request.op != OP_BLOCK_STATUS]
    assert not Counter(request.cookie for request in one_each) - cookies


def _skip_negotiation(output: bytes) -> tuple[int, bool]:
    """Where transmission begins in `output`, and whether it does."""
    at = wire.GREETING.size
    while at < len(output):
        if wire.UINT32.unpack_from(output, at)[0] != wire.OPTION_REPLY_MAGIC >> 32:
            # The answer to EXPORT_NAME: size, flags, perhaps zeroes.
            _, flags = wire.EXPORT_NAME_REPLY.unpack_from(output, at)
            assert flags & wire.FLAG_HAS_FLAGS
            at += wire.EXPORT_NAME_REPLY.size
            zeroes = output[at : at + wire.EXPORT_NAME_ZEROES]
            if len(zeroes) == wire.EXPORT_NAME_ZEROES and not any(zeroes):
                at += wire.EXPORT_NAME_ZEROES
            return at, True
        magic, option, reply, length = wire.OPTION_REPLY.unpack_from(output, at)
        assert magic == wire.OPTION_REPLY_MAGIC
        at += wire.OPTION_REPLY.size + length
        assert at <= len(output)
        if option == wire.OPT_GO and reply == wire.REP_ACK:
            return at, True
    return at, False


def _chunked_replies(output: bytes, at: int, *, extended: bool) -> Counter[int]:
    """Finished replies by cookie."""
    cookies: Counter[int] = Counter()
    while at < len(output):
        (magic,) = wire.UINT32.unpack_from(output, at)
        if magic == wire.SIMPLE_REPLY_MAGIC:
            assert not extended
            _, error, cookie = wire.SIMPLE_REPLY.unpack_from(output, at)
            assert not error
            at += wire.SIMPLE_REPLY.size
            cookies[cookie] += 1
            continue
        if extended:
            magic, flags, _, cookie, _, length = wire.EXTENDED_REPLY.unpack_from(output, at)
            assert magic == wire.EXTENDED_REPLY_MAGIC
            at += wire.EXTENDED_REPLY.size + length
        else:
            magic, flags, _, cookie, length = wire.STRUCTURED_REPLY.unpack_from(output, at)
            assert magic == wire.STRUCTURED_REPLY_MAGIC
            at += wire.STRUCTURED_REPLY.size + length
        assert at <= len(output)
        assert not flags & ~wire.REPLY_FLAG_DONE
        cookies[cookie] += flags & wire.REPLY_FLAG_DONE
    return cookies


def _simple_replies(output: bytes, at: int, engine: Engine) -> Counter[int]:
    """Replies by cookie. A success may carry the data of any READ with its cookie, so every way of
    cutting is tried; that there is one is all that can be asked of a stream without lengths."""
    lengths: dict[int, set[int]] = {}
    for request in engine.submitted:
        if request.op == OP_READ:
            lengths.setdefault(request.cookie, set()).add(request.length)
    stats = engine.connection.stats
    wanted = sum(stats.requests) + stats.errors
    dead: set[tuple[int, int]] = set()  # (place, replies before it) from which no way leads on
    path: list[tuple[int, int, list[int]]] = []  # place, cookie, places to try next
    while at < len(output) or len(path) != wanted:
        ways: list[int] = []
        cookie = 0
        if at + wire.SIMPLE_REPLY.size <= len(output) and (at, len(path)) not in dead:
            magic, error, cookie = wire.SIMPLE_REPLY.unpack_from(output, at)
            if magic == wire.SIMPLE_REPLY_MAGIC:
                after = at + wire.SIMPLE_REPLY.size
                sizes = {0} if error else {0} | lengths.get(cookie, set())
                ways = [after + size for size in sizes if after + size <= len(output)]
        dead.add((at, len(path)))
        path.append((at, cookie, ways))
        while path and not path[-1][2]:
            path.pop()
        assert path, "the output cannot be cut into simple replies"
        at = path[-1][2].pop()
    return Counter(cookie for _, cookie, _ in path)
