"""Carries out the steps of what units do without a session, as a sanitize that goes on after its
initiator has left.

Each step that has ended is followed by the next one in a turn of the loop of its own, so that
clients get theirs. When the server stops, what is not over is closed where it is; whatever must go
on after a restart has kept itself.
"""

import asyncio
from collections.abc import Callable
from typing import Any

from blockd.scsi.task import Await, Prepared, Steps, Submit, Task, Work
from blockd.workers import Done
from native import Request

DoWork = Callable[[Callable[[], Any], Done], None]
"""Makes a call on another thread; tells on the loop what it returned or raised."""


class Background:
    """All that is under way, until `stop`."""

    def __init__(self, work: DoWork) -> None:
        self._work = work
        self._running: dict[_Run, None] = {}
        self._stopped = False

    def run(self, steps: Steps) -> None:
        """As `blockd.scsi.unit.Surroundings.run`."""
        if self._stopped:
            steps.close()
            return
        run = _Run(steps, self._work, self._ended)
        self._running[run] = None
        run.go_on_soon()

    def stop(self) -> None:
        """Close everything, and whatever begins from now on."""
        self._stopped = True
        for run in list(self._running):
            run.close()
        self._running.clear()

    def _ended(self, run: "_Run") -> None:
        self._running.pop(run, None)


class _Run:
    def __init__(self, steps: Steps, work: DoWork, ended: Callable[["_Run"], None]) -> None:
        self._steps: Steps | None = steps
        self._work = work
        self._ended = ended
        self._task = Task()
        self._loop = asyncio.get_running_loop()
        self._closed = False

    def go_on_soon(self) -> None:
        self._loop.call_soon(self._go_on)

    def close(self) -> None:
        self._closed = True
        if self._steps is not None:
            self._steps.close()
        self._task.abort()

    def _go_on(self) -> None:
        """Begin the step that is due."""
        if self._closed:
            return
        if self._steps is not None:
            steps, self._steps = self._steps, None
            self._task.begin(Prepared(0, lambda _: steps), memoryview(b""))
        step = self._task.step
        if isinstance(step, Submit):
            step.device.submit(step.requests, self._finished)
        elif isinstance(step, Work):
            self._work(step.call, self._worked)
        elif isinstance(step, Await):
            step.begin(self._waited)
        else:
            self._ended(self)

    def _finished(self, requests: list[Request]) -> None:
        if not self._closed and self._task.finished(len(requests)):
            self.go_on_soon()

    def _worked(self, value: Any, error: Exception | None) -> None:
        if not self._closed:
            self._task.worked(value, error)
            self.go_on_soon()

    def _waited(self) -> None:
        if not self._closed:
            self._task.waited()
            self.go_on_soon()
