"""Primary: the sender of one volume in one epoch.

A state machine without sockets, files or clock: what happens goes in, what has to be done comes
out (`Effect`, see link.py). `now` is CLOCK_BOOTTIME in seconds, for the lease as well.

Every other member is brought into step by itself, whatever it was before:

    away -SEAL-> sealing -UNDO-> undoing -> catching up (own log) -OPEN-> ... catching up -> in step
      ^                                                                                       |
      +----- an answer that is none, or late; more than `queue_bytes` behind; a gap ----------+

SEAL of the own epoch asks nothing new of a member that has promised it in the takeover; it tells
what it has. What is not of our chain is undone. Then come records from the own log, up to where
this epoch began, OPEN, and those behind, until what is kept in memory goes on from there. **In
step** it gets what the tap gives: one APPEND is under way, and the next one has all that was
appended meanwhile, so a deep queue costs one message for many writes and none waits for a timer.

W of the members (the primary is one) decide what may be acknowledged (acks.py); one that is
*behind* holds nobody up. Records are kept in memory until every member that is in step has them, up
to `queue_bytes`: who is further behind gets them from the log. A member that has so little that the
log does not reach back to it gets all of the volume, of its state at one moment, as a stream of
what it lacks (copying.py), and goes on from there.

A member that has promised a later epoch ends it all (`Fenced`).
"""

from collections.abc import Collection
from math import inf

from native import Sender
from transport.group.acks import Acks, Held, NodeId, Quorum
from transport.group.chain import Chain, common
from transport.group.copying import Copying, heard
from transport.group.kept import Batch, Kept
from transport.group.lease import RENEW_S
from transport.group.lending import Lending, Renewals
from transport.group.link import (
    Asked,
    Effect,
    Fenced,
    GroupPolicy,
    Lag,
    Link,
    MemberStatus,
    Opened,
    Progress,
    ReadLog,
    Renewed,
    State,
    SyncOwn,
    Take,
    shown,
)
from transport.group.trail import Trail
from transport.group.underway import UnderWay
from transport.peer import messages as m
from transport.peer.wire import Message
from volume.metastore_records import Mode
from volume.replica import Records
from volume.replicacopy import Step


