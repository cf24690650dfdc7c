"""Joining: what a token says, what the door takes, and what a crash at each step leaves."""

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.metastore_twin import DictMetaStore
from tests.peer_nodes import QUICK, PeerNode
from transport.devicemap import Device, DeviceMap
from transport.errors import BadToken, CannotJoin, NodeNeeded, NoSuchNode
from transport.join import MARK, MAX_TOKENS, Door, Token, join, parse_token, remove
from transport.keys import Identity, new_identity, new_key_pair
from transport.packrecords import PackRecords
from transport.packrow import PackRow
from transport.peer import messages as m
from transport.sessions import Answer, Guest, Me, Peer, Sessions
from volume.metastore import (
    Change,
    ClusterRecords,
    Done,
    MetaStoreUnavailable,
    Outcome,
    Unavailable,
    Unknown,
)
from volume.metastore_records import GroupState, Mode, NodeRecord, VolumeGroup, decode

CLUSTER = "c" * 32
HERE = ("127.0.0.1:7",)
TTL_S = 600


class Clock:
    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


class LossyStore(DictMetaStore):
    """Of the next commits, says what `outcomes` has instead; "lost" ones happen all the same."""

    def __init__(self) -> None:
        super().__init__()
        self.outcomes: list[str] = []

    def commit(self, changes: Sequence[Change]) -> Outcome:
        outcome = self.outcomes.pop(0) if self.outcomes else ""
        if outcome == "unavailable":
            return Unavailable("no quorum")
        done = super().commit(changes)
        return Unknown("no answer") if outcome == "lost" else done


class Rig:
    """A cluster of one node, `first`, and its door."""

    def __init__(self) -> None:
        self.store = LossyStore()
        self.records = ClusterRecords(self.store, lambda: os.urandom(16).hex())
        self.first = new_identity(CLUSTER, "first")
        self.clock = Clock()
        self.door = Door(self.records, self.first, self.clock)
        public = self.first.keys.public.hex()
        added = self.records.add_node(NodeRecord(self.first.node_id, "first", HERE, public))
        assert isinstance(self.records.commit(added), Done)

    def take(self, token: Token, who: Identity) -> m.Joined | m.Error:
        return self.door.take(token.keys.public, asked(who))

    def nodes(self) -> set[str]:
        return {each.record.name for each in self.records.nodes()}

    def tokens(self) -> int:
        return sum(1 for _ in self.records.join_tokens())


def asked(who: Identity) -> m.Join:
    return m.Join(who.node, who.name, who.keys.public, HERE)


@pytest.fixture
def rig() -> Rig:
    return Rig()


@pytest.fixture
def second() -> Identity:
    return new_identity(CLUSTER, "second")


# -- tokens


def test_a_token_is_read_as_it_was_made(rig: Rig) -> None:
    token = rig.door.make_token(TTL_S, ("10.0.0.1:10811", "[fd00::1]:10811"))
    assert parse_token(f" {token.text()}\n") == token
    assert token.expires_s == int(rig.clock()) + TTL_S
    assert token.server_key == rig.first.keys.public


def test_a_token_is_not_shown(rig: Rig) -> None:
    token = rig.door.make_token(TTL_S, HERE)
    assert token.keys.secret.hex() not in repr(token)
    assert str(token.keys.secret) not in repr(token)


@given(st.integers(0, 300), st.integers(0, 255))
def test_a_token_that_was_changed_is_refused_and_not_repeated(place: int, value: int) -> None:
    keys = new_key_pair()
    text = Token(b"c" * 16, b"n" * 16, HERE, b"k" * 32, keys, 5).text()
    place %= len(text)
    changed = text[:place] + chr(value) + text[place + 1 :]
    if changed.strip() == text:
        return
    with pytest.raises(BadToken) as refused:
        parse_token(changed)
    assert text[len(MARK) + 80 :] not in str(refused.value)


@pytest.mark.parametrize("text", ["", MARK, MARK + "AAAA", MARK + "A" * 5000, "x" * 100])
def test_what_is_no_token_is_refused(text: str) -> None:
    with pytest.raises(BadToken, match="make one with `blockd cluster token`"):
        parse_token(text)


def test_the_number_of_open_tokens_is_bounded_and_expired_ones_go(rig: Rig) -> None:
    for _ in range(MAX_TOKENS):
        rig.door.make_token(TTL_S, HERE)
    with pytest.raises(CannotJoin, match="64 tokens wait"):
        rig.door.make_token(TTL_S, HERE)
    rig.clock.now += TTL_S
    rig.door.make_token(TTL_S, HERE)
    assert rig.tokens() == 1


def test_a_token_that_may_not_be_stored_is_not_given(rig: Rig) -> None:
    rig.store.outcomes = ["unavailable"]
    with pytest.raises(MetaStoreUnavailable, match="no quorum"):
        rig.door.make_token(TTL_S, HERE)


