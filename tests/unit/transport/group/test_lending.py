"""What comes with every write is done natively, and makes no other difference: beside an engine
that does all of it in Python, whatever comes between."""

import random
from collections.abc import Callable

import pytest

from native import OP_WRITE, Request
from tests.group_rig import SIZE, VOLUME
from tests.unit.transport.group.test_leading import NODES, Served
from transport.group.kept import Batch, Kept
from transport.group.link import State
from transport.peer import messages as m
from transport.peer.caller import Answered, Failed
from transport.peer.wire import Message

STEPS = 400
BLOCK = 512


class End(Served):
    """A primary with two members, of whom each has what it was sent."""

    def __init__(self, *, plain: bool) -> None:
        super().__init__(plain=plain)
        self.held = {bytes.fromhex(node): [0, 0] for node in NODES[1:]}
        self.natively = 0

    def write(self, *, offset: int = 0, data: bytes = b"x" * BLOCK, ring: bool = True) -> None:
        self.rig.tend()
        request = Request(OP_WRITE, offset, len(data), data)
        core, now_ns = self.replica.volume.core, self.rig.clock.now_ns()
        self.replica.gate.pass_on(core.submit([request], now_ns)[0], lambda _: None)
        if ring:
            self.ring()

    def ring(self) -> None:
        self.around.taps[0]()
        sender = self.leading._sender
        self.natively += sender is not None and sender.on

    def flush(self) -> None:
        self.replica.gate.want(self.replica.newest)
        self.around.taps[1]()

    def pass_time(self, seconds: float) -> None:
        self.around.now += seconds
        if self.around.now >= self.leading.deadline:
            self.leading.poll()

    def work(self) -> None:
        if self.around.works:
            self.around.works.popleft()()

    def end_next(self, at: int, how: str) -> None:
        """One of the requests ends, well or not."""
        if not self.around.asked:
            return
        at %= len(self.around.asked)
        node, message, then = self.around.asked[at]
        del self.around.asked[at]
        then(
            Failed(1, "no answer")
            if how == "silent"
            else Answered(1, self._end(node, message, how))
        )

    def _end(self, node: bytes, message: m.Request, how: str) -> Message:
        held = self.held[node]
        if how == "fails":
            return m.Error(m.Code.FAILED, 0, "it does not go on from there")
        if how == "gap":
            return m.Error(m.Code.GAP, held[0], "records are missing")
        match message:
            case m.Seal():
                return m.Sealed(1, 0, 0, ((1, held[0]),))
            case m.Append():
                if message.first_seq > held[0] + 1:
                    return m.Error(m.Code.GAP, held[0], "records are missing")
                part = how == "part" and message.last_seq > message.first_seq
                held[0] = max(held[0], message.last_seq - part)
            case m.Sync():
                held[1] = max(held[1], message.seq)
            case m.Undo():
                held[0] = message.keep_seq
        held[1] = min(held)
        return m.Ack(2 if how == "later" else 1, *held)

    def asked(self) -> list[tuple[object, ...]]:
        """All that is under way; payload as the one stream that it is."""
        return [
            (node, message.first_seq, message.last_seq, message.sync, b"".join(message.payload))
            if isinstance(message, m.Append)
            else (node, message)
            for node, message, _ in self.around.asked
        ]

    def counted(self) -> tuple[object, ...]:
        primary = self.leading.primary
        return (
            *(self.replica.volume.core.gate_state(), primary.acked, primary.durable),
            *(primary.fenced, len(self.around.works), self.leading.ended),
        )


