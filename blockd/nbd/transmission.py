"""The transmission phase: requests out of a receive buffer, replies into an output list.

`advance` parses every complete request in the buffer into one batch. The loop in it is the hot
path: a plain READ or WRITE costs one unpack, one comparison chain and one Request. Everything else
(other commands and flags, whatever is wrong) goes to `_other`, which is allowed to be slow.

Framing is never lost: the header alone says how many payload bytes follow, and a refused request's
payload is thrown away in pieces before its error is sent. A wrong magic ends the session.

Memory is bounded by two counters of what was accepted and whose reply `released` has not seen go:
requests, and bytes (payloads received, reads promised, status replies promised). When the next
request does not fit, parsing stalls with that request still in the buffer.

A reply belongs to a Request object, never to a cookie: cookies are the client's and may repeat.
"""

import errno
from dataclasses import dataclass
from typing import Final

from typing_extensions import Buffer

from blockd.device import Changes, MayBeElsewhere, ServedByCore
from blockd.nbd import contexts, wire
from blockd.nbd.export_info import Enter
from blockd.nbd.handshake import HangUp
from blockd.nbd.limits import Limits
from blockd.nbd.replies import Aside, ChunkReplies, Refused, Replies, SimpleReplies
from blockd.nbd.requests import OPS, WRITING, Rules, op_flags
from blockd.nbd.stats import Stats
from blockd.receive import ReceiveBuffer
from native import (
    FLAG_FUA,
    NBD_EXTENDED,
    NBD_SIMPLE,
    NBD_STRUCTURED,
    OP_FLUSH,
    OP_OTHER,
    OP_READ,
    OP_WRITE,
    Request,
    VolumeCore,
)

_STATUS_CHARGE = wire.STATUS_EXTENT_EXT.size * contexts.MAX_DESCRIPTORS
"""Bytes reserved for each context of a BLOCK_STATUS: its longest chunk, headers aside."""


@dataclass(frozen=True, slots=True)
class HandOver:
    """What the request loop needs to know to serve plain requests (`native.Loop.add_nbd`)."""

    core: VolumeCore
    replies: int
    size: int
    minimum_block_size: int
    max_payload: int
    read_only: bool
    received: bytes


MOVED: Final = "another node serves it now"

MAX_SERVED_BYTES: Final = 32 << 20
"""Of one READ or WRITE that the request loop serves; what is longer comes back to the engine."""


