"""Fixed newstyle negotiation, from the greeting to an export or to the end of the session.

    client flags -> option -> option -> ... -> Enter (EXPORT_NAME, GO)
                       |                    -> Upgrade (STARTTLS; `tls_started` comes back here)
                       |                    -> HangUp (ABORT, violations, EXPORT_NAME refused)

`advance` parses as far as the receive buffer goes and returns one of the three, or None when bytes
are missing, when the client does not take its replies, or when a question is open (the last two
are `stalled`). Replies gather in `pending`.

Versions are found on disks, for which nothing here waits. An option that needs one is served by a
generator: it yields a `Question`, which leaves as the event `LookUp`, and goes on with the answer
that `answered` was given. What comes from the client meanwhile stays in the receive buffer. The
version opened last is held until another one is, or negotiation ends: the client that selects
contexts for a version means that very version by the same name in GO.

What an option's header alone decides (unknown, forbidden now, too long) is answered after its
payload was thrown away in pieces; no such payload is ever kept. An option that is kept is at most
`max_option_bytes` long. A client that did not set FIXED_NEWSTYLE understands no option replies:
EXPORT_NAME is all it may send.
"""

from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Final

from blockd.device import BlockDevice, Changes
from blockd.nbd import contexts, wire
from blockd.nbd.access import (
    AGO,
    VERSION_MARK,
    Admitted,
    ExportPolicy,
    Gate,
    Refusal,
    TlsIdentity,
    TlsMode,
)
from blockd.nbd.contexts import Context
from blockd.nbd.errors import message_bytes
from blockd.nbd.events import Barred, Event, LookUp, Opened, Released
from blockd.nbd.export_info import Enter, information, transmission_flags
from blockd.nbd.limits import DEFAULT_MINIMUM_BLOCK_SIZE, Limits
from blockd.nbd.lookups import (
    Answer,
    ChangesFound,
    ListVersions,
    OpenChanges,
    OpenVersion,
    Prove,
    Proved,
    Question,
    Unavailable,
    VersionOpened,
    VersionsListed,
)
from blockd.nbd.options import (
    InvalidOption,
    decode_context_query,
    decode_export_query,
    decode_name,
)
from blockd.paths import ALONE, Paths, elsewhere, mirrored
from blockd.receive import ReceiveBuffer

# PEEK_EXPORT was withdrawn and is unknown here, as to qemu and nbdkit.
_WITHOUT_PAYLOAD = frozenset(
    (wire.OPT_LIST, wire.OPT_STARTTLS, wire.OPT_STRUCTURED_REPLY, wire.OPT_EXTENDED_HEADERS)
)
MAX_LISTED_VERSIONS: Final = 4096  # in the answer to LIST, which waits in memory as a whole
_KNOWN_CLIENT_FLAGS = wire.FLAG_C_FIXED_NEWSTYLE | wire.FLAG_C_NO_ZEROES


@dataclass(slots=True)
class Negotiated:
    """What options changed; STARTTLS forgets it all."""

    structured: bool = False
    extended: bool = False
    contexts: tuple[Context, ...] = ()
    context_device: BlockDevice | None = None
    """The device that `contexts` were selected for, whatever name it was called by."""

    def contexts_for(self, device: BlockDevice) -> tuple[Context, ...]:
        return self.contexts if device is self.context_device else ()


@dataclass(frozen=True, slots=True)
class Upgrade:
    """STARTTLS was acknowledged: nothing but TLS from here."""


@dataclass(frozen=True, slots=True)
class HangUp:
    """The session ends; not `clean` when it is the client's fault or loss."""

    reason: str
    clean: bool


Outcome = Enter | Upgrade | HangUp
Steps = Generator[Question, Answer, Outcome | None]
"""How an option is served that may have to ask; see the module's text."""


@dataclass(frozen=True, slots=True)
class _Export:
    """An export that this client opened."""

    device: BlockDevice
    policy: ExportPolicy
    volume: str
    """Canonical name of the volume, of which `device` may be a version."""
    moving: bool = False
    """The name that it was opened by means another version at each moment."""


