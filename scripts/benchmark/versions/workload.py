"""A disk image and how it changes: what the comparison of space feeds to every system alike.

The image is an ext4 of real files of this machine and a file that stands for a database. Ten clones
of it are given a few files of their own; then the image itself is used for 50 days: every day files
are replaced, added and removed, and single pages of the database are overwritten. All of it is done
by e2fsprogs on the image and by a seed, so a second run on the same machine makes the same bytes. A
state is what changed since the one before it, in blocks of 4 KiB.
"""

import os
import pickle
import random
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MiB = 1 << 20
BLOCK = 4096
COMPARE = MiB  # compared at once; only where these differ single blocks are looked at
SOURCES = ("/usr/lib", "/usr/bin", "/usr/share")
MAX_FILE = 32 * MiB
DATABASE = "database"
ENVIRON = {
    **os.environ,
    # e2fsprogs: the same clock every time.
    "E2FSPROGS_FAKE_TIME": "1700000000",
    "SOURCE_DATE_EPOCH": "1700000000",
}

Change = tuple[int, bytes]
"""Offset and new bytes."""


@dataclass(frozen=True, slots=True)
class Shape:
    """How large all of it is. Bytes, and counts of things."""

    image_bytes: int
    file_bytes: int
    database_bytes: int
    clones: int
    days: int
    pages: int
    """Of the database that a day overwrites."""


FULL = Shape(1536 * MiB, 1024 * MiB, 64 * MiB, clones=10, days=50, pages=200)
QUICK = Shape(192 * MiB, 100 * MiB, 8 * MiB, clones=3, days=4, pages=20)


