"""Rows made again, lost stripes named and given up, over three stores in this process."""

import errno
import random
from collections.abc import Iterable
from dataclasses import replace
from typing import cast

import pytest

from blockd.api.types import ClusterInfo, PeerInfo
from blockd.cluster import stripeorders
from blockd.cluster.stripeorders import CannotGiveUp, StripeOrders
from blockd.cluster.stripestatus import StripeStatus
from tests.shard_nodes import over_the_wire
from tests.stripe_nodes import CONDEMN_S, StripeCluster, StripeNode, content, striped
from transport.packrow import PackRow, rows_from
from transport.peer import messages as m
from transport.shardfile import ShardName
from transport.shardserver import ShardServer
from transport.striperebuild import FIRST, CannotRebuild, ShardFacts, ShardListing
from volume.damage import Damage
from volume.layout import PAGE_SIZE, ChunkId
from volume.locate import Location, NamedRoot, locate
from volume.stripedpack import StripeGivenUp, StripeUnavailable

CHUNKS = 40


class Orders:
    """Those of one node."""

    def __init__(self, node: StripeNode) -> None:
        self.node = node
        self.cluster = node.cluster
        self.status = self.status_of(node)
        self.orders = self.orders_of(node)

    def status_of(self, node: StripeNode) -> StripeStatus:
        return StripeStatus(
            node.striper,
            lambda: self.cluster.map,
            node.id,
            lambda: [each.id for each in self.cluster.nodes],
            lambda device: node.disk_of(device, False) is not None,
        )

    def orders_of(self, node: StripeNode) -> StripeOrders:
        return StripeOrders(
            *(node.striper, self.status_of(node), node.home, self.info, self.ask),
            *(self.look, self.locate, lambda: self.cluster.map, self.may_use),
        )

    def info(self) -> ClusterInfo:
        nodes = tuple(
            PeerInfo(
                *(each.id, f"n{each.number + 1}"),
                addresses=(),
                me=each is self.node,
                connected=each.id not in self.cluster.away,
                since_s=0.0,
                reason="",
                slow=False,
                asks_us=True,
                unanswered=0,
            )
            for each in self.cluster.nodes
        )
        return ClusterInfo("c" * 32, self.node.id, "n1", (), "", 0, nodes, ())

    def ask(self, node: str, request: m.ListShards) -> m.ShardList | str:
        found = next(each for each in self.cluster.nodes if each.id == node)
        told = self.orders_of(found).list_shards(cast(m.ListShards, over_the_wire(request)).after)
        return cast(m.ShardList, over_the_wire(told))

    def may_use(self, node: str, pack_id: bytes) -> bool:
        return next(each for each in self.cluster.nodes if each.id == node).striper.uses(pack_id)

    def look(self, info: ClusterInfo) -> dict[str, m.StripeStatus | str]:
        return {
            each.id: self.status_of(each).told()
            for each in self.cluster.nodes
            if each.id not in self.cluster.away
        }

    def locate(self, damages: Iterable[Damage]) -> Iterable[Location]:
        root = self.node.root
        assert root is not None
        named = NamedRoot("vm1", root.root, root.height, CHUNKS * 4096, 4096)
        return locate(self.node.store, self.node.manifests, damages, [named])


def forget(cluster: StripeCluster, rows: Iterable[PackRow]) -> None:
    """As etcd does that goes back to a state before they were made."""
    for row in rows:
        assert cluster.rows.swap(row, replace(row, shards=()))


def facts(row: PackRow) -> tuple[object, ...]:
    return row.pack_id, row.size, row.shards, row.data, row.shard_bytes, row.digest, set(row.users)


# -- rows


