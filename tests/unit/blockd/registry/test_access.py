"""Access lists of volumes as initiators meet them: targets that are not there, units that are not,
units that only let them read."""

import pytest

from blockd.access.rules import AccessList, Rule
from blockd.iscsi import pdu
from blockd.iscsi.targets import IQN_PREFIX
from blockd.scsi.reservations import REGISTER
from blockd.scsi.target import encode_lun
from tests import pr_client
from tests import scsi_cdbs as cdbs
from tests.fakes import FakeAccess
from tests.iscsi_home import BLOCK, DB, Home, outcome
from tests.iscsi_initiator import ADDRESS, NAME, Initiator

VM1 = IQN_PREFIX + "vm1"
LUNS_CHANGED = (0x06, 0x3F, 0x0E)
NOT_THERE = (0x05, 0x25, 0x00)
WRITE_PROTECTED = (0x07, 0x27, 0x00)
NOT_FOUND = (2, 3)
TO_FULL = 0x87
MINE = Rule(initiator=NAME, address=f"{ADDRESS}/32")
OTHERS = Rule(initiator=NAME + "x")
READING = Rule(initiator=NAME, read_only=True)


@pytest.fixture
def access() -> FakeAccess:
    return FakeAccess()


@pytest.fixture
def home(access: FakeAccess) -> Home:
    return Home(access=access)


def status(home: Home, target: str) -> tuple[int, int]:
    initiator = Initiator(home)  # type: ignore[arg-type] # what it uses
    answer = initiator.login({**initiator.first(), "TargetName": target}, flags=TO_FULL)
    assert answer is not None
    return answer.status


def discovered(home: Home) -> list[str]:
    initiator = Initiator(home)  # type: ignore[arg-type]
    initiator.log_in(discovery=True)
    initiator.feed(initiator.other(pdu.TEXT, pdu.FINAL, data=b"SendTargets=All\0"))
    text = initiator.one().data.decode()
    return [
        pair.removeprefix("TargetName=") for pair in text.split("\0") if pair[:11] == "TargetName="
    ]


def luns(initiator: Initiator) -> list[bytes]:
    [answer] = initiator.ask(bytes.fromhex("a00000000000000010000000"), read=4096)
    listed = answer.data[8:]
    return [listed[at : at + 8] for at in range(0, len(listed), 8)]


def write(initiator: Initiator, lun: int = 0) -> tuple[int, int, int]:
    [answer] = initiator.ask(cdbs.write(0, 1), write=BLOCK, data=b"w" * BLOCK, lun=lun)
    return answer.sense if answer.bhs[3] else (0, 0, 0)


# --- a volume's own target ----------------------------------------------------------------------


def test_who_is_on_the_list_logs_in(home: Home, access: FakeAccess) -> None:
    access.put("vm1", OTHERS, MINE)
    assert discovered(home) == [VM1, IQN_PREFIX + "vm2"]
    assert outcome(home.log_in(VM1)) == bytes(BLOCK)


@pytest.mark.parametrize(
    "rule",
    [
        OTHERS,
        Rule(initiator=NAME, address="198.51.100.0/24"),
        Rule(initiator=NAME, chap_user="somebody"),
        Rule(uid=0),
        Rule(certificate=NAME),
    ],
    ids=str,
)
def test_to_all_others_there_is_no_such_target(home: Home, access: FakeAccess, rule: Rule) -> None:
    access.put("vm1", rule)
    assert discovered(home) == [IQN_PREFIX + "vm2"]
    assert status(home, VM1) == status(home, IQN_PREFIX + "none") == NOT_FOUND


def test_a_past_version_is_not_even_looked_for(home: Home, access: FakeAccess) -> None:
    access.put("vm1", OTHERS)
    home.targets.past[VM1 + ":at:monday"] = home.registry.all()[1]  # would be found
    assert status(home, VM1 + ":at:monday") == NOT_FOUND


# --- configured targets -------------------------------------------------------------------------


def test_a_unit_that_is_kept_from_an_initiator_is_not_there(home: Home, access: FakeAccess) -> None:
    home.create("vm1", "vm2")
    access.put("vm1", OTHERS)
    initiator = home.log_in(DB)
    assert luns(initiator) == [encode_lun(1)]
    assert outcome(initiator) == NOT_THERE
    assert write(initiator) == NOT_THERE
    assert outcome(initiator, lun=1) == bytes(BLOCK)
    assert home.device("vm1").clients == []
    assert home.device("vm1").seen == []


def test_a_unit_that_is_not_there_is_unknown_to_task_management(
    home: Home, access: FakeAccess
) -> None:
    home.create("vm1", "vm2")
    access.put("vm1", OTHERS)
    initiator = home.log_in(DB)
    initiator.feed(
        initiator.other(pdu.TASK_MANAGEMENT, pdu.FINAL | 5, lun=0, tag=0xFFFFFFFF, immediate=True)
    )
    assert initiator.one().bhs[2] == pdu.NO_SUCH_LUN


