"""The simulated etcd: what it does to those who use it. Its contract is that of all MetaStores:
tests/unit/volume/test_metastore.py."""

from collections import Counter

import pytest

from tests.sim.cluster.metastore import LATE_S, MetaStoreClient, MetaStoreWeather, SimMetaStore
from tests.sim.cluster.timeline import NodeClock, Process, Timeline
from volume.metastore import (
    Change,
    Done,
    Lost,
    MetaStoreUnavailable,
    Row,
    Unavailable,
    Unknown,
)

A, B = "a" * 32, "b" * 32
KEY = "volume/x"


def made(seed: str = "store", weather: MetaStoreWeather | None = None) -> SimMetaStore:
    store = SimMetaStore(Timeline(), seed)
    store.weather = weather or MetaStoreWeather()
    return store


def put(store: SimMetaStore, value: bytes) -> Row:
    row = store.read(KEY)
    outcome = store.commit([Change(KEY, row, value)])
    assert isinstance(outcome, Done)
    assert outcome.rows[0] is not None
    return outcome.rows[0]


def test_a_node_without_a_way_to_it_neither_reads_nor_writes() -> None:
    store = made()
    store.unreachable.add(A)
    near, far = store.view(B), store.view(A)
    assert isinstance(near.commit([Change(KEY, None, b"1")]), Done)
    assert isinstance(far.commit([Change(KEY, None, b"2")]), Unavailable)
    assert not far.hint("beat/a", b"1", 5)
    for call in (lambda: far.read(KEY), lambda: far.list("")):
        with pytest.raises(MetaStoreUnavailable, match="no connection"):
            call()
    found = near.read(KEY)
    assert found is not None
    assert found.value == b"1"


def test_of_a_transaction_without_an_answer_anything_may_come() -> None:
    outcomes: Counter[str] = Counter()
    for seed in range(60):
        store = made(str(seed), MetaStoreWeather(lost=1.0, late=0.4))
        assert isinstance(store.view(A).commit([Change(KEY, None, b"1")]), Unknown)
        if store.read(KEY) is not None:
            outcomes["happened"] += 1
            continue
        store.timeline.run(LATE_S)
        outcomes["late" if store.read(KEY) is not None else "never"] += 1
    assert min(outcomes[each] for each in ("happened", "late", "never")) >= 8


def test_the_same_transaction_again_tells_whether_it_happened() -> None:
    for seed in range(30):
        store = made(str(seed), MetaStoreWeather(lost=1.0))
        view = store.view(A)
        changes = [Change(KEY, None, b"mine")]
        assert isinstance(view.commit(changes), Unknown)
        store.weather = MetaStoreWeather()
        outcome = view.commit(changes)
        assert isinstance(outcome, Done)
        store.timeline.run(LATE_S)  # a late one of before changes nothing
        assert (store.read(KEY),) == outcome.rows


def test_a_late_transaction_loses_to_what_came_before_it() -> None:
    store = made("late", MetaStoreWeather(lost=1.0, late=1.0))
    assert isinstance(store.view(A).commit([Change(KEY, None, b"late")]), Unknown)
    row = put(store, b"now")
    store.timeline.run(LATE_S)
    assert store.read(KEY) == row
    store.weather = MetaStoreWeather()
    assert store.view(A).commit([Change(KEY, None, b"late")]) == Lost((row,))


def test_reads_may_be_old_and_never_what_was_not() -> None:
    store = made("old", MetaStoreWeather(old=1.0))
    rows = [None, *(put(store, b"%d" % number) for number in range(3))]
    view = store.view(A)
    seen = [view.read(KEY) for _ in range(60)]
    assert {each and each.revision for each in seen} == {each and each.revision for each in rows}
    assert all(each in rows for each in seen)


def test_calls_take_time_and_are_told_to_who_is_still_there() -> None:
    store = made()
    process = Process(store.timeline, NodeClock(store.timeline, A))
    client = MetaStoreClient(store, process, A)
    told: list[object] = []
    changes = [Change(KEY, None, b"1")]
    client.call(lambda: client.view.commit(changes), told.append)
    assert store.read(KEY) is None
    store.timeline.run(1.0)
    assert told == [Done((store.read(KEY),))]
    store.unreachable.add(A)
    client.call(lambda: client.view.commit(changes), told.append)
    store.timeline.run(1.0)
    assert isinstance(told[1], Unavailable)
    store.unreachable.clear()
    client.call(lambda: client.view.commit([Change("b", None, b"2")]), told.append)
    process.end()
    store.timeline.run(1.0)
    assert len(told) == 2
    assert store.read("b") is not None
