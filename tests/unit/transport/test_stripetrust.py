"""Which stripes writes may find their chunks in, over three stores: none that may be lost."""

import errno
from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.stripe_nodes import COLD_S, StripeCluster, StripeNode, content
from transport import stripetrust
from transport.devicemap import DeviceMap
from transport.packrow import PackRow
from transport.shardfile import ShardName
from transport.stripetally import Told
from volume.metastore import MetaStoreUnavailable
from volume.stripedpack import StripeUnavailable


def striped() -> StripeCluster:
    cluster = StripeCluster()
    cluster.rounds(1)
    cluster.rounds(4, COLD_S)
    return cluster


def trusted(node: StripeNode) -> set[bytes]:
    found = node.home.striped.trusted
    assert found is not None
    return {stub.pack_id for stub in node.home.stubs() if stub.number in found}


def every(cluster: StripeCluster) -> set[bytes]:
    return {row.pack_id for row in cluster.all_rows()}


def lose_shards(node: StripeNode, pack_id: bytes) -> None:
    for name in node.server.names():
        if name.pack_id == pack_id:
            node.server.remove(name.path)


def test_a_stripe_whose_shards_other_nodes_lack_is_not_trusted() -> None:
    cluster = striped()
    node, second, third = cluster.nodes
    assert trusted(node) == every(cluster)
    pack_id = min(every(cluster))
    lose_shards(second, pack_id)
    lose_shards(third, pack_id)
    for _ in range(2):  # they see it in one round, and this node in its next
        cluster.rounds(1)
    assert trusted(node) == every(cluster) - {pack_id}


def test_a_node_that_does_not_say_how_its_shards_are_is_away() -> None:
    cluster = striped()
    node, second, third = cluster.nodes
    node.striper.trust._ask = lambda: {second.id: frozenset()}
    cluster.rounds(1)
    assert trusted(node) == every(cluster)  # one of three may be away
    node.striper.trust._ask = dict
    node.striper.round()
    assert trusted(node) == set()
    assert third.id not in cluster.away


def test_when_a_node_goes_nothing_is_trusted_until_that_is_looked_at() -> None:
    cluster = striped()
    node, second, third = cluster.nodes
    cluster.away.update((second.id, third.id))
    node.striper.trust.node_gone()
    assert trusted(node) == set()
    chunk_id = dict(node.ids())[0]
    before = node.store.counters.duplicate_count
    assert node.store.put(content(0)) == chunk_id
    assert node.store.counters.duplicate_count == before  # stored anew, not found in the stripe
    node.striper.quick()
    assert trusted(node) == set()
    cluster.away.discard(second.id)
    node.striper.trust.node_gone()
    node.striper.quick()
    assert trusted(node) == every(cluster)


def test_a_read_that_lacks_shards_ends_the_trust_in_its_stripe_and_in_no_other() -> None:
    cluster = striped()
    node, second, third = cluster.nodes
    pack_id = min(every(cluster))
    lose_shards(second, pack_id)
    lose_shards(third, pack_id)
    node.striper.reads.forget(pack_id)
    stub = next(each for each in node.home.stubs() if each.pack_id == pack_id)
    places = ((each, node.index.get(each)) for _, each in node.ids())
    failed = 0
    for chunk_id, place in places:
        if place is not None and place.pack == stub.number:
            try:
                node.packs.striped.read(place, chunk_id)
            except StripeUnavailable:
                failed += 1
    assert failed
    assert trusted(node) == every(cluster) - {pack_id}


@pytest.mark.parametrize("all_of_them", [False, True])
def test_what_is_suspected_while_it_is_looked_at_stays_so(all_of_them: bool) -> None:
    cluster = striped()
    striped_packs = cluster.nodes[0].home.striped
    first, *others = striped_packs.numbers()
    striped_packs.begin_look()
    striped_packs.suspect(None if all_of_them else first)
    striped_packs.trust([first, *others])
    assert striped_packs.trusted == frozenset(() if all_of_them else others)
    striped_packs.begin_look()
    striped_packs.trust([first, *others])
    assert striped_packs.trusted == {first, *others}


def test_without_rounds_nothing_is_doubted() -> None:
    """On a node by itself."""
    cluster = StripeCluster()
    striped_packs = cluster.nodes[0].home.striped
    striped_packs.trusted = None
    striped_packs.suspect(None)
    assert striped_packs.trusted is None


