"""Reservations of a volume that two nodes have: a takeover leaves them as they are."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field

import pytest

from blockd.scsi import sense
from blockd.scsi.alua import Access, PortGroup
from blockd.scsi.nexus import Nexus
from blockd.scsi.persistent import Persistent
from blockd.scsi.pr_codec import DamagedState, Registrant, Reservation
from blockd.scsi.reservations import PREEMPT, PREEMPT_AND_ABORT, REGISTER
from blockd.scsi.shared_reservations import MAX_DOUBTS, decode, encode
from blockd.scsi.task import (
    CHECK_CONDITION,
    GOOD,
    RESERVATION_CONFLICT,
    Prepared,
    Result,
    Task,
    Work,
)
from blockd.shared_state import Held, Now, T, Unsettled, ready
from tests.fake_cluster import FakeShared
from tests.pr_client import (
    ALL_PORTS,
    BLOCK_OF_DATA,
    PERSIST,
    READ,
    WRITE,
    Host,
    in_cdb,
    out_cdb,
    out_list,
)
from tests.scsi_rig import FakeSurroundings, Rig, codes, joined

WERO = 5  # Write Exclusive, Registrants Only
REPORT_LUNS = bytes.fromhex("a00000000000000000ff0000")
RESERVE_6 = bytes.fromhex("160000000000")


@dataclass
class Groups:
    """This node's group is that of a node that serves once it knows what is kept."""

    state: FakeShared

    @property
    def here(self) -> Access:
        if not self.state.term:
            return Access.STANDBY
        return Access.OPTIMIZED if ready(self.state) else Access.TRANSITIONING

    own = 1

    def all(self) -> tuple[PortGroup, ...]:
        return (PortGroup(1, self.here, (1,)),)


class Node:
    """One node's unit of the volume, with a path of each of two hosts to it."""

    def __init__(self, kept: list[Held], term: int, port: int) -> None:
        self.state = FakeShared(kept, term)
        around = FakeSurroundings(groups=Groups(self.state), shared=self.state)
        self.rig = Rig(surroundings=around)
        self.rig.target.detach(self.rig.nexus)
        self.a, self.b = (
            Host(self.rig, self.rig.join(number, group=port), number) for number in (1, 2)
        )
        self.settle()

    def settle(self) -> None:
        """Initiators are told that the access state has changed."""
        self.rig.unit.look_around()
        for host in (self.a, self.b):
            self.rig.unit.forget_attention(sense.ACCESS_STATE_CHANGED, host.nexus)


@dataclass
class Cluster:
    """n1 serves to begin with."""

    kept: list[Held] = field(default_factory=lambda: [Held(0, 1, b"")])

    def __post_init__(self) -> None:
        self.one, self.two = Node(self.kept, 1, 0x101), Node(self.kept, 0, 0x201)

    def move(self, term: int = 2) -> None:
        """n2 serves it from now on."""
        self.one.state.move_away()
        self.two.state.serve(term)
        for node in (self.one, self.two):
            node.settle()


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


def conflicts(result: Result) -> bool:
    assert result.status in (GOOD, RESERVATION_CONFLICT), result
    return result.status == RESERVATION_CONFLICT


@pytest.mark.parametrize("flags", [0, PERSIST])
def test_a_reservation_holds_on_the_node_that_takes_the_volume_over(
    cluster: Cluster, flags: int
) -> None:
    one, two = cluster.one, cluster.two
    assert one.a.register(flags | ALL_PORTS).status == GOOD
    assert one.a.reserve(WERO).status == GOOD
    assert conflicts(one.b.run(WRITE, BLOCK_OF_DATA))
    before = one.a.full_status()
    cluster.move()
    assert two.a.full_status() == before
    assert conflicts(two.b.run(WRITE, BLOCK_OF_DATA))
    assert two.b.run(READ).status == GOOD
    assert two.a.run(WRITE, BLOCK_OF_DATA).status == GOOD  # the same initiator port, all ports
    assert two.a.release(WERO).status == GOOD
    assert two.b.run(WRITE, BLOCK_OF_DATA).status == GOOD


