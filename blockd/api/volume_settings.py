"""Settings of a volume that go along with it from node to node."""

from collections.abc import Callable
from dataclasses import dataclass

from blockd.api.limit_types import VolumeLimits


@dataclass(frozen=True, slots=True)
class VolumeSettings:
    """All settings of a volume. `schedule_s` 0: no scheduled snapshots."""

    limits: VolumeLimits
    window_s: int
    keep: str
    schedule_s: int
    schedule_keep: str


Change = Callable[[VolumeSettings], VolumeSettings]
