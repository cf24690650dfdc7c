"""Limits of a volume, as the control API and the command have them, and as they are kept."""

import json
import reprlib
from dataclasses import asdict, dataclass, fields
from typing import Final

PREFIX: Final = "limits/"
"""Of the rows that are kept; the volume's uuid follows, in hexadecimal."""
DEFAULT_BURST_S: Final = 0.1
"""As qemu's: as much as a tenth of a second's worth may come at once after a pause."""
MIN_BURST_S: Final = 0.01
"""Waiting ends a millisecond late, or a few: what would have gone on meanwhile goes on then."""
MAX_BURST_S: Final = 3600
MAX_RATE: Final = 10**12


@dataclass(frozen=True, slots=True)
class VolumeLimits:
    """What the clients of a volume get together, per second; 0 is no limit.

    A trim and a write of zeroes count as one write without bytes; a flush is not limited.
    ValueError for what cannot be.
    """

    iops: int = 0
    """Reads and writes."""
    bandwidth: int = 0
    """Bytes, read and written."""
    read_iops: int = 0
    write_iops: int = 0
    read_bandwidth: int = 0
    write_bandwidth: int = 0
    burst_s: float = DEFAULT_BURST_S
    """After a pause, as much as is due in this time may come at once."""

    def __post_init__(self) -> None:
        for name, rate in self.rates().items():
            if not 0 <= rate <= MAX_RATE:
                raise ValueError(f"{name} {rate}: give 1 to {MAX_RATE}, or 0 for no limit")
        if not MIN_BURST_S <= self.burst_s <= MAX_BURST_S:
            raise ValueError(
                f"a burst of {self.burst_s:g} s: give {MIN_BURST_S:g} to {MAX_BURST_S:g} s"
            )

    def rates(self) -> dict[str, int]:
        """All but the burst."""
        return {name: getattr(self, name) for name in RATES}

    @property
    def any(self) -> bool:
        return any(self.rates().values())


_FIELDS: Final = tuple(field.name for field in fields(VolumeLimits))
RATES: Final = tuple(name for name in _FIELDS if name != "burst_s")


@dataclass(frozen=True, slots=True)
class LimitsStatus:
    """Limits of a volume, and what they have done since the daemon started."""

    limits: VolumeLimits
    waiting: int
    """Requests that wait now at the head of a client's line."""
    held_requests: int
    """That had to wait there, and went on."""
    held_s: float
    """How long, all of them."""
    problem: str | None = None
    """Why the limits that are kept cannot be read: nothing is limited, until they are set again."""


def encode(limits: VolumeLimits) -> bytes:
    """As they are kept."""
    return json.dumps(asdict(limits)).encode()


def decode(row: bytes) -> VolumeLimits:
    """ValueError, which says what is wrong."""
    try:
        found = json.loads(row)
    except RecursionError as error:
        raise ValueError("not an object") from error
    if not isinstance(found, dict):
        raise ValueError("not an object")
    for name, value in found.items():
        kinds = (int, float) if name == "burst_s" else (int,)
        if name not in _FIELDS or type(value) not in kinds:
            raise ValueError(f"{reprlib.repr(name)} is {reprlib.repr(value)}")
    return VolumeLimits(**found)