def test_whoever_was_preempted_stays_out_after_a_takeover(cluster: Cluster) -> None:
    one, two = cluster.one, cluster.two
    for host in (one.a, one.b):
        host.register(ALL_PORTS)
    one.b.reserve(WERO)
    assert one.a.preempt(one.b.key, WERO, PREEMPT_AND_ABORT).status == GOOD
    assert codes(one.rig.fault(READ, nexus=one.b.nexus)) == codes(sense.REGISTRATIONS_PREEMPTED)
    assert conflicts(one.b.run(WRITE, BLOCK_OF_DATA))
    cluster.move()
    assert conflicts(two.b.run(WRITE, BLOCK_OF_DATA))
    assert two.a.run(WRITE, BLOCK_OF_DATA).status == GOOD


def test_paths_are_registered_on_standby_and_count_after_a_takeover(cluster: Cluster) -> None:
    one, two = cluster.one, cluster.two
    one.a.register()
    assert two.a.register().status == GOOD
    one.a.reserve(WERO)
    assert one.a.keys() == two.a.keys() == [1, 1]
    cluster.move()
    assert two.a.run(WRITE, BLOCK_OF_DATA).status == GOOD
    assert conflicts(two.b.run(WRITE, BLOCK_OF_DATA))


def test_only_registering_is_for_standby(cluster: Cluster) -> None:
    two = cluster.two
    assert two.a.register_and_ignore().status == GOOD
    for result in (two.a.reserve(WERO), two.a.clear(), two.a.release(WERO), two.a.preempt(1, WERO)):
        assert result.status == CHECK_CONDITION
        assert result.sense == sense.PORT_STANDBY
    assert two.a.keys() == [1]


def test_nothing_is_served_before_what_is_kept_is_known(cluster: Cluster) -> None:
    one, two = cluster.one, cluster.two
    one.a.register()
    one.a.reserve(WERO)
    cluster.one.state.move_away()
    two.state.term = 2  # it is the primary, and has not looked yet
    two.settle()
    for host in (two.a, two.b):
        assert host.run(READ).sense == sense.ACCESS_TRANSITION
        assert not two.rig.unit.ordinary(host.nexus)
    two.state.serve(2)
    two.settle()
    assert conflicts(two.b.run(WRITE, BLOCK_OF_DATA))


def test_a_node_that_serves_again_goes_by_what_others_did_meanwhile(cluster: Cluster) -> None:
    one, two = cluster.one, cluster.two
    one.b.register(ALL_PORTS)
    assert one.rig.unit.ordinary(one.a.nexus)
    calls: list[bool] = []
    one.a.nexus.interrupt = lambda: calls.append(True)
    cluster.move()
    two.a.register(ALL_PORTS)
    two.b.reserve(1)
    one.state.serve(3)  # both at once: nothing was asked of it meanwhile
    two.state.move_away()
    assert not one.rig.unit.ordinary(one.a.nexus)
    assert calls, "what is served past the unit has to be called back"
    one.settle()
    assert conflicts(one.a.run(WRITE, BLOCK_OF_DATA))
    assert one.b.run(WRITE, BLOCK_OF_DATA).status == GOOD


def test_what_is_served_past_the_unit_is_called_back_when_the_volume_goes(
    cluster: Cluster,
) -> None:
    one = cluster.one
    calls: list[bool] = []
    one.a.nexus.interrupt = lambda: calls.append(True)
    one.rig.unit.look_around()
    assert not calls
    one.state.move_away()
    one.rig.unit.look_around()
    assert calls


def test_initiators_are_told_of_what_was_done_at_another_node(cluster: Cluster) -> None:
    one, two = cluster.one, cluster.two
    for host in (one.a, one.b):
        host.register(ALL_PORTS)
    one.a.reserve(WERO)
    two.state.note(two.state.read())
    two.rig.unit.look_around()
    one.a.preempt(one.b.key, WERO)
    cluster.move()
    assert codes(two.rig.fault(READ, nexus=two.b.nexus)) == codes(sense.REGISTRATIONS_PREEMPTED)
    assert two.a.run(READ).status == GOOD


def test_a_ghost_answers_no_service_action(cluster: Cluster) -> None:
    one, two = cluster.one, cluster.two
    one.a.register()
    two.state.serve(2)  # and n1 has not heard of it
    two.settle()
    for result in (one.a.reserve(WERO), one.a.unregister(), one.b.register()):
        assert result.status == CHECK_CONDITION
        assert result.sense == sense.ACCESS_TRANSITION
    assert two.a.keys() == [1]
    assert two.a.reservation() is None


