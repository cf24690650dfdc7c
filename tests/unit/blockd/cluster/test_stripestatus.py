"""What a node says of stripes, over three stores: true, and unknown where nobody knows (I10)."""

import errno
from typing import cast

from blockd.api.cluster_types import StripeCount
from blockd.cluster.stripestatus import StripeStatus
from tests.shard_nodes import over_the_wire
from tests.stripe_nodes import COLD_S, StripeCluster, StripeNode, striped
from transport.peer import messages as m
from transport.shardfile import ShardName
from transport.shardserver import ShardServer


def standing(node: StripeNode) -> StripeStatus:
    cluster = node.cluster
    return StripeStatus(
        node.striper,
        lambda: cluster.map,
        node.id,
        lambda: [each.id for each in cluster.nodes if each.id not in cluster.away],
        lambda device: node.disk_of(device, False) is not None,
    )


def answers(cluster: StripeCluster) -> dict[str, m.StripeStatus | str]:
    return {
        node.id: "not connected" if node.id in cluster.away else told(node)
        for node in cluster.nodes
    }


def told(node: StripeNode) -> m.StripeStatus:
    return cast(m.StripeStatus, over_the_wire(standing(node).told()))


def names(cluster: StripeCluster) -> dict[str, str]:
    return {node.id: f"n{node.number + 1}" for node in cluster.nodes}


def test_before_the_first_round_nothing_is_known() -> None:
    cluster = StripeCluster()
    found = standing(cluster.nodes[0]).shown(answers(cluster), names(cluster))
    assert (found.all, found.lost, found.listed_s, found.well) == (None, None, None, False)
    assert [each.cold_bytes for each in found.nodes] == [None] * 3
    assert standing(cluster.nodes[0]).here().states == {}


def test_of_a_node_that_has_not_looked_at_its_shards_nobody_can_tell() -> None:
    cluster = striped()
    for node in cluster.nodes[1:]:
        node.crash()
        assert told(node).listed_ms == m.NEVER_MS
    found = standing(cluster.nodes[0]).shown(answers(cluster), names(cluster))
    assert (found.unreadable, found.well) == (found.all, False)
    assert [each.broken for each in found.nodes] == [0, None, None]
    # Nor of one that does not list them: what it had read before counts for nothing.
    node = cluster.nodes[1]
    node.striper.round()
    assert told(node).listed_ms == 0
    node.server.names = dead  # type: ignore[method-assign]
    node.striper.round()
    assert told(node).listed_ms == m.NEVER_MS
    assert standing(node).here().broken is None


def dead() -> list[ShardName]:
    raise OSError(errno.EIO, "the disk is dead")


def test_metrics_count_a_node_as_away_that_has_not_said_how_its_shards_are() -> None:
    cluster = striped()
    cluster.nodes[2].crash()
    cluster.nodes[0].striper.round()
    assert standing(cluster.nodes[0]).here().states["degraded"].stripes == 3
    cluster.nodes[2].striper.round()
    cluster.nodes[0].striper.round()
    assert standing(cluster.nodes[0]).here().states["whole"].stripes == 3


def test_stripes_are_counted_and_all_is_well() -> None:
    cluster = striped()
    cluster.now += 3
    found = standing(cluster.nodes[0]).shown(answers(cluster), names(cluster))
    assert found.well
    assert found.listed_s == 3.0
    assert found.all is not None
    assert found.all.stripes == len(cluster.all_rows())
    assert found.all.bytes == sum(row.size for row in cluster.all_rows())
    assert found.shard_bytes == sum(3 * row.shard_bytes for row in cluster.all_rows())
    assert (found.cold_bytes, found.shards_left_s) == (0, 0.0)


def test_with_a_node_away_stripes_are_degraded_and_what_it_has_to_do_is_unknown() -> None:
    cluster = striped()
    cluster.away.add(cluster.nodes[2].id)
    found = standing(cluster.nodes[0]).shown(answers(cluster), names(cluster))
    assert found.degraded == found.all
    assert not found.well
    assert found.shards_left_s is None
    assert found.cold_left_s is None
    third = found.nodes[2]
    assert (third.answered, third.why, third.broken) == (False, "not connected", None)
    cluster.away.add(cluster.nodes[1].id)
    found = standing(cluster.nodes[0]).shown(answers(cluster), names(cluster))
    assert (found.unreadable, found.lost) == (found.all, found.given_up)
    states = standing(cluster.nodes[0]).here().states
    assert states["unreadable"] == found.all


