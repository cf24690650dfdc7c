"""One node of a cluster inside the daemon: its identity, its sessions, what it answers.

    start   the identity is read, the peer port is bound, then peers and members have a thread each
    stop    peers are told good-bye, workers and etcd's connections end

Whatever else nodes do together plugs in here: handlers by `sessions.serve`, requests by
`sessions.ask` (all of that on the sessions' own thread), and `later` for answers that wait for a
disk or for etcd. What the daemon's users are told comes from any thread.
"""

import logging
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from blake3 import blake3

from blockd.access.book import Take
from blockd.access.rules import AccessList
from blockd.api.cluster_types import Draining, LocalStripes
from blockd.api.node import Store
from blockd.api.types import ClusterInfo, PeerInfo, TokenInfo
from blockd.cluster.chunkrepair import PeerRepair, answer_get, answer_get_at
from blockd.cluster.devices import Devices
from blockd.cluster.draining import drained, draining
from blockd.cluster.exports import advertised
from blockd.cluster.identity import node_identity
from blockd.cluster.lists import SharedLists
from blockd.cluster.membership import Members, Membership
from blockd.cluster.paths import VolumePaths
from blockd.cluster.readrepair import ReadRepair
from blockd.cluster.replacing import Replacing
from blockd.cluster.settings import Limits, SharedSettings
from blockd.cluster.stripeorders import StripeOrders
from blockd.cluster.stripes import Stripes
from blockd.cluster.volumes import ClusterVolumes
from blockd.config import ServeConfig
from blockd.doctor_etcd import etcd_settings
from transport.errors import TransportError
from transport.etcd.client import EtcdMetaStore
from transport.join import Door, remove
from transport.peer import messages as m
from transport.peer.wire import Message
from transport.sessions import Answer, Guest, Me, Peer, PeerState, Sessions, error
from volume.chunkrepair import ChunkRepair
from volume.errors import VolumeError
from volume.metastore import ClusterRecords
from volume.replicas import Replicas
from volume.stripehome import StripeHome

logger = logging.getLogger(__name__)

WORKERS: Final = 4  # threads for what waits: etcd, the store's status