class Transmission:
    """One connection's requests against one export. Call `advance` only while not `ended`."""

    def __init__(self, entered: Enter, limits: Limits, stats: Stats, out: list[Buffer]) -> None:
        self.entered = entered
        self.stalled = False
        self.ended: HangUp | None = None
        self.in_flight: set[Request] = set()
        self._limits = limits
        self._stats = stats
        self._rules = Rules(entered, limits.max_payload)
        self._asides: dict[Request, Aside] = {}
        self._replies: Replies = (
            ChunkReplies(out, extended=entered.extended)
            if entered.structured or entered.extended
            else SimpleReplies(out)
        )
        self._header = wire.EXTENDED_REQUEST if entered.extended else wire.REQUEST
        self._magic = wire.EXTENDED_REQUEST_MAGIC if entered.extended else wire.REQUEST_MAGIC
        self._plain_size = entered.size  # what the hot loop lets pass; -1 lets nothing pass
        # Accepted and not yet handed out by output(), and how much of that is answered.
        self._held_requests = 0
        self._held_bytes = 0
        self._answered_requests = 0
        self._answered_bytes = 0
        # A refused request whose payload is still being thrown away.
        self._skip_left = 0
        self._skip_refused: tuple[int, int, int, Refused] | None = None  # op, cookie, offset

    @property
    def device_idle(self) -> bool:
        return not self.in_flight

    @property
    def moved(self) -> bool:
        """Another node serves it now."""
        device = self.entered.device
        return isinstance(device, MayBeElsewhere) and device.elsewhere is not None

    def drain(self) -> None:
        """Answer ESHUTDOWN to every request that was not accepted yet; none at all once another
        node serves it, see `completed`."""
        self._rules.draining = True
        self._plain_size = -1
        if self.moved:
            self.ended = HangUp(MOVED, clean=False)

    def hand_over(self, rx: ReceiveBuffer) -> HandOver | None:
        """See `blockd.nbd.connection.Connection.hand_over`. Nothing may be in flight."""
        entered = self.entered
        whole = self._skip_refused is None and not self._held_requests
        if not whole or self._rules.draining or not isinstance(entered.device, ServedByCore):
            return None
        replies = NBD_SIMPLE
        if entered.structured or entered.extended:
            replies = NBD_EXTENDED if entered.extended else NBD_STRUCTURED
        return HandOver(
            entered.device.core,
            replies,
            entered.size,
            entered.minimum_block_size,
            min(self._limits.max_payload, MAX_SERVED_BYTES),
            entered.read_only,
            rx.take(),
        )

    def advance(self, rx: ReceiveBuffer) -> list[Request]:
        """The requests for the device that `rx` holds; sets `stalled` and `ended`."""
        self.stalled = False
        batch: list[Request] = []
        if self._skip_refused is None or self._skip(rx):
            while self._plain(rx, batch) and self._other(rx, batch):
                pass
        if batch:
            self.in_flight.update(batch)
        return batch

    def completed(self, requests: list[Request]) -> None:
        """The device finished `requests`: each one of ours, each once. Sets `ended` when another
        node serves the export by now. What that has kept from being done, or left unknown, gets no
        answer then: clients repeat at the other node what has none when a connection ends, but
        take an error for their own."""
        waiting = len(self.in_flight)
        self.in_flight.difference_update(requests)
        assert len(self.in_flight) == waiting - len(requests), "a request was finished twice"
        if any(each.error == errno.ESHUTDOWN for each in requests) and self.moved:
            self.ended = HangUp(MOVED, clean=False)
            for each in requests:
                if each.error == errno.ESHUTDOWN:
                    self._asides.pop(each, None)
            requests = [each for each in requests if each.error != errno.ESHUTDOWN]
        before = self._replies.errors
        charged, answered = self._replies.finish(requests, self._asides)
        self._answered_bytes += charged
        self._answered_requests += answered
        self._stats.errors += self._replies.errors - before

    def released(self) -> None:
        """All replies made so far went out of the engine: their room is free again."""
        self._held_requests -= self._answered_requests
        self._held_bytes -= self._answered_bytes
        self._answered_requests = self._answered_bytes = 0

    def _plain(self, rx: ReceiveBuffer, batch: list[Request]) -> bool:
        """Parse plain READs and WRITEs; True when a complete header of another kind is next."""
        view, at, end = rx.view, rx.start, rx.end
        header, magic, unpack = self._header.size, self._magic, self._header.unpack_from
        size, longest = self._plain_size, self._limits.max_payload
        misaligned = self.entered.minimum_block_size - 1
        write_size = -1 if self.entered.read_only else size
        write_flags = wire.CMD_FLAG_PAYLOAD_LEN if self.entered.extended else 0
        room = self._limits.max_in_flight_bytes - self._held_bytes
        slots = self._limits.max_in_flight_requests - self._held_requests + len(batch)
        append = batch.append
        accepted, reads, read_bytes, room_before = len(batch), 0, 0, room
        other = False
        rx.need = 0
        while end - at >= header:
            got, flags, command, cookie, offset, length = unpack(view, at)
            if got != magic:
                self.ended = HangUp(f"request magic {got:#x}: not {magic:#x}", clean=False)
                break
            if len(batch) >= slots or (room < length <= longest and command < 2):
                self.stalled = True
                break
            if not 0 < length <= longest or (offset | length) & misaligned:
                other = True
                break
            after = at + header
            if command == 0 and not flags and offset + length <= size:
                append(Request(OP_READ, offset, length, None, 0, cookie))
                reads += 1
                read_bytes += length
            elif (
                command == 1
                and flags & ~wire.CMD_FLAG_FUA == write_flags
                and offset + length <= write_size
            ):
                payload = after
                after += length
                if after > end:
                    rx.need = after - at
                    break
                append(
                    Request(OP_WRITE, offset, length, view[payload:after], flags & FLAG_FUA, cookie)
                )
            else:
                other = True
                break
            room -= length
            at = after
        rx.start = at
        taken = len(batch) - accepted
        self._held_requests += taken
        self._held_bytes += room_before - room
        self._stats.count_plain(reads, read_bytes, taken - reads, room_before - room - read_bytes)
        return other

    def _other(self, rx: ReceiveBuffer, batch: list[Request]) -> bool:
        """Parse the one request whose header is at the start of `rx`; False to stop parsing."""
        _, flags, command, cookie, offset, length = self._header.unpack_from(rx.view, rx.start)
        header = self._header.size
        if command == wire.CMD_DISC:
            self.ended = HangUp("disconnected by the client", clean=True)
            return False
        payload = self._rules.payload_length(command, flags, length)
        if self.entered.extended and payload > self._limits.max_payload:
            # The protocol text asks for a hang-up here; compact headers bound it by 32 bits.
            self.ended = HangUp(f"a request with {payload} bytes of payload", clean=False)
            return False
        refused = self._rules.check(command, flags, offset, length)
        if refused is not None:
            rx.start += header
            op = OPS.get(command, OP_OTHER)
            self._skip_left, self._skip_refused = payload, (op, cookie, offset, refused)
            self._held_requests += 1
            return self._skip(rx)
        if rx.unparsed < header + payload:
            rx.need = header + payload
            return False
        at = rx.start + header
        data = rx.view[at : at + payload] if payload else None
        if not self._accept(batch, command, flags, cookie, offset, length, data):
            self.stalled = True
            return False
        rx.start = at + payload
        return True

    def _accept(
        self,
        batch: list[Request],
        command: int,
        flags: int,
        cookie: int,
        offset: int,
        length: int,
        data: memoryview | None,
    ) -> bool:
        """Take a request that passed the rules; False when there is no room for it now."""
        op = OPS[command]
        aside: Aside | None = None
        charge = length if command in (wire.CMD_READ, wire.CMD_WRITE) else 0
        if command == wire.CMD_BLOCK_STATUS:
            selected = self.entered.contexts
            if data is not None:
                found = self._rules.filter(bytes(data), offset)
                if isinstance(found, Refused):
                    self._held_requests += 1
                    self._refuse(op, cookie, offset, found)
                    return True
                length, selected = found
                data = None
            only_first = bool(flags & wire.CMD_FLAG_REQ_ONE)
            charge = len(selected) * (wire.STATUS_EXTENT_EXT.size if only_first else _STATUS_CHARGE)
            aside = Aside(contexts=selected, only_first=only_first, charge=charge)
        elif flags & wire.CMD_FLAG_DF:
            aside = Aside(unfragmented=True)
        if charge > self._limits.max_in_flight_bytes - self._held_bytes and self._held_bytes:
            return False
        if not self._rules.draining:  # the export may have grown: let the hot loop know
            self._plain_size = max(self._plain_size, offset + length)
        self._held_requests += 1
        self._stats.count(op, charge if op in (OP_READ, OP_WRITE) else 0)
        if not length and command != wire.CMD_FLUSH:
            if command not in WRITING or not flags & wire.CMD_FLAG_FUA:
                self._answered_requests += 1  # nothing to do, which is not an error
                self._stats.aside(op)
                self._replies.acknowledge(op, cookie, offset)
                return True
            # Nothing, but durable. The request loop asks so for a write whose sync failed
            # (`encode_sync` in nbd_serve.c).
            op = OP_FLUSH
        self._held_bytes += charge
        request = Request(op, offset, length, data, op_flags(flags), cookie)
        batch.append(request)
        if aside is not None:
            self._asides[request] = aside
            if aside.contexts:
                self._ask_for_each(request, aside, batch)
        return True

    def _ask_for_each(self, request: Request, aside: Aside, batch: list[Request]) -> None:
        """Make of a BLOCK_STATUS, which is in `batch`, one request for each thing asked about."""
        asked: list[tuple[Changes | None, Request]] = []
        requests: list[Request] = []
        for context in aside.contexts:
            same = next((part for changes, part in asked if changes is context.changes), None)
            if same is None:
                same = request
                if asked:
                    same = _twin(request)
                    batch.append(same)
                    self._asides[same] = aside
                same.data = context.changes
                asked.append((context.changes, same))
            requests.append(same)
        aside.requests, aside.waiting = tuple(requests), len(asked)

    def _skip(self, rx: ReceiveBuffer) -> bool:
        """Throw away what there is of a refused payload; answer and return True at its end."""
        assert self._skip_refused is not None
        taken = min(self._skip_left, rx.unparsed)
        rx.start += taken
        self._skip_left -= taken
        if self._skip_left:
            return False
        refusal, self._skip_refused = self._skip_refused, None
        self._refuse(*refusal)
        return True

    def _refuse(self, op: int, cookie: int, offset: int, refused: Refused) -> None:
        self._stats.aside(op, refused=True)
        self._answered_requests += 1
        self._replies.refuse(cookie, offset, refused)


def _twin(request: Request) -> Request:
    where = (request.op, request.offset, request.length)
    return Request(*where, None, request.flags, request.cookie)
