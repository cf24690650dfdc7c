"""Steps without a session: carried out in order, others in between, closed when it all stops."""

import asyncio
from collections.abc import Callable
from typing import Any

from blockd.registry.steps import Background
from blockd.scsi.task import Await, Result, Steps, Submit, Work
from blockd.workers import Workers
from native import OP_READ, Request
from tests import aio
from tests.fakes import MemoryDevice


def at_once(call: Callable[[], Any], done: Callable[[Any, Exception | None], None]) -> None:
    try:
        value = call()
    except Exception as error:
        done(None, error)
    else:
        done(value, None)


async def settled() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def test_steps_of_all_kinds_are_carried_out_to_the_end() -> None:
    told: list[object] = []

    def steps(device: MemoryDevice, ended: list[Callable[[], None]]) -> Steps:
        request = Request(OP_READ, 0, 4096)
        yield Submit(device, [request])
        told.append(request.data)
        told.append((yield Work(lambda: 7)))
        yield Await(ended.append)
        told.append("waited")
        return Result()

    async def run() -> None:
        workers = Workers("test")
        background = Background(lambda call, done: workers.submit("steps", call, done))
        device = MemoryDevice(deferred=True)
        ended: list[Callable[[], None]] = []
        background.run(steps(device, ended))
        assert device.waiting == 0  # not before the caller's own turn is over
        async with asyncio.timeout(20):
            while not device.waiting:  # noqa: ASYNC110 - what is waited for has no event
                await asyncio.sleep(0)
            device.finish()
            while not ended:  # noqa: ASYNC110 - as before
                await asyncio.sleep(0.001)
        ended[0]()
        await settled()
        await workers.close()
        background.stop()

    aio.run(run())
    assert told == [bytes(4096), 7, "waited"]


def test_what_a_call_raises_is_raised_in_the_steps() -> None:
    told: list[str] = []

    def steps() -> Steps:
        try:
            yield Work(fail)
        except OSError as error:
            told.append(str(error))
        return Result()

    def fail() -> None:
        raise OSError("broken")

    async def run() -> None:
        background = Background(at_once)
        background.run(steps())
        await settled()
        background.stop()

    aio.run(run())
    assert told == ["broken"]


def test_others_get_their_turn_between_steps() -> None:
    told: list[str] = []

    def steps(name: str) -> Steps:
        for _ in range(3):
            yield Work(lambda: told.append(name))
        return Result()

    async def run() -> None:
        background = Background(at_once)
        background.run(steps("a"))
        background.run(steps("b"))
        await settled()
        background.stop()

    aio.run(run())
    assert told == ["a", "b"] * 3


def test_a_stop_closes_what_is_under_way_and_what_begins_later() -> None:
    closed: list[str] = []

    def steps(device: MemoryDevice, name: str) -> Steps:
        try:
            yield Submit(device, [Request(OP_READ, 0, 4096)])
        finally:
            closed.append(name)
        return Result()

    async def run() -> None:
        background, device = Background(at_once), MemoryDevice(deferred=True)
        background.run(steps(device, "running"))
        await settled()
        background.run(steps(device, "not begun"))
        background.stop()
        assert closed == ["running"]  # what has not begun has nothing to let go of
        background.run(steps(device, "too late"))
        await settled()
        assert device.waiting == 1
        device.finish()  # whatever comes back is nobody's
        await settled()

    aio.run(run())
    assert closed == ["running"]
