"""Leading: carries out what the `Primary` of one volume and epoch asks for, while it is one."""

import logging
import os
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Final, TypeVar

from native import TAP_MIN_BUFFER, Sender
from transport.errors import TransportError
from transport.group import link
from transport.group.acks import NodeId
from transport.group.around import Around, Timer, outcome
from transport.group.chain import Chain
from transport.group.copying import COPYING
from transport.group.lease import Lease
from transport.group.link import GroupPolicy
from transport.group.primary import Primary
from transport.group.references import References
from transport.peer import messages as m
from transport.peer.caller import Answered, Failed
from volume.metastore_records import Mode, VolumeGroup
from volume.replica import Records, Replica, Taken
from volume.replicacopy import Step

log = logging.getLogger(__name__)

T = TypeVar("T")
Plain = tuple[int, int, int, int, bytes]
"""What `native.Sender` sends: member, tag, first, last, records."""

MAX_TAP_BYTES: Final = 64 << 20
EXPIRE_S: Final = 0.25  # between looks at requests that have waited for too long
MAX_NS: Final = (1 << 63) - 1
NANOSECONDS: Final = 1_000_000_000


def tap_bytes(journal_limit: int) -> int:
    """Of a journal that may wait to be sent: its segments are kept for that."""
    return max(TAP_MIN_BUFFER, min(MAX_TAP_BYTES, journal_limit // 4))


class Leading:
    """Tells its owner once that it is `opened` (W members have noted the epoch), and once that it
    is over: `fenced` by a later epoch, or `failed` by the own disk. The owner then calls `end`.
    `moved`: `deadline` may be another one."""

    def __init__(
        self,
        around: Around,
        replica: Replica,
        group: VolumeGroup,
        me: NodeId,
        chain: Chain,
        policy: GroupPolicy,
        opened: Callable[[], None],
        fenced: Callable[[int], None],
        failed: Callable[[str], None],
        moved: Callable[[], None],
        *,
        plain: bool = True,
    ) -> None:
        """The own part has begun the epoch, and its tap is open since; `chain` is what it has.
        `plain`: have what comes with every write done natively; it makes no other difference."""
        members = [NodeId(node) for node in group.members]
        self.epoch = group.epoch
        self.lease = Lease(me, members, group.write_quorum)
        self.primary = Primary(
            *(replica.uuid, group.epoch, me, members, group.write_quorum, group.mode),
            *(chain, self.lease, policy),
        )
        self.coming = group.coming
        """Who was to be a member when this one became primary."""
        self.strict = group.mode is Mode.STRICT
        self.serving = False
        self.ended = False
        self._sender = Sender(replica.volume.core, group.epoch) if plain else None
        self._references = References(replica.volume.record.chunk_size, replica.known)
        self._watched: list[Timer] = []
        self._effects: deque[link.Effect] = deque()
        self._carrying = False
        self._expiring = False
        self._around = around
        self._policy = policy
        self._replica = replica
        self._opened = opened
        self._fenced = fenced
        self._failed = failed
        self._moved = moved

    def start(self, descriptor: int) -> None:
        """`descriptor` is readable when the tap has something."""
        self._watched.append(self._around.watch_tap(descriptor, self._appended))
        self.poll()

    def end(self) -> None:
        """Nothing is sent or acknowledged any more."""
        if not self.ended:
            self.ended = True
            for watched in self._watched:
                watched.cancel()

    @property
    def deadline(self) -> float:
        return self.primary.deadline

    @property
    def others(self) -> list[NodeId]:
        """All nodes that have records from here."""
        return self.primary.others

    def poll(self) -> None:
        self.carry_out(self.primary.poll(self._around.clock()))
        if self.serving:
            self._watch_waiting()

    def serves(self) -> None:
        """Clients are let in: from now on the lease says when they may read."""
        self.serving = True
        self._gate = gate = self._replica.gate
        self._watched.append(self._around.watch_tap(gate.descriptor, self._flush))
        self._tell_lease()

    def _tell_lease(self) -> None:
        until = max(self.lease.reads_until, 0.0)  # -inf before the first renewal
        self._replica.reads_until(min(int(min(until, MAX_NS) * NANOSECONDS), MAX_NS))

    def _flush(self) -> None:
        """A client waits for W disks."""
        with suppress(BlockingIOError):
            os.eventfd_read(self._gate.descriptor)
        if not self.ended:
            self.carry_out(self.primary.flush(self._gate.wanted, self._around.clock()))
            self._watch_waiting()

    def _watch_waiting(self) -> None:
        """Look, as long as anybody waits at the gate, whether it has been for too long. Writes and
        flushes begin to wait when a descriptor tells of them; who waits for the lease only, a read,
        is seen at the next `poll`, RENEW_S later at most."""
        if not self._expiring and self._gate.waiting:
            self._expiring = True
            self._around.after(EXPIRE_S, self._expire)

    def _expire(self) -> None:
        self._expiring = False
        if not self.ended:
            self._gate.expire()
            self._watch_waiting()

    def _appended(self) -> None:
        if self.ended:
            return
        now = self._around.clock()
        sender = self._sender
        if sender is not None and not self._carrying and self.primary.lend(sender, now):
            self._sent(sender.turn(int(now * NANOSECONDS)))
        else:
            self._look(now)
        if self.serving:
            self._watch_waiting()

    def _look(self, now: float) -> None:
        """As the sender that decides: the tap has something, perhaps."""
        self.carry_out(self.primary.appended(self._replica.newest, now))

    # -- what comes with every write

    def _sent(self, found: tuple[list[Plain], bool] | None) -> None:
        """Carry out what the native sender has said."""
        sends, all_of_it = found or ([], False)
        for plain in sends:
            self._ask_plain(*plain)
        if not all_of_it and not self.ended:
            self._look(self._around.clock())

    def _ask_plain(self, index: int, tag: int, first: int, last: int, records: bytes) -> None:
        epoch = self.epoch
        append = m.Append(self._replica.uuid, epoch, epoch, first, last, 0, (records,))
        ended = partial(self._plain_ended, tag)
        try:
            node = bytes.fromhex(self.primary.lent_to(index))
            self._around.ask(node, append, self._policy.request_s, ended)
        except TransportError as error:
            ended(Failed(0, str(error)))

    def _plain_ended(self, tag: int, end: Answered | Failed) -> None:
        """It may have been taken back meanwhile: then its tag is one that the Primary knows."""
        if self.ended:
            return
        now, sender = self._around.clock(), self._sender
        if isinstance(end, Answered) and isinstance(ack := end.message, m.Ack) and sender:
            held = ack.epoch, ack.received, ack.durable
            found = sender.acked(tag, *held, int(now * NANOSECONDS))
            if found is not None:
                self._replica.gate.let_go()
                self._sent(found)
                return
        self._answered(tag, end, now)

    def _answered(self, tag: int, end: Answered | Failed, now: float) -> None:
        result = outcome(end)
        if isinstance(result, str):
            self.carry_out(self.primary.failed(tag, result, now))
        else:
            self.carry_out(self.primary.answered(tag, result, now))

    # -- what is decided

    def carry_out(self, effects: list[link.Effect]) -> None:
        """What follows from one that is carried out at once comes after those before it."""
        self._effects.extend(effects)
        if self._carrying:
            return
        self._carrying = True
        try:
            self._carry_out_all()
            while self._effects and not self.ended:  # what the owner was moved to
                self._carry_out_all()
        finally:
            self._carrying = False

    def _carry_out_all(self) -> None:
        while self._effects:
            effect = self._effects.popleft()
            if self.ended:
                return
            match effect:
                case link.Send():
                    self._send(effect)
                case link.Take():
                    self._take()
                case link.ReadLog(tag, epoch, after, limit):
                    read = partial(self._replica.read, epoch, after, limit)
                    self._do(read, partial(self._read, tag))
                case link.Copy(tag, member, at, limit, heard, after):
                    copy = partial(self._replica.copy, member, at, limit, heard, after)
                    self._do(copy, partial(self._copied, tag))
                case link.SyncOwn():
                    self._sync()
                case link.Progress(acked, durable):
                    self._replica.allow(acked, durable)
                case link.Renewed() if self.serving:
                    self._tell_lease()
                case link.Opened():
                    self._opened()
                case link.Fenced(epoch):
                    self._fenced(epoch)
                case link.Lag(member, behind, why):
                    if why != COPYING:  # its stream has ended, or is begun anew
                        self._replica.end_copy(member)
                    log.log(
                        logging.WARNING if behind else logging.INFO,
                        "member %s volume=%s node=%s why=%s",
                        *("is behind" if behind else "is in step", self._replica.name, member, why),
                    )
        if not self.ended:
            self._moved()

    def _do(self, call: Callable[[], T], then: Callable[[T | Exception], None]) -> None:
        def done(result: T | Exception) -> None:
            if not self.ended:
                then(result)

        self._around.work(call, done)

    def _send(self, send: link.Send) -> None:
        append = send.message
        if (
            isinstance(append, m.Append)
            and self._references.worth(send.member, append)
            and self._around.features(bytes.fromhex(send.member)) & m.Feature.REFERENCES
        ):
            brief = partial(self._references.brief, append)
            self._do(brief, partial(self._send_brief, send))
        else:
            self._ask(send, send.message)

    def _send_brief(self, send: link.Send, brief: m.AppendBrief | Exception | None) -> None:
        if isinstance(brief, Exception):
            log.error("chunks cannot be looked up volume=%s %s", self._replica.name, brief)
        known = isinstance(brief, m.AppendBrief)
        self._ask(send, brief if isinstance(brief, m.AppendBrief) else send.message, brief=known)

    def _ask(self, send: link.Send, message: m.Request, *, brief: bool = False) -> None:
        def ended(end: Answered | Failed) -> None:
            if self.ended:
                return
            result = outcome(end)
            if brief and isinstance(result, m.Error) and result.code == m.Code.LACKS:
                self._references.lacked(send.member)
                self._ask(send, send.message)
                return
            if brief:
                self._references.took(send.member)
            self._answered(send.tag, end, self._around.clock())

        try:
            self._around.ask(bytes.fromhex(send.member), message, send.timeout_s, ended)
        except TransportError as error:
            ended(Failed(0, str(error)))

    def _take(self) -> None:
        """At once, where it is in memory, as just after it was written; else where one may wait."""
        try:
            taken = self._replica.take_at_once()
        except OSError as error:
            self._taken(error)
            return
        if taken is None:
            self._do(self._replica.take, self._taken)
        else:
            self._taken(taken)

    def _taken(self, taken: Taken | Exception) -> None:
        now = self._around.clock()
        if isinstance(taken, Exception):
            self._failed(f"its records cannot be read back: {taken}")
        elif taken.lost:
            self.carry_out(self.primary.lost(taken.last, now))
        else:
            self.carry_out(self.primary.taken(taken.first, taken.last, taken.data, now))

    def _read(self, tag: int, found: Records | Exception) -> None:
        if isinstance(found, Exception):
            log.error("own log cannot be read volume=%s %s", self._replica.name, found)
        records = None if isinstance(found, Exception) else found
        self.carry_out(self.primary.read(tag, records, self._around.clock()))

    def _copied(self, tag: int, found: Step | Exception) -> None:
        if isinstance(found, Exception):
            log.error("volume cannot be copied volume=%s %s", self._replica.name, found)
        step = None if isinstance(found, Exception) else found
        self.carry_out(self.primary.copied(tag, step, self._around.clock()))

    def _sync(self) -> None:
        def done(seq: int | Exception) -> None:
            if not self.ended:
                self._synced(seq)

        self._around.sync(self._replica, done)

    def _synced(self, seq: int | Exception) -> None:
        if isinstance(seq, Exception):
            self._failed(f"its journal cannot be synced: {seq}")
        else:
            self.carry_out(self.primary.synced(seq, self._around.clock()))
