"""Plans of moves, and their execution on devices that fail and with a planner that crashes."""

import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.device_maps import device, device_id, even_map, pack_ids
from transport.devicemap import DeviceMap, DeviceState
from transport.moves import (
    MAX_TRIES,
    Move,
    Mover,
    Placed,
    Plan,
    Reason,
    good_holders,
    placed_on,
    plan,
)
from transport.packrow import PackRow, leftovers
from transport.placement import Placement
from transport.shardfile import ShardName

LENGTH = 1000


def placed(devices: DeviceMap, count: int, *, width: int = 3, needed: int = 2) -> list[Placed]:
    ids = pack_ids(count)
    stripes = Placement(devices).choose_all(ids, width)
    return [Placed(one, needed, LENGTH, held) for one, held in zip(ids, stripes, strict=True)]


def losing(pack: Placed, *numbers: int) -> Placed:
    held = tuple(None if n in numbers else one for n, one in enumerate(pack.held))
    return replace(pack, held=held)


# -- what is planned


def test_nothing_moves_without_a_change() -> None:
    devices = even_map(6)
    assert plan(Placement(devices), placed(devices, 50)).moves == ()


def test_a_drained_device_gives_all_that_it_has_to_others() -> None:
    devices = even_map(6)
    packs = placed(devices, 50)
    found = plan(Placement(devices.drain(device_id(2))), packs)
    assert found.map_epoch == 2
    assert {move.source for move in found.moves} == {device_id(2)}
    assert {move.reason for move in found.moves} == {Reason.DRAIN}
    shards, length = placed_on(packs, device_id(2))
    assert (len(found.moves), found.total_bytes) == (shards, length)
    assert shards == sum(device_id(2) in pack.held for pack in packs) > 0


def test_what_a_failed_device_had_is_computed_from_others() -> None:
    devices = even_map(6)
    failed = devices.fail(device_id(2))
    found = plan(Placement(failed), placed(devices, 50))
    assert found.moves
    for move in found.moves:
        assert move.source is None
        assert (move.reason, move.spare) == (Reason.LOST, 0)
        assert device_id(2) not in move.devices
        assert len(move.devices) == move.needed + 1
    # The same for one that was removed from the map afterwards.
    assert plan(Placement(failed.remove(device_id(2))), placed(devices, 50)).moves == found.moves


def test_a_replaced_device_gives_all_to_its_replacement() -> None:
    devices = even_map(6)
    packs = placed(devices, 50)
    after = devices.replace(device_id(2), device(9, 2))
    found = plan(Placement(after), packs)
    assert {(move.source, move.target) for move in found.moves} == {(device_id(2), device_id(9))}
    assert len(found.moves) == placed_on(packs, device_id(2))[0]


def test_packs_with_the_fewest_good_shards_go_first() -> None:
    devices = even_map(9)
    packs = placed(devices, 30, width=6, needed=4)
    packs[7] = losing(packs[7], 0, 3)
    packs[20] = losing(packs[20], 1)
    found = plan(Placement(devices.drain(device_id(0))), packs)
    first = [(move.pack_id, move.reason, move.spare) for move in found.moves[:3]]
    assert first[:2] == [(packs[7].pack_id, Reason.LOST, 0)] * 2
    spares = [(move.spare, move.reason) for move in found.moves]
    assert spares == sorted(spares)
    assert any(move.pack_id == packs[20].pack_id and move.spare == 1 for move in found.moves)
    assert found.moves[-1].spare == 2


def test_what_cannot_be_read_any_more_is_named_and_what_is_left_of_it_is_not_left_behind() -> None:
    devices = even_map(6)
    packs = placed(devices, 1)
    held = packs[0].held
    assert held[0] is not None
    packs[0] = losing(packs[0], 1, 2)
    found = plan(Placement(devices.drain(held[0])), packs)
    assert found.unreadable == (packs[0].pack_id,)
    assert [(move.source, move.number) for move in found.moves] == [(held[0], 0)]


def test_copies_and_stripes_of_all_widths_are_planned_together() -> None:
    devices = even_map(9)
    packs = placed(devices, 5, width=3, needed=1)
    stripes = [replace(pack, pack_id=pack.pack_id[::-1]) for pack in packs]
    wide = placed(devices, 5, width=6, needed=4)
    wide = [replace(pack, pack_id=bytes(32 - 1) + bytes([n])) for n, pack in enumerate(wide)]
    widths = Counter(
        len(move.others) + 1
        for move in plan(Placement(devices.drain(device_id(1))), packs + stripes + wide).moves
        if move.source is not None
    )
    assert set(widths) == {3, 6}


