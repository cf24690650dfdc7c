"""When a session goes over to the request loop, what goes with it, and how it comes back; without
a loop: a fake stands for it."""

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import cast

import pytest

from blockd.device import BlockDevice
from blockd.iscsi import pdu
from blockd.iscsi.connection import Connection
from blockd.iscsi.handover import FIRST_RUN, LONGEST_RUN, Begun, Handover, Offer
from blockd.iscsi.limits import Limits
from blockd.scsi import sense
from blockd.scsi.task import CHECK_CONDITION, GOOD
from native import (
    ISCSI_COLLECTING,
    ISCSI_FAILED,
    ISCSI_MAILED,
    ISCSI_UNSYNCED,
    ISCSI_WAITING,
    Limit,
    Request,
    Reservation,
    VolumeCore,
)
from tests.iscsi_initiator import Initiator, World

BLOCK = 512
TEST_UNIT_READY = bytes(6)
SOLICITED = {"ImmediateData": "No", "MaxBurstLength": "1024", "MaxOutstandingR2T": "2"}
COUNTERS = (3, 30, 2, 20, 0, 0, 0)


def read_10(lba: int, count: int) -> bytes:
    return struct.pack(">BBIBHB", 0x28, 0, lba, 0, count, 0)


def write_10(lba: int, count: int) -> bytes:
    return struct.pack(">BBIBHB", 0x2A, 0, lba, 0, count, 0)


@dataclass
class FakeLoop:
    """Serves nothing; knows what it was told."""

    interrupts: int = 0
    on_units: dict[int, int] = field(default_factory=dict)
    has_heard: bool = False

    def interrupt(self) -> None:
        self.interrupts += 1

    def commands(self, lun: int | None = None) -> int:
        return sum(self.on_units.values()) if lun is None else self.on_units.get(lun, 0)

    def heard(self) -> bool:
        return self.has_heard

    def counters(self) -> tuple[int, ...]:
        return COUNTERS


class Host(Initiator):
    """An initiator whose session may be handed over."""

    loop: FakeLoop

    @property
    def engine(self) -> Connection:
        return self.connection

    def offer(self) -> Offer:
        offered = self.engine.offer()
        assert offered is not None
        return offered[0]

    def leave(self) -> Offer:
        """Go over."""
        offer = self.offer()
        self.loop = FakeLoop()
        self.engine.handed_over(self.loop)
        return offer

    def come_back(self, offer: Offer, *begun: Begun, asked: bool = True, served: int = 0) -> None:
        """As after `served` plain commands elsewhere, of which `begun` have no answer."""
        exp_cmd_sn, max_cmd_sn, stat_sn, ttt = offer.numbers
        counters = (served, 0, 0, 0, 0, 0, 0)
        numbers = (exp_cmd_sn + len(begun), max_cmd_sn, stat_sn, ttt)
        self.cmd_sn += len(begun)
        self.engine.handed_back(numbers, list(begun), counters, asked=asked)
        self.run()

    def read_plainly(self, count: int) -> None:
        for _ in range(count):
            self.ask(read_10(0, 1), read=BLOCK)


@pytest.fixture
def world() -> World:
    made = World(limits=Limits(keepalive_s=10))
    made.rig.device.core = cast(VolumeCore, object())  # type: ignore[attr-defined]
    return made


def host(world: World, number: int = 1, keys: Mapping[str, str] | None = None) -> Host:
    made = Host(world, isid=bytes(5) + bytes((number,)))
    made.engine.may_leave = True
    made.log_in(keys or {})
    made.ask(TEST_UNIT_READY)
    return made


def ready(world: World, number: int = 1, keys: Mapping[str, str] | None = None) -> Host:
    """One that is about to go over."""
    made = host(world, number, keys)
    made.read_plainly(FIRST_RUN)
    assert made.engine.hand_over_due
    return made


def handover_of(one: Host) -> Handover:
    assert one.engine.handover is not None
    return one.engine.handover


def bhs_of(cdb: bytes, itt: int, length: int) -> bytes:
    flags = pdu.FINAL | (pdu.READ if cdb[0] == 0x28 else pdu.WRITE if length else 0)
    return pdu.SCSI_COMMAND_BHS.pack(
        pdu.SCSI_COMMAND, flags, 0, bytes(8), itt, length, 0, 0, cdb.ljust(16, b"\0")
    )


