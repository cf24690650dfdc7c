"""What a node takes to tell its shards: .venv/bin/python scripts/benchmark/listing.py 100000

COUNT files of shards, with their real headers and page tables, in a temporary folder; all pages of
one listing, and the first few of listings that begin anew for each page, as they did once.
"""

import os
import random
import sys
import tempfile
import time
from pathlib import Path

from native import crc32c
from transport.shardfile import HEADER_LENGTH, Stripe
from transport.shardserver import ShardServer
from transport.striperebuild import FIRST, ShardListing
from volume.disk import PosixDisk
from volume.layout import PAGE_SIZE

ANEW = 20
"""Pages of listings that begin anew: enough to see what one costs."""


def make(folder: Path, count: int) -> None:
    """Shards of one page each, of stripes of two data shards and one of parity."""
    rng = random.Random(1)
    table = bytes(4)
    size = 2 * PAGE_SIZE
    for _ in range(count):
        stripe = Stripe(rng.randbytes(32), size, 2, 1, (0, PAGE_SIZE, size), (bytes(32),) * 3)
        file = os.open(folder / stripe.name(0).path, os.O_CREAT | os.O_RDWR, 0o600)
        os.pwrite(file, stripe.header(0, crc32c(table)) + table, 0)
        os.ftruncate(file, HEADER_LENGTH + 2 * PAGE_SIZE)
        os.close(file)


def tell(server: ShardServer, pages: int | None) -> tuple[int, int, float, float]:
    """Pages, shards, seconds and seconds of CPU; `pages`: so many, each of a listing of its own."""
    listing = ShardListing(server, list)
    after, told, shards = FIRST, 0, 0
    began, began_cpu = time.monotonic(), time.process_time()
    while True:
        page = listing.page(after)
        told, shards, after = told + 1, shards + len(page.shards), page.next
        if after == FIRST or told == pages:
            return told, shards, time.monotonic() - began, time.process_time() - began_cpu
        if pages is not None:
            listing = ShardListing(server, list)


def main() -> None:
    count = int(sys.argv[1])
    with tempfile.TemporaryDirectory() as name:
        server = ShardServer(PosixDisk(Path(name)), bytes(16), 0)
        make(Path(name), count)
        for what, pages in (("one listing", None), ("a listing for each page", ANEW)):
            told, shards, took_s, cpu_s = tell(server, pages)
            print(f"{what}: {told} pages, {shards} shards, {took_s:.1f} s, {cpu_s:.1f} s of CPU")


if __name__ == "__main__":
    main()
