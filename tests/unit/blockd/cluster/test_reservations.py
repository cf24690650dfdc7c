"""What nodes of a volume keep together of its unit: who may change it, and lost answers."""

import os
from collections.abc import Callable, Sequence

import pytest

from blockd.cluster.lists import LOOK_S
from blockd.cluster.reservations import SharedReservations, VolumeState
from blockd.shared_state import NotServing, Unsettled, ready
from tests.metastore_twin import DictMetaStore
from volume.metastore import (
    TRIES,
    Change,
    ClusterRecords,
    Lost,
    MetaStoreUnavailable,
    Outcome,
    Row,
    Unavailable,
    Unknown,
)
from volume.metastore_records import ReservationsRecord

UUID = bytes(range(16))
KEY = ReservationsRecord.prefix + UUID.hex()


class Etcd(DictMetaStore):
    """Loses the next `unknown` answers, made or not; `meanwhile` is called before the next commit,
    `behind` after one whose answer is lost, which is `lost`; silent while `down`; nothing is sent
    while it `refuses`."""

    unknown = 0
    happens = True
    down = False
    meanwhile: Callable[[], object] | None = None
    behind: Callable[[], object] | None = None
    lost: Sequence[Change] = ()
    refuses = False

    def read(self, key: str) -> Row | None:
        if self.down:
            raise MetaStoreUnavailable("etcd: nobody answers")
        return super().read(key)

    def commit(self, changes: Sequence[Change]) -> Outcome:
        meanwhile, self.meanwhile = self.meanwhile, None
        if meanwhile is not None:
            meanwhile()
        if self.refuses:
            return Unavailable("nobody answers")
        if self.unknown:
            self.unknown -= 1
            if self.happens:
                super().commit(changes)
            self.lost = changes
            behind, self.behind = self.behind, None
            if behind is not None:
                behind()
            return Unknown("the answer was lost")
        return super().commit(changes)


@pytest.fixture
def etcd() -> Etcd:
    return Etcd()


class Node:
    def __init__(self, etcd: Etcd) -> None:
        self.now = 100.0
        records = ClusterRecords(etcd, lambda: os.urandom(16).hex())
        self.all = SharedReservations(records, lambda: self.now)
        self.state: VolumeState = self.all.of(UUID)

    def serve(self, epoch: int) -> None:
        self.all.opened(UUID, epoch)
        self.all.step()

    def put(self, value: bytes, term: int | None = None) -> None:
        given = self.state.term if term is None else term
        held, result = self.state.change(given, lambda old: (value, len(old)))
        assert held.value == value
        assert isinstance(result, int)
        self.state.note(held)


def test_the_next_primary_knows_what_was_put_there(etcd: Etcd) -> None:
    one, two = Node(etcd), Node(etcd)
    one.serve(1)
    assert ready(one.state)
    one.put(b"state")
    one.all.closed(UUID)
    assert not ready(one.state)
    two.all.opened(UUID, 2)
    assert not ready(two.state), "it has not looked yet"
    two.all.step()
    assert ready(two.state)
    known = two.state.known
    assert known is not None
    assert (known.term, known.value) == (2, b"state")


def test_a_ghost_changes_nothing_once_another_node_has_claimed_it(etcd: Etcd) -> None:
    ghost, two = Node(etcd), Node(etcd)
    ghost.serve(1)
    ghost.put(b"old")
    two.serve(2)
    with pytest.raises(NotServing):
        ghost.put(b"ghost's")
    assert two.state.read().value == b"old"


def test_a_claim_between_read_and_swap_wins(etcd: Etcd) -> None:
    ghost, two = Node(etcd), Node(etcd)
    ghost.serve(1)
    etcd.meanwhile = lambda: two.serve(2)
    with pytest.raises(NotServing):
        ghost.put(b"ghost's")
    known = two.state.known
    assert known is not None
    assert known.value == b""


def test_a_change_before_the_claim_is_in_what_the_claimer_knows(etcd: Etcd) -> None:
    one, two = Node(etcd), Node(etcd)
    one.serve(1)
    etcd.meanwhile = lambda: one.put(b"just in time")
    two.serve(2)
    known = two.state.known
    assert known is not None
    assert known.value == b"just in time"


def test_a_node_on_standby_adds_without_claiming(etcd: Etcd) -> None:
    one, two = Node(etcd), Node(etcd)
    one.serve(1)
    one.put(b"a")
    two.put(b"ab")
    one.all.step()
    assert one.state.known != two.state.known, "it looks now and then"
    one.now += LOOK_S
    one.all.step()
    known = one.state.known
    assert known is not None
    assert (known.term, known.value) == (1, b"ab")
    assert ready(one.state)
    one.put(b"abc")


def test_a_lost_answer_is_asked_for_again(etcd: Etcd) -> None:
    one = Node(etcd)
    one.serve(1)
    for happens in (True, False):
        etcd.unknown, etcd.happens = TRIES - 1, happens
        one.put(b"state" + bytes(happens))
        assert one.state.read().value == b"state" + bytes(happens)


def test_what_is_not_known_to_have_happened_is_an_error(etcd: Etcd) -> None:
    one = Node(etcd)
    one.serve(1)
    etcd.unknown = TRIES
    with pytest.raises(OSError, match="could not be told"):
        one.put(b"state")
    known = one.state.known
    assert known is not None
    assert known.value == b"", "nothing holds that was not confirmed"
    one.all.step()