def begun(state: int, cdb: bytes, itt: int, length: int, data: bytes = b"") -> Begun:
    return state, bhs_of(cdb, itt, length), data, len(data), 0, False, 0, [], None


# -- going


def test_a_few_plain_commands_in_a_row_are_enough(world: World) -> None:
    one = host(world)
    one.read_plainly(FIRST_RUN - 1)
    assert not one.engine.hand_over_due
    one.ask(TEST_UNIT_READY)
    one.read_plainly(FIRST_RUN)
    assert one.engine.hand_over_due


def test_the_terms_are_those_of_the_session(world: World) -> None:
    one = ready(
        world, keys={**SOLICITED, "MaxRecvDataSegmentLength": "2048", "DataDigest": "CRC32C"}
    )
    offer = one.offer()
    sender = one.engine._session.sender  # type: ignore[union-attr]
    assert offer.terms == (
        *(2048, 262144, 1024, 1024, 2, True, False, False, True),
        Limits().max_in_flight_bytes,
    )
    assert offer.numbers == (one.cmd_sn, sender.max_cmd_sn, sender.stat_sn, 0)
    device = world.rig.device
    account = world.node.accounts.of(device, "iscsi")
    limit = world.node.rate_limits.of(device)
    assert offer.luns == [(0, device.core, account, limit, device.size, BLOCK, False)]  # type: ignore[attr-defined]
    assert offer.commands == []


def test_what_was_received_and_not_parsed_goes_along(world: World) -> None:
    one = ready(world)
    part = one.command(read_10(0, 1), read=BLOCK)[:20]
    one.feed(part)
    offered = one.engine.offer()
    assert offered is not None
    assert offered[1] == part


def test_a_write_that_collects_goes_along(world: World) -> None:
    one = ready(world, keys=SOLICITED)
    data = bytes(range(256)) * 16
    first, second = one.ask(write_10(0, 8), write=4096)
    one.feed(one.data_out(first.itt, first.ttt, 0, data[:512], final=False))
    one.feed(one.data_out(first.itt, first.ttt, 512, data[512:768], data_sn=1, final=False))
    (command,) = one.leave().commands
    bhs, collected, asked, r2t_sn, unsolicited, unsolicited_sn, bursts = command
    assert pdu.SCSI_COMMAND_BHS.unpack(bhs)[4] == first.itt
    assert collected == data[:768]
    assert (asked, r2t_sn, unsolicited, unsolicited_sn) == (2048, 2, False, 0)
    assert bursts == [(first.ttt, 768, 1024, 2), (second.ttt, 1024, 2048, 0)]


@pytest.mark.parametrize("why", ["attention", "reserved", "failed", "rare", "immediate", "ping"])
def test_some_things_keep_a_session_here(world: World, why: str) -> None:
    one = ready(world, keys=SOLICITED)
    unit = world.rig.unit
    nexus = one.engine.nexus
    assert nexus is not None
    if why == "attention":
        unit.attention(sense.MODE_CHANGED, to=nexus)
    elif why == "reserved":
        other = host(world, 2).engine.nexus
        assert other is not None
        unit.reservations.reserve(other)
    elif why == "failed":
        r2t, _ = one.ask(write_10(0, 8), write=4096)
        one.feed(one.data_out(r2t.itt, r2t.ttt, 512, bytes(512), final=False))
    elif why == "rare":
        one.ask(b"\x2e" + write_10(0, 8)[1:], write=4096)  # WRITE AND VERIFY
    elif why == "immediate":
        one.ask(write_10(0, 8), write=4096, immediate=True)
    else:
        one.engine.tick(0.0)
        one.engine.tick(1.0)
        one.engine.tick(12.0)
    one.run()
    assert not one.engine.hand_over_due or one.engine.offer() is None


def test_a_reservation_of_its_own_keeps_no_session_here(world: World) -> None:
    one, other = ready(world), ready(world, 2)
    assert one.engine.nexus is not None
    world.rig.unit.reservations.reserve(one.engine.nexus)
    assert one.offer().luns
    assert other.engine.offer() is None