def test_leftovers_are_files_that_no_row_has_and_nobody_writes() -> None:
    one, other, third = pack_ids(3)
    rows = {
        one: PackRow(one, 9, shards=("a", "b", "c"), data=2),
        other: PackRow(other, 9, copies=("b",), coming=("b", "a", "c"), data=2, owner="x"),
    }

    def name(pack: bytes, number: int, data: int = 2, parity: int = 1) -> ShardName:
        return ShardName(pack, data, parity, number)

    names = [
        name(one, 0),
        name(one, 1),
        name(one, 0, 1, 2),
        name(one, 0, 2, 2),
        name(other, 0),
        name(other, 1),
        name(other, 2),
        name(third, 0),
    ]
    found = leftovers("a", names, rows, {(other, 0)})
    assert found == [name(one, 1), name(one, 0, 1, 2), name(one, 0, 2, 2), names[6], names[7]]


# -- how it is handed out


def mover_of(moves: list[Move], per_device: int = 2) -> Mover:
    return Mover(Plan(1, tuple(moves), ()), per_device=per_device)


def moves_from(source: str, targets: str, length: int = LENGTH) -> list[Move]:
    ids = pack_ids(len(targets))
    return [
        Move(pack, 0, source, target, length, Reason.DRAIN, 1, 2, ("x", "y"))
        for pack, target in zip(ids, targets, strict=True)
    ]


def test_no_device_has_more_moves_at_once_than_it_may() -> None:
    mover = mover_of(moves_from("s", "abcdef"))
    started = mover.start()
    assert [move.target for move in started] == ["a", "b"]
    assert mover.start() == []
    mover.finished(started[0])
    assert [move.target for move in mover.start()] == ["c"]


def test_moves_behind_one_that_waits_begin_before_it_and_it_keeps_its_place() -> None:
    waiting = moves_from("s", "abc")
    free = [replace(move, source="t", pack_id=bytes(32)) for move in moves_from("t", "d")]
    mover = mover_of([*waiting, *free], per_device=1)
    started = mover.start()
    assert [move.target for move in started] == ["a", "d"]
    mover.finished(started[0])
    assert [move.target for move in mover.start()] == ["b"]


def test_progress_counts_bytes_and_never_passes_its_total() -> None:
    mover = mover_of(moves_from("s", "ab"), per_device=2)
    one, other = mover.start()
    assert (mover.progress.done_bytes, mover.progress.total_bytes) == (0, 2 * LENGTH)
    mover.wrote(one, 400)
    mover.wrote(other, LENGTH + 400)
    assert mover.progress.done_bytes == LENGTH + 400
    mover.finished(other)
    mover.failed(one)
    assert mover.progress.done_bytes == LENGTH
    assert mover.progress.total_bytes == 2 * LENGTH
    (again,) = mover.start()
    mover.finished(again)
    assert mover.idle
    assert mover.progress.done_bytes == mover.progress.total_bytes == 2 * LENGTH


def test_a_move_whose_source_fails_is_computed_from_others_and_given_up_in_the_end() -> None:
    mover = mover_of(moves_from("s", "a"))
    (move,) = mover.start()
    for _ in range(MAX_TRIES - 1):
        mover.failed(move)
        (move,) = mover.start()
        assert move.source is None
        assert move.devices == ("x", "y", "a")
    mover.failed(move)
    assert mover.idle
    assert mover.given_up == [move]
    assert mover.progress.given_up == 1


def test_a_newer_plan_leaves_what_is_under_way() -> None:
    mover = mover_of(moves_from("s", "abc"), per_device=1)
    (first,) = mover.start()
    mover.replan(Plan(2, tuple(moves_from("s", "ab")), ()))
    assert mover.start() == []
    assert mover.busy == {first.key}
    mover.finished(first)
    (second,) = mover.start()
    mover.finished(second)
    assert mover.idle


# -- carried out


def stripe(pack: Placed) -> tuple[str, ...]:
    """Where all its shards are noted to be."""
    return tuple([one for one in pack.held if one is not None])


