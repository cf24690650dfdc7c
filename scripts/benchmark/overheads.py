"""What counting and limiting cost where they say nothing: CPU time with and without, in turns.

The request loop: one client over a socket pair sends 4 KiB reads of a hole, the cheapest requests
there are, a batch at a time; the CPU time of the loop's threads is the process's without that of
the client's thread. The loop never polls here: it would spin for as long as the client takes.

The engines: batches to a device that does nothing, through a connection's throttle and past it.

    .venv/bin/python scripts/benchmark/overheads.py [turns]
"""

import asyncio
import select
import socket
import statistics
import struct
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

from blockd.device import BlockDevice, Done
from blockd.throttle import Throttle
from native import (
    LIMIT_MAX_RATE,
    NBD_SIMPLE,
    OP_READ,
    Account,
    Limit,
    Loop,
    Request,
    VolumeCore,
)
from volume.store import Store

BLOCK = 4096
SIZE = 64 << 20
BATCHES = {1: 1000, 32: 200}
"""Requests of a batch: batches of a turn."""
REPLY = 16 + BLOCK
STOP_S = 10.0
SUBMITTED = 20_000  # batches that an engine gives to its device in a turn
PLAIN = "neither"


@dataclass(frozen=True, slots=True)
class Extra:
    """What a client has besides."""

    name: str
    account: Account | None = None
    limit: Limit | None = None


def extras() -> list[Extra]:
    far = Limit()
    rate = LIMIT_MAX_RATE
    far.set((rate, rate, rate, rate, rate, rate), 100_000_000, time.monotonic_ns())
    return [
        Extra(PLAIN),
        Extra("an account", account=Account()),
        Extra("a limit that is not set", limit=Limit()),
        Extra("six limits far away", limit=far),
    ]


def turn(loop: Loop, core: VolumeCore, extra: Extra, depth: int) -> float:
    """Microseconds of CPU time for a request."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.setblocking(False)
        client = loop.add_nbd(
            *(core, extra.account, extra.limit, theirs.fileno(), NBD_SIMPLE),
            *(SIZE, 1, SIZE, False, b"", None),
        )
        request = b"".join(
            struct.pack(">IHHQQI", 0x25609513, 0, 0, number, number * BLOCK, BLOCK)
            for number in range(depth)
        )
        replies = bytearray(depth * REPLY)
        batches = BATCHES[depth]
        began = time.process_time() - time.thread_time()
        for _ in range(batches):
            ours.sendall(request)
            ours.recv_into(replies, len(replies), socket.MSG_WAITALL)
        used = time.process_time() - time.thread_time() - began
        ours.shutdown(socket.SHUT_RDWR)
        while not client.stopped:
            select.select([loop], [], [], STOP_S)
            loop.news()
    return used / (batches * depth) * 1e6


class Nothing:
    """A device that has done at once what it is asked."""

    def submit(self, batch: list[Request], done: Done) -> None:
        done(batch)


def engine_turn(loop: asyncio.AbstractEventLoop, extra: Extra) -> float:
    """Microseconds of CPU time for a batch of one request."""
    device = cast(BlockDevice, Nothing())
    submit = device.submit
    if extra.limit is not None:
        throttle = Throttle(loop, time.monotonic_ns, lambda _: cast(Limit, extra.limit))
        submit = partial(throttle.submit, device)
    batch = [Request(OP_READ, 0, BLOCK)]
    began = time.thread_time()
    for _ in range(SUBMITTED):
        submit(batch, lambda _: None)
    return (time.thread_time() - began) / SUBMITTED * 1e6


def in_turns(
    variants: Sequence[Extra], turns: int, measure: Callable[[Extra], float]
) -> dict[str, list[float]]:
    used: dict[str, list[float]] = {extra.name: [] for extra in variants}
    for number in range(turns):
        shift = number % len(variants)
        for extra in (*variants[shift:], *variants[:shift]):
            used[extra.name].append(measure(extra))
    return used


def tell(what: str, used: Mapping[str, Sequence[float]]) -> None:
    plain = used[PLAIN]
    print(f"{what}: {statistics.median(plain):.2f} us")
    for name, found in used.items():
        if name != PLAIN:
            ratio = statistics.median(a / b for a, b in zip(found, plain, strict=True))
            print(f"  {name}: {statistics.median(found):.2f} us; median of the ratios {ratio:.3f}")


def main() -> None:
    turns = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    with tempfile.TemporaryDirectory() as folder:
        store = Store.open(Path(folder) / "data")
        store.create_volume("v", SIZE)
        volume = store.get("v")
        assert volume is not None
        known = threading.Event()  # where the chunks are: the loop would leave that to Python
        volume.submit([Request(OP_READ, 0, max(BATCHES) * BLOCK)], lambda _: known.set())
        known.wait()
        core = volume.core
        loop = Loop(1, 1, 0)
        for depth in BATCHES:
            tell(
                f"the loop, depth {depth}",
                in_turns(
                    extras(), turns, lambda extra, depth=depth: turn(loop, core, extra, depth)
                ),
            )
        loop.close()
        store.close()
    engine_loop = asyncio.new_event_loop()
    limits = [extra for extra in extras() if extra.account is None]
    tell(
        "an engine, a batch of one",
        in_turns(limits, turns, lambda extra: engine_turn(engine_loop, extra)),
    )
    engine_loop.close()


if __name__ == "__main__":
    main()
