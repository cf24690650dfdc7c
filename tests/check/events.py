"""The file of a history: JSON lines, one event each, in the order in which they happened.

    line                                    what happened
    {"blockd_history": 1, "id": N,          the first line: of which volume, how many bytes at the
     "volume": NAME, "size": BYTES}         start. `id` is in each stamp
    ["b", OP, WRITER, KIND, FIRST, COUNT]   an operation is about to be sent. KIND: read, write, fua
                                            (a write), zero, trim, flush; sectors [FIRST, +COUNT)
    ["e", OP, ERROR]                        its reply came; ERROR is 0 or an errno
    ["e", OP, 0, RUNS]                      the same for a read: what it saw (`stamps.Run`)
    ["m", NAME], ["n", NAME, ERROR]         naming the state of the volume begins, ended (snapshot)
    ["crash", "kill"]                       the server is gone, its machine is not
    ["crash", "power"]                      all is gone that was not durable
    ["restart"]                             clients may attach again; operations without an end
                                            have had their chance
    ["takeover"]                            another node serves now, and all that it has is durable.
                                            What has no end yet happens no more, but if it did
                                            happen its reply may still come
    ["state", OF, RUNS]                     the whole volume, sector by sector, while nobody wrote
                                            to it. OF: null, or the NAME of a state

An operation is named by its number, which counts from 1 over all writers of the file, and is in the
stamps of a write. Lines are written whole and in order by a `Recorder`; a last line that was cut
off is not there.
"""

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from tests.check.stamps import SECTOR, Run, payload, runs_of

VERSION: Final = 1
READ, WRITE, FUA, ZERO, TRIM, FLUSH = "read", "write", "fua", "zero", "trim", "flush"
WRITES: Final = frozenset((WRITE, FUA))
CHANGES: Final = frozenset((WRITE, FUA, ZERO, TRIM))
KINDS: Final = CHANGES | {READ, FLUSH}
KILL, POWER = "kill", "power"

Line = list[Any]


class BadHistory(Exception):
    """The file is no history, or says what cannot be."""


@dataclass(frozen=True, slots=True)
class Header:
    id: int
    volume: str
    size: int


class Recorder:
    """Writes a history; any number of threads may call it. A context manager that closes the file.

    Nothing is synced: the file is to outlive the server, not this machine.
    """

    def __init__(self, path: Path, volume: str, size: int, history_id: int = 1) -> None:
        """Raises FileExistsError: histories are never mixed."""
        self.header = Header(history_id, volume, size)
        self._file = path.open("x")
        self._lock = threading.Lock()
        self.count = 0
        """Operations that have begun."""
        self._put({"blockd_history": VERSION, "id": history_id, "volume": volume, "size": size})

    def begin(self, writer: int, kind: str, first: int = 0, count: int = 0) -> int:
        """Call before the request is sent. The operation's number."""
        with self._lock:
            self.count = operation = self.count + 1
            self._file.write(f'["b",{operation},{writer},"{kind}",{first},{count}]\n')
        return operation

    def end(self, operation: int, error: int = 0) -> None:
        """Call after the reply of anything but a good read has come."""
        with self._lock:
            self._file.write(f'["e",{operation},{error}]\n')

    def saw(self, operation: int, first: int, data: bytes) -> None:
        """Call after a read's data has come."""
        runs = runs_of(data, first, self.header.id)
        self._put(["e", operation, 0, runs])

    def payload(self, writer: int, operation: int, first: int, count: int) -> bytes:
        """What the write has to send."""
        return payload(self.header.id, writer, operation, first, count)

    def naming(self, name: str) -> None:
        self._put(["m", name])

    def named(self, name: str, error: int = 0) -> None:
        self._put(["n", name, error])

    def crash(self, kind: str = KILL) -> None:
        """Call when no reply of before can come any more."""
        assert kind in (KILL, POWER)
        self._put(["crash", kind])
        self._file.flush()

    def restart(self) -> None:
        self._put(["restart"])

    def state(self, runs: list[Run], of: str | None = None) -> None:
        self._put(["state", of, runs])

    def close(self) -> None:
        with self._lock:
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _put(self, line: object) -> None:
        text = json.dumps(line, separators=(",", ":"))
        with self._lock:
            self._file.write(text + "\n")


def read_history(path: Path) -> tuple[Header, Iterator[Line]]:
    """The header and the events of a file, which is read as they are taken. Raises BadHistory."""
    lines = _lines(path)
    first = next(lines, None)
    if not isinstance(first, dict) or first.get("blockd_history") != VERSION:
        raise BadHistory(f"{path}: not a history of version {VERSION}")
    try:
        header = Header(int(first["id"]), str(first["volume"]), int(first["size"]))
    except (KeyError, ValueError, TypeError) as error:
        raise BadHistory(f"{path}: its first line is incomplete: {error}") from None
    if header.size <= 0 or header.size % SECTOR:
        raise BadHistory(f"{path}: a volume of {header.size} bytes is not of whole sectors")
    return header, lines


def _lines(path: Path) -> Iterator[Any]:
    with path.open() as file:
        for number, text in enumerate(file, 1):
            if not text.endswith("\n"):
                return
            try:
                yield json.loads(text)
            except ValueError:
                raise BadHistory(f"{path}: line {number} is not JSON") from None
