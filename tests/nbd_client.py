"""An NBD client for tests: strict about what a server may send, free in what it sends itself.

`Session` speaks the protocol over two functions, `send(bytes)` and `take(count) -> bytes` (exactly
count bytes, or EOFError), and knows no sockets. `NbdClient` is a Session over a blocking socket:

    with NbdClient(("127.0.0.1", 10809)) as client:       # or a path of a unix socket
        client.greet()
        client.starttls(context)                          # optional, ssl.SSLContext
        client.structured_reply()                         # or extended_headers()
        client.set_meta_context("disk", "base:allocation")
        info = client.go("disk", wire.INFO_BLOCK_SIZE)    # ExportInfo, or raises OptionError
        client.write(0, b"x" * 4096)                      # or raises RequestError
        assert client.read(0, 4096) == b"x" * 4096
        client.disconnect()                               # DISC, then the server closes

Pipelining and odd requests: `send_request(...)` returns the cookie, `read_reply()` the next reply
that became complete, in the server's order. Anything else: `send_raw(bytes)` with the encoders
`option`, `export_query`, `context_query`, `request`. A reply that breaks the protocol raises
ProtocolError; one that is an error is returned (`Reply.error`) or raised by the convenience calls.
"""

import socket
import ssl
from collections.abc import Callable
from struct import Struct
from types import TracebackType

from blockd.nbd import wire
from tests.nbd_encode import (
    ExportInfo,
    OptionError,
    OptionReply,
    context_query,
    export_info,
    export_query,
    option,
    request,
)
from tests.nbd_reply import (
    Extent,
    Parts,
    ProtocolError,
    Reply,
    RequestError,
    Sent,
    expect,
    succeeded,
)

__all__ = [
    "ExportInfo",
    "Extent",
    "NbdClient",
    "OptionError",
    "OptionReply",
    "ProtocolError",
    "Reply",
    "RequestError",
    "Session",
    "context_query",
    "export_query",
    "option",
    "request",
]

_FIXED = wire.FLAG_C_FIXED_NEWSTYLE | wire.FLAG_C_NO_ZEROES
_SIMPLE = Struct(">IQ")  # the reply headers without their magic
_STRUCTURED = Struct(">HHQI")
_EXTENDED = Struct(">HHQQQ")


