"""The round of a node, over three stores: who joins, converts, leaves, moves; crashes anywhere."""

import contextlib
from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.sim.simdisk import PowerCut
from tests.stripe_nodes import COLD_S, CONDEMN_S, StripeCluster, StripeNode, content, striped
from transport.packrecords import PackRecords
from transport.packrow import PackRow
from transport.shardfile import ShardFile, copy_shard
from transport.shardserver import ShardServer
from volume.layout import KIND_DATA
from volume.stripedpack import StripeUnavailable

CHUNKS = 40


def data_bytes(cluster: StripeCluster) -> int:
    return len(cluster.chunks) * 4096


def shard_bytes(cluster: StripeCluster) -> int:
    return sum(
        row.shard_bytes * sum(each is not None for each in row.shards) for row in cluster.all_rows()
    )


# -- convert, join, leave


def test_cold_packs_become_stripes_and_all_members_let_their_copies_go() -> None:
    cluster = StripeCluster()
    before = [node.own_bytes() for node in cluster.nodes]
    cluster.rounds(1)
    assert cluster.all_rows() == []  # not cold yet
    cluster.rounds(4, COLD_S)
    rows = cluster.all_rows()
    assert len(rows) == 3
    for row in rows:
        assert set(row.users) == {node.id for node in cluster.nodes}
        assert (row.copies, row.coming, row.owner, row.removing) == ((), (), "", False)
        assert set(row.shards) == {node.id for node in cluster.nodes}
    for node, size in zip(cluster.nodes, before, strict=True):
        assert node.own_bytes() < size / 4
    assert shard_bytes(cluster) < 1.9 * data_bytes(cluster)  # few entries cannot be cut evenly
    cluster.check()
    assert [node.striper.counters.converted for node in cluster.nodes] == [3, 0, 0]


def test_packs_are_left_alone_unless_that_is_wanted() -> None:
    cluster = StripeCluster()
    for node in cluster.nodes:
        node.pace = replace(node.pace, convert=False)
        node.crash()
    cluster.rounds(4, COLD_S)
    assert cluster.all_rows() == []


def reading(cluster: StripeCluster) -> None:
    """Packs that clients read are not left to stripes for so long."""
    for node in cluster.nodes:
        node.pace = replace(node.pace, unread_s=2 * COLD_S)
        node.crash()
    cluster.rounds(1)


def test_a_pack_that_clients_read_stays_a_copy_until_they_have_stopped() -> None:
    cluster = StripeCluster()
    reading(cluster)
    node = cluster.nodes[0]
    read, *_ = node.packs.sealed()
    before = node.own_bytes()
    for _ in range(4):
        node.reads = {read}
        cluster.rounds(1, COLD_S)
    assert read in node.packs.sealed()
    cluster.check()
    node.reads = set()
    cluster.rounds(8, COLD_S)
    assert read not in node.packs.sealed()
    assert node.own_bytes() < before / 4
    cluster.check()


def test_what_a_node_reads_it_does_not_leave_to_the_stripes_of_others() -> None:
    """They pack for themselves, and read nothing."""
    cluster = StripeCluster()
    reading(cluster)
    node, *others = cluster.nodes
    node.reads = set(node.packs.sealed())
    before = node.own_bytes()
    cluster.rounds(6, COLD_S)
    assert cluster.all_rows()
    assert node.own_bytes() == before
    assert node.home.stubs() == []
    assert all(each.own_bytes() < before / 4 for each in others)
    node.reads = set()
    cluster.rounds(8, COLD_S)
    assert node.own_bytes() < before / 4
    cluster.check()


def test_who_does_not_want_stripes_keeps_its_copies_when_others_make_some() -> None:
    cluster = StripeCluster()
    third = cluster.nodes[2]
    third.pace = replace(third.pace, convert=False)
    third.crash()
    before = third.own_bytes()
    cluster.rounds(1)
    cluster.rounds(4, COLD_S)
    assert {row.users for row in cluster.all_rows()} == {tuple(n.id for n in cluster.nodes[:2])}
    assert third.home.stubs() == []
    assert third.own_bytes() == before
    assert third.shards() == 3
    cluster.check()


def test_with_two_nodes_packs_stay_copies_and_it_is_said() -> None:
    cluster = StripeCluster(2)
    cluster.rounds(4, COLD_S)
    assert cluster.all_rows() == []
    assert "stripes begin with 3" in cluster.nodes[0].striper.state.problems["stripes"]


