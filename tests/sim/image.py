"""What a simulated disk holds: file contents as shared 4 KiB pages, and whole-disk images.

`Contents` is one file: a sparse map of page index -> immutable page. Copies share the map until
one side writes, so that the thousands of crash images of a run cost what differs between them.
Two invariants keep digests honest: bytes past `size` are zero, and a page of zeros is always the
one object ZERO_PAGE (it counts as an allocated block but not in the digest, as a hole reads alike).

`Image` is a disk at rest: folders, and contents by path. Its contents are shared; never write them.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from typing_extensions import Buffer

from volume.disk import SECTOR_SIZE

PAGE_SIZE = 4096  # also the block that space is accounted in
SECTORS_PER_PAGE = PAGE_SIZE // SECTOR_SIZE
ZERO_PAGE = bytes(PAGE_SIZE)
ZERO_SECTOR = bytes(SECTOR_SIZE)


DIGESTS_KEPT = 8192  # 32 MiB of pages; crash images of one trace share nearly all of theirs


@lru_cache(maxsize=DIGESTS_KEPT)
def page_digest(page: bytes) -> bytes:
    return hashlib.blake2b(page, digest_size=16).digest()


class Contents:
    """The bytes of one file. Not thread-safe: the disk's lock guards it."""

    __slots__ = ("_digest", "_pages", "_shared", "size")

    def __init__(self) -> None:
        self.size = 0
        self._pages: dict[int, bytes] = {}
        self._shared = False
        self._digest: bytes | None = None

    def copy(self) -> "Contents":
        """An independent copy in O(1); the first side that writes pays for the page map."""
        twin = Contents()
        twin.size, twin._pages, twin._digest = self.size, self._pages, self._digest
        twin._shared = self._shared = True
        return twin

    def _own(self) -> dict[int, bytes]:
        """The page map, ready to be changed."""
        if self._shared:
            self._pages, self._shared = dict(self._pages), False
        self._digest = None
        return self._pages

    @property
    def block_count(self) -> int:
        """Allocated 4 KiB blocks."""
        return len(self._pages)

    def page(self, index: int) -> bytes:
        return self._pages.get(index, ZERO_PAGE)

    def pages_from(self, index: int) -> list[int]:
        """Indexes of the allocated pages at or after `index`, sorted."""
        return sorted(i for i in self._pages if i >= index)

    def sector(self, index: int) -> bytes:
        page, within = divmod(index, SECTORS_PER_PAGE)
        return self.page(page)[within * SECTOR_SIZE : (within + 1) * SECTOR_SIZE]

    def read(self, length: int, offset: int) -> bytes:
        """Up to `length` bytes; shorter only at the end of the file."""
        end = min(offset + length, self.size)
        if offset >= end:
            return b""
        first, last = offset // PAGE_SIZE, (end - 1) // PAGE_SIZE
        joined = b"".join([self.page(index) for index in range(first, last + 1)])
        return joined[offset - first * PAGE_SIZE : end - first * PAGE_SIZE]

    def write(self, data: Buffer, offset: int) -> None:
        """Put `data` at `offset`, allocating pages and growing the file as needed."""
        view = memoryview(data).cast("B")
        pages, done = self._own(), 0
        while done < len(view):
            index, start = divmod(offset + done, PAGE_SIZE)
            piece = view[done : done + PAGE_SIZE - start]
            old = pages.get(index, ZERO_PAGE)
            page = b"".join((old[:start], piece, old[start + len(piece) :]))
            pages[index] = ZERO_PAGE if page == ZERO_PAGE else page
            done += len(piece)
        if len(view):
            self.size = max(self.size, offset + len(view))

    def put_sectors(self, sectors: Mapping[int, bytes]) -> None:
        """Replace whole sectors whatever the size is; the caller calls `resize` afterwards."""
        by_page: dict[int, bytearray] = {}
        for sector, data in sectors.items():
            assert len(data) == SECTOR_SIZE
            index, within = divmod(sector, SECTORS_PER_PAGE)
            if index not in by_page:
                by_page[index] = bytearray(self.page(index))
            by_page[index][within * SECTOR_SIZE : (within + 1) * SECTOR_SIZE] = data
        for index, changed in by_page.items():
            if changed != self.page(index):
                self._own()[index] = ZERO_PAGE if changed == ZERO_PAGE else bytes(changed)

    def resize(self, size: int) -> None:
        """Cut (freeing pages, zeroing the tail of the last one) or grow with a hole."""
        pages, first_beyond = self._own(), -(-size // PAGE_SIZE)
        for index in [index for index in pages if index >= first_beyond]:
            del pages[index]
        within = size % PAGE_SIZE
        tail = pages.get(size // PAGE_SIZE) if within else None
        if tail is not None:
            page = tail[:within].ljust(PAGE_SIZE, b"\0")
            pages[size // PAGE_SIZE] = ZERO_PAGE if page == ZERO_PAGE else page
        self.size = size

    def missing_blocks(self, offset: int, length: int) -> list[int]:
        """Page indexes that a write of this range would have to allocate, ascending."""
        if not length:
            return []
        last = (offset + length - 1) // PAGE_SIZE
        return [i for i in range(offset // PAGE_SIZE, last + 1) if i not in self._pages]

    def digest(self) -> bytes:
        """Identity of the bytes and the size: equal contents have equal digests."""
        if self._digest is None:
            state = hashlib.blake2b(self.size.to_bytes(8, "little"), digest_size=16)
            for index, page in sorted(self._pages.items()):
                if page is not ZERO_PAGE:
                    state.update(index.to_bytes(8, "little"))
                    state.update(page_digest(page))
            self._digest = state.digest()
        return self._digest


@dataclass(frozen=True, slots=True)
class Image:
    """A disk at rest. `SimDisk(image)` starts a machine on it without copying contents."""

    dirs: frozenset[str] = frozenset()
    files: Mapping[str, Contents] = field(default_factory=dict)
    point: int = 0
    """Count of trace operations that had happened when the power went."""
    why: str = "as it was"
    """How the survivors were chosen; with `point` and the seed it names the state in a report."""

    def read(self, path: str) -> bytes:
        contents = self.files[path]
        return contents.read(contents.size, 0)

    def digest(self) -> bytes:
        """Identity of names and contents: equal disks have equal digests."""
        state = hashlib.blake2b(digest_size=16)
        for path in sorted(self.dirs):
            state.update(b"d%d:%s" % (len(path.encode()), path.encode()))
        for path, contents in sorted(self.files.items()):
            state.update(b"f%d:%s" % (len(path.encode()), path.encode()))
            state.update(contents.digest())
        return state.digest()
