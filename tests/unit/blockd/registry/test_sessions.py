"""What initiators that are logged in see when targets and volumes change under them."""

import pytest

from blockd.iscsi.targets import IQN_PREFIX, Portal
from blockd.scsi import sanitize
from blockd.scsi.reservations import REGISTER, RESERVE
from blockd.scsi.task import GOOD, RESERVATION_CONFLICT
from tests import aio, pr_client
from tests import scsi_cdbs as cdbs
from tests.iscsi_home import BLOCK, DB, Home, outcome
from volume.errors import CorruptData, UnknownFormat

LUNS_CHANGED = (0x06, 0x3F, 0x0E)
GONE = (0x02, 0x04, 0x03)
NOT_THERE = (0x05, 0x25, 0x00)


def test_a_session_is_a_client_of_the_volumes_that_are_added_to_its_target() -> None:
    home = Home()
    home.create("vm1")
    initiator = home.log_in(DB)
    client = initiator.connection.peer
    assert home.device("vm1").clients == [client]
    assert home.add("vm2") == 1
    assert home.device("vm2").clients == [client]
    home.remove(0)
    assert home.device("vm1").clients == []
    initiator.connection.eof()
    assert home.device("vm2").clients == []


def test_a_session_hears_of_added_and_removed_units() -> None:
    home = Home()
    home.create("vm1")
    initiator = home.log_in(DB)
    home.add("vm2")
    assert outcome(initiator) == LUNS_CHANGED
    assert outcome(initiator) == bytes(BLOCK)
    assert outcome(initiator, lun=1) == LUNS_CHANGED
    assert outcome(initiator, lun=1) == bytes(BLOCK)
    home.remove(1)
    assert outcome(initiator) == LUNS_CHANGED
    assert outcome(initiator, lun=1) == NOT_THERE


def test_who_has_a_volume_that_is_put_back_loses_it_and_others_find_the_new_state() -> None:
    home = Home()
    home.create("vm1", "vm2")
    before = home.log_in(DB)
    home.store.put_back("vm1")
    home.device("vm1").write(0, b"n" * BLOCK)
    after = home.log_in(DB, 1)
    assert outcome(after) == b"n" * BLOCK
    assert outcome(before) == GONE
    assert outcome(before, lun=1) == outcome(after, lun=1) == bytes(BLOCK)


def test_who_has_lost_a_volume_still_hears_of_other_units() -> None:
    home = Home()
    home.create("vm1")
    before = home.log_in(DB)
    home.store.put_back("vm1")
    home.registry.tick(0.0)
    home.add("vm2")
    assert outcome(before) == LUNS_CHANGED
    assert outcome(before) == GONE
    assert outcome(before, lun=1) == LUNS_CHANGED
    assert outcome(before, lun=1) == bytes(BLOCK)
    assert home.device("vm2").clients == [before.connection.peer]


def test_the_same_holds_for_the_target_that_a_volume_has_by_itself() -> None:
    home = Home()
    before = home.log_in(IQN_PREFIX + "vm1")
    home.store.put_back("vm1")
    after = home.log_in(IQN_PREFIX + "vm1", 1)
    assert outcome(before) == GONE
    assert outcome(after) == bytes(BLOCK)


def test_a_volume_that_is_deleted_is_no_unit_of_who_comes_later() -> None:
    home = Home()
    home.create("vm1", "vm2")
    before = home.log_in(DB)
    home.store.delete_volume("vm1", force=True)
    after = home.log_in(DB, 1)
    assert outcome(before) == GONE
    assert outcome(after) == NOT_THERE
    assert outcome(after, lun=1) == bytes(BLOCK)


def test_a_sanitize_does_not_go_on_in_the_state_that_was_put_back() -> None:
    home = Home()
    uuid = home.device("vm1").uuid.hex()
    row = f"iscsi/unit/{uuid}/{uuid}/{sanitize.KEY}"
    home.store.states[row] = sanitize.Job(pattern="", unrestricted=False).encode()
    home.open()
    home.store.put_back("vm1")
    home.device("vm1").write(0, b"k" * BLOCK)
    assert outcome(home.log_in(IQN_PREFIX + "vm1")) == b"k" * BLOCK
    assert row not in home.store.states


@pytest.mark.parametrize("ignored", [True, False])
def test_reservations_may_go_by_the_name_of_the_initiator_alone(ignored: bool) -> None:
    home = Home(ignore_isids=ignored)
    holder = home.log_in(IQN_PREFIX + "vm1")
    for action in (REGISTER, RESERVE):
        key = (0, 7) if action == REGISTER else (7, 0)
        cdb = pr_client.out_cdb(action, 24, kind=1)  # write exclusive
        [done] = holder.ask(cdb, write=24, data=pr_client.out_list(*key))
        assert done.bhs[3] == GOOD
    again = home.log_in(IQN_PREFIX + "vm1", 1)
    [written] = again.ask(cdbs.write(0, 1), write=BLOCK, data=bytes(BLOCK))
    assert written.bhs[3] == (GOOD if ignored else RESERVATION_CONFLICT)


def test_units_tell_of_all_portal_groups_whenever_they_were_asked_for() -> None:
    home = Home()
    home.create("vm1")
    home.registry.all()
    session = home.log_in(DB)
    home.registry.listening([Portal("127.0.0.1", 3260, 1), Portal("127.0.0.1", 3261, 7)])
    automatic = home.registry.get(IQN_PREFIX + "vm2")
    created = home.registry.get(DB)
    assert automatic is not None
    assert created is not None
    assert automatic.device.port_groups == created.device.port_groups == (1, 7)
    assert session.connection.nexus is not None
    assert session.connection.nexus.target is created.device


def test_a_time_becomes_the_version_that_it_names() -> None:
    home = Home()
    home.create("vm1@seq:3", "vm1@2026-11-22T10:31:05Z", "vm1@-10m")
    refs = [lun.ref for lun in home.registry.named(DB).stored.luns]
    assert refs == ["seq:3", "seq:0", "seq:0"]


def test_a_deleted_target_ends_its_sessions_when_it_must() -> None:
    home = Home()
    home.create("vm1")
    initiator = home.log_in(DB)
    aio.run(home.registry.delete(DB, force=True))
    assert initiator.closed is not None
    assert initiator.closed.reason == "the target was deleted"
    assert home.registry.get(DB) is None
    assert home.device("vm1").clients == []


@pytest.mark.parametrize("row", [b"", b"[]", b"{}", b'{"version": 1}', b"[" * 100_000])
def test_a_target_that_cannot_be_read_stops_the_start(row: bytes) -> None:
    home = Home()
    home.store.states["iscsi/target/" + DB] = row
    with pytest.raises(CorruptData, match=DB):
        home.open()


def test_a_target_of_a_newer_server_stops_the_start() -> None:
    home = Home()
    home.store.states["iscsi/target/" + DB] = b'{"version": 2}'
    with pytest.raises(UnknownFormat, match=DB):
        home.open()