def test_while_the_metastore_is_silent_a_new_primary_is_not_ready(etcd: Etcd) -> None:
    one = Node(etcd)
    etcd.down = True
    one.all.opened(UUID, 1)
    with pytest.raises(OSError, match="nobody answers"):
        one.all.step()
    assert not ready(one.state)
    etcd.down = False
    one.all.step()
    assert ready(one.state)
    etcd.down = True
    assert ready(one.state), "what is known holds"


def test_an_empty_row_is_not_read_again(etcd: Etcd) -> None:
    one = Node(etcd)
    one.serve(1)
    etcd.down = True
    one.now += LOOK_S
    one.all.step()
    etcd.down = False
    one.put(b"state")
    etcd.down = True
    one.now += LOOK_S
    with pytest.raises(OSError, match="nobody answers"):
        one.all.step()


def test_a_first_change_whose_answer_was_lost_is_found_at_the_next_look(etcd: Etcd) -> None:
    one = Node(etcd)
    one.serve(1)
    etcd.unknown = TRIES
    with pytest.raises(OSError, match="could not be told"):
        one.put(b"a")
    etcd.down = True
    one.now += LOOK_S
    with pytest.raises(OSError, match="nobody answers"):
        one.all.step()
    etcd.down = False
    one.now += LOOK_S
    one.all.step()
    assert one.state.known is not None
    assert one.state.known.value == b"a"


def test_a_request_that_is_still_on_its_way_when_the_row_is_read_comes_to_nothing(
    etcd: Etcd,
) -> None:
    one = Node(etcd)
    one.serve(1)
    etcd.unknown, etcd.happens = TRIES, False
    with pytest.raises(Unsettled) as told:
        one.put(b"late")
    late = etcd.lost
    one.all.step()
    one.now += LOOK_S
    one.all.step()
    known = one.state.known
    assert known is not None
    assert known.revision > told.value.revision
    assert known.value == b""
    assert isinstance(etcd.commit(late), Lost)
    one.now += LOOK_S
    etcd.down = True
    one.all.step()  # an empty row is not read again


def test_a_change_that_happened_and_was_changed_by_another_is_not_made_twice(etcd: Etcd) -> None:
    one, two = Node(etcd), Node(etcd)
    one.serve(1)
    etcd.unknown = 1
    etcd.behind = lambda: two.put(b"two", 0)
    applied = []

    def apply(old: bytes) -> tuple[bytes, int]:
        applied.append(old)
        return b"one", 7

    with pytest.raises(Unsettled, match="others changed them since") as told:
        one.state.change(1, apply)
    assert applied == [b""]
    assert (told.value.value, told.value.result) == (b"one", 7)
    one.now += LOOK_S
    one.all.step()
    known = one.state.known
    assert known is not None
    assert (known.term, known.value) == (1, b"two")


def test_an_answer_that_was_lost_once_stays_so_while_nobody_answers(etcd: Etcd) -> None:
    one = Node(etcd)
    one.serve(1)
    etcd.unknown = 1
    etcd.behind = lambda: setattr(etcd, "refuses", True)
    with pytest.raises(Unsettled):
        one.put(b"state")
    etcd.refuses = False
    one.now += LOOK_S
    one.all.step()
    known = one.state.known
    assert known is not None
    assert known.value == b"state"


def test_an_initiator_does_not_wait_for_all_tries_where_each_takes_long(etcd: Etcd) -> None:
    one = Node(etcd)
    one.serve(1)
    tries = 0

    def late() -> None:
        nonlocal tries
        tries += 1
        one.now += 5.0
        etcd.behind = late

    etcd.unknown, etcd.behind = TRIES, late
    with pytest.raises(Unsettled):
        one.put(b"state")
    assert tries == 2


def test_a_change_that_was_never_sent_leaves_no_doubt(etcd: Etcd) -> None:
    one = Node(etcd)
    one.serve(1)
    etcd.refuses = True
    with pytest.raises(OSError, match="nothing was changed") as told:
        one.put(b"state")
    assert not isinstance(told.value, Unsettled)


@pytest.mark.parametrize("state", ["?", "YQ", "YQ==YQ=="])
def test_a_row_that_makes_no_sense_keeps_the_unit_in_transition(etcd: Etcd, state: str) -> None:
    records = ClusterRecords(etcd, lambda: os.urandom(16).hex())
    records.commit(records.put(None, ReservationsRecord(UUID.hex(), 1, state)))
    one = Node(etcd)
    one.all.opened(UUID, 2)
    with pytest.raises(OSError, match="base64"):
        one.all.step()
    assert not ready(one.state)


def test_a_row_that_was_removed_is_made_anew_by_the_next_primary(etcd: Etcd) -> None:
    records = ClusterRecords(etcd, lambda: os.urandom(16).hex())
    one = Node(etcd)
    one.serve(1)
    one.put(b"damaged")
    row = records.reservations(UUID.hex())
    assert row is not None
    records.commit(records.put(row, None))
    one.serve(2)
    known = one.state.known
    assert known is not None
    assert (known.term, known.value) == (2, b"")


def test_others_that_keep_changing_it_are_an_error_in_the_end(etcd: Etcd) -> None:
    one, two = Node(etcd), Node(etcd)
    one.serve(1)
    count = 0

    def change(old: bytes) -> tuple[bytes, None]:
        nonlocal count
        count += 1
        two.put(b"%d" % count)
        return b"mine", None

    with pytest.raises(OSError, match="others changed them"):
        one.state.change(1, change)
    assert count == TRIES
