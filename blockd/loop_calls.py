"""Calls that other threads have made on the event loop's. A loop that has ended makes none."""

import asyncio
import contextlib
import errno
from collections.abc import Callable
from concurrent.futures import Future
from typing import Final, TypeVarTuple

Arguments = TypeVarTuple("Arguments")

SETTLE_S: Final = 5.0  # a loop comes to it within milliseconds; a volume is not opened meanwhile


def post(
    loop: asyncio.AbstractEventLoop,
    call: Callable[[*Arguments], object],
    *arguments: *Arguments,
) -> bool:
    """Have `call` made soon; whether the loop has not ended. Any thread."""
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(call, *arguments)
        return True
    return False


class LoopCall:
    """`call` is made on `loop`'s thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop, call: Callable[[], None]) -> None:
        self._loop = loop
        self._call = call

    def soon(self) -> None:
        """Any thread."""
        post(self._loop, self._call)

    def settle(self, timeout_s: float = SETTLE_S) -> None:
        """Return when it was made, after all that were asked for before. Any thread but the loop's;
        waits. OSError: it failed, or (TimeoutError) the loop does not come to it: whoever relies on
        it must not go on. Nobody waits for a loop that has ended."""
        made: Future[None] = Future()

        def make() -> None:
            try:
                self._call()
            except Exception as error:
                made.set_exception(error)
            else:
                made.set_result(None)

        if not post(self._loop, make):
            return
        try:
            made.result(timeout_s)
        except OSError:
            raise
        except Exception as error:
            raise OSError(errno.EIO, f"not seen to: {error!r}") from error