class Session:
    """See the module's text."""

    def __init__(self, send: Callable[[bytes], None], take: Callable[[int], bytes]) -> None:
        self.send_raw = send
        self._take = take
        self.structured = False
        self.extended = False
        self.handshake_flags = 0
        self.client_flags = _FIXED
        self.contexts: dict[str, int] = {}
        self._info: ExportInfo | None = None
        self._cookie = 0
        self._sent: dict[int, list[Sent]] = {}  # by cookie, oldest first
        self._parts: dict[int, Parts] = {}  # replies of which some chunks came

    @property
    def info(self) -> ExportInfo:
        """What the server told when transmission began."""
        assert self._info is not None
        return self._info

    # --- negotiation -----------------------------------------------------------------------

    def greet(self, client_flags: int = _FIXED) -> None:
        """Read the greeting, send `client_flags`."""
        init, magic, self.handshake_flags = wire.GREETING.unpack(self._take(wire.GREETING.size))
        expect(init == wire.INIT_MAGIC and magic == wire.OPTION_MAGIC, "greeting")
        self.client_flags = client_flags
        self.send_raw(wire.CLIENT_FLAGS.pack(client_flags))

    def read_option_reply(self) -> OptionReply:
        head = self._take(wire.OPTION_REPLY.size)
        magic, number, reply, length = wire.OPTION_REPLY.unpack(head)
        expect(magic == wire.OPTION_REPLY_MAGIC, "option reply magic")
        return OptionReply(number, reply, self._take(length))

    def option(self, number: int, data: bytes = b"") -> list[OptionReply]:
        """Send an option; all replies up to the final one, or raise OptionError."""
        self.send_raw(option(number, data))
        replies: list[OptionReply] = []
        while True:
            reply = self.read_option_reply()
            expect(reply.option == number, f"reply to option {reply.option}, not {number}")
            if reply.is_error:
                raise OptionError(reply.reply, reply.data.decode())
            if reply.reply == wire.REP_ACK:
                expect(not reply.data, "ACK with data")
                return replies
            replies.append(reply)

    def abort(self) -> None:
        self.option(wire.OPT_ABORT)

    def list_exports(self) -> list[str]:
        names = []
        for reply in self.option(wire.OPT_LIST):
            expect(reply.reply == wire.REP_SERVER, "LIST answered with something else")
            (length,) = wire.UINT32.unpack_from(reply.data)
            names.append(reply.data[4 : 4 + length].decode())
        return names

    def structured_reply(self) -> None:
        self.option(wire.OPT_STRUCTURED_REPLY)
        self.structured = True

    def extended_headers(self) -> None:
        self.option(wire.OPT_EXTENDED_HEADERS)
        self.extended = True

    def list_meta_context(self, name: str, *queries: str) -> list[str]:
        found = self.option(wire.OPT_LIST_META_CONTEXT, context_query(name, *queries))
        return [reply.data[4:].decode() for reply in found]

    def set_meta_context(self, name: str, *queries: str) -> dict[str, int]:
        """Ids of the selected contexts by name; kept in `contexts` too."""
        self.contexts = {}
        for reply in self.option(wire.OPT_SET_META_CONTEXT, context_query(name, *queries)):
            expect(reply.reply == wire.REP_META_CONTEXT, "contexts answered with something else")
            (number,) = wire.UINT32.unpack_from(reply.data)
            self.contexts[reply.data[4:].decode()] = number
        expect(len(set(self.contexts.values())) == len(self.contexts), "context ids repeat")
        return self.contexts

    def query_info(self, name: str, *items: int) -> ExportInfo:
        """NBD_OPT_INFO."""
        return export_info(self.option(wire.OPT_INFO, export_query(name, *items)))

    def go(self, name: str, *items: int) -> ExportInfo:
        """NBD_OPT_GO: transmission begins."""
        self._info = export_info(self.option(wire.OPT_GO, export_query(name, *items)))
        return self._info

    def export_name(self, name: str) -> ExportInfo:
        """NBD_OPT_EXPORT_NAME: transmission begins, or the server hangs up (EOFError)."""
        self.send_raw(option(wire.OPT_EXPORT_NAME, name.encode()))
        size, flags = wire.EXPORT_NAME_REPLY.unpack(self._take(wire.EXPORT_NAME_REPLY.size))
        if not self.client_flags & self.handshake_flags & wire.FLAG_NO_ZEROES:
            zeroes = self._take(wire.EXPORT_NAME_ZEROES)
            expect(not any(zeroes), "zeroes that are not")
        self._info = ExportInfo(size, flags)
        return self._info

    def forget_negotiation(self) -> None:
        """What STARTTLS does to both sides."""
        self.structured = self.extended = False
        self.contexts = {}

    # --- transmission ----------------------------------------------------------------------

    def send_request(
        self,
        command: int,
        offset: int = 0,
        length: int = 0,
        *,
        flags: int = 0,
        payload: bytes = b"",
        cookie: int | None = None,
    ) -> int:
        """Send one request and return its cookie. A WRITE under extended headers gets PAYLOAD_LEN
        by itself; everything else goes out as given."""
        encoded, cookie = self.prepare(command, offset, length, flags, payload, cookie)
        self.send_raw(encoded)
        return cookie

    def prepare(
        self,
        command: int,
        offset: int = 0,
        length: int = 0,
        flags: int = 0,
        payload: bytes = b"",
        cookie: int | None = None,
    ) -> tuple[bytes, int]:
        """The bytes of a request whose reply will be expected, and its cookie."""
        if cookie is None:
            self._cookie += 1
            cookie = self._cookie
        if self.extended and command == wire.CMD_WRITE:
            flags |= wire.CMD_FLAG_PAYLOAD_LEN
        if command != wire.CMD_DISC:
            self._sent.setdefault(cookie, []).append(Sent(command, offset, length, flags))
        encoded = request(
            command,
            offset,
            length,
            flags=flags,
            cookie=cookie,
            payload=payload,
            extended=self.extended,
        )
        return encoded, cookie

    @property
    def outstanding(self) -> int:
        """Requests whose reply is not complete."""
        return sum(map(len, self._sent.values()))

    def read_reply(self) -> Reply:
        """The next reply that becomes complete; chunks of different replies may interleave."""
        while True:
            reply = self._read_message()
            if reply is not None:
                return reply

    def call(self, command: int, offset: int = 0, length: int = 0, flags: int = 0) -> Reply:
        """Send a request without payload, read the next reply, raise RequestError if it failed."""
        self.send_request(command, offset, length, flags=flags)
        return succeeded(self.read_reply())

    def read(self, offset: int, length: int, flags: int = 0) -> bytes:
        reply = self.call(wire.CMD_READ, offset, length, flags)
        assert reply.data is not None
        return reply.data

    def write(self, offset: int, data: bytes, flags: int = 0) -> None:
        self.send_request(wire.CMD_WRITE, offset, len(data), flags=flags, payload=data)
        succeeded(self.read_reply())

    def flush(self) -> None:
        self.call(wire.CMD_FLUSH)

    def trim(self, offset: int, length: int, flags: int = 0) -> None:
        self.call(wire.CMD_TRIM, offset, length, flags)

    def write_zeroes(self, offset: int, length: int, flags: int = 0) -> None:
        self.call(wire.CMD_WRITE_ZEROES, offset, length, flags)

    def block_status(self, offset: int, length: int, flags: int = 0) -> dict[str, list[Extent]]:
        """Descriptors by context name."""
        reply = self.call(wire.CMD_BLOCK_STATUS, offset, length, flags)
        return {name: reply.extents[number] for name, number in self.contexts.items()}

    def send_disconnect(self) -> None:
        self.send_request(wire.CMD_DISC)

    # --- inside ----------------------------------------------------------------------------

    def _read_message(self) -> Reply | None:
        (magic,) = wire.UINT32.unpack(self._take(4))
        if magic == wire.SIMPLE_REPLY_MAGIC:
            expect(not self.extended, "a simple reply under extended headers")
            return self._simple_reply()
        if magic == wire.STRUCTURED_REPLY_MAGIC:
            expect(self.structured and not self.extended, "an unwanted structured reply")
            flags, kind, cookie, length = _STRUCTURED.unpack(self._take(_STRUCTURED.size))
            return self._chunk(flags, kind, cookie, None, length)
        expect(magic == wire.EXTENDED_REPLY_MAGIC and self.extended, f"reply magic {magic:#x}")
        flags, kind, cookie, offset, length = _EXTENDED.unpack(self._take(_EXTENDED.size))
        return self._chunk(flags, kind, cookie, offset, length)

    def _simple_reply(self) -> Reply:
        error, cookie = _SIMPLE.unpack(self._take(_SIMPLE.size))
        sent = self._answered(cookie)
        reply = Reply(cookie, sent, error)
        if sent.command == wire.CMD_READ:
            expect(not self.structured, "a simple reply to READ under structured replies")
            if not error:
                reply.data = self._take(sent.length)
        return reply

    def _chunk(
        self, flags: int, kind: int, cookie: int, offset: int | None, length: int
    ) -> Reply | None:
        payload = self._take(length)
        expect(cookie in self._sent, f"a chunk for cookie {cookie}, which waits for nothing")
        expect(not flags & ~wire.REPLY_FLAG_DONE, f"chunk flags {flags:#x}")
        sent = self._sent[cookie][0]
        if offset is not None:
            expect(offset == sent.offset, "offset of the reply is not the request's")
        parts = self._parts.setdefault(cookie, Parts(Reply(cookie, sent)))
        parts.add(kind, payload, self.extended)
        if not flags & wire.REPLY_FLAG_DONE:
            expect(kind != wire.REPLY_TYPE_NONE, "NONE without DONE")
            return None
        del self._parts[cookie]
        self._answered(cookie)
        return parts.finish(len(self.contexts))

    def _answered(self, cookie: int) -> Sent:
        waiting = self._sent.get(cookie)
        expect(waiting is not None, f"a reply to cookie {cookie}, which waits for nothing")
        assert waiting is not None
        sent = waiting.pop(0)
        if not waiting:
            del self._sent[cookie]
        return sent


