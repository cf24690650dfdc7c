"""What happens in a world, as a list of acts drawn from its seed before it begins.

An act's own choices come from a generator of its own, (seed, index): leaving some acts out changes
nothing in what the others ask for. That is what shrinking rests on.
"""

import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

CLIENTS = ("nbd-left", "nbd-left-2", "nbd-right", "iscsi-left")
"""Protocol and volume."""
OPERATOR, NEMESIS = "operator", "nemesis"

_CLIENT_ACTS = {"io": 20, "leave": 1, "vanish": 1, "dawdle": 1}
_OPERATOR_ACTS = {
    "snapshot": 6,
    "read-snapshot": 5,
    "read-seq": 4,
    "copy": 1,
    "drop-snapshot": 2,
    "clone": 2,
    "drop-clone": 2,
    "restore": 1,
    "resize": 2,
    "collect": 2,
    "rest": 2,
}


@dataclass(frozen=True, slots=True)
class Profile:
    """What goes wrong in a world."""

    name: str
    nemesis: Mapping[str, int]
    """Acts of the nemesis, by weight."""
    every: int = 12
    """One act in so many is the nemesis's."""
    errors: bool = False
    """Requests may be answered with an error."""
    damage: bool = False
    """What is stored may be lost; never shown wrong."""
    lies: bool = False
    """What was promised may be lost, as the disk lied; never shown wrong."""
    rare: bool = False
    """Rare sites of the product are armed."""
    capacity: int = 0
    """Bytes of the disk; 0: plenty."""
    limited: bool = False
    """The volumes have limits, beyond which requests wait."""


_CRASHES = {"power-cut": 5, "kill": 4, "restart": 1, "fail-point": 4, "clock": 1}
CALM = Profile("calm", {"restart": 2, "stall": 2, "clock": 1}, every=30)
CRASHES = Profile("crashes", {**_CRASHES, "stall": 2})
RARE = Profile("rare", {**_CRASHES, "stall": 1}, rare=True)
ERRORS = Profile(
    "errors",
    {**_CRASHES, "io-error": 8, "no-space": 3, "short-write": 4, "stall": 2},
    every=8,
    errors=True,
)
DAMAGE = Profile(
    "damage",
    {**_CRASHES, "flip": 6, "bad-sector": 6, "misdirect": 3, "journal-flip": 2},
    every=8,
    errors=True,
    damage=True,
)
LIES = Profile(
    "lies", {"power-cut": 4, "lying-sync": 6}, every=8, errors=True, damage=True, lies=True
)
FULL = Profile("full", {**_CRASHES, "stall": 1}, errors=True, capacity=640 << 10)
LIMITED = Profile("limited", {**_CRASHES, "stall": 1}, limited=True)
PROFILES = (
    (CALM, 1),
    (CRASHES, 6),
    (RARE, 4),
    (ERRORS, 4),
    (DAMAGE, 3),
    (LIES, 1),
    (FULL, 2),
    (LIMITED, 0),
)


def named(name: str | None) -> Profile | None:
    """The profile of that name. ValueError."""
    if name is None:
        return None
    for profile, _ in PROFILES:
        if profile.name == name:
            return profile
    raise ValueError(f"no profile {name!r}; there are {', '.join(p.name for p, _ in PROFILES)}")


@dataclass(frozen=True, slots=True)
class Act:
    index: int
    actor: str
    kind: str


@dataclass(frozen=True, slots=True)
class Plan:
    seed: int
    profile: Profile
    acts: tuple[Act, ...]

    def of(self, actor: str) -> list[Act]:
        return [act for act in self.acts if act.actor == actor]

    def keep(self, indices: Iterable[int]) -> "Plan":
        kept = set(indices)
        return Plan(self.seed, self.profile, tuple(a for a in self.acts if a.index in kept))


def drawn(seed: int, count: int, profile: Profile | None = None) -> Plan:
    """The plan of a seed, of `count` acts."""
    rng = random.Random(f"plan:{seed}")
    (found,) = rng.choices([p for p, _ in PROFILES], [weight for _, weight in PROFILES])
    profile = profile or found
    acts = []
    for index in range(count):
        draw = rng.random()
        if draw < 1 / profile.every:
            actor, choices = NEMESIS, profile.nemesis
        elif draw < 1 / profile.every + 0.15:
            actor, choices = OPERATOR, _OPERATOR_ACTS
        else:
            actor, choices = rng.choice(CLIENTS), _CLIENT_ACTS
        (kind,) = rng.choices(list(choices), list(choices.values()))
        acts.append(Act(index, actor, kind))
    return Plan(seed, profile, tuple(acts))


def spans(indices: Iterable[int]) -> str:
    """Numbers as "0-7,9,12-13"."""
    text: list[str] = []
    run: list[int] = []
    for index in [*sorted(set(indices)), -1]:
        if run and index != run[-1] + 1:
            text.append(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}")
            run = []
        run.append(index)
    return ",".join(text)


def parse_spans(text: str) -> set[int]:
    found: set[int] = set()
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return found