def test_an_offer_that_nobody_takes_is_not_made_again_soon(world: World) -> None:
    one = ready(world)
    one.offer()
    handover_of(one).refused()
    one.read_plainly(FIRST_RUN)
    assert not one.engine.hand_over_due
    one.read_plainly(FIRST_RUN)
    assert one.engine.hand_over_due


def test_nothing_comes_while_a_device_has_the_last_commands(world: World) -> None:
    world.rig.device.deferred = True
    one = host(world)
    for _ in range(FIRST_RUN):
        assert one.engine.wants_input
        one.ask(read_10(0, 1), read=BLOCK)
    assert not one.engine.wants_input
    world.rig.device.finish()
    one.run()
    assert one.engine.wants_input
    assert one.offer().commands == []


def test_nothing_is_handed_over_where_nobody_is(world: World) -> None:
    one = host(world)
    one.engine.may_leave = False
    one.read_plainly(2 * FIRST_RUN)
    assert not one.engine.hand_over_due
    assert one.engine.wants_input


@pytest.mark.parametrize(("served", "asked", "longer"), [(0, False, True), (0, True, False)])
def test_short_stays_make_the_next_one_later(
    world: World, served: int, asked: bool, longer: bool
) -> None:
    one = ready(world)
    one.come_back(one.leave(), served=served, asked=asked)
    one.read_plainly(FIRST_RUN)
    assert one.engine.hand_over_due is not longer
    one.read_plainly(FIRST_RUN)
    assert one.engine.hand_over_due


def test_a_long_stay_makes_the_next_one_soon_again(world: World) -> None:
    one = ready(world)
    for _ in range(20):
        one.come_back(one.leave(), asked=False)
        one.read_plainly(LONGEST_RUN)
    one.come_back(one.leave(), served=1000, asked=False)
    one.read_plainly(FIRST_RUN)
    assert one.engine.hand_over_due


# -- elsewhere


def test_the_engine_takes_nothing_while_it_is_elsewhere(world: World) -> None:
    one = ready(world)
    one.leave()
    assert not one.engine.wants_input
    assert not one.engine.idle
    assert one.engine.output() == []


def interrupting(world: World, other: Host) -> dict[str, Callable[[], object]]:
    def remove() -> None:
        world.rig.target.units.clear()
        world.rig.target.luns_changed()

    unit = world.rig.unit
    nexus = other.engine.nexus
    assert nexus is not None
    return {
        "attention": lambda: unit.attention(sense.MODE_CHANGED),
        "reserve": lambda: unit.reservations.reserve(nexus),
        "reset": lambda: unit.reset(),
        "isids": lambda: unit.reservations.ignore_isids(),
        "sanitize": lambda: other.ask(b"\x48\x82" + bytes(8)),  # BLOCK ERASE, IMMED
        "luns": world.rig.target.luns_changed,
        "gone": remove,
    }


@pytest.mark.parametrize(
    "what", ["attention", "reserve", "reset", "isids", "sanitize", "luns", "gone"]
)
def test_what_is_out_of_the_ordinary_interrupts(world: World, what: str) -> None:
    one, other = ready(world), host(world, 2)
    one.leave()
    interrupting(world, other)[what]()
    assert one.loop.interrupts


def test_an_attention_for_another_nexus_does_not_interrupt(world: World) -> None:
    one, other = ready(world), host(world, 2)
    one.leave()
    world.rig.unit.attention(sense.MODE_CHANGED, to=other.engine.nexus)
    assert not one.loop.interrupts


def test_what_changes_behind_the_unit_is_noticed(world: World) -> None:
    one = ready(world)
    one.leave()
    one.engine.tick(0.0)
    assert not one.loop.interrupts
    world.rig.device.size *= 2
    one.engine.tick(1.0)
    assert one.loop.interrupts


