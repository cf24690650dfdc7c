"""Calls onto the event loop from other threads: soon, and waited for."""

import asyncio
import threading

import pytest

from blockd.loop_calls import LoopCall


def test_it_has_been_made_after_all_that_were_asked_for_before() -> None:
    made: list[str] = []

    async def run() -> None:
        loop = asyncio.get_running_loop()
        first = LoopCall(loop, lambda: made.append("first"))
        second = LoopCall(loop, lambda: made.append("second"))

        def ask() -> list[str]:
            first.soon()
            second.settle()
            return list(made)

        assert await asyncio.to_thread(ask) == ["first", "second"]

    asyncio.run(run())


def test_a_loop_that_does_not_come_to_it_is_an_error() -> None:
    stalled, over = threading.Event(), threading.Event()
    errors: list[OSError] = []

    async def run() -> None:
        call = LoopCall(asyncio.get_running_loop(), lambda: None)

        def ask() -> None:
            assert stalled.wait(30)
            try:
                call.settle(0.01)
            except OSError as error:
                errors.append(error)
            over.set()

        thread = threading.Thread(target=ask, daemon=True)
        thread.start()
        stalled.set()
        assert over.wait(30)  # the loop's own thread waits
        thread.join()

    asyncio.run(run())
    assert errors


@pytest.mark.parametrize(
    "error", [ValueError("broken"), RuntimeError("broken"), OSError(5, "broken")]
)
def test_who_relies_on_a_call_that_fails_is_told_so(error: Exception) -> None:
    async def run() -> None:
        loop = asyncio.get_running_loop()

        def fail() -> None:
            raise error

        with pytest.raises(OSError, match="broken"):
            await asyncio.to_thread(LoopCall(loop, fail).settle)

    asyncio.run(run())


@pytest.mark.parametrize("name", ["soon", "settle"])
def test_a_loop_that_has_ended_keeps_nobody_waiting(name: str) -> None:
    loop = asyncio.new_event_loop()
    loop.close()
    getattr(LoopCall(loop, lambda: None), name)()
