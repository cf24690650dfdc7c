"""Stripes in the daemon: this node's device and who asks for its shards, the rounds, and reads.

One thread makes the rounds of `transport.striping`, which wait for disks, etcd and other nodes; a
few answer what other nodes ask of the device. Neither is the sessions' own.
"""

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from blockd.api.types import ClusterInfo
from blockd.cluster.asking import ask_all
from blockd.cluster.devices import Devices, own_id
from blockd.cluster.stripeorders import Locate, StripeOrders
from blockd.cluster.stripestatus import StripeStatus
from blockd.config import ServeConfig
from transport.devicemap import Level
from transport.errors import TransportError
from transport.group.around import outcome
from transport.keys import Identity
from transport.packrecords import PackRecords
from transport.peer import caller
from transport.peer import messages as m
from transport.peer.wire import Message
from transport.remoteshards import DevicesThere, NoAnswer, RemoteDevice, refusal
from transport.sessions import Answer, Guest, Peer, Sessions, error
from transport.shardserver import ShardRequest, ShardServer
from transport.stripestate import StripePace, Surroundings
from transport.stripetally import Told, told_by
from transport.striping import Striper
from volume.disk import Disk, PosixDisk
from volume.errors import VolumeError
from volume.metastore import ClusterRecords
from volume.options import StoreOptions
from volume.stripehome import StripeHome

logger = logging.getLogger(__name__)

THREADS: Final = 4
READ_S: Final = 3.0
"""For a part of a shard; then it is decoded from others."""
WRITE_S: Final = 15.0
"""For a part of one, and for verifying and syncing all of it."""
TELL_S: Final = 5.0
MOST_S: Final = 60.0
LEAST_S: Final = 0.5
RETRY_S: Final = 5.0
REST: Final = 20
"""A node rests at least so many times as long as it took to list all rows."""
SERVED: Final = (m.PutShard, m.FinishShard, m.DropShard, m.GetShard, m.ListShards)


