"""asyncio's own event loop on simulated threads and time, and nothing of an operating system.

Callbacks run in the order in which asyncio runs them; instead of sleeping in a selector the loop's
thread hands the baton on (`tests.sim.world.threads`). Sockets are those of `tests.sim.world.net`.
"""

import asyncio
import asyncio.futures
import contextvars
import socket
from collections.abc import Callable
from typing import Any, cast

from tests.sim.world.net import Listening, SimSocket
from tests.sim.world.primitives import Event, Executor
from tests.sim.world.threads import Threads


class _Selector:
    """Waits for calls from other threads, or for a time; there are no files."""

    def __init__(self) -> None:
        self.called = Event()

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None or timeout > 0:
            self.called.wait(timeout)
        self.called.clear()
        return []

    def close(self) -> None:
        pass


class SimLoop(asyncio.BaseEventLoop):
    """A loop for one simulated process; runs in the thread that calls run_until_complete."""

    def __init__(self, run: Threads) -> None:
        super().__init__()
        self._run = run
        self._selector = _Selector()
        self._executor = Executor(8, "asyncio")
        self.slow_callback_duration = 1e9

    def time(self) -> float:
        return self._run.now_s

    def _process_events(self, event_list: list[Any]) -> None:
        pass

    def _write_to_self(self) -> None:
        self._selector.called.set()

    def run_in_executor(  # type: ignore[override]
        self, executor: Any, func: Callable[..., Any], *args: Any
    ) -> asyncio.Future[Any]:
        assert executor is None
        return asyncio.futures.wrap_future(self._executor.submit(func, *args), loop=self)

    def call_at(  # type: ignore[override]
        self,
        when: float,
        callback: Callable[..., object],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        return super().call_at(when, callback, *args, context=context)

    async def create_server(  # type: ignore[override]
        self,
        protocol_factory: Callable[[], asyncio.BaseProtocol],
        *,
        sock: socket.socket,
        backlog: int = 0,
    ) -> Listening:
        simulated = cast(SimSocket, sock)
        return simulated.network.listen(simulated, self, protocol_factory)