class NbdClient(Session):
    """A Session over a blocking socket; a context manager that closes it."""

    def __init__(self, address: tuple[str, int] | str, *, timeout_s: float = 60.0) -> None:
        if isinstance(address, str):
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.settimeout(timeout_s)
            self.socket.connect(address)
        else:
            self.socket = socket.create_connection(address, timeout_s)
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        super().__init__(lambda data: self.socket.sendall(data), self._receive)

    def starttls(self, context: ssl.SSLContext, hostname: str | None = None) -> None:
        """NBD_OPT_STARTTLS, then the TLS handshake; what was negotiated is forgotten."""
        self.option(wire.OPT_STARTTLS)
        self.socket = context.wrap_socket(self.socket, server_hostname=hostname)
        self.forget_negotiation()

    def disconnect(self) -> None:
        """NBD_CMD_DISC, then wait until the server closed; ProtocolError when it sends more."""
        self.send_disconnect()
        expect(not self.socket.recv(1), "bytes after DISC")

    def at_eof(self) -> bool:
        """Whether the server closed; waits for it or for a byte, which is then lost."""
        try:
            return not self.socket.recv(1)
        except (ConnectionResetError, ssl.SSLEOFError):
            return True

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> "NbdClient":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _receive(self, count: int) -> bytes:
        data = bytearray()
        while len(data) < count:
            part = self.socket.recv(min(count - len(data), 1 << 20))
            if not part:
                raise EOFError(f"the server closed after {len(data)} of {count} bytes")
            data += part
        return bytes(data)


def in_transmission(address: str, export: str, kind: str = "simple") -> NbdClient:
    """A client of a server at HOST:PORT that has gone into transmission with replies of that kind:
    "simple", "structured" or "extended"."""
    host, port = address.rsplit(":", 1)
    client = NbdClient((host, int(port)))
    client.greet()
    if kind == "structured":
        client.structured_reply()
    elif kind == "extended":
        client.extended_headers()
    client.go(export)
    return client


def good_replies(client: NbdClient) -> int:
    """How many replies come until the server closes; each of them is a good one."""
    count = 0
    while True:
        try:
            succeeded(client.read_reply())
        except (EOFError, ConnectionResetError):
            return count
        count += 1