# -- the door


def test_a_token_is_for_one_node(rig: Rig, second: Identity) -> None:
    token = rig.door.make_token(TTL_S, HERE)
    joined = rig.take(token, second)
    assert isinstance(joined, m.Joined)
    record = decode(NodeRecord, f"node/{second.node_id}", joined.record.encode())
    assert (record.name, record.public_key) == ("second", second.keys.public.hex())
    assert rig.tokens() == 0
    refused = rig.take(token, new_identity(CLUSTER, "third"))
    assert isinstance(refused, m.Error)
    assert refused.text == "the token was used"
    assert rig.nodes() == {"first", "second"}


def test_who_asks_again_gets_the_same_answer(rig: Rig, second: Identity) -> None:
    token = rig.door.make_token(TTL_S, HERE)
    assert rig.take(token, second) == rig.take(token, second)


@pytest.mark.parametrize("outcomes", [["lost"], ["lost", "lost"]])
def test_a_lost_answer_of_the_metastore_is_asked_for_again(
    rig: Rig, second: Identity, outcomes: list[str]
) -> None:
    token = rig.door.make_token(TTL_S, HERE)
    rig.store.outcomes = outcomes
    assert isinstance(rig.take(token, second), m.Joined)
    assert rig.nodes() == {"first", "second"}


def test_without_the_metastore_nothing_is_promised_and_nothing_is_used_up(
    rig: Rig, second: Identity
) -> None:
    token = rig.door.make_token(TTL_S, HERE)
    rig.store.outcomes = ["unavailable"]
    with pytest.raises(MetaStoreUnavailable):
        rig.take(token, second)
    assert (rig.tokens(), rig.nodes()) == (1, {"first"})
    assert isinstance(rig.take(token, second), m.Joined)


def test_an_expired_token_is_refused(rig: Rig, second: Identity) -> None:
    token = rig.door.make_token(TTL_S, HERE)
    rig.clock.now += TTL_S
    refused = rig.take(token, second)
    assert isinstance(refused, m.Error)
    assert refused.text == "the token has expired"


def test_names_keys_and_ids_are_given_once(rig: Rig, second: Identity) -> None:
    token = rig.door.make_token(TTL_S, HERE)
    for who, why in (
        (replace(second, name="first"), "there is a node first already"),
        (replace(second, keys=rig.first.keys), "node first has the same key"),
        (replace(second, node_id=rig.first.node_id), "with another key"),
        (replace(second, name="a b"), "has a bad 'name'"),
    ):
        refused = rig.take(token, who)
        assert isinstance(refused, m.Error)
        assert refused.code == m.Code.REFUSED
        assert why in refused.text
    assert (rig.tokens(), rig.nodes()) == (1, {"first"})


# -- the way out


def test_a_node_that_volumes_need_is_not_removed(rig: Rig, second: Identity) -> None:
    rig.take(rig.door.make_token(TTL_S, HERE), second)
    node = second.node_id
    group = VolumeGroup(
        *("7" * 32, "vm1", 1, node, (node,), 1, 1, Mode.MIRROR, None, "main", GroupState.OPEN)
    )
    assert isinstance(rig.records.commit(rig.records.create_volume(group)), Done)
    with pytest.raises(NodeNeeded, match="node second is a member of volumes: vm1"):
        remove(rig.records, "second")
    stored = rig.records.volume_named("vm1")
    assert stored is not None
    assert isinstance(rig.records.commit(rig.records.delete_volume(stored)), Done)
    remove(rig.records, "second")
    assert rig.nodes() == {"first"}
    with pytest.raises(NoSuchNode, match="node second: there is none"):
        remove(rig.records, "second")


def test_a_node_that_uses_stripes_is_not_removed(rig: Rig, second: Identity) -> None:
    """Of its own volumes it would have nothing that is cold an hour later."""
    rig.take(rig.door.make_token(TTL_S, HERE), second)
    shards = ("7" * 32, "8" * 32, "9" * 32)
    row = PackRow(bytes(32), 100, (), shards, 2, 4096, bytes(16), users=(second.node_id,))
    rows = PackRecords(rig.records)
    assert rows.swap(replace(row, shards=()), row)
    with pytest.raises(
        NodeNeeded, match=r"has 0 shards of stripes, and finds chunks .* in 1 stripe"
    ):
        remove(rig.records, "second")
    unused = replace(row, users=())
    assert rows.swap(row, unused)
    remove(rig.records, "second")
    assert rig.nodes() == {"first"}


