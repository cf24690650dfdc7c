"""Values that the control API answers with, beside those of `volume.model`.

Plain dataclasses, so that the CLI can read them without loading the server. A field may be added
within /v1, none is renamed or removed.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, cast, get_type_hints

from volume.model import StoreStatus

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """One daemon. Addresses are HOST:PORT, or the path of a unix socket."""

    version: str
    pid: int
    uptime_s: float
    nbd: tuple[str, ...]
    control: str
    tls: str
    """"off", "allow" or "require"."""
    connection_count: int
    store: StoreStatus


@dataclass(frozen=True, slots=True)
class ConnectionInfo:
    """One NBD connection; counts and bytes are since it was opened."""

    peer: str
    export: str | None
    """None while it negotiates."""
    tls: bool
    names: tuple[str, ...]
    """Who the client is, as proved by its certificate or pre-shared key."""
    age_s: float
    in_flight: int
    read_count: int
    read_bytes: int
    write_count: int
    write_bytes: int
    error_count: int


def from_json(cls: type[T], data: Mapping[str, Any]) -> T:
    """`data` as dataclass `cls`. Unknown fields (of a newer daemon) are ignored.

    Raises ValueError when a field is missing: the daemon is older than this program.
    """
    hints = get_type_hints(cls)
    values = {}
    for field in dataclasses.fields(cast(Any, cls)):
        if field.name not in data:
            raise ValueError(f"the daemon's answer lacks {field.name!r}; is it an older version?")
        value = data[field.name]
        if dataclasses.is_dataclass(hints[field.name]):
            value = from_json(cast(type[Any], hints[field.name]), value)
        values[field.name] = tuple(value) if isinstance(value, list) else value
    return cls(**values)
