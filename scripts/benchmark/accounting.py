"""What counting costs the request loop: its CPU time with an account and without, in turns.

One client over a socket pair sends 4 KiB reads of a hole, the cheapest requests there are, a batch
at a time; the CPU time of the loop's threads is the process's without that of the client's thread.
The loop never polls here: it would spin for as long as the client takes.

    .venv/bin/python scripts/benchmark/accounting.py [turns]
"""

import select
import socket
import statistics
import struct
import sys
import tempfile
import threading
import time
from pathlib import Path

from native import NBD_SIMPLE, OP_READ, Account, Loop, Request, VolumeCore
from volume.store import Store

BLOCK = 4096
SIZE = 64 << 20
BATCHES = {1: 1000, 32: 200}
"""Requests of a batch: batches of a turn."""
REPLY = 16 + BLOCK
STOP_S = 10.0


def turn(loop: Loop, core: VolumeCore, account: Account | None, depth: int) -> float:
    """Microseconds of CPU time for a request."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.setblocking(False)
        client = loop.add_nbd(
            *(core, account, None, theirs.fileno(), NBD_SIMPLE, SIZE, 1, SIZE, False, b"", None)
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
        loop = Loop(1, 1, 0)
        account = Account()
        for depth in BATCHES:
            used: dict[str, list[float]] = {"without": [], "with": []}
            for number in range(2 * turns):
                name = "with" if number % 2 else "without"
                used[name].append(turn(loop, volume.core, account if number % 2 else None, depth))
            pairs = zip(used["with"], used["without"], strict=True)
            ratio = statistics.median(counted / plain for counted, plain in pairs)
            plain = statistics.median(used["without"])
            counted = statistics.median(used["with"])
            print(
                f"depth {depth}: {plain:.2f} us a read, {counted:.2f} us counted; "
                f"median of {turns} ratios {ratio:.3f}"
            )
        loop.close()
        store.close()


if __name__ == "__main__":
    main()
