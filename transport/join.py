"""How a node joins: a token, the door that takes it, and the node that shows it.

A *token* is a text for one node and a limited time. Its secret is a CURVE secret key that exists in
the token only; the cluster keeps the public key, as a row of the MetaStore. With it the token says
which cluster it is, and where, and with which key, a node of it listens: so both sides know each
other before the first message, and nothing else has to be copied.

    who joins                                  a node of the cluster
    1  keys and ids of its own, in node.json, synced (`joined` false)
    2  connects with the token's key           gate: the row join/<public key> is there
    3  JOIN {node, name, public key, ...}      4  one transaction: row of the token -> none,
                                                  none -> NodeRecord; durable
    6  node.json, synced (`joined` true)       5  JOINED

A crash or a lost answer before 4 leaves a token that can be used again; after 4 the token is gone
and the node is in the cluster. Who joins finds that out by trying again: when the token's key is
not known any more, it connects with its own key and asks for its record.
"""

import base64
import binascii
import struct
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Final, TypeVar

from native import crc32c
from transport.devicemap import MapRecords
from transport.errors import BadToken, CannotJoin, NodeNeeded, NoSuchNode
from transport.keys import KEY_BYTES, Identity, KeyPair, new_key_pair, pair_of
from transport.packrecords import PackRecords
from transport.peer import caller
from transport.peer import messages as m
from transport.peer.caller import Answered, Failed
from transport.sessions import JOIN_S, Me, Peer, Sessions, error
from transport.sockets import UNKNOWN_KEY
from volume.metastore import (
    ClusterRecords,
    Done,
    Lost,
    MetaStoreUnavailable,
    Stored,
    Transaction,
)
from volume.metastore_records import (
    MAX_ADDRESSES,
    ClusterRecord,
    CorruptRecord,
    GroupState,
    JoinRecord,
    NodeRecord,
    decode,
)