def test_the_next_node_converts_what_the_first_one_cannot() -> None:
    cluster = StripeCluster(4)
    first = cluster.nodes[0]
    cluster.away.add(first.id)
    cluster.map = cluster.map.fail(first.id)
    cluster.rounds(1)
    cluster.rounds(4, COLD_S)
    assert [node.striper.counters.converted for node in cluster.nodes] == [0, 3, 0, 0]
    cluster.check()


def test_nothing_is_dropped_before_it_was_read_through_the_stripe() -> None:
    cluster = StripeCluster()
    cluster.rounds(1)
    second = cluster.nodes[1]
    cluster.now += COLD_S
    cluster.nodes[0].striper.round()
    # All shards of one stripe are damaged in a way that only their readers see.
    row = cluster.all_rows()[0]
    for node in cluster.nodes[1:]:
        for number in range(3):
            path = row.name(number).path
            if path.removeprefix("shards/") in node.disk.list("shards"):
                file = node.disk.open(path)
                file.pwrite(bytes(64), file.size() - row.shard_bytes)
    second.striper.round()
    assert row.pack_id not in {stub.pack_id for stub in second.home.stubs()}
    assert len(second.home.stubs()) == 2
    assert second.striper.counters.failed == 2  # nor can its own shard be made again
    second.collect()
    second.check()


def test_a_chunk_that_was_damaged_in_the_pack_is_not_looked_for_in_its_stripe() -> None:
    """It was stored anew by a repair: that copy is the only whole one of this node."""
    cluster = StripeCluster()
    cluster.rounds(1)
    node = cluster.nodes[0]
    number = node.packs.sealed()[0]
    rotten, place = next(each for each in node.packs.footer(number) if each[1].kind == KIND_DATA)
    file = node.disk.open(f"packs/{number:08x}.pack")
    file.pwrite(b"\xff" * 64, place.offset + place.stored_length - 64)
    node.store.note_damage(rotten)
    node.store.put(next(content(at) for at, each in node.ids() if each == rotten))
    node.store.sync()
    node.packs.seal()
    cluster.rounds(6, COLD_S)
    assert node.striper.counters.converted == 3
    assert len(node.home.stubs()) == 3
    found = node.index.get(rotten)
    assert found is not None
    assert found.pack not in node.packs.striped
    cluster.check()


def test_without_room_beside_the_reserve_packs_stay_copies() -> None:
    cluster = StripeCluster()
    cluster.rounds(1)
    node = cluster.nodes[0]
    node.server = ShardServer(node.disk, bytes.fromhex(node.id), node.disk.free_bytes())
    node.striper = node.make_striper()
    cluster.now += COLD_S
    node.striper.round()
    assert cluster.all_rows() == []
    assert "would be left" in next(iter(node.striper.state.problems.values()))


def test_a_stripe_with_a_shard_away_is_not_joined_yet() -> None:
    cluster = StripeCluster()
    cluster.rounds(1)
    cluster.now += COLD_S
    first, second, third = cluster.nodes
    first.striper.round()
    cluster.away.add(third.id)
    second.striper.round()
    assert second.home.stubs() == []
    assert "copies stay" in next(iter(second.striper.state.problems.values()))
    cluster.away.clear()
    second.striper.round()
    assert len(second.home.stubs()) == 3


def test_a_node_without_any_of_the_chunks_is_no_user_and_has_shards() -> None:
    cluster = StripeCluster()
    fourth = cluster.add()
    cluster.rounds(1)
    cluster.rounds(4, COLD_S)
    assert fourth.home.stubs() == []
    assert all(fourth.id not in row.users for row in cluster.all_rows())
    assert fourth.shards() > 0
    cluster.check()


def test_what_nothing_needs_any_more_goes_on_all_nodes() -> None:
    cluster = striped()
    for node in cluster.nodes:
        node.trim(0, CHUNKS)
    cluster.rounds(2)
    assert all(row.users == () for row in cluster.all_rows())
    assert all(node.home.stubs() == [] for node in cluster.nodes)
    assert all(node.shards() == 3 for node in cluster.nodes)  # condemned
    cluster.rounds(3, CONDEMN_S)
    assert cluster.all_rows() == []
    assert [node.shards() for node in cluster.nodes] == [0, 0, 0]


