"""What outlasts a restart, what is durable when, and what happens when it cannot be read."""

import logging

import pytest

from blockd.scsi.pr_codec import Kept, Registrant, decode_kept
from blockd.scsi.task import CHECK_CONDITION, GOOD, Prepared, Result, Work
from tests.pr_client import (
    ALL_PORTS,
    BLOCK_OF_DATA,
    PERSIST,
    READ,
    TEST_UNIT_READY,
    WRITE,
    Host,
    out_cdb,
    out_list,
)
from tests.scsi_rig import UUID, FakeSurroundings, Rig, nexus

KEY = f"pr/{UUID.hex()}"
INQUIRY = bytes((0x12, 0, 0, 0, 36, 0))
REQUEST_SENSE = bytes((0x03, 0, 0, 0, 18, 0))
REPORT_KEYS = bytes((0x5E, 0, 0, 0, 0, 0, 0, 0, 8, 0))


def pair(surroundings: FakeSurroundings | None = None) -> tuple[Host, Host]:
    rig = Rig(surroundings=surroundings)
    return Host(rig, rig.nexus, 1), Host(rig, rig.join(2), 2)


def restarted(host: Host) -> tuple[Host, Host]:
    return pair(host.rig.surroundings)


def kept(host: Host) -> Kept | None:
    value = host.rig.surroundings.kept.get(KEY)
    return decode_kept(value) if value is not None else None


def begin(host: Host, action: int, data: bytes, kind: int = 0) -> Work:
    """A service action up to the point where it keeps things."""
    prepared = host.rig.unit.prepare(host.nexus, out_cdb(action, len(data), kind))
    assert isinstance(prepared, Prepared)
    steps = prepared.run(memoryview(data))
    assert not isinstance(steps, Result)
    work = next(steps)
    assert isinstance(work, Work)
    return work


def test_nothing_is_kept_without_aptpl() -> None:
    a, _ = pair()
    running = a.rig.start(out_cdb(0, 24), out_list(0, 1))
    assert running.result == Result()
    assert running.works == 0
    a.reserve(3)
    assert a.rig.surroundings.kept == {}
    a, _ = restarted(a)
    assert (a.keys(), a.reservation()) == ([], None)


@pytest.mark.parametrize("kind", [1, 3, 5, 6, 7, 8])
def test_registrations_and_the_reservation_outlast_a_restart(kind: int) -> None:
    a, b = pair()
    a.register(PERSIST)
    b.register(PERSIST | ALL_PORTS)
    a.reserve(kind)
    before = a.full_status()
    a, b = restarted(a)
    assert a.full_status() == before
    assert a.may_write()
    assert b.may_write() == (kind not in (1, 3))
    assert a.release(kind).status == GOOD


def test_the_generation_begins_anew() -> None:
    a, _ = pair()
    a.register(PERSIST)
    assert a.generation() == 1
    a, _ = restarted(a)
    assert a.generation() == 0


def test_each_change_is_kept_before_it_is_answered() -> None:
    a, b = pair()
    a.register(PERSIST)
    assert kept(a) == Kept({Registrant(a.nexus.initiator, a.nexus.isid, 1): 1}, None)
    b.register(PERSIST)
    b.reserve(1)
    state = kept(a)
    assert state is not None
    assert state.reservation is not None
    assert state.reservation.holder == Registrant(b.nexus.initiator, b.nexus.isid, 1)
    a.preempt(b.key, 3)
    state = kept(a)
    assert state is not None
    assert list(state.keys.values()) == [1]
    a.clear()
    assert kept(a) is None


def test_the_last_aptpl_decides() -> None:
    a, b = pair()
    a.register(PERSIST)
    b.register()
    assert kept(a) is None
    a.out(6, out_list(0, 1, PERSIST))
    assert kept(a) is not None
    b.unregister()
    assert kept(a) is None
    assert a.keys() == [1]


def test_what_changes_nothing_waits_for_no_disk() -> None:
    a, _ = pair()
    a.register(PERSIST)
    a.reserve(1)
    running = a.rig.start(out_cdb(1, 24, 1), out_list(1))
    assert running.works == 0
    assert running.result == Result()


def test_a_crash_before_it_is_kept_leaves_the_state_before() -> None:
    a, b = pair()
    a.register(PERSIST)
    b.register(PERSIST)
    begin(a, 1, out_list(1), 3)  # and the daemon is killed
    assert not b.may_read()  # it held at once
    a, b = restarted(a)
    assert a.keys() == [1, 2]
    assert a.reservation() is None
    assert b.may_read()


def test_a_crash_after_it_is_kept_leaves_the_state_after() -> None:
    a, _ = pair()
    a.register(PERSIST)
    begin(a, 1, out_list(1), 3).call()
    a, b = restarted(a)
    assert a.reservation() == (1, 3)
    assert not b.may_read()


