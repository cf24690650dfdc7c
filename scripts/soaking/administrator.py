"""What an administrator does meanwhile: snapshots, clones, deletes, resizes, gc, scrub.

All calls are made by the thread that kills the daemon, so none of them is cut off. Snapshots of the
recorded volume are named in its history; they and clones of them are read as a whole, at once or
much later, and judged with the rest.
"""

import random
import time
from collections import Counter

from server import Server

from blockd.api.client import Client
from tests.check.events import Recorder
from tests.check.record import read_whole
from tests.check.stamps import Run
from volume.options import StoreOptions

MiB = 1 << 20
KEPT = 3  # snapshots of a volume
SPARE = "spare"
PACK_BYTES = StoreOptions().pack_bytes
GC_TRIES = 30
GC_S = 1.0  # between looks at what is still there


class Administrator:
    """`turn` does one thing."""

    def __init__(self, server: Server, recorder: Recorder, guests: list[str], seed: int) -> None:
        self._server = server
        self._recorder = recorder
        self._guests = guests
        self._rng = random.Random(f"{seed}/administrator")
        self._number = 0
        self._recorded: list[str] = []  # names of snapshots, oldest first
        self._others: list[tuple[str, str]] = []
        self.done: Counter[str] = Counter()
        self.findings: list[str] = []

    @property
    def _volume(self) -> str:
        return self._recorder.header.volume

    def turn(self) -> None:
        """Raises ApiError, OSError, Gone."""
        with self._server.daemon.control() as control:
            self._rng.choice(
                (
                    self._snapshot,
                    self._snapshot,
                    self._snapshot_guest,
                    self._look_back,
                    self._clone,
                    self._resize,
                    self._collect,
                    self._scrub,
                )
            )(control)

    def look(self) -> None:
        """Record the whole volume, which nobody writes to."""
        self._recorder.state(self._runs(self._volume))
        self.done["whole reads"] += 1

    def _name(self, kind: str) -> str:
        self._number += 1
        return f"{kind}{self._number}"

    def _runs(self, export: str) -> list[Run]:
        header = self._recorder.header
        return read_whole(self._server.daemon.host_port, export, header.size, header.id)

    def _snapshot(self, control: Client) -> None:
        name = self._name("s")
        self._recorder.naming(name)
        control.create_snapshot(name, [self._volume])
        self._recorder.named(name)
        self._recorded.append(name)
        self.done["snapshots"] += 1
        if len(self._recorded) > KEPT:
            oldest = self._recorded.pop(0)
            self._look_at(oldest)
            control.delete_snapshot(self._volume, oldest)
            self.done["deleted snapshots"] += 1

    def _snapshot_guest(self, control: Client) -> None:
        volume, name = self._rng.choice(self._guests), self._name("g")
        control.create_snapshot(name, [volume])
        self._others.append((volume, name))
        self.done["snapshots"] += 1
        if len(self._others) > KEPT:
            control.delete_snapshot(*self._others.pop(0))
            self.done["deleted snapshots"] += 1

    def _look_back(self, control: Client) -> None:
        if self._recorded:
            self._look_at(self._rng.choice(self._recorded))

    def _look_at(self, name: str) -> None:
        self._recorder.state(self._runs(f"{self._volume}@{name}"), name)
        self.done["snapshots read"] += 1

    def _clone(self, control: Client) -> None:
        if not self._recorded:
            return
        of, name = self._rng.choice(self._recorded), self._name("c")
        control.clone_volume(f"{self._volume}@{of}", name)
        self._recorder.state(self._runs(name), of)
        control.delete_volume(name, force=True)
        self.done["clones read and deleted"] += 1

    def _resize(self, control: Client) -> None:
        names = {volume.name for volume in control.volumes()}
        if SPARE not in names:
            control.create_volume(SPARE, 8 * MiB)
        control.resize_volume(SPARE, self._rng.randint(1, 64) * MiB, force=True)
        if self._rng.random() < 0.3:
            control.delete_volume(SPARE, force=True)
        self.done["resizes"] += 1

    def _collect(self, control: Client) -> None:
        control.collect()
        self.done["gc runs"] += 1

    def _scrub(self, control: Client) -> None:
        status = control.scrub_status()
        if status.damage_count:
            self.findings.append(f"scrub found {status.damage_count} damages: {status.damages}")
        if not status.requested:
            control.start_scrub()
            self.done["scrubs"] += 1

    def give_back(self) -> None:
        """Delete everything, let gc run, and see that nothing is left that anybody needs, and no
        more than the open pack and the share of the journal at which a round begins: records of
        deleted volumes wait for that."""
        with self._server.daemon.control() as control:
            self._scrub(control)
            for snapshot in control.snapshots():
                control.delete_snapshot(snapshot.volume, snapshot.name, force=True)
            for volume in control.volumes():
                control.delete_volume(volume.name, force=True)
            for _ in range(GC_TRIES):
                report = control.collect()
                store = control.status().store
                room = StoreOptions().destage_fill * store.journal_limit
                left = (report.chunks_live, store.pack_bytes, store.journal_bytes)
                if not left[0] and left[1] <= PACK_BYTES and left[2] <= room:
                    return
                time.sleep(GC_S)
            self.findings.append(
                "not given back: {} chunks, {} B of packs, {} B of journal".format(*left)
            )