class Primary:
    """Of `volume` in `epoch`. Call `poll` first, and then whenever `deadline` has come.

    The own part has promised and begun the epoch, synced, before one of these is made."""

    def __init__(
        self,
        volume: bytes,
        epoch: int,
        me: NodeId,
        members: Collection[NodeId],
        wanted: int,
        mode: Mode,
        chain: Chain,
        lease: Renewals,
        policy: GroupPolicy,
    ) -> None:
        """`chain`: of the own part, ending in `epoch`: all of it synced, and since the tap was
        opened nothing was appended."""
        assert chain.end[0] == epoch
        assert me in members
        self.epoch = epoch
        self.fenced: int | None = None
        """The later epoch that has ended this one."""
        self._volume = volume
        self._me = me
        self._chain = chain
        self._start = chain.seq
        self._strict = mode is Mode.STRICT
        self._lease = lease
        self._policy = policy
        self._acks = Acks(members, wanted, mode, chain.seq)
        self._links = {node: Link(node) for node in members if node != me}
        self._own = Held(chain.seq, chain.seq)
        self._counted: Held | None = None
        """What we have, as it was last counted; None: count anew, whoever is to be counted."""
        self._way = way = UnderWay(volume, epoch, policy, lease.asked)
        self._copying = Copying(volume, epoch, policy, way)
        self._kept = Kept(chain.seq)
        self._trail = Trail(chain.seq)
        self._lending = Lending(
            *(volume, epoch, way, self._kept, self._trail, self._acks, lease),
        )
        self._taking = False
        self._flush = 0
        self._lease_floor = -inf
        self._syncing = False
        self._opened = False
        self._told = (chain.seq, chain.seq)

    # -- what the owner sees

    @property
    def acked(self) -> int:
        sender = self._lending.sender
        return self._acks.acked if sender is None else sender.progress()[0]

    @property
    def durable(self) -> int:
        sender = self._lending.sender
        return self._acks.durable if sender is None else sender.progress()[1]

    @property
    def open(self) -> bool:
        """W members, this one among them, have noted that the epoch is open."""
        return self._opened and self.fenced is None

    @property
    def deadline(self) -> float:
        if self.fenced is not None:
            return inf
        due = self._lease.ask_at if self._links else inf
        if self._lending.sender is not None:  # who does not answer is seen when it is taken back
            due = min(due, self._lending.since + self._policy.behind_after_s)
        for link in self._links.values():
            if link.retry_at is not None:
                due = min(due, link.retry_at)
            if link.tag and link.state is State.STEP:
                due = min(due, self._way.late_at(link))
        return due

    def status(self, now: float) -> list[MemberStatus]:
        self._take_back(now)
        own = self._own
        first = MemberStatus(self._me, "primary", own.received, own.durable, "", True, 0, 0.0, 0.0)
        trail = self._trail if own.received <= self._trail.seq else None
        links = self._links.values()
        return [first, *(shown(each, trail, self._is_member(each.node), now) for each in links)]

    def in_step(self, node: NodeId) -> bool:
        link = self._links.get(node)
        return link is not None and link.state is State.STEP and link.joined

    def away(self, node: NodeId) -> bool:
        link = self._links.get(node)
        return link is None or link.state is State.AWAY

    @property
    def others(self) -> list[NodeId]:
        """All that records go to."""
        return list(self._links)

    # -- other members (transport/group/changing.py)

    def learn(self, node: NodeId, now: float) -> list[Effect]:
        """Bring a node that is no member into step as well; it counts for nothing. One that is
        known has perhaps made another part of it since: it begins anew."""
        self._take_back(now)
        link = self._links.get(node)
        if link is None:
            self._acks.learner(node)
            self._lease.learner(node)
            self._links[node] = Link(node, retry_at=now)
        else:
            self._way.away(link, now, "it has made its part", 0.0)
            self._has(link, 0)
        return self.poll(now)

    def drop(self, node: NodeId) -> None:
        """Send nothing to a node that is no member any more."""
        self._take_back()
        self._acks.forget(node)
        self._lease.forget(node)
        link = self._links.pop(node, None)
        if link is not None:
            if link.state is State.COPYING:
                self._way.lags(link, "it is no member any more")
            self._way.forget(node)

    def need(self, *quorums: Quorum, now: float) -> list[Effect]:
        """From now on what is acknowledged, and a renewal of the lease, has all of these."""
        assert all(self._me in quorum.members for quorum in quorums)
        self._take_back(now)
        self._lease_floor = max(self._lease_floor, self._lease.renewed_at)
        self._flush = max(self._flush, self._acks.durable)  # members that come have to sync as well
        self._acks.need(*quorums)
        self._counted = None
        self._lease.need(*quorums)
        return self._effects(now)

    def has_all(self, quorum: Quorum) -> bool:
        """Whether these alone could go on from here: so many have noted the epoch and have what was
        acknowledged, and no reader was let in that they would not wait for."""
        self._take_back()
        return (
            self.fenced is None
            and self._noted(quorum)
            and self._acks.has_all(quorum)
            and self._lease.renewed_by(quorum) >= self._lease_floor
        )

    # -- what comes with every write (transport/group/lending.py)

    def lend(self, sender: Sender, now: float) -> bool:
        """Have `sender` do it, up to the next call of anything here that may change something, or
        has to know: whether it does. Only with a sender of this volume and epoch."""
        if self._lending.sender is not None:
            return True
        if not self.open or self._strict or self._taking:
            return False
        if self._lease.renewed_at < now - RENEW_S:
            return False  # reads wait for the next answer: then it is counted here
        room = self._policy.queue_bytes - self._kept.bytes
        return self._lending.lend(sender, self._links, self._own, self._flush, room, now)

    def lent_to(self, index: int) -> NodeId:
        """Which member the sender means."""
        return self._lending.node(index)

    def _take_back(self, now: float | None = None) -> None:
        back = self._lending.take_back(now)
        if back is not None:
            self._have(back.newest)
            self._counted = self._own
            self._acks.heard(self._me, self._own)
            self._told = back.told

    def _is_member(self, node: NodeId) -> bool:
        return any(node in quorum.members for quorum in self._acks.quorums)

    # -- what happens

    def poll(self, now: float) -> list[Effect]:
        """Time has gone by."""
        self._take_back(now)
        if self.fenced is not None:
            return []
        for link in self._links.values():
            if link.state is State.STEP and link.tag and now >= self._way.late_at(link):
                self._way.away(link, now, f"no answer for {self._policy.behind_after_s:g} s")
            elif link.retry_at is not None and now >= link.retry_at:
                link.retry_at = None
                if link.state is State.AWAY:
                    self._seal(link, now)
                elif link.state is State.CATCHING:
                    self._go_on(link, now)
        for node in self._lease.to_ask(now):
            self._renew(self._links[node], now)
        return self._effects(now)

    def appended(self, seq: int, now: float) -> list[Effect]:
        """The own journal has records up to `seq`: the tap has something, or it is lost."""
        self._take_back(now)
        self._have(seq)
        return self._effects(now)

    def taken(self, first: int, last: int, data: bytes, now: float) -> list[Effect]:
        """What the tap had: records `first` to `last`; nothing with `first` 0."""
        self._take_back(now)
        self._taking = False
        if first:
            self._kept.add(Batch(first, last, data))
            self._trail.add(last, len(data), now)
            self._have(last)
            self._bound(now)  # before more is sent
        return self._effects(now)

    def lost(self, seq: int, now: float) -> list[Effect]:
        """The tap was further behind than it may be, and has begun again behind `seq`."""
        self._take_back(now)
        self._taking = False
        self._kept.lost(seq)
        self._trail.lost(seq)
        self._have(seq)
        return self._effects(now)

    def read(self, tag: int, found: Records | None, now: float) -> list[Effect]:
        """What the own log had; None: it could not be read."""
        self._take_back(now)
        link = self._way.found(tag)
        if link is not None and self.fenced is None:
            self._send_range(link, found, now)
        return self._effects(now)

    def copied(self, tag: int, found: Step | None, now: float) -> list[Effect]:
        """The next step of a stream of the volume; None: it could not be read."""
        self._take_back(now)
        link = self._way.found(tag)
        if link is not None and self.fenced is None:
            self._copying.copied(link, found, now)
        return self._effects(now)

    def flush(self, seq: int, now: float) -> list[Effect]:
        """Somebody waits until records up to `seq` are durable on W."""
        if seq <= self._flush:
            return []  # as in strict mode, where each record is to be durable: it is seen to
        self._take_back(now)
        self._flush = seq
        return self._effects(now)

    def synced(self, seq: int, now: float) -> list[Effect]:
        """The own journal is durable up to `seq`."""
        self._take_back(now)
        self._syncing = False
        received = max(self._own.received, seq)
        self._own = Held(received, max(self._own.durable, seq))
        return self._effects(now)

    def answered(self, tag: int, message: Message, now: float) -> list[Effect]:
        """A member has answered."""
        self._take_back(now)
        asked = self._way.asked.pop(tag, None)
        if asked is None or self.fenced is not None:
            return []
        link = asked.link
        current = tag in (link.tag, link.sync_tag)
        self._way.ended(link, tag)
        match message:
            case m.Ack() if message.epoch == self.epoch:
                if isinstance(asked.message, (m.Append, m.Sync, m.Open)) and self._lease.answered(
                    link.node, asked.sent_at
                ):
                    self._way.out.append(Renewed())
                if current:
                    self._acknowledged(link, asked, message, now)
            case m.Error(m.Code.STALE, detail) if detail > self.epoch:
                self._fence(detail)
            case m.Error(m.Code.GAP) if current and link.state is State.UNDOING:
                link.keep = 0  # it cannot go back to what it shares
                self._copying.begin(link, now)
            case m.Error(m.Code.GAP, 0) if current and isinstance(asked.message, m.Append):
                link.lacks = True  # the state that a record of ours goes back to
                self._way.away(link, now, message.text)
            case m.Error(m.Code.UNKNOWN) if current:  # it has no part of the volume any more
                self._way.away(link, now, message.text)
                self._has(link, 0)
            case m.Error(m.Code.ANEW) if current and isinstance(asked.message, m.Append):
                link.anew = True
                self._way.away(link, now, message.text)
            case m.Error() if current:
                self._way.away(link, now, message.text)
            case m.Sealed() if current and link.state is State.SEALING:
                self._sealed(link, message, now)
            case m.Compared() | m.Want() if current and link.state is State.COPYING:
                self._copying.answered(link, heard(asked.message, message), now)
            case m.Streamed() if current and link.state is State.COPYING:
                self._copying.streamed(link, message.at, now)
            case m.Ack() if message.epoch > self.epoch:
                self._fence(message.epoch)
            case _ if current:
                self._way.away(link, now, f"it answered {type(message).__name__}")
        return self._effects(now)

    def failed(self, tag: int, text: str, now: float) -> list[Effect]:
        """A member has not answered, and will not."""
        self._take_back(now)
        asked = self._way.asked.pop(tag, None)
        if asked is not None and self.fenced is None:
            current = tag in (asked.link.tag, asked.link.sync_tag)
            self._way.ended(asked.link, tag)
            if current:
                self._way.away(asked.link, now, text)
        return self._effects(now)

    # -- joining

    def _seal(self, link: Link, now: float) -> None:
        link.state = State.SEALING
        link.joined = False
        self._way.send(link, m.Seal(self._volume, self.epoch), now, self._policy.seal_s)

    def _sealed(self, link: Link, message: m.Sealed, now: float) -> None:
        if message.epoch > self.epoch:
            self._fence(message.epoch)
            return
        theirs = message.chain
        keep = common(theirs, self._chain.extended(self.epoch, self._own.received))
        if message.epoch != self.epoch:
            self._way.away(link, now, f"it promises epoch {message.epoch} for {self.epoch}")
            return
        # One that is to be a member begins with a copy: a log that reaches back to the beginning
        # may begin with another size than the part was made with.
        new = keep is not None and keep[1] == 0 < self._own.received
        self._has(link, keep[1] if keep else 0)
        all_of_it = link.anew or (new and not self._is_member(link.node))
        if keep is None or keep == (0, 0) or all_of_it:
            link.keep = 0
            self._copying.begin(link, now)
            return
        link.keep = keep[1]
        if link.lacks and theirs.end == keep:
            self._copying.begin(link, now)
            return
        link.point = keep
        if theirs.end != keep:
            link.state = State.UNDOING
            undo = m.Undo(self._volume, self.epoch, *keep)
            self._way.send(link, undo, now, self._policy.seal_s)
        else:
            self._go_on(link, now)

    def _has(self, link: Link, seq: int) -> None:
        """It has just said so, synced: whatever it had before, it may have lost or let go."""
        link.joined = False
        link.received = link.durable = seq
        self._acks.heard(link.node, Held(seq, seq))

    def _acknowledged(self, link: Link, asked: Asked, ack: m.Ack, now: float) -> None:
        """It did what it was asked, and says what it has."""
        received = min(ack.received, self._own.received)
        message = asked.message
        if isinstance(message, m.Sync):
            if received < asked.had:  # not what it has by now: an APPEND may have overtaken this
                self._way.away(link, now, f"it has lost records behind {received}")
                return
            link.durable = max(link.durable, min(ack.durable, link.received))
        elif isinstance(message, m.Undo) and received != message.keep_seq:
            self._way.away(link, now, f"it has {ack.received} after it was to go back")
            return
        elif isinstance(message, m.Adopt) and received != message.ends[-1][1]:
            self._way.away(link, now, f"it has {ack.received} after all of it was copied")
            return
        elif isinstance(message, m.Append):
            link.received, link.durable = received, min(ack.durable, received)
            link.point = (message.written, received)
            if received < message.last_seq:
                if received + 1 < message.first_seq:
                    self._way.away(link, now, f"it has lost records behind {received}")
                    return
                link.sent = received
                link.retry_at = now + self._policy.again_s
        elif isinstance(message, m.Open):
            link.point = (self.epoch, self._start)
        elif isinstance(message, m.Adopt):
            link.point = message.ends[-1]
            link.received, link.durable = received, min(ack.durable, received)
        if link.point[0] == self.epoch:
            self._join(link)
        if not isinstance(message, m.Sync):
            link.failures = 0
            if link.state is not State.STEP and link.retry_at is None:
                self._go_on(link, now)

    def _join(self, link: Link) -> None:
        link.joined = True
        self._heard(link.node, Held(link.received, link.durable))

    def _go_on(self, link: Link, now: float) -> None:
        """The member has the volume up to `link.point`, which is of our chain."""
        if link.tag:
            return
        epoch, seq = link.point
        if epoch != self.epoch and seq == self._start:
            link.state = State.OPENING
            opening = m.Open(self._volume, self.epoch, seq)
            self._way.send(link, opening, now, self._policy.request_s)
            return
        if epoch == self.epoch:
            self._join(link)
            if self._kept.first <= seq + 1:
                self._step(link, seq)
                return
        if link.state is not State.CATCHING:
            link.caught = (now, seq)
        link.state = State.CATCHING
        link.hold = self._kept.taken + 1
        tag = self._way.tag(link, None, now)
        self._way.out.append(ReadLog(tag, epoch, seq, m.MAX_RECORDS_BYTES))

    def _send_range(self, link: Link, found: Records | None, now: float) -> None:
        if found is None:
            self._way.away(link, now, "our own log cannot be read", self._policy.retry_most_s)
        elif found.first_seq:
            if found.epoch == self.epoch:
                self._have(found.last_seq)
            self._append(link, found.epoch, found.first_seq, found.last_seq, (found.data,), now)
        elif found.more:
            link.keep = link.point[1]
            self._copying.begin(link, now)
        else:
            self._go_on(link, now)

    # -- on the way into step

    def _step(self, link: Link, seq: int) -> None:
        link.state = State.STEP
        link.sent = seq
        link.hold = None
        link.why = ""
        if link.lags:
            link.lags = False
            self._way.out.append(Lag(link.node, False, ""))

    # -- in step

    def _pump(self, link: Link, now: float) -> None:
        """Send what is queued for a member, if it is its turn."""
        if link.state is not State.STEP or link.tag or link.retry_at is not None:
            return
        if self._kept.first > link.sent + 1:
            link.point = (self.epoch, link.sent)
            self._go_on(link, now)
            return
        batches = self._kept.behind(link.sent, m.MAX_RECORDS_BYTES, m.MAX_APPEND_FRAMES)
        if batches:
            payload = tuple(batch.data for batch in batches)
            self._append(link, self.epoch, batches[0].first, batches[-1].last, payload, now)
        else:
            self._take()

    def _take(self) -> None:
        if self._own.received > self._kept.taken and not self._taking:
            self._taking = True
            self._way.out.append(Take())

    def _append(
        self,
        link: Link,
        written: int,
        first: int,
        last: int,
        payload: tuple[bytes, ...],
        now: float,
    ) -> None:
        sync = int(self._strict)
        append = m.Append(self._volume, self.epoch, written, first, last, sync, payload)
        link.sent = last
        self._way.send(link, append, now, self._policy.request_s)

    def _sync(self, link: Link, now: float) -> None:
        """Have a member make durable what somebody waits for, if it has that."""
        if link.durable >= self._flush or self._flush > link.received:
            return
        if link.state is State.STEP and not link.sync_tag:
            self._way.send_sync(link, self._flush, now)

    def _renew(self, link: Link, now: float) -> None:
        if link.state is State.STEP and not link.sync_tag:
            self._way.send_sync(link, 0, now)
        else:  # it is asked something else, or is away: look again as much later
            self._lease.asked(link.node, now)

    # -- trouble

    def _fence(self, epoch: int) -> None:
        if self.fenced is None:
            self.fenced = epoch
            self._way.asked.clear()
            self._kept.lost(self._kept.taken)
            self._way.out = [Fenced(epoch)]

    def _bound(self, now: float) -> None:
        """Keep no more in memory than the policy says: who needs the oldest goes without it."""
        most = self._policy.queue_bytes
        self._trim()
        while self._kept.bytes > most:
            needy = [link for link in self._links.values() if self._needs(link) is not None]
            slowest = min(needy, key=lambda link: self._needs(link) or 0)
            if slowest.state is State.STEP:
                self._way.away(slowest, now, f"more than {most} bytes behind")
            else:
                slowest.hold = None
            self._trim()

    # -- inner

    def _needs(self, link: Link) -> int | None:
        """From which seq on a member needs what is kept in memory."""
        return link.received + 1 if link.state is State.STEP else link.hold

    def _trim(self) -> None:
        if self._kept.bytes:
            needs = [self._needs(link) for link in self._links.values()]
            self._kept.trim([each for each in needs if each is not None])

    def _have(self, seq: int) -> None:
        if seq > self._own.received:
            self._own = Held(seq, self._own.durable)
            if self._strict:
                self._flush = seq

    def _heard(self, node: NodeId, held: Held) -> None:
        self._acks.heard(node, held)
        if not self._opened and all(map(self._noted, self._acks.quorums)):
            self._opened = True
            self._way.out.append(Opened())

    def _noted(self, quorum: Quorum) -> bool:
        """Whether so many of these have noted that the epoch is open."""
        joined = {node for node, link in self._links.items() if link.joined}
        return len(quorum.members & (joined | {self._me})) >= quorum.wanted

    def _effects(self, now: float) -> list[Effect]:
        """What follows for everybody, and all that is to be done."""
        if self.fenced is None:
            if self._own is not self._counted:
                self._counted = self._own
                self._heard(self._me, self._own)
            for link in self._links.values():
                self._pump(link, now)
                self._sync(link, now)
            if all(quorum.wanted == 1 for quorum in self._acks.quorums):
                self._take()  # or the tap does not tell of what is written next
            self._bound(now)
            if self._own.durable < self._flush and not self._syncing:
                self._syncing = True
                self._way.out.append(SyncOwn())
            reached = (self._acks.acked, self._acks.durable)
            if reached != self._told:
                self._told = reached
                self._way.out.append(Progress(*reached))
        return self._way.drained()