def test_tasks_are_aborted_when_they_are_here(world: World) -> None:
    one = ready(world)
    offer = one.leave()
    gone: list[int] = []
    assert one.engine.abort_tasks(lambda _: True, lambda: gone.append(1)) == 1
    assert one.loop.interrupts
    assert not gone
    one.come_back(offer, begun(ISCSI_FAILED, write_10(0, 1), 7, BLOCK, b"x" * BLOCK))
    assert gone == [1]
    assert one.take() == []
    assert world.rig.device.read(0, BLOCK) == bytes(BLOCK)


def test_who_has_tasks_is_asked_elsewhere(world: World) -> None:
    one = ready(world)
    one.leave()
    unit = world.rig.unit
    assert not one.engine.has_tasks(unit)
    one.loop.on_units = {0: 2}
    assert one.engine.has_tasks(unit)
    assert one.engine.info(1).commands == 2
    one.loop.on_units = {1: 2}
    assert not one.engine.has_tasks(unit)


def test_a_session_that_ends_elsewhere_is_waited_for(world: World) -> None:
    one = ready(world)
    one.leave()
    again = Host(world, isid=one.isid)
    again.log_in({})
    assert one.loop.interrupts
    assert not again.engine.wants_input
    handover_of(one).lost(COUNTERS)
    assert again.engine.wants_input


@pytest.mark.parametrize("heard", [False, True])
def test_a_silent_session_is_asked_when_it_is_here(world: World, heard: bool) -> None:
    one = ready(world)
    offer = one.leave()
    for now_s in (0.0, 1.0, 2.0, 13.0):
        one.loop.has_heard = heard
        one.engine.tick(now_s)
    assert bool(one.loop.interrupts) is not heard
    one.loop.has_heard = False
    one.come_back(offer)
    assert [each.opcode for each in one.take()] == ([] if heard else [pdu.NOP_IN])


def test_all_that_was_done_is_counted(world: World) -> None:
    one = ready(world)
    offer = one.leave()
    before = one.engine.stats
    total = one.engine.total_stats
    assert (total.reads, total.writes) == (before.reads + 3, before.writes + 2)
    one.come_back(offer, served=5)
    assert one.engine.total_stats.reads == FIRST_RUN + 5


# -- back


def test_numbers_go_on(world: World) -> None:
    one = ready(world)
    one.leave()
    one.cmd_sn += 10
    one.engine.handed_back((one.cmd_sn, one.cmd_sn + 127, 500, 9), [], COUNTERS, asked=False)
    (answer,) = one.ask(read_10(0, 1), read=BLOCK)
    assert (answer.stat_sn, answer.exp_cmd_sn) == (500, one.cmd_sn)
    assert answer.max_cmd_sn == one.cmd_sn + 127


def test_a_write_that_collects_is_completed_here(world: World) -> None:
    one = ready(world, keys=SOLICITED)
    data = bytes(range(256)) * 6
    offer = one.leave()
    bursts = [(20, 512, 1024, 1), (21, 1024, 1536, 0)]
    bhs = bhs_of(write_10(0, 3), 7, 1536)
    one.come_back(offer, (ISCSI_COLLECTING, bhs, data[:512], 1536, 2, False, 0, bursts, None))
    one.feed(one.data_out(7, 20, 512, data[512:1024], data_sn=1))
    one.feed(one.data_out(7, 21, 1024, data[1024:]))
    answer = one.one()
    assert (answer.itt, answer.bhs[3], answer.u32(36)) == (7, GOOD, 2)
    assert world.rig.device.read(0, 1536) == data


def test_a_write_that_waits_for_its_first_r2t_gets_it_here(world: World) -> None:
    one = ready(world, keys=SOLICITED)
    one.come_back(one.leave(), begun(ISCSI_COLLECTING, write_10(0, 1), 7, BLOCK))
    r2t = one.one()
    assert (r2t.opcode, r2t.u32(40), r2t.u32(44)) == (pdu.R2T, 0, BLOCK)


