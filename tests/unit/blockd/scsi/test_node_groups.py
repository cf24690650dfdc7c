"""Units whose volume several nodes have: what each access state allows, tells and changes."""

from dataclasses import dataclass, field

import pytest

from blockd.scsi import sense
from blockd.scsi.alua import Access, PortGroup
from blockd.scsi.sense import Sense
from blockd.scsi.task import CHECK_CONDITION, Result
from tests import scsi_cdbs as cdbs
from tests.scsi_rig import BLOCK, FakeSurroundings, Rig, codes

GROUPS = bytes.fromhex("a30a00000000ffffffff0000")
DEVICE_ID = bytes.fromhex("12018304000000")
PORTS = bytes.fromhex("12018804000000")
REQUEST_SENSE = bytes.fromhex("03000000ff00")
READY = bytes(6)
MODE_SENSE = bytes.fromhex("1a003f00ff00")
CAPACITY_10 = bytes.fromhex("25000000000000000000")
CAPACITY_16 = bytes.fromhex("9e1000000000000000000000002000 00")
RESERVE_6 = bytes.fromhex("160000000000")
INQUIRY = bytes.fromhex("120000006000")
REPORT_LUNS = bytes.fromhex("a00000000000000000ff0000")


@dataclass
class Nodes:
    """Three of them; this one is the second."""

    own: int = 2
    states: list[Access] = field(
        default_factory=lambda: [Access.OPTIMIZED, Access.STANDBY, Access.UNAVAILABLE]
    )

    @property
    def here(self) -> Access:
        return self.states[self.own - 1]

    def all(self) -> tuple[PortGroup, ...]:
        return tuple(
            PortGroup(number, state, (number << 8 | 1, number << 8 | 2)[: 1 + (number == 2)])
            for number, state in enumerate(self.states, 1)
        )

    def become(self, state: Access) -> None:
        self.states[self.own - 1] = state


@pytest.fixture
def nodes() -> Nodes:
    return Nodes()


@pytest.fixture
def rig(nodes: Nodes) -> Rig:
    rig = Rig(surroundings=FakeSurroundings(groups=nodes))
    rig.nexus.port_group = 0x202
    rig.unit.look_around()
    return rig


def test_every_node_is_a_group_with_its_portals_as_ports(rig: Rig) -> None:
    assert rig.good(GROUPS) == bytes.fromhex(
        "00000028"
        "008d0001 00020001 00000101"  # active/optimized, altered implicitly
        "028d0002 00020002 00000201 00000202"
        "038d0003 00020001 00000301"
    )


def test_identifiers_tell_port_and_group_of_the_node(rig: Rig) -> None:
    page = rig.good(DEVICE_ID)
    assert bytes.fromhex("51940004 00000202") in page  # relative target port
    assert bytes.fromhex("51950004 00000002") in page  # target port group... of the node
    ports = rig.good(PORTS)
    for number in (0x101, 0x201, 0x202, 0x301):
        assert f"{rig.target.name},t,0x{number:04x}".encode() in ports


@pytest.mark.parametrize(
    ("state", "told"),
    [
        (Access.STANDBY, sense.PORT_STANDBY),
        (Access.TRANSITIONING, sense.ACCESS_TRANSITION),
        (Access.UNAVAILABLE, sense.PORT_UNAVAILABLE),
    ],
)
@pytest.mark.parametrize(
    "cdb",
    [READY, cdbs.read(0, 1), cdbs.write(0, 1), cdbs.synchronize(), cdbs.unmap(24)],
    ids=["TUR", "READ", "WRITE", "SYNC", "UNMAP"],
)
def test_the_medium_is_only_there_on_the_node_that_serves_it(
    rig: Rig, nodes: Nodes, state: Access, told: Sense, cdb: bytes
) -> None:
    nodes.become(state)
    rig.unit.next_attention(rig.nexus)
    assert codes(rig.fault(cdb, bytes(BLOCK))) == codes(told)


