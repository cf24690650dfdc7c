"""What the same data takes when it is written again: nothing but names for it."""

import random
from pathlib import Path

from versions import stores
from versions.common import Settings, met, size, table
from volume.store import Store

TARGET = 0.01


def measure(settings: Settings) -> list[str]:
    length = settings.pick(1 << 30, 64 << 20)
    path = settings.folder / "dedup"
    with stores.filling(path) as store:
        for name in ("first", "second", "shifted"):
            store.create_volume(name, 2 * length)
        rows = []
        first = added(store, path, "first", 0, length)
        for title, name, offset in (
            ("into another volume", "second", 0),
            ("into the same volume, elsewhere", "first", length),
            ("into a third, shifted by 4 KiB", "shifted", 4096),
        ):
            again = added(store, path, name, offset, length)
            rows.append([title, size(again), f"{100 * again / first:.2f} %"])
        zeros = added(store, path, "second", length, length, zeros=True)
    rows = [
        ["random data, the first time", size(first), "100 %"],
        *rows,
        ["zeros", size(zeros), f"{100 * zeros / first:.2f} %"],
    ]
    again = float(rows[1][2].removesuffix(" %")) / 100
    return [
        f"{length >> 20} MiB written each time, in chunks of 64 KiB; what packs grow by, in MiB. "
        "Chunks begin at multiples of their size, so data shifted by less is new.",
        "",
        *table(("what is written", "packs grow by", "of the first time"), rows),
        f"The second time adds less than {TARGET:.0%}: {met(again < TARGET)}.",
        "",
    ]


def added(
    store: Store, path: Path, name: str, offset: int, length: int, *, zeros: bool = False
) -> int:
    """Write `length` bytes, the same each time, destage; by how much the pack files grew."""
    before = _packs(path)
    generator = random.Random(42)
    for at in range(0, length, 1 << 20):
        data = bytes(1 << 20) if zeros else generator.randbytes(1 << 20)
        stores.write(store, name, offset + at, data)
    stores.settle(store)
    return _packs(path) - before


def _packs(path: Path) -> int:
    return sum(file.stat().st_size for file in (path / "packs").iterdir())
