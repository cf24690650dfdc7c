"""APPENDs that are answered in C, beside the engine in Python: the same answers, whatever comes
between them, and the same records."""

import random
from collections.abc import Callable
from typing import Any

import pytest
from typing_extensions import Buffer

from native import answer_append
from tests.group_rig import OPTIONS, SIZE, VOLUME
from tests.sim.store_rig import StoreRig
from tests.unit.volume.test_replica import Source
from transport.group.member import NANOSECONDS, Left, Members
from transport.peer import answerer
from transport.peer import messages as m
from transport.peer.answerer import Answerer
from transport.peer.policy import Policy
from transport.peer.wire import VERSION, Envelope, Frames, Message, decode, encode
from volume.noted import Notes

THEIRS, MINE = 1 << 63 | 5, 7
STEPS = 60


class End:
    """One side of a session that is asked, and what is behind it."""

    def __init__(self, plain: bool) -> None:
        self._plain = plain
        self._now = 1.0
        self.rig = StoreRig(options=OPTIONS)
        self.members = Members(self.rig.store.replicas, 1.0)
        self.members.answer(m.Create(VOLUME, 1, "vm1", SIZE, 512, 4096), 1.0)
        self.rig.tend()
        welcome = m.Welcome(*(b"n" * 16, b"c" * 16, VERSION, 0, 64, 64 << 20, "test"))
        self.engine = Answerer(welcome, lambda hello: None, Policy(), MINE, 1.0)
        hello = m.Hello(*(b"m" * 16, b"c" * 16, VERSION, VERSION, 0, 0, "test"))
        self.feed(encode(hello, Envelope(THEIRS, 0, 0)), 1.0)
        self.served = 0

    def feed(self, frames: Frames, now: float) -> list[bytes]:
        """The frames that it answers with."""
        self._now = now
        if self._plain and self.engine.plain(frames, now, self._serve):
            self.served += 1
        else:
            for event in self.engine.received(frames, now):
                if isinstance(event, answerer.Asked):
                    self.engine.answer(event.request, self._answer(event.message, now))
        answers = []
        while (answer := self.engine.take()) is not None:
            answers += [bytes(memoryview(frame)) for frame in answer]
        return answers

    def state(self) -> object:
        replica = self.members.member(VOLUME)
        assert replica is not None
        core = replica.replica.volume.core
        return replica.replica.held, replica.replica.ends(), core.state()[0]

    def data(self) -> list[bytes]:
        """The records of each epoch."""
        replica = self.rig.store.replicas.get(VOLUME)
        assert replica is not None
        found, begin = [], 0
        for epoch, end in replica.ends():
            found.append(replica.read(epoch, begin, 1 << 22).data if end > begin else b"")
            begin = end
        return found

    def _answer(self, message: m.Request, now: float) -> Message:
        member = self.members.member(getattr(message, "volume", b""))
        if self._plain and member is not None:
            found = member.at_once(message, now)
            if not isinstance(found, Left):
                return found
        return self.members.answer(message, now)

    def _serve(self, theirs: int, mine: int, head: Buffer, records: Buffer) -> bytes | None:
        times = self.rig.clock.now_ns(), int(self._now * NANOSECONDS)
        return answer_append(self.members.cores, theirs, mine, head, records, *times)