def test_without_the_metastore_reservations_hold_and_do_not_change(cluster: Cluster) -> None:
    one = cluster.one
    one.a.register()
    one.a.reserve(WERO)
    one.state.fails = True
    assert one.a.run(WRITE, BLOCK_OF_DATA).status == GOOD
    assert conflicts(one.b.run(WRITE, BLOCK_OF_DATA))
    assert one.b.register().sense == sense.INTERNAL_FAILURE
    assert one.a.keys() == [1]
    cluster.two.state.fails = True
    assert cluster.two.rig.run(in_cdb(0), nexus=cluster.two.a.nexus).sense == sense.INTERNAL_FAILURE


def preempt_and_lose(one: Node, *, happens: bool, action: int = PREEMPT_AND_ABORT) -> list[Nexus]:
    """a preempts b, which has the reservation; whose commands are aborted."""
    for host in (one.a, one.b):
        host.register(ALL_PORTS)
    one.b.reserve(WERO)
    aborted: list[Nexus] = []

    def abort(nexus: Nexus, _: object) -> bool:
        aborted.append(nexus)
        return True

    one.rig.unit.aborting.append(abort)
    one.state.loses = happens
    assert one.a.preempt(one.b.key, WERO, action).sense == sense.INTERNAL_FAILURE
    return aborted


@pytest.mark.parametrize("happens", [True, False])
def test_a_preempt_and_abort_whose_answer_is_lost_aborts_before_it_ends(
    cluster: Cluster, happens: bool
) -> None:
    one = cluster.one
    assert preempt_and_lose(one, happens=happens) == [one.b.nexus]


@pytest.mark.parametrize("action", [PREEMPT, PREEMPT_AND_ABORT])
@pytest.mark.parametrize("happens", [True, False])
def test_whom_a_lost_answer_may_have_shut_out_waits_until_that_is_known(
    cluster: Cluster, happens: bool, action: int
) -> None:
    one = cluster.one
    aborted = preempt_and_lose(one, happens=happens, action=action)
    assert one.b.run(WRITE, BLOCK_OF_DATA).sense == sense.ACCESS_TRANSITION
    assert not one.rig.unit.ordinary(one.b.nexus)
    assert one.b.run(READ).status == GOOD
    assert one.a.run(WRITE, BLOCK_OF_DATA).status == GOOD
    one.rig.unit.look_around()
    assert one.b.run(WRITE, BLOCK_OF_DATA).sense == sense.ACCESS_TRANSITION, "nothing was heard"
    one.state.settle()
    one.rig.unit.look_around()
    if happens:
        assert codes(one.rig.fault(READ, nexus=one.b.nexus)) == codes(sense.REGISTRATIONS_PREEMPTED)
    elif aborted:
        assert codes(one.rig.fault(READ, nexus=one.b.nexus)) == codes(sense.COMMANDS_CLEARED)
    assert conflicts(one.b.run(WRITE, BLOCK_OF_DATA)) is happens


def test_a_lost_answer_lets_nobody_in_that_was_out(cluster: Cluster) -> None:
    one = cluster.one
    one.a.register(ALL_PORTS)
    one.a.reserve(WERO)
    one.state.loses = False
    assert one.a.release(WERO).sense == sense.INTERNAL_FAILURE
    assert conflicts(one.b.run(WRITE, BLOCK_OF_DATA))
    assert one.a.run(WRITE, BLOCK_OF_DATA).status == GOOD
    assert one.a.release(WERO).status == GOOD
    assert one.b.run(WRITE, BLOCK_OF_DATA).status == GOOD


def test_lost_answers_are_remembered_up_to_a_bound(cluster: Cluster) -> None:
    one = cluster.one
    one.a.register(ALL_PORTS)
    for _ in range(MAX_DOUBTS):
        one.state.loses = False
        assert one.a.reserve(WERO).sense == sense.INTERNAL_FAILURE
    one.state.loses = None
    assert one.a.reserve(WERO).sense == sense.INTERNAL_FAILURE
    assert one.a.reservation() is None
    one.state.settle()
    assert one.a.reserve(WERO).status == GOOD


def test_a_service_action_that_fails_changes_nothing(cluster: Cluster) -> None:
    one = cluster.one
    one.a.register()
    before = cluster.kept[0]
    assert conflicts(one.b.reserve(WERO))
    assert one.a.out(REGISTER, out_list(1, 2)[:20]).status == CHECK_CONDITION
    assert cluster.kept[0] == before


