"""Which stripes writes may find their chunks in, over three stores: none that may be lost."""

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
