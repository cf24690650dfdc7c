"""A write over a part of a chunk that is damaged here waits for what other nodes have of it.

Chunks have one page, so whatever is not written of a damaged one is lost when it is given up.
"""

import random
from dataclasses import replace

import pytest

from tests.sim.crash import CrashState
from tests.sim.store_rig import SMALL, StoreRig, meta_at
from tests.unit.volume.rig import chunk
from tests.unit.volume.test_chunkrepair import CHUNK, DATA, IDS, SIZE, filled
from tests.unit.volume.test_rescue import Asked, flip, read
from volume import rescue
from volume.destager import RETRY_MAX_S, RETRY_S
from volume.rescue import WAIT_S, Rescue

PATIENCE_S = 30.0
NEW = b"n" * 512


def written(*numbers: int) -> bytes:
    """What the volume is to be when the first block of these chunks was written."""
    data = bytearray(DATA)
    for number in numbers:
        data[number * CHUNK : number * CHUNK + 512] = NEW
    return bytes(data)


def write(rig: StoreRig, *numbers: int) -> None:
    for number in numbers:
        rig.fill("vm1", number * CHUNK, NEW)


def held_up(rig: StoreRig) -> str:
    return rig.store.status().destage_held_up or ""


def again(rig: StoreRig, seconds: float = RETRY_S) -> None:
    rig.clock.advance(seconds)
    rig.store.chunk_repair.rescue.expire()
    rig.store.destage()


def test_it_comes_and_nothing_is_lost(caplog: pytest.LogCaptureFixture) -> None:
    rig = filled()
    rig.store.create_volume("b", SIZE, chunk_size=CHUNK)
    asked = Asked(rig)
    flip(rig, IDS[3], IDS[5])
    write(rig, 3, 5)
    rig.fill("b", 0, chunk(7))
    rig.store.destage()
    assert asked.ids == [IDS[3], IDS[5]], "together"
    assert "volume vm1 is not destaged: " in held_up(rig)
    assert IDS[3].hex() in held_up(rig)
    assert "other nodes are asked for the 2 chunk(s)" in caplog.text
    assert rig.volume("b").core.state()[3] == 0, "others are not held up"
    assert rig.volume("vm1").core.state()[3]
    before = rig.store.status().checkpoint_lsn
    assert asked.bring(IDS[3])
    again(rig)
    assert IDS[5].hex() in held_up(rig)
    assert rig.store.status().checkpoint_lsn == before
    assert asked.bring(IDS[5])
    again(rig)
    assert held_up(rig) == ""
    assert rig.store.status().checkpoint_lsn > before
    assert "data lost" not in caplog.text
    for each in (rig, rig.killed(), rig.rebooted()):
        assert each.read("vm1") == written(3, 5)
        assert each.read("b", 0, CHUNK) == chunk(7)


def test_what_nobody_has_is_lost_and_named(caplog: pytest.LogCaptureFixture) -> None:
    rig = filled()
    asked = Asked(rig)
    flip(rig, IDS[3])
    write(rig, 3)
    rig.store.destage()
    assert "data lost" not in caplog.text
    asked.miss(IDS[3])
    again(rig)
    assert held_up(rig) == ""
    assert (
        f"data lost, it reads as an error until it is written again volume=vm1 offset={3 * CHUNK}"
        in caplog.text
    )
    assert rig.read_error("vm1", 3 * CHUNK, CHUNK)
    assert rig.read("vm1", 4 * CHUNK, CHUNK) == DATA[4 * CHUNK : 5 * CHUNK]
    assert asked.ids == [IDS[3]]


def test_silence_is_no_answer_however_long_and_then_it_comes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    rig = filled()
    asked = Asked(rig)
    flip(rig, IDS[3])
    write(rig, 3)
    stored = rig.store._chunks.counters.stored_count
    rig.store.destage()
    for _ in range(50):
        again(rig, RETRY_MAX_S)
    assert rig.store._chunks.counters.stored_count == stored, "packs do not grow by it"
    assert set(asked.ids) == {IDS[3]}
    assert 30 < len(asked.ids) <= 51, "asked for again and again, at intervals"
    assert "volume vm1 is not destaged: " in held_up(rig)
    request, finished = read(rig, 3 * CHUNK, CHUNK)  # waits with it
    assert finished == []
    for each in (rig.killed(), rig.rebooted()):
        assert each.read("vm1", 3 * CHUNK, 512) == NEW, "it is in the log"
    assert asked.bring(IDS[3])
    assert request.data == written(3)[3 * CHUNK : 4 * CHUNK]
    again(rig)
    assert held_up(rig) == ""
    assert "data lost" not in caplog.text
    assert rig.rebooted().read("vm1") == written(3)


def test_a_no_that_is_older_than_the_patience_is_asked_for_again() -> None:
    """As the other node's disk may fail a read and do the next, too."""
    rig = filled().killed(replace(SMALL, damage_patience_s=PATIENCE_S))
    asked = Asked(rig)
    flip(rig, IDS[3])
    write(rig, 3)
    rig.store.destage()
    for _ in range(int(PATIENCE_S) - 1):
        asked.miss(IDS[3])
        again(rig)
    assert "other nodes are asked" in held_up(rig)
    asked.miss(IDS[3])
    again(rig, RETRY_S + 0.1)
    assert "other nodes are asked" in held_up(rig)
    assert asked.bring(IDS[3])
    again(rig)
    assert held_up(rig) == ""
    assert rig.read("vm1") == written(3)


