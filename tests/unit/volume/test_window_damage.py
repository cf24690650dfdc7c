"""Damage done by hand to a segment that is kept for the any-write window only.

A version whose records are in it is an error that names the segment and the record; never other
bytes. Everything else goes on: the head, versions before the damage and behind the next round,
destaging, snapshots, gc, a restart; and in the end the damaged segment expires like any other.
"""

import errno
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest

from tests.sim.store_rig import (
    KIB,
    SEGMENT_BYTES,
    SMALL,
    StoreRig,
    read_device,
    read_error,
)
from volume.errors import CorruptJournal, NoSuchVersion
from volume.segments import segment_path

WINDOW = replace(SMALL, window_bytes=20 * SEGMENT_BYTES, window_s=3600)
SIZE = 32 * KIB
HEADER_BYTES = 4096  # of a segment
RECORD_BYTES = 64  # of a record's header


@dataclass
class Life:
    """A store with one version for each record; a round now and then."""

    rig: StoreRig
    states: dict[int, bytes]
    victim: int
    """Slot of a segment of the window that is in the middle of it."""
    inside: list[int]
    """Seqs of the records that lie in it."""

    @property
    def path(self) -> str:
        return segment_path(self.victim)

    def damaged(self) -> set[int]:
        """Seqs that cannot be opened any more; the others have their bytes."""
        found = {}
        for seq, expected in self.states.items():
            try:
                assert self.rig.read_version(f"v@seq:{seq}") == expected
            except CorruptJournal as error:
                found[seq] = str(error)
        assert all(".seg" in message for message in found.values())
        return set(found)


def lived() -> Life:
    rig = StoreRig(options=WINDOW)
    rig.store.create_volume("v", SIZE, chunk_size=4 * KIB)
    data = bytearray(SIZE)
    states = {0: bytes(data)}
    places: dict[int, int] = {}
    for number in range(1, 61):
        rig.tend()
        rig.clock.advance(0.01)
        at = number * 5 % 8 * 4096
        data[at : at + 2048] = bytes([number]) * 2048
        assert rig.write("v", at, bytes(data[at : at + 2048])) == 0
        states[number] = bytes(data)
        places[number] = rig.store._journal.cut()[1]  # sequence of the segment
        if number % 8 == 0:
            rig.store.destage()
    rig.settle()
    held = rig.store._pool._held
    middle = held[len(held) // 2]
    inside = [seq for seq, sequence in places.items() if sequence == middle.sequence]
    return Life(rig, states, middle.slot, inside)


def flip_payload(life: Life) -> None:
    """One bit of a record in the middle of the segment."""
    life.rig.disk.flip_bit(life.path, HEADER_BYTES + 2 * (2048 + RECORD_BYTES) + 1000)


def flip_record_header(life: Life) -> None:
    life.rig.disk.flip_bit(life.path, HEADER_BYTES + 20)


def flip_segment_header(life: Life) -> None:
    life.rig.disk.flip_bit(life.path, 40)


def break_sector(life: Life) -> None:
    life.rig.disk.break_sector(life.path, HEADER_BYTES + 3000)


def remove(life: Life) -> None:
    life.rig.disk.unlink(life.path)


def cut(life: Life) -> None:
    file = life.rig.disk.open(life.path)
    file.truncate(HEADER_BYTES + 3000)
    file.close()


HARM: dict[str, Callable[[Life], None]] = {
    "payload": flip_payload,
    "record header": flip_record_header,
    "segment header": flip_segment_header,
    "bad sector": break_sector,
    "removed": remove,
    "cut": cut,
}


def check_goes_on(rig: StoreRig) -> None:
    """Writes, rounds, names, restores of sound versions, gc, scrub: as if nothing were."""
    rig.tend()
    before = rig.read("v")
    rig.store.snapshots.create("later", ["v"], sync=True)
    assert rig.write("v", 0, b"x" * 4096) == 0
    rig.store.destage()
    rig.settle()
    assert rig.read_version("v@later") == before
    rig.store.versions.restore("v", "later")
    assert rig.read("v") == before
    rig.store.versions.clone("v@later", "twin")
    assert rig.read("twin") == before
    assert rig.store.versions.log("v").versions
    rig.settle()


@pytest.mark.parametrize("how", HARM)
@pytest.mark.parametrize("restarted", [False, True])
def test_damage_in_the_window_is_an_error_that_says_where_and_all_else_goes_on(
    how: str, restarted: bool
) -> None:
    life = lived()
    assert life.damaged() == set()
    life.rig.clock.advance(20.0)  # what was opened is closed
    life.rig.tend()
    if how in ("removed", "cut") and not restarted:
        restarted = True  # who has the file open still sees all of it
    HARM[how](life)
    if restarted:
        broken = {*life.rig.disk._names[life.path].bad_sectors} if how == "bad sector" else set()
        life.rig = life.rig.killed()
        for sector in broken:
            life.rig.disk.break_sector(life.path, sector * 512)
    gone = life.damaged()
    assert gone, "the damage went unnoticed"
    # A round's own version is in chunks; what is before the damage, or begins after it, is sound.
    assert gone <= {seq for seq in life.states if seq >= life.inside[0] and seq % 8}
    assert max(gone) <= life.inside[-1] + 8
    for seq in sorted(gone)[:2]:
        with pytest.raises(CorruptJournal):
            life.rig.store.versions.clone(f"v@seq:{seq}", "no")
        with pytest.raises(CorruptJournal):
            life.rig.store.versions.restore("v", f"seq:{seq}")
    assert not life.rig.store._history.points, "a point that cannot be built holds the log"
    check_goes_on(life.rig)
    assert life.rig.store.status().state == "ok"


def test_open_version_whose_segment_is_damaged_meanwhile_is_eio(
    caplog: pytest.LogCaptureFixture,
) -> None:
    life = lived()
    seq = next(seq for seq in life.inside if seq % 8)
    life.rig.clock.advance(20.0)
    life.rig.tend()
    device = life.rig.store.open_version(f"v@seq:{seq}")
    device.attach("reader")
    for offset in range(HEADER_BYTES, SEGMENT_BYTES, 512):
        life.rig.disk.flip_bit(life.path, offset + 100)
    at = seq * 5 % 8 * 4096
    with caplog.at_level(logging.ERROR):
        assert read_error(device, at, 2048) == errno.EIO
    assert life.path in caplog.text
    assert f"v@seq:{seq}" in caplog.text
    clean = (at + 4096 * 4) % SIZE  # written long before, or never
    assert read_device(device, clean, 512) == life.states[seq][clean : clean + 512]


def test_damaged_segment_expires_like_any_other() -> None:
    life = lived()
    flip_segment_header(life)
    life.rig = life.rig.killed()
    for number in range(60):
        life.rig.clock.advance(120.0)
        life.rig.fill("v", 0, bytes([number + 100]) * 4096 * 3)
        life.rig.settle()
    rounds = list(life.rig.store._history.rounds())
    sequences = [held.sequence for held in life.rig.store._pool._held]
    assert sequences == sorted(sequences)
    assert rounds[0].sequence >= min(sequences)
    with pytest.raises(NoSuchVersion):
        life.rig.read_version(f"v@seq:{next(seq for seq in life.inside if seq % 8)}")