# -- what came since the last round


def in_stripe(node: StripeNode, pack_id: bytes) -> list[int]:
    """Chunks that the node finds in that stripe."""
    stub = node.home.stub_of(pack_id)
    assert stub is not None
    places = ((number, node.index.get(chunk_id)) for number, chunk_id in node.ids())
    return [number for number, place in places if place and place.pack == stub.number]


def is_found(node: StripeNode, number: int) -> bool:
    """Whether a write of what is in a chunk, acknowledged just now, is taken for stored."""
    node.store.begin_batch()
    before = node.store.counters.duplicate_count
    node.store.put(content(number))
    return node.store.counters.duplicate_count > before


def change(cluster: StripeCluster, pack_id: bytes, **what: object) -> None:
    row = cluster.rows.read(pack_id)
    assert row is not None
    assert cluster.rows.swap(row, replace(row, **what))  # type: ignore[arg-type]


def give_up(cluster: StripeCluster, pack_id: bytes) -> None:
    change(cluster, pack_id, given_up=True)


def begin_to_remove(cluster: StripeCluster, pack_id: bytes) -> None:
    change(cluster, pack_id, removing=True, users=())


def fail_devices(cluster: StripeCluster, pack_id: bytes) -> None:
    for each in cluster.nodes[1:]:
        cluster.map = cluster.map.fail(each.id)


def lose_files(cluster: StripeCluster, pack_id: bytes) -> None:
    for each in cluster.nodes[1:]:
        lose_shards(each, pack_id)
    for each in cluster.nodes[1:]:
        each.striper.round()  # they see it


def cut_off(cluster: StripeCluster, pack_id: bytes) -> None:
    cluster.away.update(each.id for each in cluster.nodes[1:])


def replace_disks(cluster: StripeCluster, pack_id: bytes) -> None:
    """By empty ones, of which their nodes lack nothing."""
    cluster.not_there.update(each.id for each in cluster.nodes[1:])


def lose_etcd(cluster: StripeCluster, pack_id: bytes) -> None:
    def read(key: str) -> None:
        raise MetaStoreUnavailable("no quorum")

    cluster.records.store.read = read  # type: ignore[method-assign]


@pytest.mark.parametrize(
    "befalls",
    [give_up, begin_to_remove, fail_devices, lose_files, replace_disks, cut_off, lose_etcd],
)
def test_what_befalls_a_stripe_between_two_rounds_is_seen_before_a_write_hangs_on_it(
    befalls: Callable[[StripeCluster, bytes], None],
) -> None:
    cluster = striped()
    node = cluster.nodes[0]
    pack_id = min(every(cluster))
    first, second = in_stripe(node, pack_id)[:2]
    assert is_found(node, first)
    befalls(cluster, pack_id)
    assert trusted(node) == every(cluster)  # its last round knows nothing of it
    assert not is_found(node, second)


def test_one_look_is_for_all_of_a_batch_and_one_row_for_all_of_a_stripe() -> None:
    cluster = striped()
    node = cluster.nodes[0]
    looks: list[float] = []
    rows: list[bytes] = []
    ask, read = node.striper.trust._ask, node.striper.rows.records.read

    def counted_ask() -> Told:
        looks.append(cluster.now)
        return ask()

    def counted_read(pack_id: bytes) -> PackRow | None:
        rows.append(pack_id)
        return read(pack_id)

    node.striper.trust._ask = counted_ask
    node.striper.rows.records.read = counted_read  # type: ignore[method-assign]
    node.store.begin_batch()
    for number, _ in node.ids():
        node.store.put(content(number))
    assert (len(looks), sorted(rows)) == (1, sorted(every(cluster)))
    node.store.begin_batch()  # with nothing that is in a stripe
    node.store.put(b"new" * 512)
    assert len(looks) == 1


def test_beyond_so_many_stripes_of_a_batch_what_is_found_there_is_stored_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cluster = striped()
    node = cluster.nodes[0]
    monkeypatch.setattr(stripetrust, "MAX_ROWS", 2)
    node.store.begin_batch()
    assert sorted(node.home.striped.doubts(number) for number in node.home.striped.numbers()) == [
        False,
        False,
        True,
    ]