class Stripes:
    """`start` and `stop` as the node's; CorruptDevice, OSError when it is made."""

    def __init__(
        self,
        config: ServeConfig,
        identity: Identity,
        sessions: Sessions,
        records: ClusterRecords,
        home: StripeHome,
        info: Callable[[], ClusterInfo],
        locate: Locate,
    ) -> None:
        """`info` tells of the nodes; it waits. `locate`: which volumes need chunks."""
        disk = PosixDisk(config.data.absolute())
        self._me = identity.node_id
        self._sessions = sessions
        self._records = records
        self._home = home
        device = own_id(disk)
        reserve = config.store.reserve or StoreOptions().reserve_bytes
        self.server = ShardServer(disk, bytes.fromhex(device), reserve)
        self._names: dict[str, str] = {self._me: identity.name}
        self._connected: set[bytes] = set()
        self._there = DevicesThere(self._ask, READ_S)
        self._stopping = threading.Event()
        self._wake = threading.Event()
        cluster = config.cluster
        self.devices = Devices(
            cluster,
            (self._me, identity.name),
            device,
            disk.total_bytes(),
            records,
            lambda: self._names,
            lambda: self.striper.state,
        )
        pace = StripePace(
            convert=cluster.stripes,
            cold_s=cluster.cold_after_s,
            condemn_s=cluster.unused_after_s,
            level=Level(cluster.failure_domain.value),
            unread_s=(
                cluster.cold_after_s if cluster.cold_unread_s is None else cluster.cold_unread_s
            ),
        )
        self._every_s = max(LEAST_S, min(MOST_S, pace.cold_s / 4, pace.condemn_s / 4))
        self.striper = Striper(
            *(self._me, self.server, PackRecords(records), home),
            Surroundings(
                devices=self.devices.read,
                nodes=self._nodes,
                disk_of=self._disk_of,
                gone=self._gone,
                used=self._used,
                rank=self._rank,
                tell=self._tell,
                emptied=self.devices.emptied,
                told=self._lacking,
            ),
            pace,
            should_stop=self._stopping.is_set,
            wait=self._stopping.wait,
        )
        self.status = StripeStatus(
            self.striper,
            lambda: self.devices.known,
            self._me,
            lambda: [each.hex() for each in list(self._connected)],
            lambda device: self._disk_of(device, False) is not None,
        )
        self.orders = StripeOrders(
            self.striper,
            self.status,
            home,
            info,
            self._ask_for_shards,
            lambda found: self.status.ask(sessions, found),
            locate,
            self.devices.read,
            self._may_use,
        )
        self._workers = ThreadPoolExecutor(THREADS, "blockd-shards")
        self._thread = threading.Thread(target=self._run, name="blockd-stripes")

    def start(self) -> None:
        """Before the sessions are started."""
        for kind in SERVED:
            self._sessions.serve(kind, self._asked)
        self._sessions.serve(m.NewStripe, self._told)
        self._sessions.serve(m.Stripes, lambda _, __, answer: answer(self.status.told()))
        self._sessions.watch(self._heard_of)
        self._home.striped.trusted = frozenset()  # before the first round has looked
        self._home.striped.looks = self.striper.trust.begin
        self._home.striped.source = self.striper.reads
        self._thread.start()

    def stop(self) -> None:
        """Before the sessions are stopped. Idempotent."""
        self._stopping.set()
        self._wake.set()
        if self._thread.ident:
            self._thread.join()

    def close(self) -> None:
        """After the sessions have ended."""
        self._workers.shutdown()
        self._home.striped.source = None
        self.striper.reads.close()

    # -- the rounds

    def _run(self) -> None:
        entered = False
        due = time.monotonic()
        while not self._stopping.is_set():
            began = time.monotonic()
            try:
                if not entered:
                    self.devices.enter()
                    entered = True
                if began >= due:
                    self.striper.round()
                    rest_s = min(REST * self.striper.listed_s, MOST_S)
                    due = time.monotonic() + max(self._every_s, rest_s)
                else:
                    self.striper.quick()
            except (VolumeError, TransportError, OSError) as problem:
                logger.warning("stripes wait error=%s", problem)
                due = time.monotonic() + RETRY_S
            except Exception:  # the node goes on; the next round begins from rows and files
                logger.exception("round of the stripes failed")
                due = time.monotonic() + MOST_S
            self._wake.wait(max(0.0, due - time.monotonic()))
            self._wake.clear()

    # -- what the striper asks

    def _nodes(self) -> list[str]:
        nodes = [each.record for each in self._records.nodes()]
        self._names = {each.node_id: each.name for each in nodes}
        return [each.node_id for each in nodes]

    def _disk_of(self, device_id: str, writing: bool) -> Disk | None:
        device = self.devices.known.devices.get(device_id)
        if device is None or not device.readable:
            return None
        if device_id == self.devices.device_id:
            return self.server.disk
        node = bytes.fromhex(device.node_id)
        if node not in self._connected or not self._there.has(node, bytes.fromhex(device_id)):
            return None
        timeout_s = WRITE_S if writing else READ_S
        return RemoteDevice(self._ask, node, bytes.fromhex(device_id), timeout_s)

    def _gone(self, device_id: str) -> bool:
        device = self.devices.known.devices.get(device_id)
        return device is not None and not device.readable

    def _used(self, pack_id: bytes) -> bool:
        nodes = [self._me, *self._nodes(), *(each.hex() for each in list(self._connected))]
        return any(self._may_use(node, pack_id) for node in dict.fromkeys(nodes))

    def _may_use(self, node: str, pack_id: bytes) -> bool:
        """Whether a node finds chunks in a stripe, or may: it does not say, or has stubs of which
        it cannot be read what they are of."""
        if node == self._me:
            return self.striper.uses(pack_id)
        try:
            answer = self._ask(bytes.fromhex(node), m.NewStripe(pack_id), TELL_S)
        except OSError:
            return True
        return not isinstance(answer, m.ShardAck) or answer.size != 0

    def _lacking(self) -> Told:
        asked = {each.hex(): (each.hex(), m.Stripes()) for each in list(self._connected)}
        return told_by(ask_all(self._sessions, asked, m.StripeStatus))

    def _rank(self) -> int:
        return sum(node.hex() < self._me for node in list(self._connected))

    def _ask(self, node: bytes, message: m.Request, timeout_s: float) -> Message:
        """See `transport.remoteshards.AskShards`."""
        if node not in self._connected:
            raise NoAnswer(f"node {self._name(node)} is not connected")
        try:
            result = outcome(self._sessions.ask_and_wait(node, message, timeout_s))
        except TransportError as problem:
            raise NoAnswer(str(problem)) from problem
        if isinstance(result, m.Error):
            raise refusal(result)
        if isinstance(result, str):
            raise NoAnswer(f"node {self._name(node)}: {result}")
        return result

    def _ask_for_shards(self, node: str, request: m.ListShards) -> m.ShardList | str:
        asked = {node: (node, request)}
        return ask_all(self._sessions, asked, m.ShardList, WRITE_S)[node]

    def _name(self, node: bytes) -> str:
        return self._names.get(node.hex(), node.hex())

    def _tell(self, pack_id: bytes) -> None:
        def ask() -> None:
            for node in list(self._connected):
                try:
                    self._sessions.ask(node, m.NewStripe(pack_id), TELL_S, lambda result: None)
                except TransportError as problem:  # its next round sees it
                    logger.info("node is not told of a stripe error=%s", problem)

        self._sessions.post(ask)

    # -- the sessions' thread

    def _heard_of(self, peer: Peer, event: caller.Event) -> None:
        if isinstance(event, caller.Up):
            self._connected.add(peer.node)
            self._names = {**self._names, peer.node.hex(): peer.name}
        elif isinstance(event, caller.Down):
            self._connected.discard(peer.node)
            self._there.forget(peer.node)
            self.striper.trust.node_gone()
            self._wake.set()

    def _told(self, who: Peer | Guest, message: m.Request, answer: Answer) -> None:
        assert isinstance(message, m.NewStripe)
        self.striper.hint(message.pack)
        self._wake.set()
        answer(m.ShardAck(int(self.striper.uses(message.pack))))

    def _asked(self, who: Peer | Guest, message: m.Request, answer: Answer) -> None:
        assert isinstance(message, ShardRequest | m.ListShards)
        request = message

        def work() -> None:
            try:
                if isinstance(request, m.ListShards):
                    answer(self.orders.list_shards(request.after))
                else:
                    answer(self.server.answer(request))
            except Exception as problem:  # of one request; the node goes on
                logger.exception("request for a shard failed")
                answer(error(m.Code.FAILED, f"{type(problem).__name__}: {problem}"))

        self._workers.submit(work)