def test_rows_that_are_lost_are_made_again_and_all_is_read() -> None:
    cluster = striped()
    before = cluster.all_rows()
    forget(cluster, before)
    cluster.rounds(1)
    with pytest.raises(StripeUnavailable):
        cluster.check_reads()
    orders = Orders(cluster.nodes[0]).orders
    dry = orders.rebuild_rows(force=False, dry_run=True)
    assert (dry.made, dry.dry_run, cluster.all_rows()) == (3, True, [])
    done = orders.rebuild_rows(force=False, dry_run=False)
    assert (done.made, done.kept, done.too_few_count, done.away) == (3, 0, 0, ())
    assert list(map(facts, cluster.all_rows())) == list(map(facts, before))
    cluster.rounds(4, CONDEMN_S)
    cluster.check()
    assert orders.rebuild_rows(force=False, dry_run=False).kept == 3


def test_a_row_that_is_there_is_never_changed() -> None:
    cluster = striped()
    lost, *others = cluster.all_rows()
    forget(cluster, [lost])
    newer = replace(others[0], users=(cluster.nodes[0].id,), left=(cluster.nodes[1].id,))
    assert cluster.rows.swap(others[0], newer)
    done = Orders(cluster.nodes[1]).orders.rebuild_rows(force=True, dry_run=False)
    assert (done.made, done.kept) == (1, 2)
    assert newer in cluster.all_rows()


def test_a_row_that_comes_while_rows_are_made_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = striped()
    row = cluster.all_rows()[0]
    forget(cluster, [row])
    node = cluster.nodes[0]
    rows = node.striper.rows.records
    swap, mine = rows.swap, replace(row, users=(node.id,))

    def after_somebody(before: PackRow, after: PackRow) -> bool:
        assert cluster.rows.swap(before, mine)
        return swap(before, after)

    monkeypatch.setattr(rows, "swap", after_somebody)
    done = Orders(node).orders.rebuild_rows(force=False, dry_run=False)
    assert (done.made, done.kept) == (0, 3)
    assert mine in cluster.all_rows()


def test_with_a_node_away_rows_are_made_only_if_that_is_forced() -> None:
    cluster = striped(4)
    rows = cluster.all_rows()
    forget(cluster, rows)
    away = cluster.nodes[3]
    cluster.away.add(away.id)
    orders = Orders(cluster.nodes[0]).orders
    with pytest.raises(CannotRebuild, match=r"n4 \(not connected\).*--force"):
        orders.rebuild_rows(force=False, dry_run=False)
    assert cluster.all_rows() == []
    done = orders.rebuild_rows(force=True, dry_run=False)
    assert done.made == len(rows)
    assert done.away == ("n4 (not connected)",)
    for row in cluster.all_rows():
        assert away.id not in row.shards
        assert away.id in row.users  # nothing that it may need is let go
    for node in cluster.nodes[:3]:
        node.trim(0, CHUNKS)
    cluster.rounds(4, CONDEMN_S)
    assert len(cluster.all_rows()) == len(rows)
    cluster.away.clear()
    cluster.rounds(2)
    away.check()


def test_without_enough_shards_there_is_no_row_until_they_are_back() -> None:
    cluster = striped()
    rows = cluster.all_rows()
    forget(cluster, rows)
    cluster.away.update(node.id for node in cluster.nodes[1:])
    orders = Orders(cluster.nodes[0]).orders
    done = orders.rebuild_rows(force=True, dry_run=False)
    assert (done.made, done.too_few_count) == (0, 3)
    assert set(done.too_few) == {row.pack_id.hex() for row in rows}
    cluster.away.clear()
    assert orders.rebuild_rows(force=False, dry_run=False).made == 3
    cluster.rounds(1)
    cluster.check()


def test_stripes_that_nobody_needs_get_no_row() -> None:
    cluster = striped()
    for node in cluster.nodes:
        node.trim(0, CHUNKS)
    cluster.rounds(2)
    forget(cluster, cluster.all_rows())
    done = Orders(cluster.nodes[0]).orders.rebuild_rows(force=False, dry_run=False)
    assert (done.made, done.unused) == (0, 3)
    cluster.rounds(4, CONDEMN_S)
    assert [node.shards() for node in cluster.nodes] == [0, 0, 0]


