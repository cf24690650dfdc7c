"""Damaged chunks are asked for of node after node, and given to who asks; on real stores."""

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import pytest

from blockd.api.types import ClusterInfo
from blockd.cluster.chunkrepair import AGAIN_S, PeerRepair, answer_get, answer_get_at
from tests.fake_cluster import INFO, N1, N2
from tests.unit.volume.test_chunkrepair import DATA, IDS, damaged, filled
from tests.unit.volume.test_remake import Apart
from transport.errors import TransportError
from transport.peer import messages as m
from transport.peer.caller import Answered, Failed
from transport.peer.wire import Envelope, Message, encode
from volume.chunkrepair import MAX_AT_ONCE, ChunkRepair
from volume.remake import MAX_STATES

N3 = replace(N2, node="3" * 32, name="n3")
T = TypeVar("T")


class Wire:
    """What other nodes answer, by their ids."""

    def __init__(self, answers: dict[str, ChunkRepair | Message | None]) -> None:
        self.answers = answers
        self.asked: list[str] = []
        self.able = {node: int(m.FEATURES) for node in answers}
        self.made = 0
        """Requests of what is to be made again."""

    def result_of(self, call: Callable[[], T]) -> T:
        return call()

    def features(self, node: bytes) -> int:
        return self.able[node.hex()]

    def ask_and_wait(self, node: bytes, message: m.Request, timeout_s: float) -> Answered | Failed:
        self.asked.append(node.hex())
        answer = self.answers[node.hex()]
        if answer is None:
            raise TransportError("silent")
        if isinstance(message, m.GetAt):
            self.made += 1
            assert self.able[node.hex()] & m.Feature.REMAKE
            encode(message, Envelope(1, 2, 3))  # within its bounds
        else:
            assert isinstance(message, m.Get)
            assert len(message.ids) <= MAX_AT_ONCE
        if isinstance(answer, ChunkRepair):
            answer = (
                answer_get_at(answer, message)
                if isinstance(message, m.GetAt)
                else answer_get(answer, message)
            )
        return Answered(1, answer)


def info() -> ClusterInfo:
    return replace(INFO, nodes=(N1, N2, N3))


def test_a_chunk_that_one_node_cannot_give_is_asked_for_of_the_next() -> None:
    ours, theirs, worse = filled(), filled(), filled()
    ids = damaged(ours, 2)
    assert damaged(worse, 2) == ids
    wire = Wire({N2.node: worse.store.chunk_repair, N3.node: theirs.store.chunk_repair})
    repair = PeerRepair(ours.store.chunk_repair, wire, info, lambda: 0.0)  # type: ignore[arg-type]
    assert repair.step() == 2
    assert wire.asked == [N2.node, N3.node]
    assert ours.read("vm1") == DATA
    assert repair.step() == 0
    assert len(wire.asked) == 2, "nothing is damaged any more"


def test_what_nobody_could_give_is_asked_for_again_after_a_while() -> None:
    ours, theirs = filled(), filled()
    damaged(ours, 1)
    now = 1000.0
    wire = Wire({N2.node: None, N3.node: m.ChunkList((), ())})
    repair = PeerRepair(ours.store.chunk_repair, wire, info, lambda: now)  # type: ignore[arg-type]
    assert repair.step() == 0
    assert repair.step() == 0
    assert len(wire.asked) == 2
    wire.answers[N2.node] = theirs.store.chunk_repair
    now += AGAIN_S
    assert repair.step() == 1
    assert ours.read("vm1") == DATA


def test_what_nobody_has_keeps_nothing_else_from_being_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in ("blockd.cluster.chunkrepair", "volume.chunkrepair"):
        monkeypatch.setattr(f"{module}.MAX_AT_ONCE", 2)
    ours, theirs = filled(), filled()
    ids = damaged(ours, 3)
    wire = Wire({N2.node: None, N3.node: None})
    repair = PeerRepair(ours.store.chunk_repair, wire, info, lambda: 0.0)  # type: ignore[arg-type]
    assert repair.step() == 0
    wire.answers[N2.node] = theirs.store.chunk_repair
    assert repair.step() == 1
    assert len(set(ours.store.chunk_repair.damaged()) & set(ids)) == 2


def test_a_node_that_lies_changes_nothing() -> None:
    ours, theirs = filled(), filled()
    (bad,) = damaged(ours, 1)
    rows = tuple((bad, 1, 0, 4096) for _ in range(3))
    other = theirs.store.chunk_repair.give([each for each in IDS if each != bad][:1], 1 << 20)
    lies = m.ChunkList(rows, (bytes(4096), other[0][1].stored, b"short"))
    wire = Wire({N2.node: lies, N3.node: theirs.store.chunk_repair})
    repair = PeerRepair(ours.store.chunk_repair, wire, info, lambda: 0.0)  # type: ignore[arg-type]
    assert repair.step() == 1
    assert ours.read("vm1") == DATA


def test_what_nobody_has_by_its_id_is_made_again_by_a_member_that_has_the_state() -> None:
    life = Apart()
    bad = life.damage(0, 1)
    theirs = life.member.store.chunk_repair
    assert theirs.give(bad, 1 << 20) == [], "it destaged at another moment"
    wire = Wire({N2.node: theirs, N3.node: m.ChunkList((), ())})
    ours = life.ours.store.chunk_repair
    repair = PeerRepair(ours, wire, info, lambda: 0.0)  # type: ignore[arg-type]
    assert repair.step() == 2
    assert wire.made == 1, "one request has the chunks of a state"
    assert ours.damaged() == []
    life.check()


def test_a_node_that_does_not_know_how_to_make_chunks_is_not_asked_to() -> None:
    life = Apart()
    life.damage(0)
    theirs = life.member.store.chunk_repair
    wire = Wire({N2.node: theirs, N3.node: None})
    wire.able = {N2.node: int(m.Feature.REFERENCES), N3.node: 0}
    ours = life.ours.store.chunk_repair
    repair = PeerRepair(ours, wire, info, lambda: 0.0)  # type: ignore[arg-type]
    assert repair.step() == 0
    assert wire.made == 0


def test_chunks_of_more_states_than_one_request_has_are_asked_for_with_several() -> None:
    life = Apart(states=MAX_STATES + 2)
    bad = life.damage_states()
    wire = Wire({N2.node: life.member.store.chunk_repair, N3.node: None})
    ours = life.ours.store.chunk_repair
    repair = PeerRepair(ours, wire, info, lambda: 0.0)  # type: ignore[arg-type]
    assert repair.step() == len(bad) > MAX_STATES
    assert ours.damaged() == []
    life.check()