class Rig:
    """Devices as sets of shards, rows, and the four steps of a move, any of which may be the last
    one before a crash."""

    def __init__(self, devices: DeviceMap, packs: list[Placed], rng: random.Random) -> None:
        self.map = devices
        self.rows = {pack.pack_id: pack for pack in packs}
        self.files: dict[str, set[tuple[bytes, int]]] = {one: set() for one in devices.devices}
        self.rng = rng
        for pack in packs:
            for number, one in enumerate(pack.held):
                assert one is not None
                self.files[one].add((pack.pack_id, number))

    def good(self, pack_id: bytes) -> int:
        """Shards that a reader finds: named by the row, there, and on a device that can be read."""
        pack = self.rows[pack_id]
        return sum(
            (pack_id, number) in self.files[one]
            for number, one in good_holders(Placement(self.map), pack.held).items()
        )

    def change(self, devices: DeviceMap) -> None:
        self.map = devices
        for one in devices.devices:
            self.files.setdefault(one, set())

    def plan(self) -> Plan:
        return plan(Placement(self.map), self.rows.values())

    def steps(self, move: Move) -> Iterator[str]:
        """One step at each turn; ends early when the move comes to nothing."""
        sources = move.devices[:-1]
        if any(not self.map.devices[one].readable for one in (*sources, move.target)):
            return
        self.files[move.target].add(move.key)
        yield "written"
        if not self.map.device(move.target).readable:
            return
        yield "verified"
        before = self.rows[move.pack_id]
        held = list(before.held)
        held[move.number] = move.target
        self.rows[move.pack_id] = replace(before, held=tuple(held))
        yield "noted"
        if move.source is not None:
            self.files[move.source].discard(move.key)
        yield "removed"

    def sweep(self, busy: frozenset[tuple[bytes, int]]) -> None:
        rows = {
            key: PackRow(key, 0, shards=stripe(p), data=p.needed) for key, p in self.rows.items()
        }
        for one, files in self.files.items():
            names = [self.name(*key) for key in sorted(files)]
            for name in leftovers(one, names, rows, busy):
                files.discard((name.pack_id, name.number))

    def name(self, pack_id: bytes, number: int) -> ShardName:
        pack = self.rows[pack_id]
        return ShardName(pack_id, pack.needed, len(pack.held) - pack.needed, number)

    def run(self, *, crash_after: int | None = None) -> bool:
        """Carry the plan out, steps of different moves mixed. False when it crashed on the way."""
        mover, running = Mover(self.plan()), dict[tuple[bytes, int], tuple[Move, Iterator[str]]]()
        count = 0
        while not mover.idle:
            running |= {move.key: (move, self.steps(move)) for move in mover.start()}
            key = self.rng.choice(sorted(running))
            move, steps = running[key]
            before = {pack_id: self.good(pack_id) for pack_id in self.rows}
            step = next(steps, "failed")
            for pack_id, had in before.items():
                assert self.good(pack_id) >= had, (step, move)
            if step in ("failed", "removed"):
                del running[key]
                (mover.failed if step == "failed" else mover.finished)(move)
            if self.rng.random() < 0.1:
                self.sweep(mover.busy)
            count += 1
            if count == crash_after:
                return False
        return True


def check_settled(rig: Rig, needed: int) -> None:
    """Nothing more to do, every shard where the map wants it, and no file too many."""
    rig.sweep(frozenset())
    assert rig.plan().moves == ()
    for pack in rig.rows.values():
        assert rig.good(pack.pack_id) == len(pack.held) >= needed
    assert sum(map(len, rig.files.values())) == sum(len(pack.held) for pack in rig.rows.values())


CHANGES: dict[str, Callable[[DeviceMap], DeviceMap]] = {
    "add": lambda devices: devices.add(device(20, 20)),
    "drain": lambda devices: devices.drain(device_id(1)),
    "fail": lambda devices: devices.fail(device_id(1)),
    "replace": lambda devices: devices.replace(device_id(1), device(20, 1)),
    "replace failed": lambda devices: devices.fail(device_id(1)).replace(
        device_id(1), device(20, 1)
    ),
    "grow": lambda devices: devices.reweigh(device_id(1), 1 << 42),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_crash_after_any_step_loses_no_copy_and_is_gone_on_from(name: str) -> None:
    devices = even_map(6)
    packs = placed(devices, 8)
    whole = Rig(CHANGES[name](devices), packs, random.Random(1))
    whole.change(whole.map)
    assert whole.run()
    check_settled(whole, 2)
    for crash_after in range(1, 60):
        rig = Rig(devices, packs, random.Random(1))
        rig.change(CHANGES[name](devices))
        if rig.run(crash_after=crash_after):
            break
        assert rig.run()
        check_settled(rig, 2)
        assert rig.rows == whole.rows


@given(st.integers(0, 2**32), st.lists(st.sampled_from(sorted(CHANGES)), max_size=4))
@settings(max_examples=40)
def test_devices_that_fail_on_the_way_cost_no_pack_while_enough_shards_are_left(
    seed: int, names: list[str]
) -> None:
    rng = random.Random(seed)
    devices = even_map(10, 2)
    rig = Rig(devices, placed(devices, 15, width=6, needed=4), rng)
    for name in names:
        usable = [each.device_id for each in rig.map.usable()]
        if len(usable) > 12:
            match name:
                case "drain":
                    rig.change(rig.map.drain(rng.choice(usable)))
                case "fail":
                    failed = rig.map.fail(rng.choice(usable))
                    if all(
                        len(good_holders(Placement(failed), pack.held)) >= pack.needed
                        for pack in rig.rows.values()
                    ):
                        rig.change(failed)
                case _:
                    rig.change(rig.map.reweigh(rng.choice(usable), rng.randrange(1, 1 << 42)))
        rig.run(crash_after=rng.randrange(1, 40))
    for _ in range(2):
        rig.run()
    check_settled(rig, 4)
    for one in list(rig.map.devices.values()):
        if one.state in (DeviceState.DRAINING, DeviceState.FAILED):
            assert placed_on(rig.rows.values(), one.device_id) == (0, 0)