def test_units_that_are_added_are_shown_to_who_may_have_them(
    home: Home, access: FakeAccess
) -> None:
    home.create("vm2")
    access.put("vm1", OTHERS)
    initiator = home.log_in(DB)
    home.add("vm1")
    assert luns(initiator) == [encode_lun(0)]
    assert outcome(initiator, lun=1) == NOT_THERE


# --- read-only ----------------------------------------------------------------------------------


def test_who_may_read_only_finds_the_unit_write_protected(home: Home, access: FakeAccess) -> None:
    access.put("vm1", READING)
    initiator = home.log_in(VM1)
    assert outcome(initiator) == bytes(BLOCK)
    assert write(initiator) == WRITE_PROTECTED
    [answer] = initiator.ask(bytes.fromhex("1a083f00ff00"), read=255)
    assert answer.data[2] & 0x80, "WP of MODE SENSE"
    assert home.device("vm1").read(0, BLOCK) == bytes(BLOCK)


def test_others_write_to_the_same_unit(home: Home, access: FakeAccess) -> None:
    access.put("vm1", READING, Rule(initiator=NAME + "2"))
    reader = home.log_in(VM1)
    writer = Initiator(home, name=NAME + "2")  # type: ignore[arg-type]
    writer.log_in({"TargetName": VM1})
    assert write(writer) == (0, 0, 0)
    assert outcome(reader) == b"w" * BLOCK
    assert write(reader) == WRITE_PROTECTED


@pytest.mark.parametrize(
    "cdb",
    [
        "150100000400",  # MODE SELECT: it could protect the unit from everybody
        "160000000000",  # RESERVE
        "56000000000000000000",
        "170000000000",  # RELEASE
    ],
)
def test_who_may_read_only_changes_nothing_that_holds_for_others(
    home: Home, access: FakeAccess, cdb: str
) -> None:
    access.put("vm1", READING)
    initiator = home.log_in(VM1)
    [answer] = initiator.ask(bytes.fromhex(cdb))
    assert answer.sense == WRITE_PROTECTED


def test_who_may_read_only_takes_no_reservation(home: Home, access: FakeAccess) -> None:
    access.put("vm1", READING)
    initiator = home.log_in(VM1)
    data = pr_client.out_list(0, 0xABC)
    [answer] = initiator.ask(pr_client.out_cdb(REGISTER, len(data)), write=len(data), data=data)
    assert answer.sense == WRITE_PROTECTED


@pytest.mark.parametrize("function", [4, 5, 6, 7], ids=["clear", "lun", "warm", "cold"])
def test_who_may_read_only_ends_nothing_of_others(
    home: Home, access: FakeAccess, function: int
) -> None:
    access.put("vm1", READING)
    initiator = home.log_in(VM1)
    initiator.feed(
        initiator.other(pdu.TASK_MANAGEMENT, pdu.FINAL | function, tag=0xFFFFFFFF, immediate=True)
    )
    assert initiator.one().bhs[2] == pdu.FUNCTION_REJECTED


# --- changes ------------------------------------------------------------------------------------


def test_who_loses_a_unit_is_ended(home: Home, access: FakeAccess) -> None:
    home.create("vm1", "vm2")
    loses, stays = home.log_in(DB), home.log_in(IQN_PREFIX + "vm1", 1)
    access.put("vm2", OTHERS)
    [tsih] = home.node.bar("not let in")
    assert loses.closed is not None
    assert loses.closed.reason == "not let in"
    assert stays.closed is None
    assert [each for each, _ in home.node.open_sessions()] != [tsih]
    assert luns(home.log_in(DB)) == [encode_lun(0)]


def test_who_may_read_only_from_now_on_is_ended(home: Home, access: FakeAccess) -> None:
    initiator = home.log_in(VM1)
    access.put("vm1", READING)
    assert len(home.node.bar("not let in")) == 1
    assert initiator.closed is not None


def test_who_gains_a_unit_is_told(home: Home, access: FakeAccess) -> None:
    home.create("vm1", "vm2")
    access.put("vm2", OTHERS)
    initiator = home.log_in(DB)
    del access.lists["vm2"]
    assert home.node.bar("not let in") == []
    assert outcome(initiator) == LUNS_CHANGED
    assert luns(initiator) == [encode_lun(0), encode_lun(1)]
    assert outcome(initiator, lun=1) == bytes(BLOCK)
    assert home.device("vm2").clients == [initiator.connection.peer]


def test_who_may_write_from_now_on_is_told(home: Home, access: FakeAccess) -> None:
    access.put("vm1", READING)
    initiator = home.log_in(VM1)
    assert write(initiator) == WRITE_PROTECTED
    access.lists["vm1"] = AccessList((MINE,))
    assert home.node.bar("not let in") == []
    assert outcome(initiator) == LUNS_CHANGED
    assert write(initiator) == (0, 0, 0)


def test_a_change_that_concerns_nobody_is_told_to_nobody(home: Home, access: FakeAccess) -> None:
    initiator = home.log_in(VM1)
    access.put("vm2", OTHERS)
    access.put("vm1", MINE)
    assert home.node.bar("not let in") == []
    assert outcome(initiator) == bytes(BLOCK)