def test_a_node_whose_stub_is_damaged_stays_a_user_of_the_rows_that_are_made() -> None:
    cluster = striped()
    rows = cluster.all_rows()
    node = cluster.nodes[1]
    stub = node.home.stub_of(rows[0].pack_id)
    assert stub is not None
    file = node.disk.open(f"packs/{stub.number:08x}.stripe")
    header = file.pread(1, 0)
    file.pwrite(b"x", 0)
    node.crash()
    assert (node.home.striped.unreadable, node.home.stub_of(stub.pack_id)) == (1, None)
    forget(cluster, rows)
    done = Orders(cluster.nodes[0]).orders.rebuild_rows(force=False, dry_run=False)
    assert (done.made, done.away) == (3, ())
    assert all(node.id in row.users for row in cluster.all_rows())
    cluster.rounds(4, CONDEMN_S)
    assert {row.pack_id for row in cluster.all_rows()} == {row.pack_id for row in rows}
    node.disk.open(f"packs/{stub.number:08x}.stripe").pwrite(header, 0)
    node.crash()
    cluster.rounds(2)
    cluster.check()


def test_a_damaged_file_is_counted_and_its_shard_is_computed_again() -> None:
    cluster = striped()
    forget(cluster, cluster.all_rows())
    node = cluster.nodes[1]
    name = node.server.names()[0]
    node.disk.open(name.path).pwrite(b"\xff" * 8, 0)
    done = Orders(cluster.nodes[0]).orders.rebuild_rows(force=False, dry_run=False)
    assert (done.made, done.damaged) == (3, 1)
    cluster.add()
    cluster.rounds(2)
    assert all(None not in row.shards for row in cluster.all_rows())
    cluster.check()


def test_a_device_with_two_shards_of_a_stripe_is_named_once() -> None:
    """One of them was left behind by a move."""
    cluster = striped(4)
    rows = cluster.all_rows()
    for row in rows:
        for number, device in enumerate(row.shards):
            source = next(node for node in cluster.nodes if node.id == device)
            data = source.disk.open(row.name(number).path)
            for node in cluster.nodes:
                if node.id != device:
                    copy = node.disk.open(row.name(number).path, create=True)
                    copy.pwrite(data.pread(data.size(), 0), 0)
                    copy.close()
    forget(cluster, rows)
    done = Orders(cluster.nodes[0]).orders.rebuild_rows(force=False, dry_run=False)
    assert done.made == len(rows)
    for row in cluster.all_rows():
        assert len(set(row.shards)) == 3
        assert None not in row.shards
    cluster.rounds(3, CONDEMN_S)
    cluster.check()
    assert sum(node.shards() for node in cluster.nodes) == 3 * len(rows)


def test_as_many_shards_are_named_as_devices_allow() -> None:
    """The first choice for one is the only one for another."""
    row = striped().all_rows()[0]
    facts = ShardFacts(row.pack_id, row.size, 2, 1, row.shard_bytes, row.digest)
    first, second, third = sorted(map(str, row.shards))
    files = [(first, facts, 0), (second, facts, 0), (first, facts, 1), (second, facts, 1)]
    made = rows_from([*files, (third, facts, 1), (first, facts, 2)])
    assert made[row.pack_id].shards == (second, third, first)
    assert rows_from([(first, facts, 0), (first, facts, 1)]) == {}