def test_what_one_node_still_needs_stays() -> None:
    cluster = striped()
    for node in cluster.nodes[:2]:
        node.trim(0, CHUNKS)
    cluster.rounds(4, CONDEMN_S)
    assert {row.users for row in cluster.all_rows()} == {(cluster.nodes[2].id,)}
    cluster.check()


def test_a_little_that_is_left_is_a_copy_again_and_later_a_stripe() -> None:
    cluster = striped()
    for node in cluster.nodes:
        node.trim(0, CHUNKS - 12)
    cluster.rounds(8, CONDEMN_S / 2 + 1)
    cluster.check()
    assert cluster.all_rows() == []
    for node in cluster.nodes:
        node.packs.seal()
    cluster.rounds(8, COLD_S)
    cluster.check()
    assert shard_bytes(cluster) <= 2 * 12 * 4096 + 3 * 4096 * len(cluster.all_rows())


def test_nobody_joins_what_is_going() -> None:
    cluster = striped()
    for node in cluster.nodes:
        node.trim(0, CHUNKS)
    cluster.rounds(2)
    late = cluster.add()
    late.fill()  # the same data comes to a node that has not had it
    row = cluster.all_rows()[0]
    removing = replace(row, removing=True)
    assert cluster.rows.swap(row, removing)
    late.striper.round()
    assert row.pack_id not in {stub.pack_id for stub in late.home.stubs()}
    assert len(late.home.stubs()) == 2  # the others are needed again
    assert {row.users for row in cluster.all_rows()} == {(), (late.id,)}
    cluster.rounds(4, CONDEMN_S)
    assert row.pack_id not in {each.pack_id for each in cluster.all_rows()}
    cluster.check()


def test_who_was_removed_from_the_cluster_is_no_user() -> None:
    cluster = striped()
    gone = cluster.nodes.pop()
    cluster.away.add(gone.id)
    for node in cluster.nodes:
        node.trim(0, CHUNKS)
    cluster.rounds(4, CONDEMN_S)
    assert all(row.removing for row in cluster.all_rows())
    cluster.map = cluster.map.fail(gone.id)
    cluster.rounds(1)
    assert cluster.all_rows() == []


def test_a_node_that_the_row_has_forgotten_joins_again() -> None:
    cluster = striped()
    node = cluster.nodes[1]
    for row in cluster.all_rows():
        assert cluster.rows.swap(row, replace(row, users=(cluster.nodes[0].id,)))
    node.striper.round()
    assert all(node.id in row.users for row in cluster.all_rows())


def test_a_row_that_is_gone_is_told_and_its_shards_stay() -> None:
    cluster = striped()
    row = cluster.all_rows()[0]
    assert cluster.rows.swap(row, replace(row, shards=()))
    cluster.rounds(4, CONDEMN_S)
    node = cluster.nodes[0]
    assert "has no row" in node.striper.state.problems[row.pack_id.hex()]
    assert node.shards() == 3
    with pytest.raises(StripeUnavailable, match="no stripe of it"):
        node.check()
    assert cluster.rows.swap(replace(row, shards=()), row)
    cluster.rounds(1)
    cluster.check()


def test_shards_of_other_nodes_stay_when_the_metastore_has_forgotten_the_row() -> None:
    """Put back from a backup that is older than the stripe."""
    cluster = StripeCluster()
    other = cluster.add()  # has shards, and no stub
    cluster.rounds(1)
    cluster.rounds(4, COLD_S)
    rows = cluster.all_rows()
    had = other.shards()
    assert had > 0
    for row in rows:
        assert cluster.rows.swap(row, replace(row, shards=()))
    cluster.rounds(4, CONDEMN_S)
    assert other.shards() == had
    for row in rows:
        assert cluster.rows.swap(replace(row, shards=()), row)
    cluster.rounds(1)
    cluster.check()


def test_without_a_row_a_shard_stays_while_a_node_cannot_be_asked() -> None:
    cluster = striped()
    node = cluster.nodes[0]
    stray = node.server.names()[0]._replace(pack_id=bytes(32))
    node.disk.open(stray.path, create=True).close()
    cluster.away.add(cluster.nodes[2].id)
    cluster.rounds(4, CONDEMN_S)
    assert stray in node.server.names()
    cluster.away.clear()
    cluster.rounds(2, CONDEMN_S)
    assert stray not in node.server.names()


