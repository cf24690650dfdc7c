"""What is known once clients can connect, and the file that tells it to scripts."""

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Ready:
    """Addresses are HOST:PORT, or an absolute path for a unix socket."""

    data: str
    nbd: tuple[str, ...]
    iscsi: tuple[str, ...]
    control: str
    tls: str
    """"off", "allow" or "require"."""
    volumes: tuple[tuple[str, int], ...]
    """Names and sizes in bytes."""
    auto_targets: bool = False
    """Whether every volume has an iSCSI target by itself."""
    iscsi_chap: bool = False
    """Whether these ask for CHAP."""
    metrics: tuple[str, ...] = ()
    """Where a server of its own has /metrics."""
    peers: tuple[str, ...] = ()
    """Where other nodes of the cluster connect."""

    def to_json(self) -> dict[str, object]:
        return {**asdict(self), "volumes": dict(self.volumes), "pid": os.getpid()}


@contextlib.contextmanager
def announced_in(path: Path | None, ready: Ready) -> Iterator[None]:
    """`path` holds `ready` as JSON while the block runs; it appears whole or not at all."""
    if path is None:
        yield
        return
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(json.dumps(ready.to_json()) + "\n")
    draft.replace(path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
