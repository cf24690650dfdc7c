"""Three real etcd members, and what the MetaStore makes of their failures."""

import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import count

import pytest

from tests.clients import FindTool
from tests.etcd_cluster import AnswerLoser, EtcdCluster, etcd_cluster
from transport.etcd.client import EtcdMetaStore, EtcdSettings
from volume.metastore import Change, Done, Lost, MetaStoreUnavailable, Row, Unavailable, Unknown

TIMEOUT_S = 20.0  # only an etcd that decides nothing reaches it
SHORT_S = 2.0  # where it does
SLACK_S = 45.0  # of a busy machine; three times TIMEOUT_S, or "for ever", is to fail
_prefixes = count()


@pytest.fixture(scope="module")
def etcd(client_tool: FindTool, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdCluster]:
    with etcd_cluster(client_tool("etcd"), tmp_path_factory.mktemp("etcd"), 3) as cluster:
        yield cluster


@pytest.fixture
def settings(etcd: EtcdCluster) -> EtcdSettings:
    prefix = f"f{next(_prefixes)}/"
    return EtcdSettings(etcd.endpoints, prefix, timeout_s=TIMEOUT_S, attempt_s=0.5, rounds=20)


@pytest.fixture
def patient(settings: EtcdSettings) -> EtcdSettings:
    """For one endpoint that loses answers: it is late with none."""
    return replace(settings, attempt_s=TIMEOUT_S, rounds=2)


@pytest.fixture
def store(settings: EtcdSettings) -> Iterator[EtcdMetaStore]:
    made = EtcdMetaStore(settings)
    yield made
    made.close()


def certain(store: EtcdMetaStore, changes: list[Change]) -> Done | Lost:
    """The outcome, asked for again as the contract says, while an election goes on."""
    for _ in range(20):
        outcome = store.commit(changes)
        if isinstance(outcome, Done | Lost):
            return outcome
    raise AssertionError(outcome)


def put(store: EtcdMetaStore, value: bytes, before: Row | None = None) -> Row:
    outcome = certain(store, [Change("a", before, value)])
    assert isinstance(outcome, Done)
    assert outcome.rows[0] is not None
    return outcome.rows[0]


@pytest.mark.parametrize("index", range(3))
def test_with_any_member_killed_the_others_decide(
    etcd: EtcdCluster, store: EtcdMetaStore, index: int
) -> None:
    row = put(store, b"1")
    etcd.kill(index)
    try:
        row = put(store, b"2", row)
        assert certain(store, [Change("a", None, b"3")]) == Lost((row,))
    finally:
        etcd.start(index)
        etcd.wait_ready()


@pytest.mark.parametrize("index", range(3))
def test_with_any_member_paused_the_others_decide(
    etcd: EtcdCluster, store: EtcdMetaStore, index: int
) -> None:
    row = put(store, b"1")
    etcd.pause(index)
    try:
        row = put(store, b"2", row)
    finally:
        etcd.resume(index)
    assert certain(store, [Change("a", None, b"3")]) == Lost((row,))


def test_without_quorum_nothing_is_decided_and_then_it_goes_on(
    etcd: EtcdCluster, settings: EtcdSettings, store: EtcdMetaStore
) -> None:
    row = put(store, b"1")
    changes = [Change("a", row, b"2")]
    hasty = EtcdMetaStore(replace(settings, timeout_s=SHORT_S))
    etcd.pause(0)
    etcd.pause(1)
    try:
        began = time.monotonic()
        assert isinstance(hasty.commit(changes), Unknown)  # a leader may have it in its log
        with pytest.raises(MetaStoreUnavailable, match="doctor"):
            hasty.read("a")
        assert not hasty.hint("beat/a", b"1", 5)
        assert time.monotonic() - began < 3 * SHORT_S + SLACK_S
    finally:
        etcd.resume(0)
        etcd.resume(1)
        hasty.close()
    etcd.wait_ready()
    assert isinstance(certain(store, changes), Done)
    found = store.read("a")
    assert found is not None
    assert found.value == b"2"


def test_when_nobody_listens_it_is_unavailable_not_unknown(
    settings: EtcdSettings,
) -> None:
    store = EtcdMetaStore(replace(settings, endpoints=("http://127.0.0.1:1",)))
    assert isinstance(store.commit([Change("a", None, b"1")]), Unavailable)
    store.close()


def test_a_lost_answer_is_settled_by_the_next_endpoint(
    etcd: EtcdCluster, patient: EtcdSettings
) -> None:
    proxy = AnswerLoser(etcd.endpoints[0])
    store = EtcdMetaStore(replace(patient, endpoints=(proxy.endpoint, etcd.endpoints[1])))
    try:
        proxy.lose = 1
        outcome = store.commit([Change("a", None, b"token")])
        assert proxy.passed == ["/v3/kv/txn"]  # it happened there, and was not done twice
        assert isinstance(outcome, Done)
        assert outcome.rows == (store.read("a"),)
    finally:
        store.close()
        proxy.close()


@pytest.mark.parametrize("overwritten", [False, True])
def test_an_unknown_outcome_is_settled_by_the_same_transaction(
    etcd: EtcdCluster, patient: EtcdSettings, store: EtcdMetaStore, overwritten: bool
) -> None:
    proxy = AnswerLoser(etcd.endpoints[0])
    lossy = EtcdMetaStore(replace(patient, endpoints=(proxy.endpoint,), rounds=1))
    try:
        changes = [Change("a", None, b"token")]
        proxy.lose = 1
        assert isinstance(lossy.commit(changes), Unknown)
        row = store.read("a")
        assert row is not None
        if overwritten:
            newer = put(store, b"another", row)
            assert lossy.commit(changes) == Lost((newer,))
        else:
            assert lossy.commit(changes) == Done((row,))
    finally:
        lossy.close()
        proxy.close()


def test_each_endpoint_tells_its_version(etcd: EtcdCluster, settings: EtcdSettings) -> None:
    store = EtcdMetaStore(replace(settings, endpoints=(*etcd.endpoints, "http://127.0.0.1:1")))
    versions = [version for _, version in store.versions()]
    store.close()
    assert versions[-1] is None
    assert all(version and version.startswith("3.") for version in versions[:-1])


def test_a_refused_user_is_unavailable_with_the_reason(
    etcd: EtcdCluster, settings: EtcdSettings
) -> None:
    """With authentication off, etcd refuses to authenticate anybody: certain, and told."""
    store = EtcdMetaStore(replace(settings, user="blockd", password="wrong"))
    outcome = store.commit([Change("a", None, b"1")])
    store.close()
    assert isinstance(outcome, Unavailable)
    assert "user blockd" in outcome.reason