def test_shards_stay_that_an_older_row_does_not_name() -> None:
    """Put back from a backup that is older than their moves."""
    cluster = striped()
    old = cluster.all_rows()
    cluster.add()
    cluster.add()
    for node in cluster.nodes[:2]:
        cluster.map = cluster.map.drain(node.id)
    cluster.rounds(6, CONDEMN_S)
    moved = {row.pack_id: row for row in cluster.all_rows()}
    for row in old:
        assert moved[row.pack_id].shards != row.shards
        assert cluster.rows.swap(moved[row.pack_id], row)
    cluster.rounds(4, CONDEMN_S)
    for row in cluster.all_rows():
        assert cluster.rows.swap(row, moved[row.pack_id])
    cluster.rounds(1)
    cluster.check()


def test_a_shard_that_no_row_names_stays_while_the_one_of_its_number_is_damaged() -> None:
    """Left by a move that a crash ended, it may be the last whole one."""
    cluster = striped()
    node, other = cluster.nodes[0], cluster.add()
    cluster.rounds(1)
    name = node.server.names()[0]
    (row,) = [row for row in cluster.all_rows() if row.pack_id == name.pack_id]
    number = next(n for n in range(3) if row.shards[n] != node.id)
    stray, held = row.name(number), row.shards[number]
    (holder,) = [each for each in cluster.nodes if each.id == held]
    with contextlib.closing(ShardFile(holder.disk, stray)) as shard:
        copy_shard(shard, other.disk)
    file = holder.disk.open(stray.path)
    file.pwrite(b"\xff" * 10, file.size() - 4096)
    for _ in range(4):  # the others' rounds would make it again
        cluster.now += CONDEMN_S
        other.striper.round()
        assert stray in other.server.names()
    cluster.rounds(3, CONDEMN_S)
    assert stray not in other.server.names()
    assert stray in holder.server.names()
    cluster.check()


