"""Names under the crash model: folders and directory entries that may or may not survive a cut.

Creation, rename, removal and mkdir since the last sync_dir may each be there or not, with these
limits, which every POSIX file system keeps:

    - operations on one inode survive in order: a file is not renamed before it exists, and it never
      has two names;
    - who takes over a name survives only with the operation that vacated it, so that no file is
      lost that nobody removed;
    - a rename is atomic, the replaced target included; a sync of its *new* folder settles it.

A file in a folder that vanished is gone, however well it was synced.
"""

import posixpath
from collections.abc import Collection, Mapping

from tests.sim.trace import Create, Mkdir, NameOp, Rename, Unlink


class NameSpace:
    """The durable folders and names, and the pending operations on them by position."""

    def __init__(self, dirs: Collection[str], names: Mapping[str, int]) -> None:
        self.durable_dirs = set(dirs)
        self.durable = dict(names)
        self.pending: dict[int, NameOp] = {}
        self._rests_on: dict[int, set[int]] = {}

    def add(self, position: int, op: NameOp) -> None:
        """The next operation; it rests on the last one about its inode and on who made room."""
        taken = _taken(op)
        self._rests_on[position] = {
            max(earlier, default=position)
            for earlier in (
                [p for p, o in self.pending.items() if subject(o) == subject(op)],
                [p for p, o in self.pending.items() if taken and _vacated(o) == taken],
            )
        }
        self.pending[position] = op

    def settle(self, folder: str, upto: int) -> None:
        """sync_dir of `folder` that began at `upto`: its entries, and what they rest on."""
        kept = self.closed(
            {p for p, op in self.pending.items() if p < upto and _folder(op) == folder}
        )
        self.durable_dirs, self.durable = self._applied(kept)
        for position in kept:
            del self.pending[position], self._rests_on[position]

    def closed(self, kept: Collection[int]) -> set[int]:
        """Those of `kept` that are pending names, and all that they rest on."""
        result: set[int] = set()
        for position in reversed(self.pending):
            if position in kept or position in result:
                result.add(position)
                result.update(p for p in self._rests_on[position] if p in self.pending)
        return result

    def chains(self) -> list[list[int]]:
        """Positions of the pending operations, grouped by the inode (or folder) they are about."""
        chains: dict[int | str, list[int]] = {}
        for position, op in self.pending.items():
            chains.setdefault(subject(op), []).append(position)
        return list(chains.values())

    def reachable(self, kept: Collection[int]) -> tuple[frozenset[str], dict[str, int]]:
        """Folders and names after a cut that kept these operations (and what they rest on)."""
        dirs, names = self._applied(self.closed(kept))
        alive: set[str] = {""}
        for path in sorted(dirs):  # parents sort before their children
            if posixpath.dirname(path) in alive:
                alive.add(path)
        names = {path: inode for path, inode in names.items() if posixpath.dirname(path) in alive}
        return frozenset(alive - {""}), names

    def _applied(self, kept: Collection[int]) -> tuple[set[str], dict[str, int]]:
        dirs, names = set(self.durable_dirs), dict(self.durable)
        for op in (op for position, op in self.pending.items() if position in kept):
            match op:
                case Create(path, inode):
                    names[path] = inode
                case Rename(old, new, inode):
                    if names.get(old) == inode:
                        del names[old]
                    names[new] = inode
                case Unlink(path, inode):
                    if names.get(path) == inode:
                        del names[path]
                case Mkdir(path):
                    dirs.add(path)
        return dirs, names


def subject(op: NameOp) -> int | str:
    """What the operation is about: an inode, or a folder by its path."""
    return op.path if isinstance(op, Mkdir) else op.inode


def _folder(op: NameOp) -> str:
    return posixpath.dirname(op.new if isinstance(op, Rename) else op.path)


def _taken(op: NameOp) -> str | None:
    """The name that the operation gives to its inode."""
    match op:
        case Create(path):
            return path
        case Rename(_, new):
            return new
        case _:
            return None


def _vacated(op: NameOp) -> str | None:
    """The name that the operation leaves free."""
    match op:
        case Unlink(path):
            return path
        case Rename(old):
            return old
        case _:
            return None
