"""No false alarm: whatever a right volume does with operations that overlap, and crashes with."""

import random

from hypothesis import given
from hypothesis import strategies as st

from tests.check.stamps import Run
from tests.unit.check.histories import SECTORS, Script

KINDS = ("write", "write", "write", "fua", "zero", "trim", "read", "read", "flush", "error")
COUNTS = (1, 2, 8, 9)
IN_FLIGHT = 5


class Volume:
    """Carries out each operation at one moment between its begin and its end."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.script = Script()
        self.done: list[tuple[int, int, int]] = []
        """First sector, count, operation (0: zeros), in the volume's order."""
        self.durable = 0
        self.image = [0] * SECTORS
        self.begun: dict[int, tuple[str, int, int]] = {}
        self.effects: dict[int, list[Run]] = {}
        """Of those that were carried out and have no end: what a read saw."""
        self.names: dict[str, int] = {}
        """Position of each."""

    def begin(self) -> None:
        kind = self.rng.choice(KINDS)
        count = self.rng.choice(COUNTS)
        first = self.rng.randrange(SECTORS - count)
        if kind == "flush":
            first = count = 0
        operation = self.script.begin("write" if kind == "error" else kind, first, count)
        self.begun[operation] = (kind, first, count)

    def carry_out(self, operation: int) -> None:
        kind, first, count = self.begun.pop(operation)
        self.effects[operation] = []
        if kind == "read":
            self.effects[operation] = [[1, self.image[at]] for at in range(first, first + count)]
        elif kind == "error" and self.rng.random() < 0.5:
            pass
        elif kind != "flush":
            self.done.append((first, count, 0 if kind in ("zero", "trim") else operation))
            self.image = self.at(len(self.done))
        if kind in ("flush", "fua"):
            self.durable = len(self.done)
        if kind == "error":
            self.script.end(operation, 5)
            del self.effects[operation]

    def at(self, position: int) -> list[int]:
        image = [0] * SECTORS
        for first, count, value in self.done[:position]:
            image[first : first + count] = [value] * count
        return image

    def end(self, operation: int) -> None:
        runs = self.effects.pop(operation)
        self.script.lines.append(["e", operation, 0, *([runs] if runs else [])])

    def name(self) -> None:
        name = f"n{len(self.script.lines)}"
        self.script.lines.append(["m", name])
        self.some()
        self.names[name] = len(self.done)
        self.some()
        self.script.lines.append(["n", name, 0])

    def crash(self, kind: str) -> None:
        for operation, (what, *_) in list(self.begun.items()):
            if what != "error" and self.rng.random() < 0.5:
                self.carry_out(operation)
        if kind == "power":
            del self.done[self.rng.randint(self.durable, len(self.done)) :]
            self.image = self.at(len(self.done))
            self.durable = len(self.done)
            self.names = {n: at for n, at in self.names.items() if at <= self.durable}
        self.begun.clear()
        self.effects.clear()
        self.script.crash(kind)
        self.state(self.image)

    def state(self, image: list[int], of: str | None = None) -> None:
        self.script.lines.append(["state", of, [[1, value] for value in image]])

    def some(self) -> None:
        """One thing that operations do."""
        chance = self.rng.random()
        if chance < 0.4 and len(self.begun) + len(self.effects) < IN_FLIGHT:
            self.begin()
        elif chance < 0.7 and self.begun:
            self.carry_out(self.rng.choice(list(self.begun)))
        elif self.effects:
            self.end(self.rng.choice(list(self.effects)))


@given(st.integers(0, 2**32), st.integers(1, 80))
def test_what_a_right_volume_does_is_never_called_wrong(seed: int, steps: int) -> None:
    volume = Volume(seed)
    for _ in range(steps):
        chance = volume.rng.random()
        if chance < 0.02:
            volume.crash(volume.rng.choice(("kill", "power")))
        elif chance < 0.05:
            volume.name()
        elif chance < 0.08 and volume.names:
            name = volume.rng.choice(list(volume.names))
            volume.state(volume.at(volume.names[name]), name)
        else:
            volume.some()
    volume.crash("kill")
    assert volume.script.found() == [], volume.script.lines