def test_a_device_that_its_node_does_not_have_any_more_is_away_whatever_the_node_says() -> None:
    """Its disk was replaced by an empty one: of that it lacks nothing."""
    cluster = striped()
    cluster.not_there.add(cluster.nodes[2].id)
    found = standing(cluster.nodes[0]).shown(answers(cluster), names(cluster))
    assert (found.degraded, found.well) == (found.all, False)
    assert standing(cluster.nodes[0]).here().states["degraded"] == found.all
    cluster.not_there.add(cluster.nodes[1].id)
    found = standing(cluster.nodes[0]).shown(answers(cluster), names(cluster))
    assert found.unreadable == found.all


def test_what_another_node_lacks_on_its_device_is_known_here() -> None:
    cluster = striped()
    second, third = cluster.nodes[1:]
    (first_of_second, *_), (first_of_third, *_) = (
        sorted(each.server.names()) for each in (second, third)
    )
    assert first_of_second.pack_id == first_of_third.pack_id
    for node, name in ((second, first_of_second), (third, first_of_third)):
        node.disk.unlink(name.path)
    second.striper.round()
    third.striper.round()
    found = standing(cluster.nodes[0]).shown(answers(cluster), names(cluster))
    assert found.lost is not None
    assert found.lost.stripes == 1
    assert found.lost_packs == (first_of_second.pack_id.hex(),)
    assert [each.broken for each in found.nodes] == [0, 1, 1]
    assert found.rebuilds is not None
    assert found.rebuilds.stripes == 2
    assert found.shards_left_s is None  # nothing of it has succeeded
    assert told(second).lacking == (tuple(first_of_second),)
    # A node that cannot tell all of it is as one that tells nothing.
    more = {**answers(cluster), second.id: m.StripeStatus(*(0, "", *(0,) * 6), (), 1)}
    found = standing(cluster.nodes[0]).shown(more, names(cluster))
    assert found.unreadable is not None
    assert found.unreadable.stripes == 1
    assert found.nodes[1].broken is None


def test_what_is_to_come_has_a_rate_once_something_has_come() -> None:
    cluster = striped()
    lost = cluster.nodes[2]
    cluster.away.add(lost.id)
    cluster.map = cluster.map.fail(lost.id)
    fourth = cluster.add()
    # There is room for nothing: all has to come, and nobody can say how long that takes.
    fourth.server = ShardServer(fourth.disk, bytes.fromhex(fourth.id), fourth.disk.free_bytes())
    fourth.striper = fourth.make_striper()
    cluster.rounds(1)
    found = standing(cluster.nodes[0]).shown(answers(cluster), names(cluster))
    to_come = sum(row.shard_bytes for row in cluster.all_rows())
    assert (found.rebuilds, found.moves) == (StripeCount(3, to_come), StripeCount(0, 0))
    assert found.nodes[3].coming_bytes == to_come
    assert found.nodes[3].coming_left_s is None
    # Half of it comes in ten seconds.
    work = fourth.striper.coming
    cluster.now += 10
    work.did(work.left // 2)
    shown = standing(cluster.nodes[0]).shown(answers(cluster), names(cluster)).nodes[3]
    assert shown.coming_left_s is not None
    assert abs(shown.coming_left_s - 10) < 1


def test_cold_packs_wait_to_be_converted() -> None:
    cluster = StripeCluster(2)  # too few for stripes
    cluster.rounds(1)
    cluster.rounds(1, COLD_S)
    found = standing(cluster.nodes[0]).shown(answers(cluster), names(cluster))
    assert found.cold_bytes is not None
    assert found.cold_bytes > 0
    assert found.cold_left_s is None
    assert any("stripes begin with 3" in text for text in found.problems)


def test_metrics_count_what_this_node_has_done() -> None:
    cluster = striped()
    cluster.away.add(cluster.nodes[1].id)
    cluster.check()
    here = standing(cluster.nodes[0]).here()
    assert here.states["degraded"].stripes == 3
    assert here.done["convert"][0] == 3
    assert here.degraded_reads > 0
    assert (here.shards, here.broken) == (3, 0)


def test_metrics_of_each_node_count_what_other_nodes_lack() -> None:
    """No node lacks more than one shard, and the stripe is lost."""
    cluster = striped()
    row = cluster.all_rows()[0]
    for node in cluster.nodes[1:]:
        for name in node.server.names():
            if name.pack_id == row.pack_id:
                node.server.remove(name.path)
    cluster.rounds(2)
    for node in cluster.nodes:
        assert standing(node).here().states["lost"] == StripeCount(1, row.size)