def drawn(rng: random.Random) -> Callable[[End], None]:
    """What happens next, to both."""
    kind = rng.choices(
        ("write", "burst", "answer", "odd", "time", "work", "flush", "status", "ring"),
        (40, 2, 60, 3, 4, 10, 4, 3, 5),
    )[0]
    blocks = rng.choice((1, 1, 1, 2, 3, 9))
    offset = rng.randrange(SIZE // BLOCK - blocks) * BLOCK
    data, at = rng.randbytes(blocks * BLOCK), rng.randrange(8)
    seconds = rng.choice((0.001, 0.03, 0.3, 1.0, 3.1))
    how = rng.choice(("silent", "fails", "gap", "part", "part"))

    def happen(end: End) -> None:
        match kind:
            case "write":
                end.write(offset=offset, data=data)
            case "burst":
                for _ in range(30):
                    end.write(offset=offset, data=data, ring=False)
                end.ring()
            case "answer":
                end.end_next(at, "")
            case "odd":
                end.end_next(at, how)
            case "time":
                end.pass_time(seconds)
            case "work":
                end.work()
            case "flush":
                end.flush()
            case "status":
                end.leading.primary.status(end.around.now)
            case "ring":
                end.ring()

    return happen


@pytest.mark.parametrize("seed", range(12))
def test_the_native_sender_does_what_python_does(seed: int) -> None:
    rng = random.Random(seed)
    native, python = End(plain=True), End(plain=False)
    for step in range(STEPS):
        happen = drawn(rng)
        for end in (native, python):
            if end.rig.store._journal.state()[3] < 3:
                end.rig.settle()
            happen(end)
        assert native.asked() == python.asked(), step
        assert native.counted() == python.counted(), step
        assert native.held == python.held
    assert members(native) == members(python)
    assert native.natively > STEPS / 20
    assert python.natively == 0


def members(end: End) -> list[tuple[object, ...]]:
    found = end.leading.primary.status(end.around.now)
    return [(each.member, each.state, each.received, each.durable, each.why) for each in found]


def in_step() -> End:
    end = End(plain=True)
    end.write()  # its answers are the first renewal of the lease, for which reads wait
    assert not end.natively
    end.end_next(0, "")
    end.end_next(0, "")
    end.write()
    assert end.natively
    return end


def appends(end: End) -> list[m.Append]:
    return [message for _, message, _ in end.around.asked if isinstance(message, m.Append)]


def test_what_is_under_way_when_it_is_taken_back_is_answered_here() -> None:
    end = in_step()
    end.leading.primary.status(end.around.now)  # who looks takes it back
    assert end.leading._sender is not None
    assert not end.leading._sender.on
    end.end_next(0, "")
    assert end.leading.primary.acked == 2
    end.write()  # the other member has not answered, the first one gets this
    assert [(each.first_seq, each.last_seq) for each in appends(end)] == [(2, 2), (3, 3)]
    end.end_next(0, "")
    assert [(each.first_seq, each.last_seq) for each in appends(end)] == [(3, 3), (3, 3)]


def test_what_was_written_while_all_were_asked_is_taken_after_an_odd_answer() -> None:
    """The tap has told of it once, natively, and does not again before it is taken."""
    end = in_step()
    end.write()
    assert len(appends(end)) == 2
    end.end_next(0, "fails")
    end.end_next(0, "")
    assert [(each.first_seq, each.last_seq) for each in appends(end)] == [(3, 3)]


def test_a_member_of_which_nothing_is_heard_is_behind_in_time() -> None:
    end = in_step()
    end.end_next(0, "")
    end.write()
    end.pass_time(3.0)
    states = {each.member: each.state for each in end.leading.primary.status(end.around.now)}
    assert states[NODES[2]] == State.AWAY.value
    assert end.leading.primary.acked == 2


def test_reads_go_on_while_writes_are_answered_natively() -> None:
    end = in_step()
    for _ in range(30):
        while end.around.asked:
            end.end_next(0, "")
        end.pass_time(0.5)
        assert end.around.now < end.leading.lease.reads_until
        end.write()
    assert end.natively > 20


def test_a_later_epoch_ends_it() -> None:
    end = in_step()
    end.end_next(0, "later")
    assert end.leading.primary.fenced == 2
    end.end_next(0, "")
    end.write()
    assert not end.around.asked
    assert end.leading.primary.acked == 1


def test_a_flush_is_asked_for_as_soon_as_a_member_has_it() -> None:
    end = in_step()
    end.flush()
    end.end_next(0, "")
    (sync,) = [message for _, message, _ in end.around.asked if isinstance(message, m.Sync)]
    assert sync == m.Sync(VOLUME, 1, 2)


def test_nothing_is_kept_twice_or_left_out() -> None:
    kept = Kept(4)
    kept.add(Batch(5, 6, b"56"))
    kept.resume(6, [])
    assert kept.first == 5
    kept.resume(8, [Batch(7, 8, b"78")])
    assert (kept.first, kept.taken, kept.bytes) == (5, 8, 4)
    kept.resume(12, [Batch(11, 12, b"bc")])  # 9 and 10 all have
    assert (kept.first, kept.taken, kept.bytes) == (11, 12, 2)
    with pytest.raises(AssertionError):
        kept.resume(13, [Batch(12, 13, b"cd")])
    with pytest.raises(AssertionError):
        kept.resume(14, [Batch(13, 13, b"d")])
