"""What may be acknowledged, counted."""

import random

import pytest

from transport.group.acks import Acks, Held, NodeId
from volume.metastore_records import MAX_MEMBERS, Mode

A, B, C = NodeId("a"), NodeId("b"), NodeId("c")


def test_a_write_is_acknowledged_when_w_members_have_it() -> None:
    acks = Acks((A, B, C), 2, Mode.MIRROR, 0)
    assert not acks.heard(A, Held(5, 0))
    assert acks.acked == 0
    assert acks.heard(B, Held(3, 0))
    assert (acks.acked, acks.durable) == (3, 0)
    assert not acks.heard(C, Held(2, 2))
    assert acks.heard(A, Held(5, 5))
    assert (acks.acked, acks.durable) == (3, 2)


def test_strict_waits_for_syncs() -> None:
    acks = Acks((A, B, C), 2, Mode.STRICT, 0)
    acks.heard(A, Held(5, 5))
    assert not acks.heard(B, Held(5, 0))
    assert acks.heard(C, Held(4, 4))
    assert (acks.acked, acks.durable) == (4, 4)


def test_what_was_acknowledged_stays_and_copies_tell_what_is_left_of_it() -> None:
    acks = Acks((A, B, C), 2, Mode.MIRROR, 10)
    for member in (A, B, C):
        acks.heard(member, Held(20, 12))
    assert acks.copies(20) == 3
    acks.heard(B, Held(12, 12))  # it lost power
    assert (acks.acked, acks.durable) == (20, 12)
    assert acks.copies(20) == 2


@pytest.mark.parametrize(
    ("members", "wanted"),
    [((A,), 0), ((A, B), 3), (tuple(NodeId(str(n)) for n in range(MAX_MEMBERS + 1)), 2)],
)
def test_a_count_that_cannot_be_is_refused(members: tuple[NodeId, ...], wanted: int) -> None:
    with pytest.raises(ValueError, match="members"):
        Acks(members, wanted, Mode.MIRROR, 0)


def test_strangers_and_nonsense_are_refused() -> None:
    acks = Acks((A, B), 1, Mode.MIRROR, 0)
    with pytest.raises(KeyError):
        acks.heard(C, Held(1, 1))
    with pytest.raises(ValueError, match="synced"):
        Held(1, 2)


@pytest.mark.parametrize("seed", range(20))
def test_counts_agree_with_counting(seed: int) -> None:
    rng = random.Random(seed)
    members = [NodeId(str(n)) for n in range(rng.randint(1, 7))]
    wanted = rng.randint(1, len(members))
    mode = rng.choice(tuple(Mode))
    acks = Acks(members, wanted, mode, 0)
    held = dict.fromkeys(members, Held())
    acked = durable = 0
    for _ in range(200):
        member = rng.choice(members)
        received = max(0, held[member].received + rng.randint(-1, 5))
        held[member] = Held(received, min(received, held[member].durable + rng.randint(0, 4)))
        acks.heard(member, held[member])
        for seq in range(1, max(each.received for each in held.values()) + 1):
            synced = sum(each.durable >= seq for each in held.values()) >= wanted
            there = sum(each.received >= seq for each in held.values()) >= wanted
            if synced:
                durable = max(durable, seq)
            if synced or (there and mode is not Mode.STRICT):
                acked = max(acked, seq)
        assert (acks.acked, acks.durable) == (acked, durable)
