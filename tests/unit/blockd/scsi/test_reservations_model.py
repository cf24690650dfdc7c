"""Random lives of a unit against a model that says, for single nexuses, who may do what.

The model knows nothing of scopes, look-ups, encodings or keeping: a dictionary of keys, a type and
a set of holders. After every step all nexuses are asked what they may do and what they are told,
and sometimes the unit is restarted.
"""

from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from blockd.scsi.nexus import Nexus
from blockd.scsi.task import GOOD, RESERVATION_CONFLICT, Countdown
from blockd.shared_state import Held
from tests.fake_cluster import FakeShared
from tests.pr_client import PERSIST, Host, out_list
from tests.scsi_rig import FakeSurroundings, Rig

TYPES = (1, 3, 5, 6, 7, 8)
WRITE_EXCLUSIVE = (1, 5, 7)
EVERYBODYS = (7, 8)
NEXUSES = ((1, 1), (1, 2), (2, 1), (3, 1))  # initiator, target port
NONE = -1
INVALID = 0x02

nexuses = st.integers(0, len(NEXUSES) - 1)
keys = st.integers(1, 4)
key_guesses = st.integers(0, 4) | st.none()  # None: the right one


@dataclass
class Model:
    by_name: bool
    keys: dict[int, int] = field(default_factory=dict)
    """By nexus."""
    kind: int = 0
    holder: int = NONE
    persist: bool = False
    told: dict[int, set[int]] = field(default_factory=dict)
    """ASCQ of the unit attentions of the last step."""

    def holds(self, who: int) -> bool:
        return self.kind != 0 and (
            who in self.keys if self.kind in EVERYBODYS else who == self.holder
        )

    def tell(self, whom: int, ascq: int) -> None:
        self.told.setdefault(whom, set()).add(ascq)

    def free(self) -> None:
        self.kind, self.holder = 0, NONE

    def may(self, who: int) -> str:
        if not self.kind or self.holds(who) or (who in self.keys and self.kind >= 5):
            return "rw"
        return "r" if self.kind in WRITE_EXCLUSIVE else ""

    def register(self, who: int, key: int, new: int, persist: bool, ignore: bool) -> int:
        its = self.keys.get(who, 0)
        again = self.by_name and key == 0 and new == its
        if not ignore and key != its and not again:
            return RESERVATION_CONFLICT
        if new:
            self.keys[who] = new
        elif who in self.keys:
            held = self.holds(who)
            del self.keys[who]
            if held and (self.kind not in EVERYBODYS or not self.keys):
                if self.kind >= 5:
                    for other in self.keys:
                        self.tell(other, 4)
                self.free()
        else:
            return GOOD
        self.persist = persist
        return GOOD

    def reserve(self, who: int, key: int, kind: int) -> int:
        if self.keys.get(who) != key:
            return RESERVATION_CONFLICT
        if self.kind:
            return GOOD if self.holds(who) and self.kind == kind else RESERVATION_CONFLICT
        self.kind, self.holder = kind, who
        return GOOD

    def release(self, who: int, key: int, kind: int) -> int:
        if self.keys.get(who) != key:
            return RESERVATION_CONFLICT
        if not self.holds(who):
            return GOOD
        if kind != self.kind:
            return INVALID
        if self.kind >= 5:
            for other in self.keys:
                if other != who:
                    self.tell(other, 4)
        self.free()
        return GOOD

    def clear(self, who: int, key: int) -> int:
        if self.keys.get(who) != key:
            return RESERVATION_CONFLICT
        for other in self.keys:
            if other != who:
                self.tell(other, 3)
        self.keys.clear()
        self.free()
        return GOOD

    def preempt(self, who: int, key: int, victims_key: int, kind: int) -> int:
        if self.keys.get(who) != key:
            return RESERVATION_CONFLICT
        if victims_key == 0:
            if self.kind not in EVERYBODYS:
                return INVALID
            victims = set(self.keys) - {who}
        else:
            victims = {other for other, its in self.keys.items() if its == victims_key}
            if not victims:
                return RESERVATION_CONFLICT
        takes_over = victims_key == 0 or (
            self.kind != 0 and self.kind not in EVERYBODYS and self.holder in victims
        )
        if takes_over:
            victims -= {who}
        for victim in victims:
            del self.keys[victim]
            if victim != who:
                self.tell(victim, 5)
        if takes_over:
            if kind != self.kind:
                for other in self.keys:
                    if other != who:
                        self.tell(other, 4)
            self.kind, self.holder = kind, who
        elif self.kind and not self.keys:
            self.free()
        return GOOD


