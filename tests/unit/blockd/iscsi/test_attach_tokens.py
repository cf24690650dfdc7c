"""Logins to volumes that several nodes have: a node that serves proves that it may, others let
initiators in on standby."""

import pytest

from blockd.iscsi.targets import Access, Credentials
from tests.fakes import MirroredDevice
from tests.iscsi_initiator import World
from tests.scsi_rig import BLOCK, BLOCKS
from tests.unit.blockd.scsi.test_node_groups import Nodes

READ = bytes.fromhex("28000000000000000100")


@pytest.fixture
def world() -> World:
    made = World()
    made.rig.unit.device = MirroredDevice("vm1", BLOCKS * BLOCK, block_size=BLOCK)
    made.rig.surroundings.groups = Nodes()
    return made


def device(world: World) -> MirroredDevice:
    found = world.rig.unit.device
    assert isinstance(found, MirroredDevice)
    return found


def test_who_serves_proves_it_before_the_login_ends(world: World) -> None:
    initiator = world.logged_in()
    assert initiator.proofs == [(device(world),)]
    assert initiator.closed is None


def test_a_token_that_does_not_hold_makes_the_service_unavailable(world: World) -> None:
    initiator = world.initiator()
    initiator.refusal = "volume vm1: the cluster is in epoch 5 of it"
    with pytest.raises(AssertionError):
        initiator.log_in()
    assert initiator.closed is not None
    assert "0301" in initiator.closed.reason
    assert "epoch 5" in initiator.closed.reason
    assert world.node.sessions() == []
    world.logged_in()  # the same initiator, once it holds again


def test_one_that_does_not_know_that_it_still_serves_has_to_prove_it(world: World) -> None:
    device(world).leads = False  # its lease has run out
    initiator = world.logged_in()
    assert initiator.proofs == [(device(world),)]


def test_a_standby_lets_in_without_asking_anybody(world: World) -> None:
    device(world).move_away()
    initiator = world.logged_in()
    assert initiator.proofs == []
    [answer] = initiator.ask(READ, read=BLOCK)
    if answer.sense[0] == 6:
        [answer] = initiator.ask(READ, read=BLOCK)
    assert answer.sense == (0x2, 0x04, 0x0B)


def test_a_node_without_a_number_is_no_port_yet(world: World) -> None:
    world.rig.surroundings.groups = Nodes(own=0)
    initiator = world.initiator()
    with pytest.raises(AssertionError):
        initiator.log_in()
    assert initiator.closed is not None
    assert "0301" in initiator.closed.reason
    assert initiator.proofs == []


def test_nobody_has_it_asked_who_may_not_log_in(world: World) -> None:
    world.target.access = Access(chap=(Credentials("host", b"a secret of 12"),))
    initiator = world.initiator()
    with pytest.raises(AssertionError):
        initiator.log_in()
    assert initiator.proofs == []