def test_who_comes_while_a_stripe_is_condemned_keeps_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even a node of which the one that condemns does not know yet."""
    cluster = striped()
    for node in cluster.nodes:
        node.trim(0, CHUNKS)
    cluster.rounds(2)
    first = cluster.nodes[0]
    first.striper.round()
    before = cluster.all_rows()
    cluster.now += CONDEMN_S
    late: list[StripeNode] = []
    find = PackRecords.swap

    def join_first(records: PackRecords, row: PackRow, after: PackRow) -> bool:
        if not late:
            late.append(cluster.add())
            late[0].fill()
            late[0].striper.round()
        return find(records, row, after)

    monkeypatch.setattr(PackRecords, "swap", join_first)
    first.striper.round()
    assert len(late[0].home.stubs()) == len(before)
    assert not any(row.removing for row in cluster.all_rows())
    late[0].check()


# -- devices


def test_with_a_node_away_everybody_reads() -> None:
    cluster = striped()
    cluster.away.add(cluster.nodes[1].id)
    cluster.check()
    assert cluster.nodes[0].striper.reads.counters.degraded > 0


def test_with_two_nodes_away_the_error_names_the_pack() -> None:
    cluster = striped()
    cluster.away.update(node.id for node in cluster.nodes[1:])
    with pytest.raises(StripeUnavailable, match="1 good shards, and it takes 2"):
        cluster.nodes[0].check()


def test_a_failed_device_is_built_again_on_the_one_that_has_room() -> None:
    cluster = striped()
    lost = cluster.nodes[2]
    cluster.away.add(lost.id)
    cluster.map = cluster.map.fail(lost.id)
    cluster.rounds(1)
    state = cluster.nodes[0].striper.state
    assert any("3 are needed" in text for text in state.problems.values())
    fourth = cluster.add()
    cluster.rounds(2)
    assert fourth.shards() == 3
    assert fourth.striper.counters.moved == 3
    assert all(lost.id not in row.shards for row in cluster.all_rows())
    assert cluster.nodes[0].striper.state.devices[lost.id].shards == 0
    cluster.check()
    cluster.away.add(cluster.nodes[1].id)  # and one more may be lost again
    cluster.check()


def test_a_drained_device_is_out_once_it_is_empty_and_its_files_go() -> None:
    cluster = striped()
    fourth = cluster.add()
    drained = cluster.nodes[1]
    cluster.map = cluster.map.drain(drained.id)
    cluster.rounds(3, CONDEMN_S)
    assert str(cluster.map.devices[drained.id].state) == "out"
    assert drained.shards() == 0
    assert fourth.shards() == 3
    cluster.check()


def test_damaged_and_lost_shards_are_made_again() -> None:
    cluster = striped()
    node = cluster.nodes[0]
    first, second, third = node.server.names()
    file = node.disk.open(first.path)
    file.pwrite(b"\xff" * 10, file.size() - 4096)
    node.server.remove(second.path)
    cluster.rounds(2)
    assert node.striper.counters.repaired == 2
    assert sorted(node.server.names()) == sorted([first, second, third])
    cluster.away.add(cluster.nodes[1].id)
    cluster.check()


def test_damage_in_different_places_of_all_shards_is_mended() -> None:
    cluster = striped()
    row = min(cluster.all_rows(), key=lambda each: each.pack_id)
    for at, node in enumerate(cluster.nodes):
        name = next(each for each in node.server.names() if each.pack_id == row.pack_id)
        file = node.disk.open(name.path)
        offset = file.size() - row.shard_bytes + at * 4096 + 100
        file.pwrite(bytes([file.pread(1, offset)[0] ^ 1]), offset)
    cluster.rounds(2)
    assert [node.striper.counters.repaired for node in cluster.nodes] == [1, 1, 1]
    assert [node.striper.upkeep.lacking for node in cluster.nodes] == [frozenset()] * 3
    for node in cluster.nodes:
        for name in node.server.names():
            with contextlib.closing(ShardFile(node.disk, name, uncached=True)) as shard:
                shard.verify()
    cluster.check()


def test_files_that_no_row_names_go_and_not_at_once() -> None:
    cluster = striped()
    node = cluster.nodes[0]
    name = node.server.names()[0]
    stray = name._replace(pack_id=bytes(32))
    for path in (stray.path, f"{stray.path}.new"):
        node.disk.open(path, create=True).close()
    cluster.rounds(2)
    assert stray in node.server.names()
    cluster.rounds(2, CONDEMN_S)
    assert stray not in node.server.names()
    assert node.server.unfinished() == []
    assert name in node.server.names()


# -- crashes


def one_life(cut: Callable[[StripeNode], None], victim: int, *, index: bool) -> bool:
    """Convert, join, trim and let go, with one node cut once; whether it was."""
    cluster = StripeCluster(chunks=13)
    node = cluster.nodes[victim]
    cluster.rounds(1)
    cut(node)
    hit = False

    def survive(step_s: float) -> None:
        nonlocal hit
        cluster.now += step_s
        for each in cluster.nodes:
            try:
                each.striper.quick()
                each.striper.round()
                each.collect()
            except PowerCut:
                assert each is node
                hit = True
                each.crash(index=index)
                cluster.check()

    for _ in range(4):
        survive(COLD_S)
    cluster.check()
    for row in cluster.all_rows():
        assert set(row.users) == {each.id for each in cluster.nodes}, (row.users, row.left)
    assert all(row.joining == row.copies == () for row in cluster.all_rows())
    assert len(cluster.all_rows()) >= 1
    for each in cluster.nodes:
        try:
            each.trim(0, 13)
        except PowerCut:
            hit = True
            each.crash(index=index)
            each.trim(0, 13)
    for _ in range(6):
        survive(CONDEMN_S)
    rows: list[PackRow] = cluster.all_rows()
    assert rows == []
    assert [each.shards() for each in cluster.nodes] == [0, 0, 0]
    assert all(each.server.unfinished() == [] for each in cluster.nodes)
    assert all(each.home.stubs() == [] for each in cluster.nodes)
    return hit


@pytest.mark.parametrize("victim", range(3))
def test_a_crash_after_any_change_of_a_row_loses_nothing(victim: int) -> None:
    at = 1
    while True:

        def cut(node: StripeNode, at: int = at) -> None:
            node.cut_at_swap = at

        if not one_life(cut, victim, index=at % 2 == 0):
            break
        at += 1
    assert at >= 3


@pytest.mark.parametrize("victim", [0, 1])
def test_a_crash_after_any_operation_of_the_disk_loses_nothing(victim: int) -> None:
    at = 1
    while one_life(lambda node, at=at: node.disk.crash_at(at), victim, index=at % 2 == 0):  # type: ignore[misc]
        at += 1
    assert at > 20