def test_works_in_another_order_keep_the_newest() -> None:
    a, b = pair()
    a.register(PERSIST)
    b.register(PERSIST)
    first = begin(a, 1, out_list(1), 1)
    second = begin(b, 4, out_list(2, 1), 3)
    second.call()
    first.call()
    state = kept(a)
    assert state is not None
    assert list(state.keys.values()) == [2]


def test_an_earlier_work_keeps_later_changes_with_its_own() -> None:
    a, b = pair()
    a.register(PERSIST)
    first = begin(a, 1, out_list(1), 1)
    second = begin(b, 0, out_list(0, 2, PERSIST))
    first.call()
    state = kept(a)
    assert state is not None
    assert list(state.keys.values()) == [1, 2]
    del a.rig.surroundings.kept[KEY]
    second.call()  # has nothing left to do
    assert kept(a) is None


def test_a_command_whose_state_is_not_kept_fails_and_the_next_one_keeps_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    a, b = pair()
    a.register(PERSIST)
    a.rig.surroundings.fails_to_save = True
    result = a.reserve(3)
    assert result.status == CHECK_CONDITION
    assert result.sense is not None
    assert (result.sense.key, result.sense.asc) == (4, 0x44)
    assert "reservations not kept volume=vm1 error=" in caplog.text
    assert not b.may_read()  # rather than that both believe to have it
    assert a.reserve(3).status == CHECK_CONDITION  # it is still not kept
    a.rig.surroundings.fails_to_save = False
    assert a.reserve(3).status == GOOD
    a, _ = restarted(a)
    assert a.reservation() == (1, 3)


def test_forgetting_that_fails_is_tried_again() -> None:
    a, _ = pair()
    a.register(PERSIST)
    a.rig.surroundings.fails_to_save = True
    assert a.clear().status == CHECK_CONDITION
    a.rig.surroundings.fails_to_save = False
    assert a.register().status == GOOD
    assert kept(a) is None


def damaged(caplog: pytest.LogCaptureFixture) -> tuple[Host, Host]:
    surroundings = FakeSurroundings(kept={KEY: b"BDPR nonsense of some length"})
    with caplog.at_level(logging.ERROR):
        return pair(surroundings)


def test_damaged_state_refuses_service_and_says_which_it_is(
    caplog: pytest.LogCaptureFixture,
) -> None:
    a, _ = damaged(caplog)
    assert "volume=vm1" in caplog.text
    assert KEY in caplog.text
    assert "checksum" in caplog.text
    for cdb, data in (
        (READ, b""),
        (WRITE, BLOCK_OF_DATA),
        (TEST_UNIT_READY, b""),
        (REPORT_KEYS, b""),
        (out_cdb(6, 24), out_list(0, 1)),
        (bytes((0x16, 0, 0, 0, 0, 0)), b""),
    ):
        result = a.run(cdb, data)
        assert result.sense is not None, cdb
        assert (result.sense.key, result.sense.asc, result.sense.ascq) == (2, 4, 3)


def test_damaged_state_still_lets_the_unit_be_found(caplog: pytest.LogCaptureFixture) -> None:
    a, _ = damaged(caplog)
    assert a.run(INQUIRY).status == GOOD
    assert a.run(REQUEST_SENSE).status == GOOD


def test_damaged_state_is_not_written_over(caplog: pytest.LogCaptureFixture) -> None:
    a, _ = damaged(caplog)
    a.register(PERSIST)
    assert a.rig.surroundings.kept[KEY].startswith(b"BDPR nonsense")


def test_registrations_kept_by_isid_serve_by_name_afterwards() -> None:
    a, b = pair()
    a.register(PERSIST)
    b.register(PERSIST)
    a.reserve(3)
    rig = Rig(surroundings=a.rig.surroundings)
    rig.unit.reservations.ignore_isids()
    again = nexus(9, initiator=a.nexus.initiator)
    rig.unit.attach(again)
    host = Host(rig, again, 1)
    host.attentions()
    assert host.may_write()
    assert host.reservation() == (1, 3)
    assert host.keys() == [1, 2]


def test_by_name_the_holder_counts_of_several_isids() -> None:
    rig = Rig()
    name = rig.nexus.initiator
    paths = [nexus(number, initiator=name) for number in (11, 12, 13)]
    for path in paths:
        rig.unit.attach(path)
    hosts = [Host(rig, path, 11 + number) for number, path in enumerate(paths)]
    for host in hosts:
        host.attentions()
        host.register(PERSIST)
    hosts[1].reserve(1)
    rig = Rig(surroundings=rig.surroundings)
    rig.unit.reservations.ignore_isids()
    host = Host(rig, rig.nexus, 12)
    assert host.keys() == [12]
    assert host.reservation() == (12, 1)
    assert host.may_write()


def test_by_name_the_order_of_registration_stays() -> None:
    a, b = pair()
    a.register(PERSIST)
    b.register(PERSIST)
    b.reserve(1)
    rig = Rig(surroundings=a.rig.surroundings)
    rig.unit.reservations.ignore_isids()
    assert Host(rig, rig.nexus, 1).keys() == [1, 2]
