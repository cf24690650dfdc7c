"""Who is in the cluster, as etcd says: what is believed, what is kept, what cuts a node off."""

import os
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest

from blockd.cluster.membership import LEAST_S, Members, Membership
from tests.metastore_twin import DictMetaStore
from tests.peer_nodes import TIMEOUT_S, until
from transport.keys import new_identity, new_key_pair
from volume.metastore import ClusterRecords, Done, MetaStoreUnavailable, Outcome, Row, Transaction
from volume.metastore_records import ClusterRecord, JoinRecord, NodeRecord

CLUSTER = "c" * 32
HERE = ("127.0.0.1:7",)


class Etcd(DictMetaStore):
    """Counts reads of lists; says nothing while `down`."""

    def __init__(self) -> None:
        super().__init__()
        self.down = False
        self.reads = 0

    def read(self, key: str) -> Row | None:
        self.reads += key == "cluster"
        if self.down:
            raise MetaStoreUnavailable("etcd: nobody answers")
        return super().read(key)

    def list(self, prefix: str, after: str = "", limit: int = 128) -> Sequence[Row]:
        if self.down:
            raise MetaStoreUnavailable("etcd: nobody answers")
        return super().list(prefix, after, limit)


class Rig:
    """A cluster of nodes `me` and `other`; what was told last is in `members`."""

    def __init__(self) -> None:
        self.etcd = Etcd()
        self.records = ClusterRecords(self.etcd, lambda: os.urandom(16).hex())
        self.identity = new_identity(CLUSTER, "me")
        self.told: list[tuple[Members, frozenset[bytes]]] = []
        self._heard = threading.Condition()
        me = self.identity
        self.mine = NodeRecord(me.node_id, "me", HERE, me.keys.public.hex())
        self.other = NodeRecord("0" * 32, "other", HERE, new_key_pair().public.hex())
        self.done(self.records.found(ClusterRecord(CLUSTER, 0), self.mine))
        self.done(self.records.add_node(self.other))
        self.membership = Membership(self.records, me, HERE, self._hear)

    def done(self, transaction: Transaction) -> None:
        outcome: Outcome = self.records.commit(transaction)
        assert isinstance(outcome, Done)

    def look(self, *keys: bytes) -> Members:
        """What is told of a look that began after this."""
        self.membership.look(*keys)
        with self._heard:
            before = len(self.told)
            # One look may have been under way.
            assert self._heard.wait_for(lambda: len(self.told) > before + 1, TIMEOUT_S)
            return self.told[-1][0]

    def names(self) -> list[str]:
        return [peer.name for peer in self.look().peers]

    def _hear(self, members: Members, asked: frozenset[bytes]) -> None:
        with self._heard:
            self.told.append((members, asked))
            self._heard.notify_all()
        self.membership.look()  # the next look comes at once, not in five seconds


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = Rig()
    made.membership.start()
    yield made
    made.membership.stop()


def test_nodes_and_tokens_are_told(rig: Rig) -> None:
    key = new_key_pair().public
    rig.done(rig.records.invite(JoinRecord(key.hex(), int(time.time()) + 600)))
    rig.done(rig.records.invite(JoinRecord(new_key_pair().public.hex(), 5)))  # has expired
    members = rig.look()
    assert [peer.name for peer in members.peers] == ["other", "me"]
    assert [guest.key for guest in members.guests] == [key]
    assert members.problem == ""


def test_while_etcd_is_silent_the_last_answer_stays(rig: Rig) -> None:
    assert Rig().membership.others() is None, "nothing was read yet"
    before = rig.look()
    others = {bytes.fromhex(rig.other.node_id)}
    assert rig.membership.others() == others
    rig.etcd.down = True
    members = rig.look()
    assert members.nodes == before.nodes
    assert members.problem == "etcd: nobody answers"
    assert rig.membership.others() is None, "one may have joined"
    rig.etcd.down = False
    assert rig.look().problem == ""
    assert rig.membership.others() == others


def test_an_etcd_that_has_lost_the_cluster_cuts_nobody_off(rig: Rig) -> None:
    before = rig.look()
    rows, rig.etcd.rows = rig.etcd.rows, {}
    members = rig.look()
    assert members.nodes == before.nodes
    assert members.problem == "etcd has no cluster under this prefix"
    rig.etcd.rows = rows


def test_another_cluster_under_the_prefix_is_not_believed(rig: Rig) -> None:
    before = rig.look()
    rig.etcd.rows = {}
    rig.done(rig.records.found(ClusterRecord("d" * 32, 0), replace(rig.other, node_id="1" * 32)))
    members = rig.look()
    assert members.nodes == before.nodes
    assert "etcd has cluster dddd" in members.problem


def test_a_row_that_is_damaged_changes_nothing(rig: Rig) -> None:
    before = rig.look()
    key = rig.other.key
    rig.etcd.rows[key] = Row(key, b"blockd1 damaged", 99)
    members = rig.look()
    assert members.nodes == before.nodes
    assert key in members.problem


def test_a_node_that_was_removed_knows_nobody_any_more(rig: Rig) -> None:
    rig.look()
    stored = rig.records.node(rig.mine.node_id)
    assert stored is not None
    rig.done(rig.records.remove_node(stored))
    members = rig.look()
    assert (members.nodes, members.guests) == ((), ())
    assert members.problem == "this node was removed from the cluster"
    assert rig.membership.others() is None


def test_a_node_whose_key_is_another_ones_now_knows_nobody_any_more(rig: Rig) -> None:
    stored = rig.records.node(rig.mine.node_id)
    assert stored is not None
    changed = replace(stored.record, public_key=new_key_pair().public.hex())
    rig.done(rig.records.change_node(stored, changed))
    members = rig.look()
    assert members.nodes == ()
    assert members.problem == "the cluster has another key of this node"


def test_others_are_told_where_this_node_is_now(rig: Rig) -> None:
    rig.membership.stop()
    moved = Membership(rig.records, rig.identity, ("127.0.0.1:8",), lambda *_: None)
    moved.start()

    def addresses() -> tuple[str, ...]:
        stored = rig.records.node(rig.mine.node_id)
        assert stored is not None
        return stored.record.addresses

    until(lambda: addresses() == ("127.0.0.1:8",), "the new address")
    moved.stop()


def test_a_beat_says_that_the_node_lives(rig: Rig) -> None:
    rig.look()
    assert [each.record.node_id for each in rig.records.heartbeats()] == [rig.mine.node_id]


def test_keys_that_knock_are_looked_for_and_cost_a_bounded_number_of_reads(rig: Rig) -> None:
    rig.look()
    reads, began = rig.etcd.reads, time.monotonic()
    keys = [new_key_pair().public for _ in range(200)]
    for key in keys:
        rig.membership.look(key)
    rig.look()
    assert rig.etcd.reads - reads <= 2 + (time.monotonic() - began) / LEAST_S
    asked = frozenset().union(*(keys for _, keys in rig.told))
    assert asked >= set(keys)
