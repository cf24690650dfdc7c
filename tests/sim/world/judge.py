"""What a machine has after a crash, held against what had been promised and what was under way."""

import copy
from collections.abc import Callable
from typing import Protocol, TypeVar

from tests.sim.world.cut import find_cut
from tests.sim.world.ledger import Ledger
from tests.sim.world.operator import Pending
from tests.sim.world.stamps import Violation
from volume.store import Store

T = TypeVar("T")


class Surroundings(Protocol):
    """What the judge needs of a world."""

    ledger: Ledger
    pending: Pending | None

    def call(self, work: Callable[[Store], T]) -> T: ...
    def image(self, export: str) -> bytes: ...
    def note(self, what: str) -> None: ...


class Judge:
    """Of one crash: `before_start`, then the machine boots, then `after_start`."""

    def __init__(self, world: Surroundings) -> None:
        self._world = world

    def before_start(self) -> None:
        """Keep what the ledger knows of what was under way, before anything is forgotten."""
        pending, ledger = self._world.pending, self._world.ledger
        for volume in ledger.by_name.values():
            volume.becoming = None
        if pending is not None and pending.kind == "snapshot":
            pending.taken = ledger.snapshots_of(pending.name, pending.volumes, pending.since)

    def after_start(self, at_least: int) -> None:
        """Raise Violation unless everything is as it may be; the ledger then says so too."""
        ledger, pending = self._world.ledger, self._world.pending
        self._world.pending = None
        infos = {info.name: info for info in self._world.call(lambda store: store.volumes())}
        if pending is not None:
            if pending.kind == "clone" and pending.name in infos and pending.snapshot is not None:
                made = ledger.add(pending.name, pending.snapshot.size, infos[pending.name].number)
                made.rebase(pending.snapshot.contents, ledger.position + 1)
            elif pending.kind == "drop-clone" and pending.volume not in infos:
                ledger.drop(pending.volume)
        if set(infos) != set(ledger.by_name):
            raise Violation(f"I2 volumes are {sorted(infos)}, not {sorted(ledger.by_name)}")
        images = {name: self._world.image(name) for name in sorted(infos)}
        cut = self._cut(images, at_least, pending)
        self._check_sizes(images, pending)
        self._world.note(f"recovered at {cut} of {ledger.position}, promised {at_least}")
        self._check_names(at_least, cut, pending)
        ledger.settle(cut)

    def _cut(self, images: dict[str, bytes], at_least: int, pending: Pending | None) -> int:
        ledger = self._world.ledger
        if pending is None or pending.kind != "restore" or pending.snapshot is None:
            return find_cut(ledger.by_name, images, at_least, ledger.position)
        before = copy.deepcopy(ledger.by_name[pending.volume])
        try:
            return find_cut(ledger.by_name, images, at_least, ledger.position)
        except Violation:
            ledger.replace(before)
            ledger.restored(before, pending.snapshot, pending.since)
            return find_cut(ledger.by_name, images, at_least, ledger.position)

    def _check_sizes(self, images: dict[str, bytes], pending: Pending | None) -> None:
        for name, image in images.items():
            volume = self._world.ledger.by_name[name]
            resizing = pending is not None and pending.kind == "resize" and pending.volume == name
            if len(image) != volume.size and not (
                resizing and pending is not None and len(image) == pending.size
            ):
                raise Violation(f"I2 {name} has {len(image)} bytes, not {volume.size}")
            volume.size = len(image)

    def _check_names(self, at_least: int, cut: int, pending: Pending | None) -> None:
        """Snapshots that were promised are there; those that are, are what they were."""
        ledger = self._world.ledger
        there = {
            (info.volume, info.name)
            for info in self._world.call(lambda store: store.snapshots.all())
        }
        dropping = None
        if pending is not None and pending.kind == "drop-snapshot":
            dropping = (pending.volume, pending.name)
        for made in pending.taken if pending is not None else ():
            if (made.volume, made.name) in there:
                ledger.snapshots[made.volume, made.name] = made
        for key, snapshot in list(ledger.snapshots.items()):
            if key not in there:
                if snapshot.position <= at_least and key != dropping:
                    raise Violation(f"I2 snapshot {key} of {snapshot.position} is gone")
                del ledger.snapshots[key]
            elif snapshot.position > cut:
                raise Violation(f"I3 snapshot {key} of {snapshot.position} is there, not its data")