def test_a_node_without_etcd_does_not_ask_for_it_at_each_batch() -> None:
    cluster = striped()
    node = cluster.nodes[0]
    tries = []

    def devices() -> DeviceMap:
        tries.append(cluster.now)
        raise MetaStoreUnavailable("no quorum")

    node.striper.trust._devices = devices
    (number, *_) = in_stripe(node, min(every(cluster)))
    for _ in range(3):
        assert not is_found(node, number)
        node.store.abandon()
    assert len(tries) == 1
    cluster.now += stripetrust.BLIND_S
    node.striper.trust._devices = lambda: cluster.map
    assert is_found(node, number)


# -- a node that has just been started


def test_a_node_that_has_not_looked_at_its_device_yet_says_nothing_of_it() -> None:
    cluster = striped()
    node, second, third = cluster.nodes
    pack_id = min(every(cluster))
    for each in (second, third):
        lose_shards(each, pack_id)
        each.crash()
    node.striper.round()
    assert trusted(node) == set()


def test_what_a_node_lacks_is_known_before_anything_of_its_first_round() -> None:
    """Others trust what it says as soon as it has read the rows, and a round may take hours."""
    cluster = striped()
    node = cluster.nodes[1]
    pack_id = min(every(cluster))
    lose_shards(node, pack_id)
    node.crash()
    said: list[frozenset[ShardName] | None] = []

    def ask() -> Told:
        said.append(node.striper.upkeep.lacking)
        return {}

    node.striper.trust._ask = ask
    node.striper.round()
    (lacking,) = said
    assert {name.pack_id for name in lacking or ()} == {pack_id}


def test_a_node_that_cannot_list_its_device_says_nothing_and_finds_nothing_in_stripes() -> None:
    cluster = striped()
    node, second, third = cluster.nodes

    def names() -> list[ShardName]:
        raise OSError(errno.EIO, "the disk is dead")

    for each in (second, third):
        each.server.names = names  # type: ignore[method-assign]
        each.striper.round()
    assert second.striper.upkeep.lacking is None
    assert "dead" in second.striper.state.problems["device"]
    node.striper.round()
    assert trusted(node) == set()


def stored_anew(cluster: StripeCluster, node: StripeNode, pack_id: bytes) -> set[int]:
    """A stripe is lost, and its chunks are written again here; those that only it had."""
    stub = next(each for each in node.home.stubs() if each.pack_id == pack_id)
    for each in cluster.nodes[1:]:
        lose_shards(each, pack_id)
    node.striper.reads.forget(pack_id)
    node.home.striped.suspect(None)
    found = set()
    for number, chunk_id in node.ids():
        place = node.index.get(chunk_id)
        assert place is not None
        if place.pack == stub.number:
            found.add(number)
            node.store.put(content(number))
    node.store.sync()
    return found


@pytest.mark.parametrize("joining", [True, False])
def test_what_was_stored_anew_is_not_looked_for_in_a_lost_stripe_when_etcd_goes_back(
    joining: bool,
) -> None:
    """To when this node was joining it, or did not use it: its copies would go to what is lost."""
    cluster = striped()
    node = cluster.nodes[0]
    row = min(cluster.all_rows(), key=lambda each: each.pack_id)
    assert stored_anew(cluster, node, row.pack_id)
    users = row.users if joining else tuple(each for each in row.users if each != node.id)
    now = cluster.rows.read(row.pack_id)
    assert now is not None
    assert cluster.rows.swap(now, replace(now, users=users, joining=(node.id,) if joining else ()))
    for _ in range(3):
        node.striper.round()
        node.collect()
        node.check()


def test_what_was_stored_anew_is_not_looked_for_in_a_lost_stripe_after_a_power_cut() -> None:
    """An index that is made anew takes the pack with the higher number, and the one that is
    appended to may have been begun before the stub."""
    cluster = StripeCluster()
    cluster.rounds(1)
    node = cluster.nodes[0]
    node.store.put(b"something" * 512)  # a pack is open when the stubs come
    node.store.sync()
    cluster.rounds(4, COLD_S)
    pack_id = min(every(cluster))
    assert stored_anew(cluster, node, pack_id)
    node.check()
    node.crash(index=False)
    node.check()