def test_answers_are_looked_at_soon_and_no_answer_less_and_less_often() -> None:
    rig = filled()
    asked = Asked(rig)
    flip(rig, IDS[3])
    write(rig, 3)
    rig.store.destage()
    for _ in range(8):
        again(rig, RETRY_MAX_S)
    rig.clock.advance(RETRY_S)
    assert not rig.store._destager.retry_due
    assert asked.bring(IDS[3])
    assert rig.store._destager.retry_due


def test_more_than_can_be_asked_for_at_once_are_asked_for_one_after_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rescue, "MAX_CHUNKS", 2)
    rig = filled()
    asked = Asked(rig)
    flip(rig, *IDS)
    write(rig, *range(len(IDS)))
    rig.store.destage()
    for number in range(0, len(IDS), 2):
        assert asked.ids == IDS[: number + 2]
        assert asked.bring(IDS[number])
        asked.miss(IDS[number + 1])
        again(rig)
    assert held_up(rig) == ""
    wrong = [number for number in range(len(IDS)) if rig.read_error("vm1", number * CHUNK, CHUNK)]
    assert wrong == [1, 3, 5, 7]
    assert rig.read("vm1", 6 * CHUNK, CHUNK) == written(6)[6 * CHUNK : 7 * CHUNK]


def test_a_write_over_all_of_a_damaged_chunk_waits_for_nobody() -> None:
    rig = filled()
    asked = Asked(rig)
    flip(rig, IDS[3])
    rig.fill("vm1", 3 * CHUNK, chunk(9))
    rig.settle()
    assert asked.ids == []
    assert rig.read("vm1", 3 * CHUNK, CHUNK) == chunk(9)


def test_what_was_lost_before_is_not_waited_for() -> None:
    rig = filled()
    flip(rig, IDS[3])
    write(rig, 3)
    rig.settle()  # alone: it is given up
    asked = Asked(rig)
    rig.fill("vm1", 3 * CHUNK + 1024, NEW)
    rig.settle()
    assert asked.ids == []
    assert held_up(rig) == ""


def test_name_that_is_in_the_log_waits_too() -> None:
    rig = filled()
    asked = Asked(rig)
    flip(rig, IDS[3])
    write(rig, 3)
    rig.store.snapshots.create("s1", ["vm1"])
    rig.fill("vm1", 3 * CHUNK, chunk(9))  # so the head itself has no use for it
    rig.store.destage()
    assert asked.ids == [IDS[3]]
    assert rig.read("vm1", 3 * CHUNK, CHUNK) == chunk(9)
    assert asked.bring(IDS[3])
    rig.store.destage()
    assert rig.read_version("vm1@s1") == written(3)
    assert rig.rebooted().read_version("vm1@s1") == written(3)


def test_wherever_the_power_goes_the_log_or_the_new_chunk_has_it() -> None:
    rig = filled()
    asked = Asked(rig)
    flip(rig, IDS[3])
    rig.store.upkeep.submit(rig.store._chunks.packs.seal)
    state = CrashState(rig.disk.trace)
    before = len(rig.disk.trace.ops)
    for op in rig.disk.trace.ops:
        state.apply(op)
    write(rig, 3)
    rig.flush("vm1")
    durable = len(rig.disk.trace.ops)
    rig.store.destage()
    again(rig, RETRY_MAX_S)
    assert held_up(rig)
    assert asked.bring(IDS[3])
    again(rig)
    assert held_up(rig) == ""
    rig.store.chunk_repair.store_brought()
    for at, op in enumerate(rig.disk.trace.ops[before:], before):
        state.apply(op)
        if at < durable:
            continue
        image = state.drawn("cut", random.Random(at))
        meta = meta_at(rig.disk.trace.marks(at + 1), {})
        back = StoreRig(image, meta, boot="boot-2")
        its = Asked(back)
        assert back.read("vm1", 3 * CHUNK, 512) == NEW
        back.store.destage()
        for chunk_id in its.ids:
            assert its.bring(chunk_id)
        again(back)
        assert back.read("vm1") == written(3)


def test_store_with_a_part_of_a_volume_that_others_have_waits_from_its_start() -> None:
    rig = filled()
    assert not rig.store.chunk_repair.rescue.may_come(IDS[3], 0.0)
    rig.store.replicas.create(bytes(range(16)), "m", SIZE, 512, CHUNK, 1)
    rig = rig.killed()
    flip(rig, IDS[3])
    write(rig, 3)
    rig.store.destage()
    assert "other nodes are asked" in held_up(rig), "they are, as soon as there is somebody to ask"
    asked = Asked(rig)
    again(rig)
    assert asked.ids == [IDS[3]]
    rig.store.chunk_repair.rescue.end()
    again(rig, RETRY_MAX_S)
    assert held_up(rig), "nobody can be asked while it stops"
    assert asked.bring(IDS[3])
    again(rig)
    assert rig.read("vm1") == written(3)


def test_a_read_that_joins_has_its_whole_time() -> None:
    now = 0.0
    waits = Rescue(lambda: now)
    asked: list[bytes] = []
    waits.serve(asked.append)
    woken: list[bool] = []
    assert waits.may_come(IDS[0], 0.0)
    now = WAIT_S - 1
    assert waits.wait(IDS[0], 1, woken.append)
    now = WAIT_S
    waits.expire()
    assert woken == []
    assert asked == [IDS[0]]
    now = 2 * WAIT_S - 1
    waits.expire()
    assert woken == [False]
    assert waits.may_come(IDS[0], 0.0)
    assert asked == [IDS[0]] * 2
    waits.missed(IDS[0])
    assert not waits.may_come(IDS[0], now)
    assert waits.may_come(IDS[0], now + 1), "asked for again at that time"