def test_shards_are_listed_page_by_page(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = striped()
    forget(cluster, cluster.all_rows())
    monkeypatch.setattr(m, "MAX_LISTED", 1)
    assert Orders(cluster.nodes[0]).orders.rebuild_rows(force=False, dry_run=False).made == 3
    cluster.rounds(1)
    cluster.check()


@pytest.mark.parametrize("count", [10, 40])
def test_a_folder_is_listed_once_for_all_pages_and_each_shard_is_opened_once(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(m, "MAX_LISTED", 4)
    server = ManyShards(count)
    listing = ShardListing(cast(ShardServer, server), lambda: server.packs)
    after, told, damaged = FIRST, list[bytes](), 0
    while True:
        page = listing.page(after)
        told += page.stubs
        damaged += page.damaged
        after = page.next
        if after == FIRST:
            break
    assert told == sorted(server.packs)
    assert (server.listed, server.opened, damaged) == (1, count, count)


def test_pages_are_of_one_listing_and_what_has_gone_since_is_not_damaged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(m, "MAX_LISTED", 1)
    cluster = striped()
    node = cluster.nodes[0]
    listing = ShardListing(node.server, lambda: [])
    first = listing.page(FIRST)
    for name in node.server.names():
        node.server.remove(name.path)
    second = listing.page(first.next)
    assert (second.shards, second.damaged, second.next > first.next) == ((), 0, True)
    assert listing.page(FIRST).next == FIRST  # who begins, begins with what is there
    assert listing.page(first.next).next == FIRST  # so does who comes with another one's page


class ManyShards:
    """A device with one shard of each pack, none of which can be opened; it counts."""

    def __init__(self, count: int) -> None:
        self.device = bytes(16)
        self.packs = [random.Random(number).randbytes(32) for number in range(count)]
        self.listed = self.opened = 0

    @property
    def disk(self) -> "ManyShards":
        return self

    def names(self) -> list[ShardName]:
        self.listed += 1
        return [ShardName(pack, 2, 1, 0) for pack in self.packs]

    def open(self, path: str, *, read_only: bool) -> None:
        self.opened += 1
        raise OSError(errno.EIO, path)


# -- what is lost


def lose(cluster: StripeCluster, *nodes: StripeNode) -> None:
    for node in nodes:
        cluster.away.add(node.id)
        cluster.map = cluster.map.fail(node.id)


def unreadable(node: StripeNode) -> dict[int, type[Exception]]:
    """Chunks of the volume that cannot be read, and what is said; none is ever wrong."""
    found: dict[int, type[Exception]] = {}
    for number, chunk_id in node.ids():
        try:
            assert node.store.get(chunk_id, verify=True) == content(number)
        except (StripeUnavailable, StripeGivenUp) as error:
            found[number] = type(error)
    return found


def test_what_is_lost_is_named_by_volume_and_range() -> None:
    cluster = striped()
    node = cluster.nodes[0]
    orders = Orders(node).orders
    assert orders.lost().stripes == ()
    lose(cluster, *cluster.nodes[1:])
    bad = unreadable(node)
    assert set(bad.values()) == {StripeUnavailable}
    found = orders.lost()
    assert len(found.stripes) == 3
    assert all(each.state == "lost" and not each.given_up for each in found.stripes)
    assert sum(each.chunks for each in found.stripes) == len(bad)
    assert found.stripes[0].users == ("n1", "n2", "n3")
    named = {
        (each.offset + at) // 4096
        for each in found.ranges
        for at in range(0, each.length, 4096)
        if each.name == "vm1"
    }
    assert named == set(bad)


def test_after_a_stripe_is_given_up_its_chunks_are_damage_and_nothing_waits() -> None:
    cluster = striped()
    node = cluster.nodes[0]
    orders = Orders(node).orders
    lose(cluster, *cluster.nodes[1:])
    bad = unreadable(node)
    some = next(iter(bad))
    chunk_id = dict(node.ids())[some]
    with pytest.raises(StripeUnavailable):  # the log is kept for it
        node.store.salvage(chunk_id, 4096)
    found = orders.give_up(None)
    assert all(each.given_up for each in found.stripes)
    assert unreadable(node) == dict.fromkeys(bad, StripeGivenUp)
    data, pages = node.store.salvage(chunk_id, 4096)
    assert (data, pages) == (bytes(4096), list(range(4096 // PAGE_SIZE)))
    # It is seen until it is overwritten, and then the stripe goes.
    cluster.rounds(2)
    assert [each.given_up for each in orders.lost().stripes] == [True] * 3
    shown = Orders(node).status.here().states
    assert (shown["lost"].stripes, shown["given_up"].stripes) == (3, 3)
    node.trim(0, CHUNKS)
    cluster.nodes = [node]  # the others were removed from the cluster
    cluster.rounds(6, CONDEMN_S)
    assert cluster.all_rows() == []
    assert orders.lost().stripes == ()


def test_what_is_written_again_is_stored_anew() -> None:
    cluster = striped()
    node = cluster.nodes[0]
    lose(cluster, *cluster.nodes[1:])
    bad = unreadable(node)
    Orders(node).orders.give_up(None)
    node.crash()  # nothing is remembered of what could not be read
    cluster.rounds(1)
    number = next(iter(bad))
    made: ChunkId = node.store.put(content(number))
    node.store.sync()
    assert node.store.get(made, verify=True) == content(number)
    assert number not in unreadable(node)


def test_what_would_be_given_up_is_what_was_named_and_no_other_is() -> None:
    cluster = striped()
    lose(cluster, *cluster.nodes[1:])
    orders = Orders(cluster.nodes[0]).orders
    first, *others = [row.pack_id.hex() for row in cluster.all_rows()]
    dry = orders.give_up([first[:12]], dry_run=True)
    assert [(each.pack, each.given_up) for each in dry.stripes] == [(first, False)]
    assert {each.pack for each in dry.ranges} == {first}
    assert not any(row.given_up for row in cluster.all_rows())
    done = orders.give_up([first[:12], first])  # twice is once
    assert [(each.pack, each.given_up) for each in done.stripes] == [(first, True)]
    assert [row.pack_id.hex() for row in cluster.all_rows() if row.given_up] == [first]
    dry = orders.give_up(None, dry_run=True)
    assert {each.pack for each in dry.stripes} == set(others)
    with pytest.raises(AssertionError):
        orders.give_up(())


def test_a_stripe_that_may_come_back_is_not_given_up() -> None:
    cluster = striped()
    node = cluster.nodes[0]
    cluster.away.update(each.id for each in cluster.nodes[1:])
    orders = Orders(node).orders
    pack = cluster.all_rows()[0].pack_id.hex()
    assert orders.give_up(None).stripes == ()
    with pytest.raises(CannotGiveUp, match="device fail"):
        orders.give_up([pack[:12]])
    with pytest.raises(CannotGiveUp, match="none is called so of those that cannot be read"):
        orders.give_up(["f" * 64])
    assert not any(row.given_up for row in cluster.all_rows())


def test_what_is_given_up_waits_all_the_same_for_a_shard_that_is_only_away() -> None:
    """Chunks are in one data shard each: with it back they are read without the others."""
    cluster = striped()
    node, second, third = cluster.nodes
    lose(cluster, second, third)
    orders = Orders(node).orders
    orders.give_up(None)
    lost = unreadable(node)
    cluster.away.add(node.id)  # the device of the one that is left
    reads = node.striper.reads
    for row in cluster.all_rows():
        reads.forget(row.pack_id)
    assert set(unreadable(node).values()) == {StripeUnavailable}
    cluster.away.discard(node.id)
    for row in cluster.all_rows():
        reads.forget(row.pack_id)
    assert unreadable(node) == lost


def test_a_stripe_that_was_given_up_and_is_back_is_read() -> None:
    cluster = striped()
    node = cluster.nodes[0]
    before = cluster.map
    lose(cluster, *cluster.nodes[1:])
    Orders(node).orders.give_up(None)
    assert unreadable(node)
    cluster.map = before  # etcd went back, say
    cluster.away.clear()
    cluster.rounds(1)
    for row in cluster.all_rows():
        node.striper.reads.forget(row.pack_id)
    assert unreadable(node) == {}


@pytest.mark.parametrize("few", [0, stripeorders.FEW])
def test_what_nodes_have_elsewhere_than_its_row_says_is_not_given_up(
    few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As etcd has it that went back to before the shards moved: their devices answer that they are
    not there, and all can be read once the row is made again."""
    monkeypatch.setattr(stripeorders, "FEW", few)  # told pack by pack, or all
    cluster = striped(5)
    node = cluster.nodes[0]
    row = cluster.all_rows()[0]
    idle = [each.id for each in cluster.nodes if each.id not in row.shards]
    stale = replace(row, shards=(row.shards[0], *idle))
    assert cluster.rows.swap(row, stale)
    for each in cluster.nodes:
        each.striper.upkeep.look({row.pack_id: stale})
    orders = Orders(node).orders
    assert row.pack_id.hex() in {each.pack for each in orders.lost().stripes}
    for packs in (None, (row.pack_id.hex(),)):
        with pytest.raises(CannotGiveUp, match="rebuild-rows"):
            orders.give_up(packs)
    assert not any(each.given_up for each in cluster.all_rows())
    forget(cluster, [stale])
    assert orders.rebuild_rows(force=False, dry_run=False).made == 1
    cluster.rounds(1)
    cluster.check_reads()


def test_what_a_node_that_is_away_may_have_is_not_given_up() -> None:
    """Its row was made again without it, so it does not name the node."""
    cluster = striped()
    node, second, third = cluster.nodes
    forget(cluster, cluster.all_rows())
    cluster.away.add(third.id)
    orders = Orders(node).orders
    assert orders.rebuild_rows(force=True, dry_run=False).made == 3
    lose(cluster, second)
    assert len(orders.lost().stripes) == 3
    with pytest.raises(CannotGiveUp, match="n3"):
        orders.give_up(None)
    assert not any(each.given_up for each in cluster.all_rows())
    cluster.map = cluster.map.fail(third.id)
    assert len(orders.give_up(None).stripes) == 3


def test_what_may_be_on_disks_that_were_taken_out_is_not_given_up() -> None:
    """Their nodes are there with empty ones, and the row, of an older state of etcd, names devices
    that have failed since."""
    cluster = striped(5)
    node = cluster.nodes[0]
    row = cluster.all_rows()[0]
    holders = [each for each in cluster.nodes if each.id in row.shards]
    idle = [each.id for each in cluster.nodes if each.id not in row.shards]
    assert cluster.rows.swap(row, replace(row, shards=(*idle, None)))
    for device in idle:
        cluster.map = cluster.map.fail(device)
    for each in holders:
        cluster.not_there.add(each.id)
        each.server.device = bytes([each.number + 100]) * 16
        for name in each.server.names():
            each.server.remove(name.path)
    orders = Orders(node).orders
    with pytest.raises(CannotGiveUp, match="is not there"):
        orders.give_up([row.pack_id.hex()])
    for each in holders:
        cluster.map = cluster.map.fail(each.id)
    assert len(orders.give_up([row.pack_id.hex()]).stripes) == 1


def test_damaged_shards_do_not_keep_a_stripe_from_being_given_up() -> None:
    """They are there by their headers, and nobody can read them."""
    cluster = striped()
    node = cluster.nodes[0]
    row = cluster.all_rows()[0]
    for each in cluster.nodes[1:]:
        name = next(n for n in each.server.names() if n.pack_id == row.pack_id)
        each.striper.upkeep._lacking.add(name, row.shard_bytes)
    found = Orders(node).orders.give_up(None)
    assert [each.pack for each in found.stripes] == [row.pack_id.hex()]


def test_a_row_that_changes_while_it_is_judged_is_not_given_up() -> None:
    cluster = striped(4)
    node = cluster.nodes[0]
    row = next(each for each in cluster.all_rows() if node.id in each.shards)
    lose(cluster, *(each for each in cluster.nodes[1:]))
    rig = Orders(node)
    ask = rig.info
    asked: list[PackRow] = []

    def info() -> ClusterInfo:
        now = cluster.rows.read(row.pack_id)
        assert now is not None
        asked.append(now)
        if len(asked) != 2:  # once: after it was judged
            return ask()
        spare = next(each.id for each in cluster.nodes if each.id not in now.shards)
        lost = next(n for n, each in enumerate(now.shards) if each not in (None, node.id, spare))
        cluster.rows.swap(now, now.moved(lost, spare))
        return ask()

    rig.info = info  # type: ignore[method-assign]
    with pytest.raises(CannotGiveUp, match="changes just now"):
        rig.orders_of(node).give_up((row.pack_id.hex(),))
    found = cluster.rows.read(row.pack_id)
    assert found is not None
    assert not found.given_up