def test_what_became_of_a_lost_answer_may_be_known_before_it_is_missed(cluster: Cluster) -> None:
    one = cluster.one
    one.a.register(ALL_PORTS)
    read = one.state.change

    def change(term: int, apply: Callable[[bytes], tuple[bytes, T]]) -> tuple[Held, T]:
        try:
            return read(term, apply)
        except Unsettled:
            one.state.settle()  # another thread looks
            one.rig.unit.look_around()
            raise

    one.state.change = change  # type: ignore[method-assign]
    one.state.loses = True
    assert one.a.reserve(1).sense == sense.INTERNAL_FAILURE
    assert one.a.run(WRITE, BLOCK_OF_DATA).status == GOOD
    assert conflicts(one.b.run(WRITE, BLOCK_OF_DATA))


def test_a_command_asks_only_a_few_times_what_is_known(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = 0

    def now(state: FakeShared) -> Now:
        nonlocal asked
        asked += 1
        return Now(state.term, state.known)

    cluster.one.a.run(READ)
    monkeypatch.setattr(FakeShared, "now", property(now))
    assert cluster.one.a.run(READ).status == GOOD
    assert asked <= 4


def test_the_generation_goes_on(cluster: Cluster) -> None:
    cluster.one.a.register()
    cluster.one.b.register()
    cluster.move()
    told = joined(cluster.two.rig.run(in_cdb(0), nexus=cluster.two.a.nexus))
    assert told[:4] == bytes((0, 0, 0, 2))


@pytest.mark.parametrize(
    "value", [b"\x01", b"\x02\x00\x00\x00\x00\x00BDPR", b"\x01\x00\x00\x00\x00\x00BDPR"]
)
def test_what_cannot_be_read_lets_nobody_in(value: bytes) -> None:
    node = Node([Held(0, 1, value)], 1, 0x101)
    result = node.a.run(READ)
    assert result.sense == sense.MANUAL_INTERVENTION
    assert node.a.register().sense == sense.MANUAL_INTERVENTION
    assert node.rig.run(in_cdb(0), nexus=node.a.nexus).sense == sense.MANUAL_INTERVENTION
    assert node.rig.run(REPORT_LUNS, nexus=node.a.nexus).status == GOOD


def test_registrations_by_name_are_those_of_every_session() -> None:
    cluster = Cluster()
    for node in (cluster.one, cluster.two):
        node.rig.unit.reservations.ignore_isids()
    cluster.one.a.register(ALL_PORTS)
    cluster.one.a.reserve(WERO)
    cluster.move()
    two = cluster.two
    again = Host(two.rig, two.rig.join(1, group=0x201), 1)
    again.nexus.isid = bytes(6)
    assert again.run(WRITE, BLOCK_OF_DATA).status == GOOD
    assert conflicts(two.b.run(WRITE, BLOCK_OF_DATA))


def test_what_is_kept_is_read_back_as_it_was() -> None:
    state = Persistent()
    assert encode(decode(b"")) == encode(state)
    who = Registrant("iqn.2026-11.test:a", b"\x80\0\0\0\0\x01", None)
    state.keys = {who: 7, Registrant("iqn.2026-11.test:b", None, 0x101): 8}
    state.reservation = Reservation(WERO, who)
    state.persist, state.generation = True, (1 << 32) + 5
    back = decode(encode(state))
    assert (back.keys, back.reservation, back.persist) == (state.keys, state.reservation, True)
    assert back.generation == 5
    for cut in range(1, len(encode(state))):
        with pytest.raises(DamagedState):
            decode(encode(state)[:cut])


def test_reserve_6_is_not_there(cluster: Cluster) -> None:
    found = cluster.one.rig.fault(RESERVE_6, nexus=cluster.one.a.nexus)
    assert codes(found) == codes(sense.INVALID_OPCODE)
    assert cluster.one.rig.run(out_cdb(3, 24), out_list(9), nexus=cluster.one.a.nexus).status == (
        RESERVATION_CONFLICT
    )


def while_it_is_told(node: Node, seen: Callable[[], None], *, happens: bool = True) -> None:
    """`seen` is called once the next change may be known elsewhere, and before its end is here."""
    change = node.state.change

    def slow(term: int, apply: Callable[[bytes], tuple[bytes, T]]) -> tuple[Held, T]:
        node.state.change = change  # type: ignore[method-assign]
        node.state.loses = None if happens else False
        try:
            return change(term, apply)
        finally:
            seen()

    node.state.change = slow  # type: ignore[method-assign]


@pytest.mark.parametrize("action", [PREEMPT, PREEMPT_AND_ABORT])
def test_whoever_reads_that_somebody_is_preempted_can_rely_on_it_at_once(
    cluster: Cluster, action: int
) -> None:
    one, two = cluster.one, cluster.two
    for host in (one.a, one.b):
        host.register(ALL_PORTS)
    one.b.reserve(WERO)
    aborted: list[Nexus] = []

    def abort(nexus: Nexus, _: object) -> bool:
        aborted.append(nexus)
        return True

    def elsewhere() -> None:
        assert two.a.keys() == [one.a.key]
        assert one.b.run(WRITE, BLOCK_OF_DATA).sense == sense.ACCESS_TRANSITION
        assert not one.rig.unit.ordinary(one.b.nexus)
        assert aborted == ([one.b.nexus] if action == PREEMPT_AND_ABORT else [])

    one.rig.unit.aborting.append(abort)
    while_it_is_told(one, elsewhere)
    assert one.a.preempt(one.b.key, WERO, action).status == GOOD
    assert codes(one.rig.fault(READ, nexus=one.b.nexus)) == codes(sense.REGISTRATIONS_PREEMPTED)
    assert conflicts(one.b.run(WRITE, BLOCK_OF_DATA))
    assert one.a.run(WRITE, BLOCK_OF_DATA).status == GOOD


@pytest.mark.parametrize("happens", [True, False])
@pytest.mark.parametrize("early", [True, False])
def test_a_preempt_whose_initiator_has_gone_shuts_out_all_the_same(
    cluster: Cluster, happens: bool, early: bool
) -> None:
    """`early`: the initiator goes before the change is told of, else after."""
    one = cluster.one
    for host in (one.a, one.b):
        host.register(ALL_PORTS)
    one.b.reserve(WERO)
    task = Task()
    data = out_list(one.a.key, one.b.key)
    begun = one.rig.unit.prepare(one.a.nexus, out_cdb(PREEMPT, len(data), WERO))
    assert isinstance(begun, Prepared)
    task.begin(begun, memoryview(data))
    assert isinstance(task.step, Work)
    task.worked(task.step.call())  # reads what is kept
    assert isinstance(task.step, Work)
    call = task.step.call
    one.state.loses = None if happens else False
    if early:
        task.abort()
        assert one.b.run(WRITE, BLOCK_OF_DATA).sense == sense.ACCESS_TRANSITION
    with nullcontext() if happens else pytest.raises(Unsettled):
        call()
    assert one.b.run(WRITE, BLOCK_OF_DATA).status != GOOD
    if not early:
        task.abort()
    if not happens:
        assert one.b.run(WRITE, BLOCK_OF_DATA).sense == sense.ACCESS_TRANSITION
        one.state.settle()
        assert one.b.run(WRITE, BLOCK_OF_DATA).status == GOOD
        return
    one.b.run(READ)  # is told of its registration
    assert conflicts(one.b.run(WRITE, BLOCK_OF_DATA))


def test_a_service_action_is_worked_out_anew_where_another_node_came_first(
    cluster: Cluster,
) -> None:
    one, two = cluster.one, cluster.two
    one.a.register(ALL_PORTS)
    change = one.state.change

    def later(term: int, apply: Callable[[bytes], tuple[bytes, T]]) -> tuple[Held, T]:
        one.state.change = change  # type: ignore[method-assign]
        assert two.b.register(ALL_PORTS).status == GOOD
        return change(term, apply)

    one.state.change = later  # type: ignore[method-assign]
    assert one.a.reserve(WERO).status == GOOD
    assert sorted(one.a.keys()) == [one.a.key, one.b.key]
    assert one.a.reservation() is not None


def test_a_service_action_ends_where_others_always_come_first(cluster: Cluster) -> None:
    one, two = cluster.one, cluster.two
    one.a.register(ALL_PORTS)
    change = one.state.change

    def later(term: int, apply: Callable[[bytes], tuple[bytes, T]]) -> tuple[Held, T]:
        two.b.register_and_ignore(ALL_PORTS)
        return change(term, apply)

    one.state.change = later  # type: ignore[method-assign]
    assert one.a.reserve(WERO).sense == sense.INTERNAL_FAILURE
    one.state.change = change  # type: ignore[method-assign]
    assert one.b.run(WRITE, BLOCK_OF_DATA).status == GOOD
    assert one.a.reserve(WERO).status == GOOD
