"""Stripes counted by how their shards are."""

from collections.abc import Mapping

from transport.devicemap import Device, DeviceMap
from transport.packrow import PackRow
from transport.peer import messages as m
from transport.shardfile import ShardName
from transport.stripetally import MAX_LOST, Count, Judge, State, tally, told_by

IDS = [f"{number:032x}" for number in range(1, 6)]


def device_map(*failed: str) -> DeviceMap:
    found = DeviceMap(0, {})
    for each in IDS[:4]:
        found = found.add(Device(each, each, "s", "r", f"h{each[-1]}", 1 << 30))
    for each in failed:
        found = found.fail(each)
    return found


def row(number: int = 1, **more: object) -> PackRow:
    made = PackRow(
        bytes([number]) * 32, 1000, shards=tuple(IDS[:3]), data=2, shard_bytes=500, digest=b"d" * 16
    )
    return PackRow(**{**{each: getattr(made, each) for each in made.__slots__}, **more})


def state(found: PackRow, *away: str, failed: tuple[str, ...] = (), lacking: int = 0) -> State:
    lacked = {IDS[number]: [found.name(number)] for number in range(lacking)}
    return judge(lacked, *away, failed=failed).state(found)


def judge(
    lacked: Mapping[str, list[ShardName]] | None = None, *away: str, failed: tuple[str, ...] = ()
) -> Judge:
    """Every node says what it lacks, but for those that are away."""
    told = {each: (lacked or {}).get(each, []) for each in IDS[:4] if each not in away}
    return Judge(device_map(*failed), told)


def test_a_stripe_is_as_good_as_its_shards() -> None:
    assert state(row()) is State.WHOLE
    assert state(row(), IDS[0]) is State.DEGRADED
    assert state(row(), IDS[0], IDS[1]) is State.UNREADABLE
    assert state(row(), IDS[3]) is State.WHOLE  # has none of it


def test_what_is_gone_for_good_is_told_from_what_is_away() -> None:
    assert state(row(), failed=(IDS[0],)) is State.DEGRADED
    assert state(row(), failed=(IDS[0], IDS[1])) is State.LOST
    assert state(row(), IDS[1], failed=(IDS[0],)) is State.UNREADABLE
    assert state(row(shards=(IDS[0], None, None))) is State.LOST
    unknown = row(shards=(IDS[0], None, IDS[4]))  # the map does not know one
    assert state(unknown) is State.UNREADABLE


def test_shards_that_their_node_lacks_are_gone_and_of_a_node_that_is_away_nobody_can_tell() -> None:
    assert state(row(), lacking=1) is State.DEGRADED
    assert state(row(), lacking=2) is State.LOST
    assert state(row(), IDS[0], IDS[1], lacking=2) is State.UNREADABLE


def test_a_device_that_cannot_be_reached_is_away_whatever_its_node_has_said() -> None:
    told = {each: frozenset[ShardName]() for each in IDS[:4]}
    found = Judge(device_map(), told, lambda device: device.device_id not in IDS[:2])
    assert found.state(row()) is State.UNREADABLE


def test_only_a_node_that_knows_all_that_it_lacks_has_said_so() -> None:
    lacking = ((*row().name(0),),)

    def status(listed_ms: int, *, more: int = 0) -> m.StripeStatus:
        return m.StripeStatus(listed_ms, "", *(0,) * 6, lacking, more)

    answers: dict[str, m.StripeStatus | str] = {
        IDS[0]: status(5),
        IDS[1]: status(m.NEVER_MS),
        IDS[2]: status(5, more=1),
        IDS[3]: "not connected",
    }
    assert told_by(answers) == {IDS[0]: {row().name(0)}}


def test_a_shard_of_another_code_of_the_pack_is_not_meant() -> None:
    other = ShardName(row().pack_id, 3, 2, 0)
    assert judge({IDS[0]: [other]}).state(row()) is State.WHOLE


def test_what_a_node_says_of_a_shard_that_has_moved_away_is_nothing_of_where_it_is_now() -> None:
    found = row()
    stale = {IDS[3]: [found.name(0), found.name(1)]}
    assert judge(stale).state(found) is State.WHOLE


def test_all_are_counted_once() -> None:
    rows = [
        row(1),
        row(2, removing=True),
        row(3, shards=(), coming=tuple(IDS[:3]), owner="o"),
        row(4, shards=(IDS[0], None, None)),
        row(5, shards=(IDS[0], None, None), given_up=True),
        row(6, shards=(IDS[0], IDS[1], None)),
        row(7, given_up=True),
    ]
    found = tally(rows, judge())
    assert {each: count.stripes for each, count in found.states.items()} == {
        State.WHOLE: 2,
        State.DEGRADED: 1,
        State.UNREADABLE: 0,
        State.LOST: 2,
    }
    assert (found.making, found.removing, found.given_up) == (Count(1, 1000),) * 3
    assert (found.stripes, found.bytes, found.shard_bytes) == (5, 5000, 500 * 10)
    assert found.lost == [bytes([4]) * 32, bytes([5]) * 32]


def test_not_more_than_so_many_packs_are_named() -> None:
    rows = [row(number, shards=(None,) * 3) for number in range(200)]
    found = tally(rows, judge())
    assert (len(found.lost), found.states[State.LOST].stripes) == (MAX_LOST, 200)
