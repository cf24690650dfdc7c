"""What runs of gc are told and tell: roots, the hooks of the store, and the report."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from volume.layout import ChunkId


@dataclass(frozen=True, slots=True)
class Root:
    """A tree that stays, with the commits that lead to it."""

    root: ChunkId
    height: int
    commits: tuple[ChunkId, ...] = ()
    window: bool = False
    """The any-write window needs it: it stays, and `Hooks.weighed` is told what it takes."""
    optional: bool = False
    """It stays only as long as there is room for it in the history's share."""
    partial: bool = False
    """Not all of its chunks are there yet (a receive): what is missing is passed over."""
    tag: object = None
    """The caller's own, to know it again when it is dropped."""


@dataclass(slots=True)
class GcReport:
    """What one run did, or would do. Bytes are of pack files, unless they are of entries."""

    bytes_before: int = 0
    bytes_after: int = 0
    chunks_live: int = 0
    chunks_removed: int = 0
    packs_removed: int = 0
    packs_copied: int = 0
    packs_damaged: int = 0
    copied_bytes: int = 0
    """Of entries."""
    condemned_chunks: int = 0
    condemned_bytes: int = 0
    """Of entries: dead, but not for long enough to be removed."""
    roots: int = 0
    window_roots: int = 0
    """Those of the any-write window."""
    window_bytes: int = 0
    """Of entries that only these, and optional ones, reach."""
    history_roots: int = 0
    """Optional ones that stay."""
    history_bytes: int = 0
    """Of entries that only these reach."""
    history_dropped: int = 0
    """Optional ones that did not fit any more."""
    stopped: bool = False
    """`should_stop` said so; the rest is for the next run."""
    out_of_space: bool = False
    """There was no room for copies; dead packs were removed all the same."""
    dry: bool = False
    """Nothing was removed: this is what a run would do now."""
    error: str | None = None
    """The run ended early because of damage; nothing that is needed was removed."""
    work_s: float = 0.0
    """Time that gc itself took."""
    duration_s: float = 0.0
    """From beginning to end, with the rests between slices."""


class Weighed(NamedTuple):
    """A root of the any-write window."""

    root: Root
    size_bytes: int
    """Of entries that neither the roots that are needed reach, nor the window's before this one."""


class Dropped(Protocol):
    """Told of an optional root for which there is no room, before anything of it is removed."""

    def __call__(self, root: Root, /) -> bool:
        """Forget it, durably. False: somebody has named it meanwhile, and it stays."""


def never() -> bool:
    return False


def ignore(_number: int) -> None:
    pass


def _let_go(_root: Root) -> bool:
    return True


def _whatever(_weights: list[Weighed]) -> None:
    pass


def _no_budget() -> int | None:
    return None


@dataclass(frozen=True, slots=True)
class Hooks:
    """What a collector asks of its store. All but the first have a harmless default."""

    roots: Callable[[], Iterable[Root]]
    """Every tree that anyone can still read; optional ones, and the window's, newest first."""
    moved: Callable[[int], None] = ignore
    """The kept chunks of a pack have new places; the file is about to be unlinked."""
    removed: Callable[[int], None] = ignore
    """A pack without any was unlinked. Who holds either file open can go on reading."""
    weighed: Callable[[list[Weighed]], None] = _whatever
    """What each root of the window takes, in their order. They all stay for this run."""
    dropped: Dropped = _let_go
    history_budget: Callable[[], int | None] = _no_budget
    """Bytes of entries that optional roots may have to themselves; None: as many as they want."""
    busy: Callable[[], bool] = never
    """Whether clients were at work a moment ago."""
    full: Callable[[], bool] = never
    """Whether the disk is: then gc neither rests nor waits."""
    should_stop: Callable[[], bool] = never
    """The store is closing."""
