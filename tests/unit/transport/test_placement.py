"""Placement: as even as the weights, one in each domain, and what a change of the map moves."""

import random
from collections import Counter
from collections.abc import Sequence
from math import sqrt

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.device_maps import TIB, device, device_id, even_map, map_of, pack_ids
from transport.devicemap import DeviceMap, Level
from transport.placement import Held, Placement, TooFewDomains

PACKS = pack_ids(20_000)
THOUSAND = map_of(
    device(n, n // 8, (1 + n % 7) * TIB, rack=n // 64, site=n // 500) for n in range(1000)
)
"""1,000 devices of 1 to 7 TiB, 8 in a host, 8 hosts in a rack, 2 sites."""


def chosen(
    devices: DeviceMap, count: int, level: Level = Level.HOST, packs: Sequence[bytes] = PACKS
) -> list[tuple[str, ...]]:
    return list(Placement(devices, level).choose_all(packs, count))


def moved(before: Sequence[Sequence[str]], after: Sequence[Sequence[str]]) -> list[tuple[str, str]]:
    """(from, to) of each shard that moved. At most one of a pack, or it is an error."""
    found = []
    for one, other in zip(before, after, strict=True):
        gone, come = set(one) - set(other), set(other) - set(one)
        assert len(gone) == len(come) <= 1
        found += list(zip(gone, come, strict=True))
    return found


# -- balance


def check_shares(shares: Counter[str], expected: dict[str, float]) -> None:
    """Each within 5 standard deviations of a binomial, and all together as chi-square says."""
    total = sum(shares.values())
    chi = 0.0
    for one, part in expected.items():
        variance = total * part * (1 - part)
        error = shares[one] - total * part
        assert abs(error) <= 5 * sqrt(variance), (one, shares[one], total * part)
        chi += error**2 / (total * part)
    degrees = len(expected) - 1
    assert abs(chi - degrees) <= 5 * sqrt(2 * degrees), chi


def test_a_thousand_devices_share_by_weight() -> None:
    packs = pack_ids(100_000, seed=1)
    shares = Counter(one for (one,) in chosen(THOUSAND, 1, Level.DEVICE, packs))
    total = sum(each.weight for each in THOUSAND.devices.values())
    check_shares(shares, {key: each.weight / total for key, each in THOUSAND.devices.items()})


def test_a_thousand_devices_in_equal_hosts_share_stripes_by_weight() -> None:
    # 125 hosts of 8 devices with 1 to 8 TiB: 8+3 shards, one in each host. In a host the devices
    # share by weight, and the hosts, which are equal, share equally.
    devices = map_of(device(n, n // 8, (1 + n % 8) * TIB) for n in range(1000))
    shares = Counter(one for stripe in chosen(devices, 11) for one in stripe)
    total = sum(each.weight for each in devices.devices.values())
    for key, each in devices.devices.items():
        part = 11 * each.weight / total  # of the packs that have a shard here
        error = shares[key] - len(PACKS) * part
        assert abs(error) <= 5 * sqrt(len(PACKS) * part * (1 - part))


def test_packs_whose_ids_count_up_share_as_well() -> None:
    devices = even_map(50)
    packs = [number.to_bytes(8, "little") + bytes(24) for number in range(50_000)]
    shares = Counter(one for (one,) in chosen(devices, 1, packs=packs))
    check_shares(shares, dict.fromkeys(devices.devices, 1 / 50))


# -- domains


def without(devices: DeviceMap, *numbers: int) -> DeviceMap:
    for number in numbers:
        devices = devices.drain(device_id(number))
    return devices


@pytest.mark.parametrize(("level", "count"), [(Level.HOST, 20), (Level.RACK, 11), (Level.SITE, 2)])
def test_no_domain_has_two_shards_of_a_pack(level: Level, count: int) -> None:
    for stripe in chosen(THOUSAND, count, level, PACKS[:5000]):
        domains = {THOUSAND.device(one).domain(level) for one in stripe}
        assert len(domains) == count


def test_too_few_domains_are_told_before_anything_is_placed() -> None:
    devices = even_map(5, 4)
    assert len(Placement(devices).choose(PACKS[0], 5)) == 5
    with pytest.raises(TooFewDomains, match="5 hosts have a device that is in, and 6 are needed"):
        Placement(devices).choose(PACKS[0], 6)
    with pytest.raises(TooFewDomains, match="4 hosts"):
        Placement(without(devices, 0, 1, 2, 3)).choose(PACKS[0], 5)


# -- what moves


def check_ideal(count: int, part: float, total: int) -> None:
    """`count` moves of `total` shards, of which `part` is ideal: within 10 %, which 5 standard
    deviations of the draw are below."""
    assert 5 * sqrt(part * (1 - part) / total) < 0.1 * part, "more packs are needed to tell"
    assert abs(count / total - part) <= 0.1 * part


@pytest.mark.parametrize("width", [1, 3, 6])
def test_a_new_device_takes_its_share_and_nothing_else_moves(width: int) -> None:
    packs = pack_ids(60_000, seed=width)
    before = even_map(19)
    after = before.add(device(100, 100))
    moves = moved(chosen(before, width, packs=packs), chosen(after, width, packs=packs))
    assert {target for _, target in moves} == {device_id(100)}
    check_ideal(len(moves), 1 / 20, width * len(packs))


def test_a_node_added_to_a_thousand_devices_takes_its_share() -> None:
    ids = random.Random(1).randbytes(32 * 130_000)
    packs = [ids[at : at + 32] for at in range(0, len(ids), 32)]
    before, node = even_map(50, 20), [device(1000 + n, 50) for n in range(20)]
    after = before
    for each in node:
        after = after.add(each)
    moves = moved(chosen(before, 1, packs=packs), chosen(after, 1, packs=packs))
    assert {target for _, target in moves} == {each.device_id for each in node}
    check_ideal(len(moves), 1 / 51, len(packs))


@pytest.mark.parametrize("change", ["drain", "fail"])
@pytest.mark.parametrize("level", [Level.HOST, Level.RACK])
def test_what_a_device_had_goes_to_others_and_nothing_moves_between_them(
    change: str, level: Level
) -> None:
    gone = device_id(17)
    after = THOUSAND.drain(gone) if change == "drain" else THOUSAND.fail(gone)
    before_of, after_of = chosen(THOUSAND, 8, level), chosen(after, 8, level)
    moves = moved(before_of, after_of)
    assert {source for source, _ in moves} == {gone}
    assert len(moves) == sum(gone in stripe for stripe in before_of)
    assert len({target for _, target in moves}) > len(moves) // 4  # nobody takes it all


@pytest.mark.parametrize("weight", [TIB // 2, 2 * TIB])
def test_another_weight_moves_the_difference_and_only_from_or_to_that_device(weight: int) -> None:
    packs = pack_ids(60_000, seed=3)
    before = even_map(10)
    after = before.reweigh(device_id(4), weight)
    moves = moved(chosen(before, 1, packs=packs), chosen(after, 1, packs=packs))
    ends = {target for _, target in moves} if weight > TIB else {source for source, _ in moves}
    assert ends == {device_id(4)}
    new_part = weight / (9 * TIB + weight)
    check_ideal(len(moves), abs(new_part - 1 / 10), len(packs))


def test_a_replacement_gets_what_the_old_one_had_and_nothing_else_moves() -> None:
    gone, new = device_id(17), device(5000, 2, rack=0)
    after = THOUSAND.replace(gone, new)
    before_of, after_of = chosen(THOUSAND, 8), chosen(after, 8)
    moves = moved(before_of, after_of)
    assert set(moves) == {(gone, new.device_id)}
    assert len(moves) == sum(gone in stripe for stripe in before_of)


def test_the_same_map_made_in_another_order_places_the_same() -> None:
    shuffled = DeviceMap(1, dict(sorted(THOUSAND.devices.items(), reverse=True)))
    assert chosen(shuffled, 6, packs=PACKS[:500]) == chosen(THOUSAND, 6, packs=PACKS[:500])


def test_placements_that_a_cluster_has_made_stay() -> None:
    numbers = {device_id(number): number for number in range(24)}
    found = chosen(even_map(12, 2), 6, packs=PACKS[:3])
    assert [[numbers[one] for one in stripe] for stripe in found] == [
        [2, 10, 0, 5, 18, 23],
        [23, 19, 0, 10, 15, 20],
        [6, 17, 9, 4, 12, 21],
    ]


# -- shard numbers


@given(
    st.sampled_from(PACKS[:50]),
    st.integers(1, 6),
    st.lists(st.integers(0, 17), max_size=6, unique=True),
)
@settings(max_examples=60)
def test_who_stays_keeps_its_number(pack: bytes, count: int, leaving: list[int]) -> None:
    devices = even_map(9, 2)
    held: Held = Placement(devices).choose(pack, count)
    for number in leaving:
        devices = devices.drain(device_id(number))
        placement = Placement(devices)
        if placement.domain_count < count:
            return
        wanted = placement.choose(pack, count)
        after = placement.keeping(held, wanted)
        assert sorted(after) == sorted(wanted)
        for old, new in zip(held, after, strict=True):
            assert old == new or old not in wanted
        _check_that_no_domain_has_two_meanwhile(devices, held, after)
        held = after


def _check_that_no_domain_has_two_meanwhile(
    devices: DeviceMap, held: Held, after: Sequence[str]
) -> None:
    """Each shard may still be at its old place or at its new one."""
    for number, new in enumerate(after):
        old = [one for other, one in enumerate(held) if other != number and one is not None]
        hosts = {devices.device(one).domain(Level.HOST) for one in old}
        assert devices.device(new).domain(Level.HOST) not in hosts


def test_lost_shards_and_devices_that_nobody_knows_any_more_are_free_numbers() -> None:
    devices = even_map(6)
    placement = Placement(devices)
    wanted = placement.choose(PACKS[0], 4)
    held = (None, wanted[3], "9" * 32, wanted[0])
    assert placement.keeping(held, wanted) == (wanted[1], wanted[3], wanted[2], wanted[0])
