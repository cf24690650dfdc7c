"""Fuzz target of what is kept in LMDB: any keys and values in meta/ and index/, and

- everything that reads them takes what is there, or raises CorruptData or UnknownFormat with a
  message; what belongs to one client (reservations, mode pages), the scrub or a receive is damaged
  for that one only;
- a volume, a target, a reservation or a receive that is taken is written as the bytes it came from;
- no two volumes have one number, and each is found by the name it says.

Input: one byte of switches (FRAMED: values get the version byte and the checksum that they need),
then rows: length of the key (1), the key, length of the value (2, big-endian), the value.
"""

import contextlib
import struct
from collections.abc import Callable, Iterator

from blockd.api import limit_types
from blockd.registry import stored
from blockd.scsi import pr_codec
from blockd.scsi.modes import ModePages
from native import crc32c
from tests.fuzz.unlogged import unlogged
from tests.sim.simclock import SimClock
from volume import layout, referred
from volume.checkpoint import Checkpoint
from volume.damage import Memory
from volume.errors import CorruptData, NoSuchVolume, UnknownFormat
from volume.framing import framed, text, unframed
from volume.history import History
from volume.historyrows import Settings
from volume.index import ChunkIndex
from volume.kv import MemoryKeyValue
from volume.laterkv import LaterKeyValue
from volume.meta import Meta, _volume_value
from volume.receive import KEY_PREFIX, Receives

FRAMED = 1
MAX_ROWS = 64
UUID = bytes(range(16))
_DEFAULTS = Settings(0, "", 0)


def meta_target(data: bytes) -> None:
    """Run one input; raises when an invariant is broken."""
    with unlogged():
        _run(data)


def _run(data: bytes) -> None:
    rows = dict(_rows(data[1:], framed_values=bool(data[:1] and data[0] & FRAMED)))
    for read in (_meta, _history, _trees, _receives, _index, _states):
        with contextlib.suppress(CorruptData, UnknownFormat):
            read(MemoryKeyValue(rows))
    for name, value in rows.items():
        _alone(name, value)


def _rows(data: bytes, *, framed_values: bool) -> Iterator[tuple[bytes, bytes]]:
    at = 0
    for _ in range(MAX_ROWS):
        if at >= len(data):
            return
        key = data[at + 1 : at + 1 + data[at]]
        at += 1 + len(key)
        length = int.from_bytes(data[at : at + 2], "big")
        value = data[at + 2 : at + 2 + length]
        at += 2 + len(value)
        yield key, framed(value) if framed_values else value


def _meta(kv: MemoryKeyValue) -> None:
    before = kv.snapshot()
    meta = Meta(kv, SimClock())
    if before:
        assert kv.snapshot() == before  # reading it changes nothing
    volumes = meta.volumes()
    assert len({volume.number for volume in volumes}) == len(volumes)
    for volume in volumes:
        key = layout.META_PREFIX_VOLUME + layout.META_NUMBER_KEY.pack(volume.number)
        assert kv.get(key) == _volume_value(volume)
        with contextlib.suppress(NoSuchVolume):
            assert meta.volume(volume.name).name == volume.name
    meta.index_trusted("boot")
    if meta.checkpoint is not None:
        assert Checkpoint.decode(meta.checkpoint).encode() == meta.checkpoint


def _history(kv: MemoryKeyValue) -> None:
    later = LaterKeyValue(kv)
    with contextlib.suppress(CorruptData, UnknownFormat):
        assert later.points_lsn >= 0
    history = History(later, _DEFAULTS)
    numbers = {int.from_bytes(key[2:6], "big") for key in kv.snapshot() if len(key) >= 6}
    readers: list[Callable[[int], object]] = [
        lambda number: list(history.versions(number)),
        lambda number: list(history.newest(number)),
        history.points_of,
        history.settings,
        lambda number: list(history.snapshots(number)),
        lambda number: history.newest_snapshots(number, 3),
        history.keys_of,
        lambda number: history.round_before(number),
        lambda number: history.round_at(number),
    ]
    for number in sorted(numbers)[:8]:
        for read in readers:
            with contextlib.suppress(CorruptData, UnknownFormat):
                read(number)
    for read_all in (history.rounds, history.with_schedule, lambda: history.states("")):
        with contextlib.suppress(CorruptData, UnknownFormat):
            list(read_all())


def _trees(kv: MemoryKeyValue) -> None:
    list(referred.rows(kv))


def _receives(kv: MemoryKeyValue) -> None:
    receives = Receives(kv, SimClock())
    for info in receives.infos():
        progress = receives.get(info.name)
        assert progress is not None
        assert progress.roots() is not None
    receives.roots()


def _index(kv: MemoryKeyValue) -> None:
    index = ChunkIndex(kv, UUID)
    prefix = layout.INDEX_PREFIX_CHUNK
    ids = [key[len(prefix) :] for key in kv.snapshot() if key.startswith(prefix)]
    for read in (index.get_many, index.slots):
        with contextlib.suppress(CorruptData):
            assert len(read(ids)) == len(ids)
    list(index.group(b""))


def _states(kv: MemoryKeyValue) -> None:
    """What blockd keeps in meta/, as the store hands it on."""
    for key, value in kv.items(layout.META_PREFIX_STATE + stored.PREFIX.encode()):
        body = unframed(key, value)
        with contextlib.suppress(CorruptData, UnknownFormat):
            name = text(key, key[len(layout.META_PREFIX_STATE) :])
            target = stored.decode(name, body)
            assert stored.decode(target.key, target.encode()) == target


def _alone(key: bytes, value: bytes) -> None:
    """One value as whatever has a codec of its own: what it is the key of does not matter."""
    body = value[1:-4]
    for sealed in (body, body + struct.pack("<I", crc32c(body))):
        with contextlib.suppress(pr_codec.DamagedState):
            kept = pr_codec.decode_kept(sealed)
            assert pr_codec.encode_kept(kept) == sealed
        with contextlib.suppress(ValueError):
            Memory.decode(sealed)
    with contextlib.suppress(ValueError):
        limits = limit_types.decode(body)
        assert limit_types.decode(limit_types.encode(limits)) == limits
    ModePages(body)
    with contextlib.suppress(CorruptData, UnknownFormat):
        stored.decode(stored.PREFIX + "x", body)


assert KEY_PREFIX  # receives have rows of their own
