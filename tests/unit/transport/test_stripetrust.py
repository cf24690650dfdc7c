"""Which stripes writes may find their chunks in, over three stores: none that may be lost."""

from dataclasses import replace

import pytest

from tests.stripe_nodes import COLD_S, StripeCluster, StripeNode, content
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
    cluster = StripeCluster()
    striped_packs = cluster.nodes[0].home.striped
    striped_packs.suspect(None)
    assert striped_packs.trusted is None


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
