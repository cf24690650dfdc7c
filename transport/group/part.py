"""Part: one volume at one node that is a member of it. Carries out what `Watch`, `Takeover` and
`Primary` decide, and answers what other members ask.

    following   it appends what the primary sends; `Watch` looks whether that one is there
    taking      `Takeover` tries to make this node the primary
    leading     a `Primary` brings the others to its state; clients are not let in yet
    serving     clients are

Everything here runs on one thread and never waits: what waits for the disk goes to `Around.work`,
what waits for the MetaStore to `Around.ask_store`, requests to other nodes to `Around.ask`; each
comes back by a call on the thread, and counts only if what asked for it is still there. So the same
class runs in the daemon and in the simulator, which hand it what is around it.

Who serves stops for good, in this order, when its own part promises a later epoch, when a member
refuses its epoch, or when the MetaStore has another one: no request of a client is answered any
more, clients are cut off, then the part follows again. What of these comes first is enough.
"""

import logging
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from math import inf
from typing import Final, TypeVar

from transport.errors import TransportError
from transport.group.acks import NodeId
from transport.group.answering import Answering
from transport.group.around import Around, Clients, Timer, outcome, text_of
from transport.group.chain import Chain
from transport.group.changing import Changing, Told
from transport.group.ending import has_place, is_so, note_closed, note_deleted
from transport.group.leading import MAX_TAP_BYTES, Leading
from transport.group.link import GroupPolicy
from transport.group.member import Member
from transport.group.mending import Mending
from transport.group.moving import MOVE_S, Takers, why_not
from transport.group.partstatus import PartStatus
from transport.group.takeover_run import (
    Asking,
    Commit,
    Effect,
    GaveUp,
    Lead,
    Look,
    Mend,
    Overtaken,
    Seal,
    Serve,
    Takeover,
    Why,
)
from transport.group.turns import Turns
from transport.group.watch import Begin, Watch
from transport.peer import messages as m
from transport.peer.wire import Message
from volume.errors import StaleEpoch
from volume.metastore import ClusterRecords, Outcome, Stored, Unknown
from volume.metastore_records import GroupState, VolumeGroup
from volume.replica import Replica

log = logging.getLogger(__name__)

T = TypeVar("T")

LOOK_S: Final = 2.0
SEAL_S: Final = 10.0  # a disk that takes longer to sync is done without
MAX_PAUSES: Final = 16  # that are remembered


