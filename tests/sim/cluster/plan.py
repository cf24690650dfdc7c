"""What happens in a world of several nodes, as a list of acts drawn from its seed before it begins.

As in `tests.sim.world.plan`: an act's own choices come from (seed, index), so that leaving some out
changes nothing in what the others ask for.
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass

from tests.sim.world.plan import NEMESIS, Act, Plan, Profile
from volume.metastore_records import Mode

CLIENTS = ("client-1", "client-2", "client-3")
_CLIENT_ACTS = {"io": 20, "reads": 7, "leave": 1}

CALM = Profile("calm", {"move": 3, "restart": 2, "upkeep": 2, "clock": 1}, every=10)
CRASHES = Profile(
    "crashes",
    {"kill": 4, "power-cut": 4, "strike": 3, "restart": 1, "ambush": 4, "move": 1, "upkeep": 2},
    every=6,
)
NETWORK = Profile(
    "network",
    {
        **{
            "cut-off": 4,
            "one-way": 3,
            "isolate": 4,
            "swap": 2,
            "relapse": 2,
            "weather": 4,
            "reset": 2,
        },
        **{"half-open": 2, "ambush": 3, "move": 1, "upkeep": 1},
    },
    every=6,
)
CLOCKS = Profile(
    "clocks",
    {
        **{"pause": 6, "drift": 3, "clock": 1, "isolate": 2, "relapse": 1, "kill": 1},
        **{"ambush": 2, "move": 1},
    },
    every=6,
)
METASTORE = Profile(
    "metastore", {"etcd": 6, "kill": 3, "pause": 1, "cut-off": 2, "ambush": 2, "move": 2}, every=6
)
DISKS = Profile(
    "disks",
    {
        **{"sick": 6, "unreadable": 4, "kill": 2, "power-cut": 1, "isolate": 2, "move": 2},
        **{"ambush": 2, "upkeep": 3, "cut-off": 1},
    },
    every=5,
)
MEMBERS = Profile(
    "members",
    {
        **{"replace": 6, "lose-disk": 2, "kill": 2, "power-cut": 1, "isolate": 1, "cut-off": 2},
        **{"ambush": 2, "move": 2, "etcd": 2, "pause": 1, "upkeep": 2, "weather": 1},
    },
    every=5,
)
"""In worlds that have a node to spare."""
VERSIONS = Profile(
    "versions",
    {
        **{"snapshot": 10, "drop-snapshot": 4, "resize": 5, "upkeep": 4, "kill": 2, "power-cut": 2},
        **{"ambush": 3, "isolate": 2, "cut-off": 1, "swap": 1, "relapse": 1, "pause": 1, "move": 2},
        **{"replace": 1, "etcd": 1, "strike": 1},
    },
    every=3,
)
"""Snapshots and sizes, while nodes come and go."""
RESTORES = Profile(
    "restores",
    {
        **{"restore": 12, "snapshot": 6, "drop-snapshot": 1, "resize": 2, "upkeep": 4, "move": 2},
        **{"kill": 2, "power-cut": 2, "strike": 2, "restart": 1, "ambush": 4, "swap": 1},
        **{"relapse": 1, "isolate": 2, "cut-off": 1, "one-way": 1, "weather": 2, "reset": 1},
        **{"half-open": 1, "pause": 1, "drift": 1, "clock": 1, "etcd": 1, "sick": 1},
        **{"unreadable": 1, "replace": 1},
    },
    every=3,
)
"""Volumes that go back to snapshots, and to what they were before that, under all there is."""
ROT = Profile(
    "rot",
    {
        **{"rot": 12, "scrub": 4, "upkeep": 8, "kill": 2, "power-cut": 2, "move": 3, "isolate": 1},
        **{"ambush": 2, "cut-off": 1, "snapshot": 2, "pause": 1},
    },
    every=3,
)
"""Bits of what one member has stored go bad."""
EVERYTHING = Profile(
    "everything",
    {
        **{
            "kill": 3,
            "power-cut": 4,
            "strike": 2,
            "restart": 1,
            "ambush": 5,
            "swap": 1,
            "relapse": 1,
        },
        **{"cut-off": 3, "one-way": 2, "isolate": 2, "weather": 3, "reset": 1, "half-open": 1},
        **{"pause": 3, "drift": 1, "clock": 1, "etcd": 2, "move": 2, "upkeep": 2},
    },
    every=4,
)
PROFILES: tuple[tuple[Profile, int], ...] = (
    (CALM, 1),
    (CRASHES, 4),
    (NETWORK, 4),
    (CLOCKS, 3),
    (METASTORE, 2),
    (DISKS, 3),
    (MEMBERS, 3),
    (VERSIONS, 3),
    (RESTORES, 2),
    (ROT, 2),
    (EVERYTHING, 6),
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
class Shape:
    """What a cluster is like."""

    nodes: int
    members: int
    """R, of the one volume."""
    wanted: int
    """W."""
    mode: Mode


def drawn_shape(seed: int, profile: Profile | None = None) -> Shape:
    rng = random.Random(f"shape:{seed}")
    nodes, members, wanted = rng.choices(
        ((3, 3, 2), (4, 3, 2), (5, 5, 3), (3, 2, 2), (4, 4, 3)), (10, 4, 1, 1, 1)
    )[0]
    if profile is MEMBERS and nodes == members:
        nodes += 1
    return Shape(nodes, members, wanted, rng.choices((Mode.MIRROR, Mode.STRICT), (4, 1))[0])


def drawn(seed: int, count: int, profile: Profile | None = None) -> Plan:
    """The plan of a seed, of `count` acts."""
    rng = random.Random(f"cluster:{seed}")
    (found,) = rng.choices([p for p, _ in PROFILES], [weight for _, weight in PROFILES])
    profile = profile or found
    acts = []
    for index in range(count):
        if rng.random() < 1 / profile.every:
            actor, choices = NEMESIS, profile.nemesis
        else:
            actor, choices = rng.choice(CLIENTS), _CLIENT_ACTS
        acts.append(Act(index, actor, _choice(rng, choices)))
    return Plan(seed, profile, tuple(acts))


def _choice(rng: random.Random, choices: Mapping[str, int]) -> str:
    (kind,) = rng.choices(list(choices), list(choices.values()))
    return kind