class Asker:
    """Draws what is asked, most of it what a primary in step asks."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.source = Source()
        self.source.begin(1)
        self.epoch = 1
        self.taken: list[tuple[int, int, int, bytes]] = []  # written, first, last, records
        self.sent = 0
        self.number = 0

    def frames(self) -> Frames:
        self.number += 1
        message = self.rng.choices(
            (self.next, self.again, self.ahead, self.synced, self.joined, self.lies, self.rare),
            (60, 5, 3, 6, 4, 8, 5),
        )[0]()
        frames = list(encode(message, Envelope(THEIRS, MINE, self.number)))
        if self.rng.random() < 0.03:
            frames.append(b"more")
        if self.rng.random() < 0.02:  # of another session: ignored
            frames = list(encode(message, Envelope(THEIRS + 1, MINE, self.number)))
        return frames

    def next(self) -> m.Request:
        written, first, last, records = self._record()
        return m.Append(VOLUME, self.epoch, written, first, last, 0, (records,))

    def synced(self) -> m.Request:
        written, first, last, records = self._record()
        return m.Append(VOLUME, self.epoch, written, first, last, 1, (records,))

    def joined(self) -> m.Request:
        written, first, _, one = self._record()
        _, _, last, two = self._record()
        return m.Append(VOLUME, self.epoch, written, first, last, 0, (one, two))

    def again(self) -> m.Request:
        written, first, last, records = self.rng.choice(self.taken or [self._record()])
        return m.Append(VOLUME, self.epoch, written, first, last, 0, (records,))

    def ahead(self) -> m.Request:
        written, first, last, records = self._record()
        self.taken.pop()
        return m.Append(VOLUME, self.epoch, written, first + 1, last + 1, 0, (records,))

    def lies(self) -> m.Request:
        written, first, last, records = self._record()
        spoiled = bytearray(records)
        spoiled[self.rng.randrange(len(spoiled))] ^= 1 << self.rng.randrange(8)
        epoch, lie = self.epoch, self.rng.randrange(4)
        return m.Append(
            *(VOLUME if lie else b"o" * 16, epoch + (lie == 1), written, first),
            *(last + (lie == 2), 0, (bytes(spoiled) if lie == 3 else records,)),
        )

    def rare(self) -> m.Request:
        draw = self.rng.randrange(5)
        if draw == 0:
            return m.Seal(VOLUME, self.epoch)
        if draw == 1 and self.epoch < 4:
            self.epoch += 1
            self.source.begin(self.epoch)
            return m.Seal(VOLUME, self.epoch)
        if draw == 2:
            return m.Open(VOLUME, self.epoch, self.source.replica.newest)
        if draw == 3:
            return m.Look(VOLUME)
        return m.Sync(VOLUME, self.epoch, self.source.replica.newest)

    def _record(self) -> tuple[int, int, int, bytes]:
        first = self.source.replica.newest + 1
        records = self.source.records(self.rng.randint(1, 3), self.rng.randbytes(1))
        found = self.epoch, first, self.source.replica.newest, records
        self.taken.append(found)
        return found

    def missing(self, have: int) -> list[m.Append]:
        """What brings a member up, as a primary does that hears of a gap."""
        return [
            m.Append(VOLUME, self.epoch, written, first, last, 0, (records,))
            for written, first, last, records in self.taken
            if last > have
        ]


@pytest.mark.parametrize("seed", range(12))
def test_c_answers_as_python_does(seed: int) -> None:
    asker, c, python = Asker(seed), End(plain=True), End(plain=False)
    for step in range(STEPS):
        now = 2.0 + step
        for frames in (asker.frames(), *catching_up(asker, python)):
            assert c.feed(frames, now) == python.feed(frames, now)
            c.rig.tend()
            python.rig.tend()
        assert c.state() == python.state()
    assert c.data() == python.data()
    assert c.served > 0


def catching_up(asker: Asker, end: End) -> list[Frames]:
    """Now and then the member gets what it lacks, or little would ever be plain."""
    replica = end.rig.store.replicas.get(VOLUME)
    assert replica is not None
    found: list[Frames] = []
    if asker.rng.random() < 0.8:
        for message in asker.missing(replica.newest):
            asker.number += 1
            found.append(encode(message, Envelope(THEIRS, MINE, asker.number)))
    return found


def plain(epoch: int, first: int, last: int, records: bytes, number: int = 1) -> Frames:
    message = m.Append(VOLUME, epoch, 1, first, last, 0, (records,))
    return encode(message, Envelope(THEIRS, MINE, number))


def in_step() -> tuple[Source, End]:
    """The first APPEND goes through Python, those after it need not."""
    source, end = Source(), End(plain=True)
    source.begin(1)
    end.feed(plain(1, 1, 1, source.records(1)), 2.0)
    assert end.served == 0
    end.feed(plain(1, 2, 2, source.records(1), 2), 2.0)
    assert end.served == 1
    return source, end


def rewritten(end: End) -> None:
    replica = end.members.member(VOLUME)
    assert replica is not None
    end.rig.store.destage()
    replica.replica.promise(2)
    replica.replica.undo(2, (1, 2))


@pytest.mark.parametrize(
    "change",
    [
        lambda end: end.members.answer(m.Seal(VOLUME, 2), 2.0),
        lambda end: end.members.answer(m.Seal(VOLUME, 1), 2.0),
        lambda end: end.members.member(VOLUME).replica.serve(1),
        lambda end: end.members.member(VOLUME).withdraw(),
        lambda end: end.members.forget(VOLUME),
        lambda end: end.members.member(VOLUME).replica.begin_copy(1),
        lambda end: end.members.member(VOLUME).replica.remove(),
        rewritten,
    ],
)
def test_whoever_changes_a_part_is_asked_again(change: Callable[[End], object]) -> None:
    source, end = in_step()
    change(end)
    end.feed(plain(1, 3, 3, source.records(1), 3), 3.0)
    assert end.served == 1


def test_a_promise_tells_when_a_plain_append_was_answered() -> None:
    _, end = in_step()
    member = end.members.member(VOLUME)
    assert member is not None
    assert member.quiet_s(4.5) == 2.5
    sealed = end.members.answer(m.Seal(VOLUME, 2), 4.5)
    assert isinstance(sealed, m.Sealed)
    assert sealed.quiet_ms == 2500
    rewritten(end)  # another volume has its place by now
    assert member.quiet_s(5.5) == 3.5


def test_nothing_is_answered_past_what_is_held_for_a_peer() -> None:
    source, end = in_step()
    sync = encode(m.ReadLog(VOLUME, 1, 0, 2 << 20), Envelope(THEIRS, MINE, 3))
    (asked,) = end.engine.received(sync, 3.0)
    assert isinstance(asked, answerer.Asked)
    frames = plain(1, 3, 3, source.records(1), 4)
    assert not end.engine.plain(frames, 3.0, lambda *_: pytest.fail("it was asked"))
    envelope, message = decode(frames, m.KINDS)
    assert envelope.request == 4
    assert isinstance(message, m.Append)


def test_nothing_is_plain_while_a_note_is_carried_out(monkeypatch: pytest.MonkeyPatch) -> None:
    source, end = in_step()
    replica = end.rig.store.replicas.get(VOLUME)
    assert replica is not None
    source.rig.store._notes.snapshot("s", [source.replica.volume], pinned=False, scheduled=False)
    note, last = source.records(0), source.replica.newest
    later = source.records(1)
    done, seen = Notes.take, []

    def take(notes: Notes, *arguments: Any) -> tuple[int, int]:
        result = done(notes, *arguments)
        seen.append(replica.append_plain(1, 1, last + 1, last + 1, later, 0))
        return result

    monkeypatch.setattr(Notes, "take", take)
    end.feed(plain(1, 3, last, note, 3), 3.0)
    assert replica.newest == last
    assert seen == [None]
    end.feed(plain(1, last + 1, last + 1, later, 4), 3.0)
    assert end.served == 2
