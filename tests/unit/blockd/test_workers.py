"""Calls on threads: owners take turns, nobody has all threads, every call is answered."""

import asyncio
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

from blockd.workers import Workers
from tests import aio

WAIT_S = 60.0


class Calls:
    """Calls that wait until they are let go, and what became of them."""

    def __init__(self, workers: Workers) -> None:
        self.workers = workers
        self.running: list[str] = []
        self.answers: list[tuple[str, Any, str | None]] = []
        self.changed = threading.Condition()
        self.let: set[str] = set()

    def submit(self, owner: str, name: str) -> None:
        self.workers.submit(owner, partial(self.wait, name), partial(self.done, name))

    def wait(self, name: str) -> str:
        with self.changed:
            self.running.append(name)
            self.changed.notify_all()
            assert self.changed.wait_for(lambda: name in self.let, WAIT_S)
        return name.upper()

    def done(self, name: str, value: Any, error: Exception | None) -> None:
        self.answers.append((name, value, None if error is None else str(error)))

    async def until(self, reached: Callable[[], bool]) -> None:
        async with asyncio.timeout(WAIT_S):
            while not reached():  # noqa: ASYNC110 - what is waited for has no event
                await asyncio.sleep(0.001)

    async def go(self, *names: str) -> None:
        with self.changed:
            self.let |= set(names)
            self.changed.notify_all()
        await self.until(lambda: {name for name, *_ in self.answers} >= set(names))


def test_an_owner_has_no_more_than_its_share_of_the_threads() -> None:
    async def run() -> None:
        calls = Calls(Workers("test", threads=3, each=2))
        for name in ("a1", "a2", "a3"):
            calls.submit("a", name)
        calls.submit("b", "b1")
        await calls.until(lambda: len(calls.running) == 3)
        assert set(calls.running) == {"a1", "a2", "b1"}
        await calls.go("a1")
        await calls.until(lambda: "a3" in calls.running)
        await calls.go("a2", "a3", "b1")
        assert sorted(calls.answers) == [
            (name, name.upper(), None) for name in ("a1", "a2", "a3", "b1")
        ]
        await calls.workers.close()

    aio.run(run())


def test_owners_take_turns() -> None:
    async def run() -> None:
        calls = Calls(Workers("test", threads=1, each=1))
        for name in ("a1", "a2", "a3"):
            calls.submit("a", name)
        calls.submit("b", "b1")
        calls.submit("c", "c1")
        await calls.go("a1", "a2", "a3", "b1", "c1")
        assert calls.running == ["a1", "b1", "c1", "a2", "a3"] or calls.running == [
            *("a1", "a2", "b1", "c1", "a3")
        ]
        await calls.workers.close()

    aio.run(run())


def test_what_a_call_raises_is_its_answer() -> None:
    async def run() -> None:
        workers, answered = Workers("test"), asyncio.Event()
        told: list[Any] = []

        def done(value: Any, error: Exception | None) -> None:
            told.extend((value, error))
            answered.set()

        def fail() -> None:
            raise KeyError("x")

        workers.submit("a", fail, done)
        await asyncio.wait_for(answered.wait(), WAIT_S)
        assert told[0] is None
        assert isinstance(told[1], KeyError)
        await workers.close()

    aio.run(run())


def test_close_waits_for_what_runs_and_fails_the_rest() -> None:
    async def run() -> None:
        calls = Calls(Workers("test", threads=1, each=1))
        calls.submit("a", "a1")
        calls.submit("a", "a2")
        await calls.until(lambda: calls.running == ["a1"])
        closing = asyncio.ensure_future(calls.workers.close())
        await calls.until(lambda: len(calls.answers) == 1)
        assert calls.answers == [("a2", None, "the server stops")]
        assert not closing.done()
        await calls.go("a1")
        await closing
        calls.submit("b", "b1")
        await calls.until(lambda: len(calls.answers) == 3)
        assert calls.answers[1:] == [("a1", "A1", None), ("b1", None, "the server stops")]
        assert calls.running == ["a1"]

    aio.run(run())