def test_a_standby_unit_says_what_it_is(rig: Rig) -> None:
    for cdb in (INQUIRY, REPORT_LUNS, GROUPS, MODE_SENSE, CAPACITY_10, CAPACITY_16, REQUEST_SENSE):
        rig.good(cdb)


def test_a_unit_in_transition_tells_who_it_is_and_no_more(rig: Rig, nodes: Nodes) -> None:
    nodes.become(Access.TRANSITIONING)
    rig.unit.next_attention(rig.nexus)
    for cdb in (INQUIRY, REPORT_LUNS, GROUPS, REQUEST_SENSE):
        rig.good(cdb)
    for cdb in (MODE_SENSE, CAPACITY_10, CAPACITY_16):
        assert codes(rig.fault(cdb)) == codes(sense.ACCESS_TRANSITION)


def test_request_sense_tells_the_state(rig: Rig) -> None:
    data = rig.good(REQUEST_SENSE)
    assert (data[2], data[12], data[13]) == (0x2, 0x04, 0x0B)


def test_every_session_is_told_of_every_change_once(rig: Rig, nodes: Nodes) -> None:
    other = rig.join(2)
    nodes.become(Access.TRANSITIONING)
    for nexus in (rig.nexus, other):
        assert codes(rig.fault(READY, nexus=nexus)) == codes(sense.ACCESS_STATE_CHANGED)
        assert codes(rig.fault(READY, nexus=nexus)) == codes(sense.ACCESS_TRANSITION)
    nodes.states[:] = [Access.STANDBY, Access.OPTIMIZED, Access.UNAVAILABLE]
    rig.unit.look_around()
    for nexus in (rig.nexus, other):
        assert codes(rig.fault(READY, nexus=nexus)) == codes(sense.ACCESS_STATE_CHANGED)
        rig.good(READY, nexus=nexus)


def test_a_session_elsewhere_is_called_back_when_its_way_becomes_bad(
    rig: Rig, nodes: Nodes
) -> None:
    nodes.become(Access.OPTIMIZED)
    rig.unit.next_attention(rig.nexus)
    assert rig.unit.ordinary(rig.nexus)
    calls: list[bool] = []
    rig.nexus.interrupt = lambda: calls.append(True)
    nodes.become(Access.STANDBY)
    assert not rig.unit.ordinary(rig.nexus)
    rig.unit.look_around()
    assert calls


def test_there_is_no_reserve_that_a_takeover_would_lose(rig: Rig, nodes: Nodes) -> None:
    nodes.become(Access.OPTIMIZED)
    rig.unit.next_attention(rig.nexus)
    assert codes(rig.fault(RESERVE_6, bytes(24))) == codes(sense.INVALID_OPCODE)
    listed = rig.good(bytes.fromhex("a30c00000000000100000000"))
    found = {listed[at] for at in range(4, len(listed), 8)}
    assert {0x2A, 0x5E, 0x5F} < found
    assert not found & {0x16, 0x17, 0x56, 0x57}


@pytest.mark.parametrize(
    ("state", "told"),
    [
        (Access.STANDBY, sense.PORT_STANDBY),
        (Access.TRANSITIONING, sense.ACCESS_TRANSITION),
        (Access.OPTIMIZED, sense.ACCESS_TRANSITION),  # it is served here again
    ],
)
def test_what_a_takeover_ended_may_be_sent_another_way(
    rig: Rig, nodes: Nodes, state: Access, told: Sense
) -> None:
    nodes.become(state)
    ended = rig.unit.ended(Result(CHECK_CONDITION, sense=sense.MANUAL_INTERVENTION))
    assert ended.sense == told
    other = Result(CHECK_CONDITION, sense=sense.READ_ERROR)
    assert rig.unit.ended(other) is other
    alone = Rig()
    result = Result(CHECK_CONDITION, sense=sense.MANUAL_INTERVENTION)
    assert alone.unit.ended(result) is result