class Lives(RuleBasedStateMachine):
    by_name = False

    def __init__(self) -> None:
        super().__init__()
        self.model = Model(by_name=self.by_name)
        self.surroundings = FakeSurroundings()
        self.logins = 0

    @initialize()
    def start(self) -> None:
        self._begin_anew()
        self.rig = Rig(surroundings=self.surroundings)
        self.rig.unit.detach(self.rig.nexus)  # only those of the model
        if self.by_name:
            self.rig.unit.reservations.ignore_isids()
        self.hosts = [self._host(number, group) for number, group in NEXUSES]

    def _begin_anew(self) -> None:
        """The server is about to start."""

    def _host(self, number: int, group: int) -> Host:
        self.logins += 1
        isid = (self.logins if self.by_name else number).to_bytes(6, "big")
        nexus = Nexus(f"iqn.2026-11.test:host{number}", isid, group)
        self.rig.unit.attach(nexus)
        host = Host(self.rig, nexus, 0)
        host.attentions()
        return host

    @rule(who=nexuses)
    def log_in_again(self, who: int) -> None:
        self.rig.unit.detach(self.hosts[who].nexus)
        self.hosts[who] = self._host(*NEXUSES[who])

    @rule()
    def restart(self) -> None:
        self.start()
        if not self.model.persist:
            self.model = Model(by_name=self.by_name)
        self.model.persist = self.model.persist and bool(self.model.keys)

    def _right(self, who: int, guess: int | None) -> int:
        return self.model.keys.get(who, 0) if guess is None else guess

    @rule(who=nexuses, guess=key_guesses, new=keys | st.just(0), persist=st.booleans())
    def register(self, who: int, guess: int | None, new: int, persist: bool) -> None:
        key = self._right(who, guess)
        found = self.hosts[who].out(0, out_list(key, new, PERSIST * persist))
        assert found.status == self.model.register(who, key, new, persist, ignore=False)

    @rule(who=nexuses, guess=key_guesses, new=keys, persist=st.booleans())
    def register_and_ignore(self, who: int, guess: int | None, new: int, persist: bool) -> None:
        found = self.hosts[who].out(6, out_list(guess or 0, new, PERSIST * persist))
        assert found.status == self.model.register(who, 0, new, persist, ignore=True)

    @rule(who=nexuses, guess=key_guesses, kind=st.sampled_from(TYPES))
    def reserve(self, who: int, guess: int | None, kind: int) -> None:
        key = self._right(who, guess)
        found = self.hosts[who].out(1, out_list(key), kind)
        assert found.status == self.model.reserve(who, key, kind)

    @rule(who=nexuses, guess=key_guesses, kind=st.none() | st.sampled_from(TYPES))
    def release(self, who: int, guess: int | None, kind: int | None) -> None:
        key = self._right(who, guess)
        kind = self.model.kind if kind is None else kind
        found = self.hosts[who].out(2, out_list(key), kind)
        assert found.status == self.model.release(who, key, kind)

    @rule(who=nexuses, guess=key_guesses)
    def clear(self, who: int, guess: int | None) -> None:
        key = self._right(who, guess)
        found = self.hosts[who].out(3, out_list(key))
        assert found.status == self.model.clear(who, key)

    @rule(
        who=nexuses,
        guess=key_guesses,
        victims_key=st.integers(0, 4),
        kind=st.sampled_from(TYPES),
        abort=st.booleans(),
    )
    def preempt(
        self, who: int, guess: int | None, victims_key: int, kind: int, abort: bool
    ) -> None:
        aborted: list[int] = []
        nexus_of = [host.nexus for host in self.hosts]

        def note(nexus: Nexus, _: Countdown) -> bool:
            aborted.append(nexus_of.index(nexus))
            return False

        self.rig.unit.aborting[:] = [note]
        key = self._right(who, guess)
        found = self.hosts[who].out(4 + abort, out_list(key, victims_key), kind)
        assert found.status == self.model.preempt(who, key, victims_key, kind)
        preempted = [whom for whom, ascqs in self.model.told.items() if 5 in ascqs]
        assert sorted(aborted) == (sorted(preempted) if abort else [])

    @invariant()
    def the_unit_is_as_the_model(self) -> None:
        self._right_ones_are_told()
        self._everybody_may_do_what_the_model_says()
        self._what_is_shown_is_there()

    def _right_ones_are_told(self) -> None:
        for who, host in enumerate(self.hosts):
            told = {ascq for _, ascq in host.attentions()}
            assert told == self.model.told.get(who, set())
        self.model.told.clear()

    def _everybody_may_do_what_the_model_says(self) -> None:
        for who, host in enumerate(self.hosts):
            found = "r" * host.may_read() + "w" * host.may_write()
            assert found == self.model.may(who)

    def _what_is_shown_is_there(self) -> None:
        host = self.hosts[0]
        assert sorted(host.keys()) == sorted(self.model.keys.values())
        reservation = host.reservation()
        if self.model.kind:
            key = 0 if self.model.kind in EVERYBODYS else self.model.keys[self.model.holder]
            assert reservation == (key, self.model.kind)
        else:
            assert reservation is None
        holders = sum(self.model.holds(who) for who in self.model.keys)
        assert sum(status.holds for status in host.full_status()) == holders


class ByName(Lives):
    """The same with a new ISID at each login, and registrations that do not care."""

    by_name = True


class Shared(Lives):
    """Of a volume that several nodes have: each start is that of another node, which takes the
    volume over, and all of it is there."""

    def __init__(self) -> None:
        super().__init__()
        self.kept = [Held(0, 1, b"")]
        self.term = 0

    def _begin_anew(self) -> None:
        self.term += 1
        self.surroundings.shared = FakeShared(self.kept, self.term)

    @rule()
    def restart(self) -> None:
        self.start()


Lives.TestCase.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
ByName.TestCase.settings = settings(max_examples=80, stateful_step_count=30, deadline=None)
Shared.TestCase.settings = settings(max_examples=80, stateful_step_count=30, deadline=None)
test_lives = Lives.TestCase
test_lives_by_name = ByName.TestCase
test_lives_of_several_nodes = Shared.TestCase
