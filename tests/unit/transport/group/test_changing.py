"""Members of a volume change while it is served: what was acknowledged stays, whatever crashes."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.member_rig import CHUNK, SIZE, MemberWorld
from tests.sim.cluster.metastore import MetaStoreWeather
from tests.sim.cluster.node import Node
from transport.group.acks import NodeId
from transport.group.primary import Primary
from volume.metastore import Done
from volume.metastore_records import Mode


def changing(
    seed: int = 1, *, mode: Mode = Mode.MIRROR, copied: bool = False
) -> tuple[MemberWorld, str, str]:
    """A world with some data, who comes, and who goes: a member that is not the primary. `copied`:
    the log does not reach back to the beginning, so who comes gets all of the volume."""
    world = MemberWorld(seed, mode=mode, window_segments=2 if copied else 40)
    for _ in range(8 if copied else 1):
        world.write(20)
        world.until(world.whole, "all members have that")
        for node in world.nodes.values():
            node.tidy(collect=copied)
    primary = world.primary()
    assert primary is not None
    gone = next(name for name in world.row.members if name != primary.name)
    (coming,) = set(world.names) - set(world.row.members)
    return world, coming, gone


@pytest.mark.parametrize("mode", [Mode.MIRROR, Mode.STRICT])
def test_a_member_is_replaced_while_it_is_written_to_and_no_client_is_cut_off(mode: Mode) -> None:
    world, coming, gone = changing(mode=mode)
    cuts, epoch = world.cuts, world.row.epoch
    world.call(coming, gone)
    while coming not in world.row.members:
        world.write(2)
        world.run(0.1)
    assert gone not in world.row.members
    assert (world.row.coming, world.row.replaces) == (None, None)
    world.settled()
    assert not world.row.leaving  # and that is noted
    assert (world.cuts, world.row.epoch) == (cuts, epoch)
    assert world.nodes[gone].replica is None


class Moment:
    """Does something at the `count`-th thing that happens between nodes or at etcd."""

    def __init__(self, world: MemberWorld, count: int, do: Callable[[], None]) -> None:
        self.seen: list[str] = []
        self.happened = False
        self._world = world
        self._count = count
        self._do = do
        world.watcher = self._watch

    def _watch(self, what: str) -> None:
        self.seen.append(what)
        if len(self.seen) == self._count + 1:
            self.happened = True
            # Between two events: what is told of is on its way.
            self._world.timeline.after(0.0, self._do)


def moments(*, copied: bool) -> list[int]:
    """At which of all things that happen while a member is replaced a crash may matter: the first
    of each kind, and all that the MetaStore is told."""
    world, coming, gone = changing(copied=copied)
    moment = Moment(world, 10_000, lambda: None)
    world.call(coming, gone)
    world.until(lambda: world.whole() and coming in world.row.members, "it is replaced")
    seen = moment.seen
    assert "Adopt" in seen
    return [at for at, what in enumerate(seen) if what == "commit" or what not in seen[:at]]


@pytest.mark.parametrize(
    ("who", "power"),
    [*((who, False) for who in ("primary", "coming", "gone")), ("primary", True), ("coming", True)],
)
def test_a_crash_at_any_step_of_a_replacement_loses_nothing(who: str, power: bool) -> None:
    mode = Mode.STRICT if power else Mode.MIRROR
    for count in moments(copied=power):
        world, coming, gone = changing(mode=mode, copied=power)
        primary = world.primary()
        assert primary is not None
        node = {"primary": primary, "coming": world.nodes[coming], "gone": world.nodes[gone]}[who]

        def crash(world: MemberWorld = world, node: Node = node) -> None:
            node.crash(power=power)
            world.timeline.after(25.0, node.power_on)

        moment = Moment(world, count, crash)
        world.call(coming, gone)
        for _ in range(10):
            world.write()
            world.run(0.1)
        world.until(lambda moment=moment: moment.happened, "it crashes")  # type: ignore[misc]
        world.run(20.0)
        world.until(lambda world=world: world.primary() is not None, "it is served", 40.0)  # type: ignore[misc]
        world.write(5)
        world.until(lambda world=world, coming=coming: coming in world.row.members, "it goes on")  # type: ignore[misc]
        world.settled()


def test_a_change_whose_outcome_nobody_was_told_is_made_once_or_not_at_all() -> None:
    """etcd's answers are lost, come true later, or rows that are read are old; the primary dies."""
    for seed in range(12):
        world, coming, gone = changing(seed)
        world.call(coming, gone)
        world.metastore.weather = MetaStoreWeather(lost=0.7, old=0.4)
        for _ in range(seed):
            world.write()
            world.run(0.5)
        primary = world.primary()
        if seed % 2 and primary is not None:
            primary.crash(power=False)
            world.timeline.after(30.0, primary.power_on)
        world.run(15.0)
        world.write()
        world.metastore.weather = MetaStoreWeather()
        world.until(lambda world=world, coming=coming: coming in world.row.members, "it goes on")  # type: ignore[misc]
        world.settled()


def test_a_primary_that_is_to_go_hands_the_volume_over_first() -> None:
    world, coming, _ = changing()
    primary = world.primary()
    assert primary is not None
    world.call(coming, primary.name)
    world.until(lambda: coming in world.row.members, "it is replaced")
    world.settled()
    assert primary.name not in world.row.members
    assert primary.replica is None


def test_a_member_that_was_away_lets_its_part_go_when_it_is_back() -> None:
    world, coming, gone = changing()
    world.nodes[gone].crash(power=True)
    world.write(5)
    world.call(coming, gone)
    world.until(lambda: coming in world.row.members, "it is replaced by one that is there")
    # One more may die now: the new member counts.
    primary = world.primary()
    assert primary is not None
    primary.crash(power=False)
    world.until(lambda: world.primary() is not None, "another one serves it")
    world.write(5)
    primary.power_on()
    world.nodes[gone].power_on()
    world.settled()
    assert world.nodes[gone].replica is None


