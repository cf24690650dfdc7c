"""Where requests that an engine submitted wait for the limits of volumes (`blockd.throttle`)."""

from collections.abc import Callable
from typing import Protocol

from blockd.device import BlockDevice
from native import Request, Reservation


class Held(Protocol):
    """What sessions need of it."""

    @property
    def is_slow(self) -> bool:
        """Something waits, and what is behind it may do so for seconds."""

    def recall(self, concerns: Callable[[Request], bool]) -> None:
        """Requests that wait and that `concerns` is true of come back, later and with an error."""

    def paid(self, device: BlockDevice, counts: tuple[int, int, int, int]) -> None:
        """Reads, their bytes, writes, their bytes: as many that come now have waited before."""

    def adopt(self, device: BlockDevice, reservation: Reservation) -> None:
        """The next request to `device` that has to wait has that place already."""


class NothingHeld:
    """Nobody is limited."""

    is_slow = False

    def recall(self, concerns: Callable[[Request], bool]) -> None:
        pass

    def paid(self, device: BlockDevice, counts: tuple[int, int, int, int]) -> None:
        pass

    def adopt(self, device: BlockDevice, reservation: Reservation) -> None:
        pass
