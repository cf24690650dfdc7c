"""Connections to one volume see each other's writes, and a flush on one covers them all."""

import pytest

from tests.clients import run_libnbd
from tests.daemon import StartDaemon

pytestmark = pytest.mark.usefixtures("libnbd")


def test_a_write_is_seen_on_another_connection_at_once(daemon: StartDaemon) -> None:
    run_libnbd(
        daemon("--volume", "demo=64M").uri(),
        """
one, two = connected(), connected()
assert one.can_multi_conn()
for number in range(100):
    writer, reader = (one, two) if number % 2 else (two, one)
    writer.pwrite(bytes([number]) * 4096, 8192)
    assert reader.pread(4096, 8192) == bytes([number]) * 4096
""",
    )


def test_a_flush_on_one_connection_covers_the_writes_of_the_other(daemon: StartDaemon) -> None:
    server = daemon("--volume", "demo=64M")
    run_libnbd(
        server.uri(),
        """
one, two = connected(), connected()
for number in range(256):
    one.pwrite(bytes([number]) * 4096, number * 4096)
two.flush()
""",
    )
    status = server.store()
    assert status.synced_lsn >= 256, "the flush left records of the other connection unsynced"
    assert status.synced_lsn <= status.lsn
