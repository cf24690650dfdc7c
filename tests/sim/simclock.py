"""Time that moves when the test says so, and identities that depend on the seed only."""

import random

EPOCH_NS = 1_800_000_000 * 10**9  # an arbitrary fixed start in 2027, so that dates look like dates


class SimClock:
    """Implements volume.disk.Clock."""

    def __init__(self, seed: int = 0, start_ns: int = EPOCH_NS) -> None:
        self._random = random.Random(f"uuid:{seed}")
        self._start_ns = start_ns
        self._elapsed_ns = 0
        self._step_ns = 0

    def advance(self, seconds: float) -> None:
        """Let `seconds` pass on both clocks."""
        if seconds < 0:
            raise ValueError(f"time goes forward only, not by {seconds} s; use step_wall_clock")
        self._elapsed_ns += round(seconds * 10**9)

    def step_wall_clock(self, seconds: float) -> None:
        """Somebody set the date: the wall clock jumps (either way), the monotonic one does not."""
        self._step_ns += round(seconds * 10**9)

    def now_ns(self) -> int:
        return self._start_ns + self._elapsed_ns + self._step_ns

    def monotonic(self) -> float:
        return self._elapsed_ns / 10**9

    def boottime_ns(self) -> int:
        return self._elapsed_ns

    def new_uuid(self) -> bytes:
        return self._random.randbytes(16)