class ClusterNode:
    """The node that the data directory of `config` is. ConfigError when it is none."""

    def __init__(
        self,
        config: ServeConfig,
        store: Store,
        replicas: Replicas,
        home: StripeHome,
        repair: ChunkRepair,
        version: str,
    ) -> None:
        """`replicas`, `home`, `repair`: those of `store`."""
        self.identity = node_identity(config)
        self.store = store
        self._config = config.cluster
        self._program = f"blockd {version}"
        self._started = time.monotonic()
        self._metastore = EtcdMetaStore(etcd_settings(config.cluster))
        self.records = ClusterRecords(self._metastore, lambda: os.urandom(16).hex())
        me = Me(self.identity.node, self.identity.cluster, self.identity.keys, self._program)
        self.sessions = Sessions(me, ask_gate=lambda key: self.membership.look(key))
        self.membership = Membership(
            self.records, self.identity, config.cluster.addresses, self._learn
        )
        self._door = Door(self.records, self.identity)
        self.paths = VolumePaths(
            *(self.records, replicas, self.identity.node_id, self._names), kept=store
        )
        self.volumes = ClusterVolumes(
            *(self.identity.node_id, self.sessions, self.records, replicas, self.info),
            store.status().journal_limit,
            self.paths,
        )
        self.stripes = Stripes(
            *(config, self.identity, self.sessions, self.records, home),
            *(self.info, store.damage_locations),
        )
        self.volumes.stripes = lambda info: self.stripes.status.look(self.sessions, info)
        self.volumes.devices = lambda: self.stripes.devices.known
        self.lists = SharedLists(self.records, replicas)
        self._chunk_repair = repair
        self._repairing = PeerRepair(repair, self.sessions, self.info)
        self._reads = ReadRepair(
            repair, self.sessions, self.membership.others, self._repairing.look
        )
        self._replacing = Replacing(
            *(self.identity.node_id, self.records, self.volumes, self.info),
            config.cluster.replace_after,
            lambda: self.stripes.devices.known,
        )
        self._take: Take = lambda volume, access, revision: None
        self.settings = SharedSettings(self.records, replicas, store)
        self._limits: Limits | None = None
        self.volumes.served_here = self._served_here
        self._workers = ThreadPoolExecutor(WORKERS, "blockd-cluster")
        self.listening: tuple[str, ...] = ()

    def start(self) -> None:
        """Bind the peer port and begin. CannotListen. etcd need not answer for that."""
        for address in self._config.listen:
            host = address.numeric
            assert host is not None  # `config.check` has seen to that
            self.listening += (self.sessions.listen(host, address.port),)
        sessions = self.sessions
        sessions.serve(m.Status, lambda _, __, answer: self.later(self._status, answer))
        sessions.serve(m.Nodes, self._nodes)
        sessions.serve(m.Get, self._get)
        sessions.serve(m.GetAt, self._get)
        sessions.serve(m.Join, self._join, guests=True)
        self.volumes.start()
        self.stripes.start()
        self.paths.start()
        sessions.start()
        self.membership.start()
        self.lists.start(self._take)
        if self._limits is not None:
            self.settings.start(self._limits)
        self._replacing.start()
        self._repairing.start()
        self._reads.start()
        facts = {"node": self.identity.name, "listen": ",".join(self.listening)}
        logger.info("node of a cluster", extra=facts)

    def hand_over(self) -> None:
        """Have other nodes serve what this one does, as far as they can. Waits."""
        self.volumes.hand_over()

    def stop(self) -> None:
        """Every request of ours and of others ends. Idempotent."""
        self._reads.stop()
        self._repairing.stop()
        self._replacing.stop()
        self.lists.stop()
        self.settings.stop()
        self.volumes.stop()
        self.stripes.stop()
        self.paths.stop()
        self.membership.stop()
        self.sessions.stop()
        self.volumes.close()
        self.stripes.close()
        self._workers.shutdown()
        self._metastore.close()

    @property
    def devices(self) -> Devices:
        return self.stripes.devices

    @property
    def stripe_orders(self) -> StripeOrders:
        return self.stripes.orders

    # -- for whoever plugs in

    def cut_with(self, cut: Callable[[str, str], None]) -> None:
        """Call this with a volume's name, and why, when its clients have to go. Any thread."""
        self.volumes.cut = cut

    def lists_with(self, take: Take) -> None:
        """Before `start`: call this with the access lists that other nodes give volumes."""
        self._take = take

    def limits_with(self, limits: Limits) -> None:
        """Before `start`: these limit clients here, and other nodes tell how."""
        self._limits = limits

    def _served_here(self) -> None:
        self.lists.look()
        self.settings.look()

    def share(self, volume: bytes, access: AccessList | None, expected: str | None) -> int | None:
        """See `blockd.access.book.Share`."""
        return self.lists.share(volume, access, expected)

    def advertise(self, nbd: Sequence[str], portals: Sequence[tuple[str, int]]) -> None:
        """Clients of this node are served at these addresses now: what other nodes are told. Those
        of iSCSI come with the number of their portal group."""
        self.paths.advertise(*advertised(self._config, nbd, portals))

    def work(self, call: Callable[[], None]) -> None:
        """Have `call`, which may wait, called by a worker. It must not raise."""
        self._workers.submit(call)

    def later(self, make: Callable[[], Message], answer: Answer) -> None:
        """Answer with what `make` gives, which may wait and raise; errors become ERROR FAILED."""

        def call() -> None:
            try:
                answer(make())
            except (VolumeError, TransportError, OSError) as problem:
                answer(error(m.Code.FAILED, str(problem)))
            except Exception as problem:  # of one request; the node goes on
                logger.exception("request of a peer failed")
                answer(error(m.Code.FAILED, f"{type(problem).__name__}: {problem}"))

        self.work(call)

    # -- what people are told; any thread, waits

    def info(self) -> ClusterInfo:
        """The nodes of the cluster, and how this one stands with them."""
        members = self.membership.members
        states = {each.peer.node: each for each in self.sessions.result_of(self.sessions.states)}
        sent = self.sessions.result_of(lambda: dict(self.sessions.sent))
        nodes = [self._shown(peer, states.get(peer.node)) for peer in members.peers]
        return ClusterInfo(
            cluster=self.identity.cluster_id,
            node=self.identity.node_id,
            name=self.identity.name,
            listen=self.listening,
            problem=members.problem,
            refused=self.sessions.refused,
            nodes=tuple(sorted(nodes, key=lambda each: each.name)),
            sent=tuple(sorted((m.name_of(kind), count) for kind, count in sent.items())),
        )

    def stripes_here(self) -> LocalStripes:
        """Stripes as this node knows them by itself."""
        return self.stripes.status.here()

    def make_token(self, ttl_s: int) -> TokenInfo:
        """A token for one node to join with. VolumeError, TransportError."""
        token = self._door.make_token(ttl_s, self._config.addresses)
        self.membership.look()
        return TokenInfo(token.text(), token.expires_s * 1_000_000_000)

    def remove(self, name: str, *, lost: bool = False) -> None:
        """Take a node out of the cluster. VolumeError, TransportError."""
        remove(self.records, name, lost=lost)
        self.membership.look()
        self._replacing.look()

    def drain(self, name: str, *, drain: bool) -> Draining:
        """Have all volumes get other members in the place of a node, or not any more; what is left
        of it. VolumeError, TransportError."""
        left = drained(self.records, name, drain=drain)
        self._replacing.look()
        return left

    def draining(self, name: str) -> Draining:
        """What is left of a drain. VolumeError."""
        return draining(self.records, name)

    def _shown(self, peer: Peer, state: PeerState | None) -> PeerInfo:
        me = peer.node == self.identity.node
        return PeerInfo(
            node=peer.node.hex(),
            name=peer.name,
            addresses=peer.addresses,
            me=me,
            connected=me or (state is not None and state.connected),
            since_s=time.monotonic() - self._started if state is None else state.since_s,
            reason="" if state is None else state.reason,
            slow=state is not None and state.slow,
            asks_us=state is not None and state.asks_us,
            unanswered=0 if state is None else state.unanswered,
        )

    def _names(self) -> dict[str, str]:
        return {each.record.node_id: each.record.name for each in self.membership.members.nodes}

    # -- members

    def _learn(self, members: Members, asked: frozenset[bytes]) -> None:
        def apply() -> None:
            self.sessions.know(members.peers, members.guests)
            for key in asked:
                self.sessions.admit(key)

        self.sessions.post(apply)

    # -- what it answers

    def _status(self) -> m.NodeStatus:
        status = self.store.status()
        return m.NodeStatus(
            state=status.state,
            program=self._program,
            uptime_s=int(time.monotonic() - self._started),
            volumes=status.volume_count,
            journal_bytes=status.journal_bytes,
            free_bytes=status.disk_free_bytes,
            nodes=_digest(self.membership.members),
        )

    def _get(self, who: Peer | Guest, message: m.Request, answer: Answer) -> None:
        match message:
            case m.Get():
                self.later(lambda: answer_get(self._chunk_repair, message), answer)
            case m.GetAt():
                self.later(lambda: answer_get_at(self._chunk_repair, message), answer)

    def _nodes(self, who: Peer | Guest, message: m.Request, answer: Answer) -> None:
        assert isinstance(message, m.Nodes)
        after = message.after.hex()
        behind = [each for each in self.membership.members.nodes if each.record.node_id > after]
        texts = tuple(each.row.value.decode() for each in behind[: m.MAX_NODES])
        answer(m.NodeList(texts, int(len(behind) > m.MAX_NODES)))

    def _join(self, who: Peer | Guest, message: m.Request, answer: Answer) -> None:
        assert isinstance(who, Guest)
        assert isinstance(message, m.Join)
        guest, join = who, message

        def take() -> Message:
            reply = self._door.take(guest.key, join)
            logger.info(
                "node joins" if isinstance(reply, m.Joined) else "node may not join",
                extra={"peer": join.name, "node": join.node.hex()},
            )
            return reply

        def answered(reply: Message) -> None:
            answer(reply)
            self.membership.look()  # the gate has to know the node's own key

        self.later(take, answered)


def _digest(members: Members) -> int:
    """Of all rows of nodes: the same where the same is known."""
    hashed = blake3()
    for each in members.nodes:
        hashed.update(each.row.value)
    return int.from_bytes(hashed.digest()[:8], "little")