MARK: Final = "blockd-join-1-"
MAX_TOKEN_CHARS: Final = 4096
MAX_TOKENS: Final = 64  # that nobody has used; each key that knocks may be one of them
MIN_TTL_S: Final = 60
MAX_TTL_S: Final = 30 * 86400
TIMEOUT_S: Final = 20.0
TRIES: Final = 3  # of a transaction whose answer is lost
_HEAD: Final = struct.Struct(f"<16s 16s {KEY_BYTES}s {KEY_BYTES}s Q B")
_CRC: Final = struct.Struct("<I")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Token:
    """What one node needs to join. Its text is as secret as a password, until it is used."""

    cluster: bytes
    node: bytes
    """That listens at..."""
    addresses: tuple[str, ...]
    server_key: bytes
    """...with this public key."""
    keys: KeyPair
    """To be shown there."""
    expires_s: int
    """Since 1970."""

    def text(self) -> str:
        fields = (self.cluster, self.node, self.server_key, self.keys.secret, self.expires_s)
        data = _HEAD.pack(*fields, len(self.addresses))
        for address in self.addresses:
            data += bytes([len(address)]) + address.encode("ascii")
        data += _CRC.pack(crc32c(data))
        return MARK + base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def parse_token(text: str) -> Token:
    """A token from its text. BadToken."""
    text = text.strip()
    if not text.startswith(MARK):
        raise BadToken(f"it does not begin with {MARK}")
    body = text[len(MARK) :]
    if len(text) > MAX_TOKEN_CHARS:
        raise BadToken("it is too long")
    try:
        data = base64.b64decode(body + "=" * (-len(body) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise BadToken("it has other characters than a token has") from None
    end = len(data) - _CRC.size
    if end < _HEAD.size or _CRC.unpack_from(data, end)[0] != crc32c(data[:end]):
        raise BadToken("it is not whole")
    cluster, node, server_key, secret, expires_s, count = _HEAD.unpack_from(data)
    addresses = []
    at = _HEAD.size
    for _ in range(count):
        length = data[at] if at < end else 0
        address = data[at + 1 : min(at + 1 + length, end)]
        if len(address) != length or not length or not address.isascii():
            raise BadToken("it is not whole")
        addresses.append(address.decode())
        at += 1 + length
    if at != end or not 1 <= count <= MAX_ADDRESSES:
        raise BadToken("it is not whole")
    return Token(cluster, node, tuple(addresses), server_key, pair_of(secret), expires_s)


class Door:
    """The cluster's side: makes tokens and takes them. Its calls wait for the MetaStore, and raise
    MetaStoreUnavailable and CorruptRecord."""

    def __init__(
        self, records: ClusterRecords, identity: Identity, clock_s: Callable[[], float] = time.time
    ) -> None:
        self._records = records
        self._identity = identity
        self._clock_s = clock_s

    def make_token(self, ttl_s: int, addresses: Sequence[str]) -> Token:
        """A token for a node that comes to `addresses` of this one within `ttl_s`; durable."""
        assert MIN_TTL_S <= ttl_s <= MAX_TTL_S
        self.sweep()
        open_tokens = sum(1 for _ in self._records.join_tokens())
        if open_tokens >= MAX_TOKENS:
            raise CannotJoin(f"{open_tokens} tokens wait to be used; let some of them expire")
        keys = new_key_pair()
        expires_s = int(self._clock_s()) + ttl_s
        invitation = JoinRecord(keys.public.hex(), expires_s)
        self._settled(self._records.invite(invitation))
        me = self._identity
        return Token(me.cluster, me.node, tuple(addresses), me.keys.public, keys, expires_s)

    def sweep(self) -> None:
        """Forget tokens that have expired."""
        for each in list(self._records.join_tokens()):
            if each.record.expires_s <= self._clock_s():
                self._settled(self._records.uninvite(each))

    def take(self, key: bytes, join: m.Join) -> m.Joined | m.Error:
        """The answer to JOIN of who has shown the token's `key`: JOINED only when both the end of
        the token and the node are durable, and again whenever it is asked again."""
        wanted = NodeRecord(
            join.node.hex(), join.name, tuple(join.addresses), join.public_key.hex()
        )
        token = self._records.join_token(key.hex())
        nodes = list(self._records.nodes())
        for each in nodes:
            if each.record.node_id == wanted.node_id:
                return self._joined(each, wanted)
        if refusal := self._refusal(token, wanted, nodes):
            return error(m.Code.REFUSED, refusal)
        assert token is not None
        try:
            outcome = self._settled(self._records.join_node(token, wanted))
        except CorruptRecord as problem:  # what it says of itself is out of bounds
            return error(m.Code.REFUSED, str(problem))
        stored = self._records.stored(NodeRecord, outcome.rows[1])
        if stored is None:
            return error(m.Code.REFUSED, "the token has been used by another node meanwhile")
        return self._joined(stored, wanted)

    def _refusal(
        self, token: Stored[JoinRecord] | None, wanted: NodeRecord, nodes: list[Stored[NodeRecord]]
    ) -> str | None:
        if token is None:
            return "the token was used"
        if token.record.expires_s <= self._clock_s():
            return "the token has expired"
        for each in nodes:
            if each.record.name == wanted.name:
                return f"there is a node {wanted.name} already; give another name"
            if each.record.public_key == wanted.public_key:
                return f"node {each.record.name} has the same key: its data directory was copied"
        return None

    def _joined(self, stored: Stored[NodeRecord], wanted: NodeRecord) -> m.Joined | m.Error:
        if stored.record.public_key != wanted.public_key:
            return error(m.Code.REFUSED, f"there is a node {wanted.node_id} with another key")
        return m.Joined(self._identity.cluster, stored.row.value.decode())

    def _settled(self, transaction: Transaction) -> Done | Lost:
        return settled(self._records, transaction)


def found(records: ClusterRecords, identity: Identity, addresses: Sequence[str]) -> None:
    """Make the cluster with `identity` as its first node; durable. Again with the same identity it
    does no harm. CannotJoin: there is another one; MetaStoreUnavailable, CorruptRecord."""
    me = identity
    node = NodeRecord(me.node_id, me.name, tuple(addresses), me.keys.public.hex())
    settled(records, records.found(ClusterRecord(me.cluster_id, 0), node))
    cluster = records.cluster()
    if cluster is None or cluster.record.cluster_id != me.cluster_id:
        raise CannotJoin(
            "etcd has a cluster under this prefix already: join it with a token of one of its "
            "nodes, or set cluster.prefix to another one"
        )
    mine = records.node(me.node_id)
    if mine is None or mine.record.public_key != node.public_key:
        raise CannotJoin(f"node {me.name} was removed from the cluster, or has another key there")


def remove(records: ClusterRecords, name: str, *, lost: bool = False) -> None:
    """Take a node out of the cluster: durable, and each other node learns of it. `lost`: also while
    volumes have it as a member; each gets another one in its place; and while it uses stripes,
    which go without it. NoSuchNode, NodeNeeded, MetaStoreUnavailable, CorruptRecord.

    Volumes are looked at before, not in the same transaction: whoever makes it a member at this
    very moment has one that nobody reaches, as after a failure of its machine."""
    node = next((each for each in records.nodes() if each.record.name == name), None)
    if node is None:
        raise NoSuchNode(name)
    groups = (each.record for each in records.volumes())
    needed = [
        each.name
        for each in groups
        if node.record.node_id in (*each.members, each.coming)
        and each.state is not GroupState.DELETED
    ]
    if needed and not lost:
        raise NodeNeeded(name, needed)
    using, shards = _stripes_of(records, node.record.node_id)
    if (using or shards) and not lost:
        raise NodeNeeded(name, [], using=using, shards=shards)
    if isinstance(settled(records, records.remove_node(node)), Lost):
        raise MetaStoreUnavailable(f"node {name} was changed meanwhile; say it again")


def _stripes_of(records: ClusterRecords, node_id: str) -> tuple[int, int]:
    """How many stripes a node finds chunks in, and how many shards are on devices of it."""
    found = MapRecords(records).read()
    devices = {} if found is None else found.record.devices
    own = {each.device_id for each in devices.values() if each.node_id == node_id}
    using = shards = 0
    for row in PackRecords(records).all():
        using += node_id in row.users
        shards += len(own.intersection(row.shards))
    return using, shards


def settled(records: ClusterRecords, transaction: Transaction) -> Done | Lost:
    """Commit, again when the answer was lost. MetaStoreUnavailable: it did not happen, or is not
    known to have."""
    outcome = records.settle(transaction, TRIES)
    if isinstance(outcome, (Done, Lost)):
        return outcome
    raise MetaStoreUnavailable(outcome.reason)


def join(
    token: Token,
    identity: Identity,
    addresses: Sequence[str],
    program: str,
    timeout_s: float = TIMEOUT_S,
) -> NodeRecord:
    """Have the cluster take the node `identity`, whose peers reach it at `addresses`; its record,
    as the cluster has it. Again with the same identity it does no harm. Waits, twice `timeout_s` at
    most. CannotJoin."""
    asked = m.Join(identity.node, identity.name, identity.keys.public, tuple(addresses))
    end = _ask(token, token.keys, Asking(identity.node, asked, program, timeout_s))
    if isinstance(end, Failed):
        if found := _already(token, identity, program, timeout_s):
            return found
        raise CannotJoin(f"the cluster has not taken node {identity.name}: {end.text}")
    assert isinstance(end.message, m.Joined)
    return _record(end.message.record, identity)


def _already(token: Token, identity: Identity, program: str, timeout_s: float) -> NodeRecord | None:
    """The node's record, if the cluster knows its own key by now."""
    before = (int(identity.node_id, 16) - 1) % (1 << 128)
    nodes = m.Nodes(before.to_bytes(16, "big"))
    end = _ask(token, identity.keys, Asking(identity.node, nodes, program, timeout_s))
    if isinstance(end, Failed):
        return None
    assert isinstance(end.message, m.NodeList)
    for text in end.message.records[:1]:
        return _record(text, identity)
    return None


def _record(text: str, identity: Identity) -> NodeRecord:
    try:
        return decode(NodeRecord, NodeRecord.prefix + identity.node_id, text.encode())
    except CorruptRecord as problem:
        raise CannotJoin(f"the cluster answered with what is no record: {problem}") from None


@dataclass(frozen=True, slots=True)
class Asking:
    """One request of a node that is not in the cluster yet."""

    node: bytes
    message: m.Request
    program: str
    timeout_s: float


def _ask(token: Token, keys: KeyPair, asking: Asking) -> Answered | Failed:
    """The end of a request in a session with the token's node, made with `keys`."""
    sessions = Sessions(Me(asking.node, token.cluster, keys, asking.program))
    door = Peer(token.node, "cluster", token.server_key, token.addresses)
    end: Future[Answered | Failed] = Future()

    def ended(outcome: Answered | Failed) -> None:
        if not end.done():
            end.set_result(outcome)

    def look(_: Peer, event: caller.Event) -> None:
        if isinstance(event, caller.Down) and event.text == UNKNOWN_KEY:
            ended(Failed(0, "it does not know the key: the token was used, or has expired"))

    def begin() -> None:
        sessions.watch(look)
        sessions.know([door])
        sessions.ask(door.node, asking.message, asking.timeout_s, ended)

    sessions.start()
    try:
        sessions.result_of(begin)
        return end.result(asking.timeout_s + JOIN_S)
    finally:
        sessions.stop()