class Workload:
    """The image in `folder`, made when it is constructed, and its changes, kept in files there."""

    def __init__(self, folder: Path, shape: Shape) -> None:
        self.shape = shape
        self.base = folder / "base.raw"
        self._folder = folder
        self._rng = random.Random(2026)
        staging = folder / "staging"
        self._files = self._stage(staging)
        self._make_image(staging)
        shutil.rmtree(staging)
        self._pages = self._database_blocks()
        self._make_states()

    def clone(self, number: int) -> list[Change]:
        """What makes clone `number` (from 0) of the base."""
        return self._load(f"clone{number}")

    def day(self, number: int) -> list[Change]:
        """What day `number` (from 0) changes of the day before."""
        return self._load(f"day{number}")

    def changed_bytes(self) -> tuple[int, int]:
        """Bytes of all changes of clones, and of days."""
        clones = (self.clone(number) for number in range(self.shape.clones))
        days = (self.day(number) for number in range(self.shape.days))
        clone_bytes = sum(len(data) for changes in clones for _, data in changes)
        return clone_bytes, sum(len(data) for changes in days for _, data in changes)

    def _load(self, name: str) -> list[Change]:
        changes: list[Change] = pickle.loads((self._folder / name).read_bytes())
        return changes

    # -- the image

    def _stage(self, staging: Path) -> list[Path]:
        """Copy real files until there are enough of them; the copies' paths in the image."""
        found: list[Path] = []
        staged = 0
        for source in _real_files():
            if staged >= self.shape.file_bytes:
                break
            target = staging / f"{len(found) % 97}" / f"{len(found)}"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
            staged += target.stat().st_size
            found.append(target.relative_to(staging))
        with (staging / DATABASE).open("wb") as file:
            for _ in range(self.shape.database_bytes // BLOCK):
                file.write(self._page())
        return found

    def _page(self) -> bytes:
        """Rows of a database: half of it compresses."""
        return (self._rng.randbytes(BLOCK // 2).hex().encode())[:BLOCK]

    def _make_image(self, staging: Path) -> None:
        with self.base.open("wb") as file:
            file.truncate(self.shape.image_bytes)
        options = "hash_seed=11111111-1111-1111-1111-111111111111,lazy_itable_init=0,nodiscard"
        uuid = "22222222-2222-2222-2222-222222222222"
        command = ["mkfs.ext4", "-q", "-F", "-b", str(BLOCK), "-E", options, "-U", uuid]
        subprocess.run([*command, "-d", str(staging), str(self.base)], check=True, env=ENVIRON)

    def _database_blocks(self) -> list[int]:
        output = _debugfs(self.base, [f"blocks /{DATABASE}"])
        return [int(word) for word in output.split() if word.isdigit()]

    # -- its changes

    def _make_states(self) -> None:
        work, before = self._folder / "work.raw", self._folder / "before.raw"
        for number in range(self.shape.clones):
            copy_sparse(self.base, work)
            self._edit(work, number, replaced=4, added=20, removed=0, pages=50)
            self._save(f"clone{number}", differences(self.base, work))
        copy_sparse(self.base, work)
        copy_sparse(self.base, before)
        for number in range(self.shape.days):
            self._edit(work, 100 + number, 10, 5, 3, pages=self.shape.pages)
            self._save(f"day{number}", differences(before, work))
            apply(self.day(number), before)
        work.unlink()
        before.unlink()

    def _save(self, name: str, changes: Iterator[Change]) -> None:
        (self._folder / name).write_bytes(pickle.dumps(list(changes)))

    def _edit(
        self, image: Path, number: int, replaced: int, added: int, removed: int, pages: int
    ) -> None:
        """Change some files of an image, and `pages` of its database."""
        commands = []
        scratch = self._folder / "scratch"
        scratch.mkdir()
        chosen = self._rng.sample(self._files, replaced + removed)
        for at, path in enumerate(chosen):
            commands.append(f"rm /{path}")
            if at < replaced:
                new = self._edited(image, path, scratch / f"{at}")
                commands.append(f"write {new} /{path}")
        for at in range(added):
            new = self._edited(image, self._rng.choice(self._files), scratch / f"new{at}")
            commands.append(f"write {new} /new-{number}-{at}")
        _debugfs(image, commands, write=True)
        shutil.rmtree(scratch)
        for path in chosen[replaced:]:
            self._files.remove(path)
        with image.open("r+b") as file:
            for block in self._rng.sample(self._pages, pages):
                file.seek(block * BLOCK)
                file.write(self._page())

    def _edited(self, image: Path, path: Path, target: Path) -> Path:
        """A new version of a file of the image: a line is put in, the rest stays."""
        _debugfs(image, [f"dump /{path} {target}"])
        content = target.read_bytes() if target.exists() else b""
        at = self._rng.randrange(len(content) + 1)
        line = self._rng.randbytes(40).hex().encode()
        target.write_bytes(content[:at] + line + content[at:])
        return target


def _real_files() -> Iterator[Path]:
    """Files of the operating system, in an order that mixes them."""
    found = []
    for source in SOURCES:
        for folder, _, names in os.walk(source):
            for name in names:
                path = Path(folder) / name
                if path.is_file() and not path.is_symlink() and path.stat().st_size <= MAX_FILE:
                    found.append(path)
    found.sort()
    random.Random(1).shuffle(found)
    yield from found


def _debugfs(image: Path, commands: list[str], *, write: bool = False) -> str:
    options = ["-w"] if write else []
    command = ["debugfs", *options, "-f", "/dev/stdin", str(image)]
    done = subprocess.run(
        command, input="\n".join(commands), text=True, check=True, capture_output=True, env=ENVIRON
    )
    # debugfs exits with 0 whatever happens; its own messages begin with the name of a command.
    errors = [line for line in done.stderr.splitlines() if not line.startswith("debugfs 1.")]
    if errors:
        raise SystemExit(f"debugfs: {errors[0]}")
    return "\n".join(line for line in done.stdout.splitlines() if not line.startswith("debugfs:"))


def copy_sparse(source: Path, target: Path) -> None:
    subprocess.run(["cp", "--sparse=always", str(source), str(target)], check=True)


def differences(old: Path, new: Path) -> Iterator[Change]:
    """Where two images of one length differ, in runs of blocks."""
    with old.open("rb") as a, new.open("rb") as b:
        at = 0
        while before := a.read(COMPARE):
            after = b.read(COMPARE)
            if before != after:
                yield from _runs(at, before, after)
            at += len(before)


def _runs(at: int, before: bytes, after: bytes) -> Iterator[Change]:
    start = None
    for offset in range(0, len(before), BLOCK):
        if before[offset : offset + BLOCK] != after[offset : offset + BLOCK]:
            start = offset if start is None else start
        elif start is not None:
            yield at + start, after[start:offset]
            start = None
    if start is not None:
        yield at + start, after[start:]


def apply(changes: list[Change], image: Path) -> None:
    with image.open("r+b") as file:
        for offset, data in changes:
            file.seek(offset)
            file.write(data)