@pytest.mark.parametrize("state", [ISCSI_FAILED, ISCSI_MAILED])
def test_what_was_not_done_is_done_here(world: World, state: int) -> None:
    one = ready(world)
    data = b"y" * BLOCK
    one.come_back(
        one.leave(),
        begun(ISCSI_FAILED, write_10(2, 1), 7, BLOCK, data),
        begun(state, read_10(2, 1), 8, BLOCK),
        begun(ISCSI_UNSYNCED, write_10(2, 1), 9, BLOCK),
        begun(ISCSI_UNSYNCED, b"\x35" + bytes(9), 10, 0),
    )
    answers = {each.itt: each for each in one.take()}
    assert sorted(answers) == [7, 8, 9, 10]
    assert {each.bhs[3] for each in answers.values()} == {GOOD}
    assert {each.residual for each in answers.values()} == {0}
    assert answers[8].data == data
    assert world.rig.device.read(2 * BLOCK, BLOCK) == data


class Held:
    """Where requests would wait for limits; records what it is told of."""

    is_slow = False

    def __init__(self) -> None:
        self.told: list[object] = []

    def recall(self, concerns: Callable[[Request], bool]) -> None:
        raise AssertionError("nothing is aborted")

    def paid(self, device: BlockDevice, counts: tuple[int, int, int, int]) -> None:
        self.told.append((device, counts))

    def adopt(self, device: BlockDevice, reservation: Reservation) -> None:
        self.told.append((device, reservation))


def test_what_waited_keeps_its_place_and_what_went_on_is_paid_for(world: World) -> None:
    one = Host(world, isid=bytes(5) + bytes((1,)))
    held = one.engine.held = Held()
    one.engine.may_leave = True
    one.log_in()
    one.ask(TEST_UNIT_READY)
    one.read_plainly(FIRST_RUN)
    place, device = Reservation(Limit()), world.rig.device
    first = (*begun(ISCSI_WAITING, write_10(3, 1), 9, BLOCK, b"w" * BLOCK)[:-1], place)
    one.come_back(
        one.leave(),
        begun(ISCSI_FAILED, write_10(2, 1), 7, BLOCK, b"y" * BLOCK),
        begun(ISCSI_MAILED, read_10(2, 2), 8, 2 * BLOCK),
        cast(Begun, first),
        begun(ISCSI_WAITING, b"\x35" + bytes(9), 10, 0),
        begun(ISCSI_UNSYNCED, write_10(2, 1), 11, BLOCK),
    )
    assert held.told == [
        (device, (0, 0, 1, BLOCK)),
        (device, (1, 2 * BLOCK, 0, 0)),
        (device, place),
    ]
    assert [each.bhs[3] for each in one.take()] == [GOOD] * 5
    assert device.read(3 * BLOCK, BLOCK) == b"w" * BLOCK


def test_what_is_out_of_the_ordinary_does_not_stop_what_was_begun_before(world: World) -> None:
    one = ready(world)
    offer = one.leave()
    world.rig.unit.attention(sense.MODE_CHANGED)
    one.come_back(offer, begun(ISCSI_FAILED, read_10(0, 1), 7, BLOCK))
    assert one.one().bhs[3] == GOOD
    (answer,) = one.ask(read_10(0, 1), read=BLOCK)
    assert answer.sense == (6, 0x2A, 0x01)


@pytest.mark.parametrize("state", [ISCSI_COLLECTING, ISCSI_FAILED])
def test_a_unit_that_is_gone_meanwhile_is_told(world: World, state: int) -> None:
    one = ready(world, keys=SOLICITED)
    offer = one.leave()
    world.rig.target.units.clear()
    one.come_back(offer, begun(state, write_10(0, 1), 7, BLOCK, b"z" * (state * 100)))
    answer = one.one()
    assert answer.bhs[3] == CHECK_CONDITION
    assert answer.sense == (5, 0x25, 0x00)


def test_the_engine_knows_what_to_read_for_the_loop(world: World) -> None:
    one = ready(world)
    one.leave()
    read = handover_of(one).reading(bhs_of(read_10(3, 2), 7, 2 * BLOCK))
    assert read is not None
    assert (read.itt, read.device) == (7, world.rig.device)
    assert (read.request.offset, read.request.length) == (3 * BLOCK, 2 * BLOCK)
    assert handover_of(one).reading(bhs_of(read_10(1 << 30, 2), 7, 2 * BLOCK)) is None
    world.rig.target.units.clear()
    assert handover_of(one).reading(bhs_of(read_10(3, 2), 7, 2 * BLOCK)) is None