class Part:
    """`store`: the records of the cluster; only its pure methods are called on the thread."""

    def __init__(
        self,
        around: Around,
        member: Member,
        store: ClusterRecords,
        me: NodeId,
        clients: Clients,
        policy: GroupPolicy | None = None,
        tap_bytes: int = MAX_TAP_BYTES,
    ) -> None:
        """`tap_bytes`: of the journal that may wait to be sent, see `leading.tap_bytes`."""
        self.replica = member.replica
        self.uuid = self.replica.uuid
        self._around = around
        self._member = member
        self._store = store
        self._me = me
        self._clients = clients
        self._policy = policy or GroupPolicy()
        self._tap_bytes = tap_bytes
        watcher = Watch(me, around.clock(), around.random)
        self._answering = Answering(around, member, watcher, self._has_promised, self._set_timer)
        self._takeover: Takeover | None = None
        self._leading: Leading | None = None
        self._takers = Takers(self.replica)
        self._timer: Timer | None = None
        self._timer_at = inf
        self._changing: Changing | None = None
        self._stopped = False
        self._turns = Turns(around)
        self._last_failure = ""
        self.pauses_s: list[float] = []
        """Of the last moves to this node: from the first SEAL to serving."""
        self._sealed_at = 0.0
        self.replica.fenced = lambda epoch: around.post(partial(self._own_promise, epoch))

    @property
    def _watch(self) -> Watch:
        return self._answering.watch

    # -- what the owner sees

    @property
    def withdrawn(self) -> bool:
        """It is being let go: nobody is answered any more."""
        return self._answering.withdrawn

    @property
    def serving(self) -> bool:
        return self._leading is not None and self._leading.serving

    def status(self) -> PartStatus:
        doing, takeover, leading = "following", self._takeover, self._leading
        if self.serving:
            doing = "serving"
        elif takeover is not None:
            doing = takeover.phase
        received, durable = self.replica.held
        return PartStatus(
            *(self.uuid, self.replica.name, doing),
            *(self.replica.ends()[-1][0], self.replica.promised, received, durable),
            self._member.quiet_s(self._around.clock()),
            tuple(leading.primary.status(self._around.clock())) if leading is not None else (),
            self._last_failure,
            None if self._changing is None else self._changing.status,
        )

    # -- life

    def start(self) -> None:
        self._set_timer()

    def look(self) -> None:
        """The volume's record is new, or has changed: read it now."""
        if self.serving:
            self._around.ask_store(lambda: self._store.volume(self.uuid.hex()), self._seen)
        else:
            self._watch.changed(self._around.clock())
            self._poll()

    def noted(self, found: Stored[VolumeGroup]) -> None:
        """The volume's record, as it was read a moment ago, perhaps an old one."""
        if self._changing is not None and self.serving:
            self._changing.noted(found)
        elif found.record.state is GroupState.DELETED or not has_place(found.record, self._me):
            self.look()

    def _seen(self, found: Stored[VolumeGroup] | Exception | None) -> None:
        if found is not None and not isinstance(found, Exception) and not self._stopped:
            self.noted(found)

    def reachable(self) -> None:
        """Another node can be asked again."""
        self._watch.reachable(self._around.clock())
        self._set_timer()

    def stop(self, then: Callable[[], None]) -> None:
        """The node goes down: serve no more, and tell the others, one of which goes on at once."""
        leading = self._leading if self.serving else None
        self._close("the node goes down")
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()
        if leading is None:
            then()
            return
        epoch, others = leading.epoch, leading.others

        def noted(result: Exception | None) -> None:
            if isinstance(result, Exception):
                log.warning("volume=%s is not noted as closed: %s", self.replica.name, result)
            for node in others:
                self._ask(node, m.Close(self.uuid, epoch), LOOK_S, _ignore)
            then()

        # Only once no read is answered any more: then whoever goes on need not wait for the lease.
        self._turns.take(
            self.replica.shut,
            lambda _: self._around.ask_store(
                lambda: note_closed(self._store, self.uuid, epoch, self._me), noted
            ),
        )

    # -- no volume any more

    def delete(self, then: Callable[[str | None], None]) -> None:
        """Delete the volume, at all of its members; asked of its primary. `then` is told what is
        wrong, None: nobody has it any more, and members that are away hear of it when they come."""
        leading = self._leading
        if leading is None or not self.serving:
            then(f"this node is not its primary, it is {self.status().doing}")
            return
        epoch, others = leading.epoch, leading.others

        def noted(result: str | Exception | None) -> None:
            if result is not None:
                then(text_of(result))
                return
            for node in others:  # they look at the record at once
                self._ask(node, m.Close(self.uuid, epoch), LOOK_S, _ignore)
            self._gone()
            then(None)

        self._close("it is being deleted")
        self._turns.take(
            self.replica.shut,
            lambda _: self._around.ask_store(
                lambda: note_deleted(self._store, self.uuid, epoch, self._me), noted
            ),
        )

    def _leave(self, found: Stored[VolumeGroup]) -> None:
        """This node has no place in the volume any more, if that row is the newest one."""
        self._answering.withdraw()

        def confirmed(result: bool | Exception) -> None:
            if self._stopped:
                return
            if result is True:
                self._gone("this node is no member of it any more")
                return
            self._answering.withdrawn = False
            self._watch.unread(self._around.clock())
            self._set_timer()

        self._around.ask_store(lambda: is_so(self._store, found), confirmed)

    def _gone(self, why: str = "it was deleted") -> None:
        """This part is over, and is let go."""
        if self._stopped:
            return
        log.info("part is let go volume=%s: %s", self.replica.name, why)
        self._answering.withdraw()
        self._close(why)
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()
        self._turns.take(self.replica.shut, lambda _: self._clients.deleted(self.uuid))

    # -- what others ask

    def asked(self, message: m.Request, answer: Callable[[Message], None]) -> None:
        """A request of another member about this volume."""
        if self.withdrawn:
            answer(self._answering.let_go())
            return
        if isinstance(message, m.Take):
            self._take(message, answer)
            return
        self._answering.answer(message, answer)

    def _has_promised(self, epoch: int) -> None:
        """To another member, which has asked for it."""
        self._own_promise(epoch)
        if self._takeover is None:
            self._watch.promised(self._around.clock())

    def _own_promise(self, epoch: int) -> None:
        """This node's own part answers to `epoch` now: whatever it does in an earlier one ends."""
        ours = [each.epoch for each in (self._leading, self._takeover) if each is not None]
        if ours and epoch > max(ours):
            self._close(f"another node takes it over in epoch {epoch}")

    # -- a planned move

    def move(self, node: NodeId, then: Callable[[str | None], None]) -> None:
        """Have another member be the primary; `then` is told what is wrong, None: it is."""
        leading = self._leading
        if leading is None or not self.serving:
            then(f"this node is not its primary, it is {self.status().doing}")
            return
        if (why := why_not(node, self._me, self.status().members)) is not None:
            then(why)
            return

        def ended(result: Message | str) -> None:
            then(None if isinstance(result, m.Ack) else text_of(result))

        self._ask(node, m.Take(self.uuid, leading.epoch), MOVE_S, ended)

    def _take(self, message: m.Take, answer: Callable[[Message], None]) -> None:
        """The primary wants this node to be it."""
        stopped = self._stopped
        if self._takers.asked(message, answer, serving=self.serving, stopped=stopped):
            self._watch.asked(self._around.clock())
            self._poll()

    # -- time

    def _set_timer(self) -> None:
        if self._stopped:
            return
        due = self._watch.deadline
        if self._takeover is not None:
            due = min(due, self._takeover.deadline)
        if self._leading is not None:
            due = min(due, self._leading.deadline)
        if self._changing is not None:
            due = min(due, self._changing.deadline)
        if due >= self._timer_at:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = due
        self._timer = self._around.after(max(0.0, due - self._around.clock()), self._ring)

    def _ring(self) -> None:
        self._timer_at = inf
        self._poll()

    def _poll(self) -> None:
        if self._stopped:
            return
        now = self._around.clock()
        if self._watch.poll(now) is not None:
            self._around.ask_store(lambda: self._store.volume(self.uuid.hex()), self._found)
        takeover = self._takeover
        if takeover is not None and now >= takeover.deadline:
            self._carry_out(takeover, takeover.poll(now))
        if self._leading is not None and now >= self._leading.deadline:
            self._leading.poll()
        if self._changing is not None and now >= self._changing.deadline:
            self._changing.poll()
        self._set_timer()

    # -- taking over

    def _found(self, found: Stored[VolumeGroup] | Exception | None) -> None:
        now, watch = self._around.clock(), self._watch
        if self._stopped:
            return
        if isinstance(found, Exception):
            self._failed_to_take(f"the metastore cannot be read: {found}")
            watch.unread(now)
        elif found is not None and found.record.state is GroupState.DELETED:
            self._gone()
            return
        elif found is not None and not has_place(found.record, self._me):
            self._leave(found)
            return
        elif (begin := watch.found(found, now)) is not None:
            self._begin(begin)
        elif self._takers:
            self._failed_to_take("the metastore has another record of it")
        self._set_timer()

    def _begin(self, begin: Begin) -> None:
        assert self._takeover is None
        takeover = Takeover(
            *(self._me, begin.found, self._store.change_volume, self._around.random),
            agreed=begin.agreed,
            floor=begin.floor,
        )
        self._takeover = takeover
        log.info("takeover begins volume=%s epoch=%d", self.replica.name, takeover.epoch)
        self._carry_out(takeover, takeover.start(self._around.clock()))

    def _carry_out(self, takeover: Takeover, effects: list[Effect]) -> None:
        for effect in effects:
            if takeover is not self._takeover:
                return
            match effect:
                case Look():
                    self._ask_for(takeover, effect, m.Look(self.uuid), LOOK_S)
                case Seal(member, epoch):
                    if member == self._me:
                        self._sealed_at = self._around.clock()
                    self._ask_for(takeover, effect, m.Seal(self.uuid, epoch), SEAL_S)
                case Mend():
                    self._mend(takeover, effect)
                case Commit():
                    self._commit(takeover, effect)
                case Lead():
                    self._lead(takeover, effect)
                case Serve(epoch):
                    self._serve(epoch)
                case Overtaken(epoch):
                    self._close(f"the metastore has epoch {epoch}")
                case GaveUp():
                    self._gave_up(effect)
        self._set_timer()

    def _ask_for(
        self, takeover: Takeover, effect: Asking, message: m.Request, timeout_s: float
    ) -> None:
        def ended(result: Message | str) -> None:
            if takeover is not self._takeover:
                return
            now, member = self._around.clock(), effect.member
            match result:
                case m.Looked():
                    quiet_s = result.quiet_ms / 1000
                    after = takeover.looked(member, result.promise, quiet_s, now)
                case m.Sealed():
                    quiet_s = result.quiet_ms / 1000
                    after = takeover.promised(member, result.epoch, result.chain, quiet_s, now)
                case m.Error(m.Code.STALE):
                    after = takeover.refused(effect, result.detail, now)
                case _:
                    after = takeover.failed(effect, text_of(result), now)
            self._carry_out(takeover, after)

        self._ask(effect.member, message, timeout_s, ended)

    def _mend(self, takeover: Takeover, effect: Mend) -> None:
        def ended(result: Exception | str | None) -> None:
            now = self._around.clock()
            if result is None:
                after = takeover.mended(now)
            elif isinstance(result, StaleEpoch):
                after = takeover.refused(effect, result.promised, now)
            else:
                after = takeover.failed(effect, text_of(result), now)
            self._carry_out(takeover, after)

        Mending(
            *(self._around, self.replica, effect, partial(self._ask, effect.task.source)),
            *(lambda: takeover is self._takeover, ended),
        ).start()

    def _commit(self, takeover: Takeover, effect: Commit) -> None:
        def ended(outcome: Outcome | Exception) -> None:
            if takeover is not self._takeover:
                return
            if isinstance(outcome, Exception):
                outcome = Unknown(str(outcome))
            self._carry_out(takeover, takeover.committed(outcome, self._around.clock()))
            if takeover.ended and takeover is self._takeover:
                self._takeover = None  # open, and everybody can see it
                if self._leading is not None and self._leading.coming is not None:
                    self.look()  # the change of members goes on

        self._around.ask_store(lambda: self._store.commit(effect.transaction), ended)

    def _gave_up(self, end: GaveUp) -> None:
        now = self._around.clock()
        log.warning("takeover ended volume=%s why=%s %s", self.replica.name, end.why, end.text)
        takeover, self._takeover = self._takeover, None
        self._end_leading()
        self._failed_to_take(f"{end.why}: {end.text}")
        self._watch.gave_up(end, now)
        if takeover is not None and end.why is Why.FAILED:
            self._hand_to_source(takeover)

    def _hand_to_source(self, takeover: Takeover) -> None:
        """What this node lacks, and perhaps cannot get any more, the member has that is to be
        followed: it lacks nothing. Without being asked it gives each claim time, and members that
        cannot finish could claim in turns for ever. A lease of who served before is waited for by
        it as by anybody else (`Takeover.free_at`)."""
        choice = takeover.choice
        if choice is not None and choice.source != self._me:
            take = m.Take(self.uuid, takeover.epoch)
            self._ask(choice.source, take, MOVE_S, lambda result: None)

    def _failed_to_take(self, why: str) -> None:
        self._last_failure = why
        self._takers.failed(why)

    # -- leading

    def _lead(self, takeover: Takeover, effect: Lead) -> None:
        group, replica = effect.group, self.replica

        def begin() -> tuple[int, Chain]:
            replica.begin(group.epoch, effect.chain.seq)
            descriptor, _ = replica.tap(self._tap_bytes)
            return descriptor, Chain(replica.ends(), replica.start)

        def begun(result: tuple[int, Chain] | Exception) -> None:
            if takeover is not self._takeover:
                if not isinstance(result, Exception):
                    self._turns.take(partial(_let_go, replica), _ignore)
            elif isinstance(result, Exception):
                self._unable(takeover, result)
            else:
                self._begin_to_lead(takeover, group, *result)

        self._turns.take(begin, begun)

    def _begin_to_lead(
        self, takeover: Takeover, group: VolumeGroup, descriptor: int, chain: Chain
    ) -> None:
        def opened() -> None:
            if takeover is self._takeover:
                self._carry_out(takeover, takeover.led(self._around.clock()))

        self._leading = leading = Leading(
            *(self._around, self.replica, group, self._me, chain, self._policy),
            *(opened, self._fenced, self._broken, self._moved),
        )
        self._changing = Changing(
            *(self._around, self.replica, leading.primary, group, self._me, self._store),
            Told(
                *(leading.carry_out, self._ask, self.move),
                lambda epoch: self._close(f"the metastore has epoch {epoch}"),
                lambda: leading is self._leading,
            ),
        )
        leading.start(descriptor)
        self._set_timer()

    def _moved(self) -> None:
        """The Primary was told something."""
        if self._changing is not None:
            self._changing.poll()
        self._set_timer()

    def _unable(self, takeover: Takeover, error: Exception) -> None:
        """This node's own part cannot lead."""
        now = self._around.clock()
        if isinstance(error, StaleEpoch):
            self._carry_out(takeover, takeover.fenced(error.promised, now))
        else:
            self._carry_out(takeover, takeover.unable(str(error), now))

    def _serve(self, epoch: int) -> None:
        leading, replica = self._leading, self.replica
        assert leading is not None

        def served(result: Exception | None) -> None:
            if leading is not self._leading:
                return
            if isinstance(result, Exception):
                self._close(f"this node cannot serve it: {result}")
                return
            leading.serves()
            self._clients.opened(self.uuid, epoch)
            pause_s = self._around.clock() - self._sealed_at
            self.pauses_s = [*self.pauses_s[1 - MAX_PAUSES :], pause_s]
            log.info("primary volume=%s epoch=%d pause=%.3fs", replica.name, epoch, pause_s)
            self._last_failure = ""
            self._takers.served()

        def let_in() -> None:
            self._clients.opening(self.uuid)
            replica.serve(epoch, strict=leading.strict)

        self._turns.take(let_in, served)

    # -- no more

    def _fenced(self, epoch: int) -> None:
        """A member has refused our epoch."""
        now = self._around.clock()
        self._over(lambda takeover: takeover.fenced(epoch, now), f"a member has epoch {epoch}")

    def _broken(self, why: str) -> None:
        """This node's own disk has failed."""
        now = self._around.clock()
        self._over(lambda takeover: takeover.unable(why, now), why)

    def _over(self, tell: Callable[[Takeover], list[Effect]], why: str) -> None:
        """Leading ends: with the takeover, where that is not over, else with the volume here."""
        takeover = self._takeover
        if takeover is not None and (effects := tell(takeover)):
            self._carry_out(takeover, effects)
        else:
            self._close(why)

    def _close(self, why: str) -> None:
        """Be neither primary nor about to be it; follow again."""
        served = self.serving
        self._takeover = None
        self._end_leading()
        if served:
            log.warning("not the primary any more volume=%s: %s", self.replica.name, why)
            self._clients.closed(self.uuid, why)
        self._failed_to_take(why)
        self._watch.dropped(self._around.clock())
        self._set_timer()

    def _end_leading(self) -> None:
        leading, self._leading = self._leading, None
        self._changing = None
        if leading is not None:
            leading.end()
            self._turns.take(partial(_let_go, self.replica), _ignore)

    # -- inner

    def _ask(
        self,
        node: NodeId,
        message: m.Request,
        timeout_s: float,
        then: Callable[[Message | str], None],
    ) -> None:
        """Ask a member, this node among them."""
        if node == self._me:
            self._answering.answer(message, then)
            return
        try:
            self._around.ask(
                bytes.fromhex(node), message, timeout_s, lambda end: then(outcome(end))
            )
        except TransportError as error:
            # After what is being done now: who asks is not ready for an answer yet.
            text = str(error)
            self._around.post(lambda: then(text))


def _let_go(replica: Replica) -> None:
    """After a takeover has ended, or is over: no client, and nothing is noted for other members."""
    replica.shut()
    with suppress(OSError):  # a take is under way: the next primary's tap ends this one
        replica.untap()


def _ignore(result: object) -> None:
    if isinstance(result, Exception):
        log.error("what was begun for a volume cannot be ended: %s", result)