def test_a_node_with_shards_is_removed_only_as_lost(rig: Rig, second: Identity) -> None:
    rig.take(rig.door.make_token(TTL_S, HERE), second)
    device = Device("7" * 32, second.node_id, "s", "r", "h", 1)
    made = rig.records.put(None, DeviceMap(0, {}).add(device))
    assert isinstance(rig.records.commit(made), Done)
    row = PackRow(bytes(32), 100, (), ("7" * 32, "8" * 32, "9" * 32), 2, 4096, bytes(16))
    assert PackRecords(rig.records).swap(replace(row, shards=()), row)
    with pytest.raises(NodeNeeded, match="node second has 1 shards"):
        remove(rig.records, "second")
    remove(rig.records, "second", lost=True)
    assert rig.nodes() == {"first"}


# -- over sockets


class Gatehouse:
    """`rig` over real sockets; `lose` answers to JOIN are lost, as by a crash after the commit."""

    def __init__(self, rig: Rig, lose: int = 0) -> None:
        self.rig = rig
        self.lose = lose
        me = Me(rig.first.node, rig.first.cluster, rig.first.keys, "test")
        self.sessions = Sessions(me, QUICK, ask_gate=self._ask)
        self.addresses = (self.sessions.listen("127.0.0.1", 0),)
        self.sessions.serve(m.Join, self._join, guests=True)
        self.sessions.serve(m.Nodes, self._nodes)
        self.sessions.start()

    def _know(self) -> None:
        records = self.rig.records
        peers = []
        for each in records.nodes():
            node = each.record
            key = bytes.fromhex(node.public_key)
            peers.append(Peer(bytes.fromhex(node.node_id), node.name, key, node.addresses))
        guests = [Guest(bytes.fromhex(each.record.public_key)) for each in records.join_tokens()]
        self.sessions.know(peers, guests)

    def _ask(self, key: bytes) -> None:
        def look() -> None:
            self._know()
            self.sessions.admit(key)

        self.sessions.post(look)

    def _join(self, who: Peer | Guest, message: m.Request, answer: Answer) -> None:
        assert isinstance(message, m.Join)
        assert isinstance(who, Guest)
        reply = self.rig.door.take(who.key, message)
        if self.lose:
            self.lose -= 1
            self._know()  # the token's session ends
        else:
            answer(reply)

    def _nodes(self, who: Peer | Guest, message: m.Request, answer: Answer) -> None:
        assert isinstance(message, m.Nodes)
        found = list(self.rig.records.nodes())
        later = [each for each in found if bytes.fromhex(each.record.node_id) > message.after]
        answer(m.NodeList(tuple(each.row.value.decode() for each in later), 0))


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as made:
        yield made


def gatehouse(stack: ExitStack, rig: Rig, lose: int = 0) -> Gatehouse:
    made = Gatehouse(rig, lose)
    stack.callback(made.sessions.stop)
    return made


def test_a_node_joins_with_nothing_but_a_token(
    stack: ExitStack, rig: Rig, second: Identity
) -> None:
    door = gatehouse(stack, rig)
    token = parse_token(rig.door.make_token(TTL_S, door.addresses).text())
    record = join(token, second, HERE, "test")
    assert record == next(
        each.record for each in rig.records.nodes() if each.record.name == "second"
    )
    assert rig.tokens() == 0


def test_a_lost_answer_leaves_a_node_that_finds_out_that_it_has_joined(
    stack: ExitStack, rig: Rig, second: Identity
) -> None:
    door = gatehouse(stack, rig, lose=1)
    token = rig.door.make_token(TTL_S, door.addresses)
    assert join(token, second, HERE, "test").name == "second"
    assert join(token, second, HERE, "test").name == "second"  # the command, run again
    assert (rig.tokens(), rig.nodes()) == (0, {"first", "second"})


def test_a_token_that_was_used_lets_nobody_in(stack: ExitStack, rig: Rig, second: Identity) -> None:
    door = gatehouse(stack, rig)
    token = rig.door.make_token(TTL_S, door.addresses)
    join(token, second, HERE, "test")
    with pytest.raises(CannotJoin, match=r"the token (was|has been) used"):
        join(token, new_identity(CLUSTER, "third"), HERE, "test")
    assert rig.nodes() == {"first", "second"}


def test_a_refusal_is_told(stack: ExitStack, rig: Rig, second: Identity) -> None:
    door = gatehouse(stack, rig)
    token = rig.door.make_token(TTL_S, door.addresses)
    with pytest.raises(CannotJoin, match="there is a node first already; give another name"):
        join(token, replace(second, name="first"), HERE, "test")
    assert rig.tokens() == 1


def test_somebody_else_at_the_address_of_the_token_gets_nothing(
    stack: ExitStack, rig: Rig, second: Identity
) -> None:
    other = PeerNode("other")
    stack.callback(other.sessions.stop)
    other.sessions.start()
    token = rig.door.make_token(TTL_S, (other.address,))
    other.know([], [Guest(token.keys.public)])
    with pytest.raises(CannotJoin):
        join(replace(token, server_key=new_key_pair().public), second, HERE, "test", 0.5)
