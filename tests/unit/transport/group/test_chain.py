"""Chains against logs: lists of records with their epochs, and marks that open epochs."""

import random

import pytest

from transport.group.chain import MAX_EPOCHS, BadChain, Chain, common


def test_the_newest_epoch_counts_before_the_length() -> None:
    older = Chain(((1, 120),))
    newer = Chain(((1, 100), (2, 100)))
    assert newer.end > older.end
    assert common(older, newer) == (1, 100)


@pytest.mark.parametrize(
    ("ends", "start"),
    [
        (((0, 5),), 0),
        (((2, 5), (1, 6)), 0),
        (((1, 5), (1, 6)), 0),
        (((1, 5), (2, 4)), 0),
        (((1, 5),), 6),
        ((), -1),
        (tuple((n, n) for n in range(1, MAX_EPOCHS + 2)), 0),
    ],
)
def test_what_cannot_be_is_refused(ends: tuple[tuple[int, int], ...], start: int) -> None:
    with pytest.raises(BadChain):
        Chain(ends, start)


def test_a_chain_grows_at_its_end_only() -> None:
    chain = Chain().extended(1, 0).extended(1, 5).extended(3, 5).extended(3, 9)
    assert chain == Chain(((1, 5), (3, 9)))
    for epoch, seq in ((2, 9), (3, 8), (4, 8)):
        with pytest.raises(BadChain):
            chain.extended(epoch, seq)


def test_a_chain_is_cut_where_it_has_been() -> None:
    chain = Chain(((1, 5), (3, 9)))
    assert chain.cut(3, 7) == Chain(((1, 5), (3, 7)))
    assert chain.cut(3, 5) == Chain(((1, 5), (3, 5)))
    assert chain.cut(1, 5) == Chain(((1, 5),))
    for epoch, seq in ((3, 4), (3, 10), (2, 5), (1, 6)):
        with pytest.raises(BadChain):
            chain.cut(epoch, seq)


def test_old_epochs_are_forgotten() -> None:
    chain = Chain()
    for epoch in range(1, MAX_EPOCHS + 10):
        chain = chain.extended(epoch, 10 * epoch)
    assert len(chain.ends) == MAX_EPOCHS
    assert chain.start == 90
    assert common(chain, chain) == chain.end
    assert common(Chain(((1, 10),)), chain) is None  # nobody can tell
    assert common(Chain(), Chain(((1, 10),))) == (0, 0)


@pytest.mark.parametrize("seed", range(50))
def test_chains_part_where_logs_do(seed: int) -> None:
    """Branches of one history: each epoch continues one member's log."""
    rng = random.Random(seed)
    logs: list[list[tuple[int, int]]] = [[] for _ in range(3)]
    chains = [Chain() for _ in logs]
    for epoch in range(1, rng.randint(2, 12)):
        source = rng.randrange(3)
        log, chain = list(logs[source]), chains[source].extended(epoch, chains[source].seq)
        states = [(list(log), chain)]
        for _ in range(rng.randint(0, 4)):
            log.append((epoch, len(log) + 1))
            chain = chain.extended(epoch, len(log))
            states.append((list(log), chain))
        for member in range(3):
            if rng.random() < 0.6:
                logs[member], chains[member] = rng.choice(states)
    for one in range(3):
        for other in range(3):
            shared = 0
            while (
                shared < min(len(logs[one]), len(logs[other]))
                and logs[one][shared] == logs[other][shared]
            ):
                shared += 1
            point = common(chains[one], chains[other])
            assert point is not None
            assert point[1] == shared
