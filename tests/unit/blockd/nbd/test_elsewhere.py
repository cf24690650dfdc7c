"""Volumes that several nodes have: who attaches at the wrong one is told where to go, and who
attaches at the right one is served only after its attach token was looked at."""

import pytest

from blockd.nbd import wire
from tests.fake_cluster import FakePaths
from tests.fakes import FakeAccess, MemoryDevice, MirroredDevice
from tests.nbd_client import OptionError, Session, context_query, export_query, option
from tests.nbd_engine import Engine

READS = {
    wire.OPT_INFO: export_query("disk"),
    wire.OPT_SET_META_CONTEXT: context_query("disk", "base:allocation"),
}


@pytest.fixture
def paths() -> FakePaths:
    made = FakePaths(number=2)
    made.are("serving", "standby", "standby")
    return made


@pytest.fixture
def device() -> MirroredDevice:
    return MirroredDevice()


@pytest.fixture
def engine(device: MirroredDevice, paths: FakePaths) -> Engine:
    return Engine(device, MemoryDevice("alone"), paths=paths)


@pytest.fixture
def client(engine: Engine) -> Session:
    client = engine.client()
    client.greet()
    client.structured_reply()
    return client


@pytest.mark.parametrize("number", [wire.OPT_GO, *READS])
def test_who_is_wrong_here_is_told_where_to_go(
    client: Session, device: MirroredDevice, number: int
) -> None:
    device.move_away()
    with pytest.raises(OptionError, match=r"served by n1 at 10\.0\.0\.1:10809") as refused:
        client.option(number, READS.get(number, export_query("disk")))
    assert refused.value.reply == wire.REP_ERR_SHUTDOWN


def test_export_name_cannot_say_so_and_ends(client: Session, device: MirroredDevice) -> None:
    device.move_away()
    with pytest.raises(EOFError):
        client.export_name("disk")


def test_while_nobody_serves_it_the_client_is_to_try_again(
    client: Session, device: MirroredDevice, paths: FakePaths
) -> None:
    device.move_away()
    paths.are("unreachable", "standby", "changing")
    with pytest.raises(OptionError, match="is being taken over by n3; try again"):
        client.go("disk")
    paths.are("unreachable", "standby", "standby")
    with pytest.raises(OptionError, match="volume disk: not served here"):
        client.go("disk")
    paths.known = ()  # nothing is known of the others
    with pytest.raises(OptionError, match="volume disk: not served here"):
        client.go("disk")


def test_a_token_that_does_not_hold_lets_nobody_in(
    engine: Engine, client: Session, device: MirroredDevice
) -> None:
    engine.refusal = "volume disk: the cluster is in epoch 5 of it"
    with pytest.raises(OptionError, match="the cluster is in epoch 5") as refused:
        client.go("disk")
    assert refused.value.reply == wire.REP_ERR_SHUTDOWN
    assert not device.clients
    engine.refusal = None
    client.go("disk")
    assert engine.proofs == [device, device]


def test_only_who_attaches_has_it_looked_at(engine: Engine, client: Session) -> None:
    for number, query in READS.items():
        client.option(number, query)
    client.go("alone")
    assert engine.proofs == []


def test_an_access_list_that_changes_meanwhile_counts(device: MirroredDevice) -> None:
    access = FakeAccess()
    engine = Engine(device, access=access, paths=FakePaths())
    client = engine.client()
    client.greet()
    engine.slow_disk = True
    client.send_raw(option(wire.OPT_GO, export_query("disk")))
    access.put("disk")
    engine.answer()
    assert client.read_option_reply().reply == wire.REP_ERR_UNKNOWN
    assert not device.clients