@dataclass(frozen=True, slots=True)
class _Held:
    """An open version and the canonical name by which the client asked for it."""

    name: str
    device: BlockDevice


@dataclass(slots=True)
class _Skip:
    """A payload being thrown away, and the reply that follows it."""

    left: int
    option: int
    reply: int
    message: str


@dataclass(slots=True)
class Handshake:
    """One connection's negotiation. `pending` is what to send; the caller empties it.

    `events` belongs to the connection. With `list_versions` LIST names snapshots too.
    """

    gate: Gate
    limits: Limits
    events: deque[Event]
    list_versions: bool = False
    paths: Paths = ALONE
    pending: bytearray = field(default_factory=bytearray)
    stalled: bool = False
    draining: bool = False
    asking: bool = False
    """A question is open, and `answered` will be called."""
    negotiated: Negotiated = field(default_factory=Negotiated)
    _client_flags: int | None = None
    _option_count: int = 0
    _skip: _Skip | None = None
    _steps: Steps | None = None
    _option: int = 0  # that `_steps` serves
    _answer: Answer | None = None
    _lookup_count: int = 0
    _held: _Held | None = None

    def greet(self) -> None:
        self.pending += wire.GREETING.pack(
            wire.INIT_MAGIC,
            wire.OPTION_MAGIC,
            wire.FLAG_FIXED_NEWSTYLE | wire.FLAG_NO_ZEROES,
        )

    def tls_started(self, identity: TlsIdentity | None) -> None:
        """Forget what was negotiated in the clear; from now on the client is `identity`."""
        self.negotiated = Negotiated()
        self.gate.tls_started(identity)

    @property
    def between_options(self) -> bool:
        """Nothing of the next option has been consumed yet, and the last one is answered."""
        return self._skip is None and self._steps is None

    def answered(self, answer: Answer) -> None:
        """The answer to the question that is open; `advance` goes on with it."""
        assert self.asking
        self.asking = False
        self._answer = answer

    def abandon(self) -> None:
        """Negotiation is over. What was answered or held and not entered is given back; an open
        question must have been answered."""
        assert not self.asking
        if isinstance(self._answer, VersionOpened):
            self._hold("", self._answer.device)
        if self._steps is not None:
            self._steps.close()
        self._steps = self._answer = None
        self.release()

    def release(self) -> None:
        """Give up the version that is held."""
        if self._held is not None:
            self.events.append(Released(self._held.device))
            self._held = None

    def advance(self, rx: ReceiveBuffer) -> Outcome | None:
        """Parse what is in `rx`; None means that bytes are missing, or `stalled`."""
        self.stalled = False
        if self._steps is not None:
            outcome = self._go_on(self._steps)
            if outcome is not None or self._steps is not None:
                return outcome
        if self._client_flags is None:
            if rx.unparsed < wire.CLIENT_FLAGS.size:
                return None
            (self._client_flags,) = wire.CLIENT_FLAGS.unpack_from(rx.view, rx.start)
            rx.start += wire.CLIENT_FLAGS.size
            if refused := self._check_client_flags(self._client_flags):
                return refused
        while self._skip is None or self._skipped(rx, self._skip):
            if len(self.pending) > self.limits.max_handshake_output_bytes:
                self.stalled = True
                return None
            if rx.unparsed < wire.OPTION_HEADER.size:
                return None
            magic, option, length = wire.OPTION_HEADER.unpack_from(rx.view, rx.start)
            if magic != wire.OPTION_MAGIC:
                return HangUp(f"option magic {magic:#x}: not NBD's", clean=False)
            needed = wire.OPTION_HEADER.size + length
            if (ended := self._screen(option, length)) is not None:
                return ended
            if refusal := self._refusal(option, length):
                self._option_count += 1
                rx.start += wire.OPTION_HEADER.size
                self._skip = _Skip(length, option, refusal.reply, refusal.message)
                continue
            if rx.unparsed < needed:
                rx.need = needed
                return None
            payload = bytes(rx.view[rx.start + wire.OPTION_HEADER.size : rx.start + needed])
            rx.start += needed
            rx.need = 0
            self._option_count += 1
            outcome = self._serve(option, payload)
            if outcome is not None or self._steps is not None:
                return outcome
        return None

    # --- what a header alone decides ---------------------------------------------------------

    def _check_client_flags(self, flags: int) -> HangUp | None:
        if flags & ~_KNOWN_CLIENT_FLAGS:
            return HangUp(f"client flags {flags:#x}: unknown ones are set", clean=False)
        if not flags & wire.FLAG_C_FIXED_NEWSTYLE and self.gate.mode is TlsMode.REQUIRE:
            return HangUp(
                "client without FIXED_NEWSTYLE: cannot do TLS, required here", clean=False
            )
        return None

    def _screen(self, option: int, length: int) -> HangUp | None:
        """Options that end the session without their payload being looked at."""
        if self._option_count >= self.limits.max_options:
            return HangUp(f"option flood: more than {self.limits.max_options}", clean=False)
        if option == wire.OPT_EXPORT_NAME:
            if length > wire.MAX_STRING:
                return HangUp(f"EXPORT_NAME with a name of {length} bytes", clean=False)
            return None
        assert self._client_flags is not None
        if not self._client_flags & wire.FLAG_C_FIXED_NEWSTYLE:
            return HangUp(f"option {option} from a client without FIXED_NEWSTYLE", clean=False)
        if option == wire.OPT_ABORT:  # its payload is to be ignored, and nothing comes after it
            self._reply(option, wire.REP_ACK)
            return HangUp("aborted by the client", clean=True)
        if length > self.limits.max_option_skip_bytes:
            return HangUp(f"option {option} with a payload of {length} bytes", clean=False)
        return None

    def _refusal(self, option: int, length: int) -> Refusal | None:
        if option == wire.OPT_EXPORT_NAME:
            return None
        if option == wire.OPT_SET_META_CONTEXT:
            self.negotiated.contexts = ()  # replaced even when the option fails
        if self.draining:
            return Refusal(wire.REP_ERR_SHUTDOWN, "the server is stopping")
        if (
            self.gate.mode is TlsMode.REQUIRE
            and not self.gate.tls_active
            and option != wire.OPT_STARTTLS
        ):
            return Refusal(wire.REP_ERR_TLS_REQD, "this server requires TLS; start it first")
        if option not in _SERVERS:
            return Refusal(wire.REP_ERR_UNSUP, f"option {option}: unknown here")
        if option in _WITHOUT_PAYLOAD and length:
            return Refusal(wire.REP_ERR_INVALID, f"option {option}: takes no data, got {length}")
        if length > self.limits.max_option_bytes:
            return Refusal(
                wire.REP_ERR_TOO_BIG,
                f"option {option}: {length} bytes; at most {self.limits.max_option_bytes} here",
            )
        return None

    def _skipped(self, rx: ReceiveBuffer, skip: _Skip) -> bool:
        """Throw away what there is of the payload; reply and return True at its end."""
        taken = min(skip.left, rx.unparsed)
        rx.start += taken
        skip.left -= taken
        if skip.left:
            return False
        self._skip = None
        self._refuse(skip.option, Refusal(skip.reply, skip.message))
        return True

    # --- options -----------------------------------------------------------------------------

    def _serve(self, option: int, payload: bytes) -> Outcome | None:
        self._option = option
        served = _SERVERS[option](self, option, payload)
        if not isinstance(served, Generator):
            return served
        self._steps = served
        return self._go_on(served)

    def _go_on(self, steps: Steps) -> Outcome | None:
        """Serve the option in hand up to its next question, or to its end."""
        if self.asking:
            self.stalled = True
            return None
        answer, self._answer = self._answer, None
        try:
            question = next(steps) if answer is None else steps.send(answer)
        except StopIteration as end:
            self._steps = None
            outcome: Outcome | None = end.value
            return outcome
        except InvalidOption as invalid:
            self._steps = None
            if self._option == wire.OPT_EXPORT_NAME:
                return HangUp(f"EXPORT_NAME: {invalid}", clean=False)
            self._refuse(self._option, Refusal(wire.REP_ERR_INVALID, str(invalid)))
            return None
        return self._ask(question)

    def _ask(self, question: Question) -> Outcome | None:
        self._lookup_count += 1
        if self._lookup_count > self.limits.max_lookups:
            return HangUp(f"version flood: more than {self.limits.max_lookups}", clean=False)
        self.asking = self.stalled = True
        self.events.append(LookUp(question))
        return None

    def _open(
        self, name: str, *, attaching: bool = False
    ) -> Generator[Question, Answer, _Export | Refusal]:
        """The export called `name`, a version being opened and held; or why not. `attaching`: the
        client is served by it next."""
        found = self._admitted(name)
        if isinstance(found, Refusal):
            return found
        if found.version is None:
            device = found.device
            if mirrored(device):
                why = elsewhere(device, self.paths)
                if why is not None:
                    return Refusal(wire.REP_ERR_SHUTDOWN, why)
                if attaching:
                    refused = yield from self._prove(name, device)
                    if refused is not None:
                        return refused
            return _Export(device, found.policy, device.name)
        if self._held is None or self._held.name != found.version:
            answer = yield OpenVersion(found.version)
            if isinstance(answer, Unavailable):
                return Refusal(wire.REP_ERR_UNKNOWN, answer.message)
            assert isinstance(answer, VersionOpened)
            self._hold(found.version, answer.device)
            again = self._admitted(name)  # disks take their time: the access list may be another
            if isinstance(again, Refusal):
                return again
        assert self._held is not None
        moving = found.version.startswith(f"{found.device.name}{VERSION_MARK}{AGO}")
        return _Export(self._held.device, found.policy, found.device.name, moving)

    def _prove(self, name: str, device: BlockDevice) -> Generator[Question, Answer, Refusal | None]:
        """Several nodes have the volume: whether this one may serve it, and no other."""
        answer = yield Prove(device)
        if isinstance(answer, Unavailable):
            return Refusal(wire.REP_ERR_SHUTDOWN, answer.message)
        assert isinstance(answer, Proved)
        if answer.refusal is not None:
            return Refusal(wire.REP_ERR_SHUTDOWN, answer.refusal)
        again = self._admitted(name)  # that took its time: the access list may be another
        if isinstance(again, Refusal):
            return again
        if again.device is not device:  # or the volume: its state was taken from other nodes
            return Refusal(wire.REP_ERR_SHUTDOWN, f"volume {device.name} has changed; try again")
        return None

    def _admitted(self, name: str) -> Admitted | Refusal:
        found = self.gate.admit(name)
        if isinstance(found, Refusal) and found.barred is not None:
            self.events.append(Barred(found.barred))
        return found

    def _hold(self, name: str, device: BlockDevice) -> None:
        self.release()
        self._held = _Held(name, device)
        self.events.append(Opened(device))

    def _export_name(self, _option: int, payload: bytes) -> Steps:
        """Cannot report errors, so everything that does not fit ends the session."""
        name = decode_name(payload, "export name")
        if self.draining:
            return HangUp("EXPORT_NAME while the server is stopping", clean=True)
        if self.gate.mode is TlsMode.REQUIRE and not self.gate.tls_active:
            return HangUp("EXPORT_NAME in the clear where TLS is required", clean=False)
        if self.negotiated.extended:
            return HangUp("EXPORT_NAME after EXTENDED_HEADERS", clean=False)
        opened = yield from self._open(name, attaching=True)
        if isinstance(opened, Refusal):
            return HangUp(f"EXPORT_NAME: {opened.message}", clean=False)
        entered = self._enter(opened, minimum_block_size=DEFAULT_MINIMUM_BLOCK_SIZE)
        self.pending += wire.EXPORT_NAME_REPLY.pack(entered.size, transmission_flags(entered))
        assert self._client_flags is not None
        if not self._client_flags & wire.FLAG_C_NO_ZEROES:
            self.pending += bytes(wire.EXPORT_NAME_ZEROES)
        return entered

    def _list(self, option: int, _payload: bytes) -> Steps:
        names = self.gate.exports.names()
        if self.list_versions and self.gate.has_versions:
            answer = yield ListVersions(None, MAX_LISTED_VERSIONS)
            if isinstance(answer, Unavailable):
                self._refuse(option, Refusal(wire.REP_ERR_PLATFORM, answer.message))
                return None
            assert isinstance(answer, VersionsListed)
            names += answer.names
        for name in names:
            if self.gate.may_list(name):
                encoded = name.encode()
                self._reply(option, wire.REP_SERVER, wire.UINT32.pack(len(encoded)) + encoded)
        self._reply(option, wire.REP_ACK)
        return None

    def _starttls(self, option: int, _payload: bytes) -> Upgrade | None:
        if self.gate.mode is TlsMode.OFF:
            self._refuse(option, Refusal(wire.REP_ERR_POLICY, "TLS is not set up here"))
            return None
        if self.gate.tls_active:
            self._refuse(option, Refusal(wire.REP_ERR_INVALID, "TLS is on already"))
            return None
        self._reply(option, wire.REP_ACK)
        return Upgrade()

    def _info_or_go(self, option: int, payload: bytes) -> Steps:
        query = decode_export_query(payload)
        opened = yield from self._open(query.name, attaching=option == wire.OPT_GO)
        if isinstance(opened, Refusal):
            self._refuse(option, opened)
            return None
        # Only a client that asked promised to keep to the sizes ("Block size constraints").
        asked = wire.INFO_BLOCK_SIZE in query.items
        minimum = opened.device.block_size if asked else DEFAULT_MINIMUM_BLOCK_SIZE
        entered = self._enter(opened, minimum_block_size=minimum)
        for item in information(entered, query.items, self.limits.max_payload):
            self._reply(option, wire.REP_INFO, item)
        self._reply(option, wire.REP_ACK)
        return entered if option == wire.OPT_GO else None

    def _structured_reply(self, option: int, _payload: bytes) -> None:
        if self.negotiated.extended:
            message = "extended headers are on, and replace structured replies"
            self._refuse(option, Refusal(wire.REP_ERR_EXT_HEADER_REQD, message))
            return
        self.negotiated.structured = True
        self._reply(option, wire.REP_ACK)

    def _extended_headers(self, option: int, _payload: bytes) -> None:
        self.negotiated.extended = True
        self._reply(option, wire.REP_ACK)

    def _meta_context(self, option: int, payload: bytes) -> Steps:
        query = decode_context_query(payload)
        if not (self.negotiated.structured or self.negotiated.extended):
            message = "metadata contexts need structured replies or extended headers first"
            self._refuse(option, Refusal(wire.REP_ERR_INVALID, message))
            return None
        export = yield from self._open(query.name)
        if isinstance(export, Refusal):
            # ERR_TLS_REQD is for INFO and GO alone; hide the export behind "unknown" here.
            hidden = export.reply == wire.REP_ERR_TLS_REQD
            reply = wire.REP_ERR_UNKNOWN if hidden else export.reply
            self._refuse(option, Refusal(reply, export.message))
            return None
        listing = option == wire.OPT_LIST_META_CONTEXT
        serve = self._listed if listing else self._selected
        found = yield from serve(export, query.queries)
        if isinstance(found, Refusal):
            self._refuse(option, found)
            return None
        for number, name in found:
            self._reply(option, wire.REP_META_CONTEXT, wire.UINT32.pack(number) + name.encode())
        self._reply(option, wire.REP_ACK)
        return None

    def _selected(
        self, export: _Export, queries: tuple[str, ...]
    ) -> Generator[Question, Answer, list[tuple[int, str]] | Refusal]:
        """Select contexts: their numbers and names, or why none is."""
        plain, asked = contexts.selected(queries), contexts.refs_asked(queries)
        if len(plain) + len(asked) > contexts.MAX_SELECTED:
            return _too_many_contexts(len(plain) + len(asked))
        found = yield from self._changes(export, asked)
        if isinstance(found, Refusal):
            return found
        self.negotiated.contexts = plain + contexts.change_contexts(asked, found)
        self.negotiated.context_device = export.device
        return [(context.number, context.name) for context in self.negotiated.contexts]

    def _listed(
        self, export: _Export, queries: tuple[str, ...]
    ) -> Generator[Question, Answer, list[tuple[int, str]] | Refusal]:
        """What the queries match; without numbers, which only a selection gives."""
        names = [context.name for context in contexts.listed(queries)]
        kinds = contexts.change_kinds(queries) if self.gate.has_versions else []
        if kinds:
            answer = yield ListVersions(export.volume, contexts.MAX_LISTED_SNAPSHOTS)
            if isinstance(answer, Unavailable):
                return Refusal(wire.REP_ERR_PLATFORM, answer.message)
            assert isinstance(answer, VersionsListed)
            refs = [name.partition(VERSION_MARK)[2] for name in answer.names]
            names += [kind + ref for kind in kinds for ref in refs]
        listed = set(names)
        asked = {
            name: ref for name, ref in contexts.refs_asked(queries).items() if name not in listed
        }
        if len(asked) > contexts.MAX_SELECTED:
            return _too_many_contexts(len(asked))
        found = yield from self._changes(export, asked)
        if isinstance(found, Refusal):
            return found
        names += [name for name, ref in asked.items() if found[ref] is not None]
        return [(0, name) for name in names]

    def _changes(
        self, export: _Export, asked: dict[str, str]
    ) -> Generator[Question, Answer, dict[str, Changes | None] | Refusal]:
        """What changed since each ref in `asked`, None for refs that there are not."""
        refs = tuple(dict.fromkeys(asked.values()))
        if not refs or not self.gate.has_versions:
            return dict.fromkeys(refs)
        answer = yield OpenChanges(export.device, refs)
        if isinstance(answer, Unavailable):
            return Refusal(wire.REP_ERR_PLATFORM, answer.message)
        assert isinstance(answer, ChangesFound)
        return dict(zip(refs, answer.found, strict=True))

    # --- replies -----------------------------------------------------------------------------

    def _enter(self, export: _Export, *, minimum_block_size: int) -> Enter:
        device = export.device
        return Enter(
            device,
            device.size,
            device.read_only or export.policy.read_only,
            minimum_block_size,
            self.negotiated.structured,
            self.negotiated.extended,
            self.negotiated.contexts_for(device),
            export.moving,
        )

    def _refuse(self, option: int, refusal: Refusal) -> None:
        self._reply(option, refusal.reply, message_bytes(refusal.message))

    def _reply(self, option: int, reply: int, data: bytes = b"") -> None:
        header = wire.OPTION_REPLY.pack(wire.OPTION_REPLY_MAGIC, option, reply, len(data))
        self.pending += header + data


def _too_many_contexts(count: int) -> Refusal:
    message = f"{count} metadata contexts; at most {contexts.MAX_SELECTED} at once here"
    return Refusal(wire.REP_ERR_TOO_BIG, message)


_SERVERS: dict[int, Callable[[Handshake, int, bytes], Steps | Outcome | None]] = {
    wire.OPT_EXPORT_NAME: Handshake._export_name,
    wire.OPT_LIST: Handshake._list,
    wire.OPT_STARTTLS: Handshake._starttls,
    wire.OPT_INFO: Handshake._info_or_go,
    wire.OPT_GO: Handshake._info_or_go,
    wire.OPT_STRUCTURED_REPLY: Handshake._structured_reply,
    wire.OPT_LIST_META_CONTEXT: Handshake._meta_context,
    wire.OPT_SET_META_CONTEXT: Handshake._meta_context,
    wire.OPT_EXTENDED_HEADERS: Handshake._extended_headers,
}