def test_it_is_told_since_when_who_comes_makes_no_part() -> None:
    world, coming, gone = changing()
    primary = world.primary()
    assert primary is not None

    def refused_s() -> float | None:
        assert primary.part is not None
        change = primary.part.status().change
        return None if change is None else change.refused_s

    world.nodes[coming].crash(power=True)
    world.call(coming, gone)
    world.until(lambda: (refused_s() or 0.0) > 20, "it is asked, again and again")
    world.nodes[coming].power_on()
    world.until(lambda: refused_s() is None, "it has made its part")
    assert coming in (world.row.coming, *world.row.members)
    world.until(lambda: coming in world.row.members, "it is a member")


def test_who_was_to_come_and_is_not_any_more_lets_its_part_go() -> None:
    world, coming, gone = changing()
    world.call(coming, gone)
    world.until(lambda: world.nodes[coming].replica is not None, "its part is made")
    assert isinstance(world.records.commit(world.records.uncall_member(world.stored)), Done)
    assert world.row.leaving == (coming,)
    world.settled()
    assert gone in world.row.members
    assert world.nodes[coming].replica is None


def test_who_comes_begins_anew_when_the_row_has_changed_since() -> None:
    """Perhaps it was called off meanwhile, let its part go, and was called anew: then it has not
    what it seems to have."""
    world, coming, gone = changing()
    primary = world.primary()
    assert primary is not None
    part = primary.part
    assert part is not None
    asked = []

    def watch(what: str) -> None:
        if what == "Create":  # the primary has read the row, and cannot change it
            asked.append(what)
            world.metastore.unreachable.add(primary.name)

    world.watcher = watch
    world.call(coming, gone)
    filled = world.nodes[coming]
    world.until(lambda: filled.end() == primary.end() is not None, "it is filled")
    assert asked == ["Create"]
    found = world.stored
    newer = replace(found, row=replace(found.row, revision=found.row.revision + 1))
    primary.process.run(lambda: part.noted(newer))
    world.run(0.1)
    assert asked == ["Create", "Create"]
    assert coming not in world.row.members


def test_a_row_that_is_old_makes_nobody_let_go() -> None:
    world, coming, gone = changing()
    before = world.stored
    world.call(coming, gone)
    world.until(lambda: coming in world.row.members, "it is replaced")
    part = world.nodes[coming].part
    assert part is not None
    world.nodes[coming].process.run(lambda: part._leave(before))
    assert part.withdrawn
    world.until(lambda: not part.withdrawn, "it has seen that the row is another one")
    world.settled()


def test_who_comes_to_a_volume_that_was_resized_gets_it_as_it_is_now() -> None:
    """The log reaches back to the old size; and it is resized again while who comes is filled."""
    world, coming, gone = changing()
    primary = world.primary()
    assert primary is not None

    def resize(size: int) -> None:
        store = primary.machine.store
        assert store is not None
        notes, volume = store._notes, primary.volume

        def note() -> None:
            notes.resize(volume, size, force=False)

        primary.process.run(note)
        world.write()

    resize(2 * SIZE)
    world.call(coming, gone)
    world.until(lambda: world.nodes[coming].replica is not None, "its part is made")
    resize(3 * SIZE)
    world.until(lambda: coming in world.row.members, "it is replaced")
    world.settled()
    replica = world.nodes[coming].replica
    assert replica is not None
    assert replica.volume.size == 3 * SIZE
    record = replica.volume.record
    again = world.nodes[coming].machine.store
    assert again is not None
    again.replicas.create(
        world.spec.uuid, "volume", SIZE, record.block_size, CHUNK, world.row.epoch
    )


# -- rules that are broken


def _counts_at_once(primary: Primary, node: NodeId) -> bool:
    return True


def _believes(store: object, found: object) -> bool:
    return True


def _member_behind(world: MemberWorld) -> None:
    """What was acknowledged has only the primary and the one who goes, and then they are gone."""
    (coming,) = set(world.names) - set(world.row.members)
    primary = world.primary()
    assert primary is not None
    gone, behind = (name for name in world.row.members if name != primary.name)
    blocked = world.network.blocked
    blocked |= {(primary.name, behind), (behind, primary.name)}
    world.run(5.0)
    world.write(5)

    def cut(what: str) -> None:
        if what == "Seal":  # it has made its part, and nothing is in that
            blocked.update({(primary.name, coming), (coming, primary.name)})

    world.watcher = cut
    world.call(coming, gone)
    world.run(12.0)
    for name in (primary.name, gone):
        world.nodes[name].crash(power=False)
    world.watcher = lambda what: None
    blocked.clear()
    world.run(60.0)


def test_who_has_nothing_yet_is_not_counted() -> None:
    world = MemberWorld(1)
    _member_behind(world)
    assert world.primary() is None, "two of three are gone, and nobody may go on"
    for node in world.nodes.values():
        node.power_on()
    world.settled()


def test_it_is_noticed_when_one_is_counted_that_has_nothing_yet(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Primary, "in_step", _counts_at_once)
    monkeypatch.setattr(Primary, "has_all", _counts_at_once)
    with pytest.raises(AssertionError, match="was acknowledged"):
        _member_behind(MemberWorld(1))


def test_it_is_noticed_when_a_part_is_let_go_by_an_old_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transport.group.part.is_so", _believes)
    with pytest.raises(AssertionError):
        test_a_row_that_is_old_makes_nobody_let_go()
