"""I4: kill -9 in mid-write loses no acknowledged write, and tears no sector (I5).

Each of 30 rounds keeps 32 commands in flight, kills the daemon after a random number of replies,
reads the replies that it had still sent, starts it again and looks at every sector of the volume.
See tests/storm for kills at chosen points, and of everything else that is durable.
"""

from tests.daemon import Daemon, StartDaemon
from tests.integration.pipelined import PipelinedClient
from tests.storm.writer import SECTOR, Writer

ROUNDS = 30
IN_FLIGHT = 32
SECTORS = (16 << 20) // SECTOR


def crash_in_mid_write(server: Daemon, writer: Writer) -> None:
    """Fill the pipeline, kill the daemon after some replies, and take those that it had sent."""
    kill_after = writer.rng.randrange(1, 1500)
    with PipelinedClient(server.host_port, "demo") as client:
        writer.fill(client, IN_FLIGHT)
        for _ in range(kill_after):
            writer.take_reply(client)
            writer.send_one(client)
        server.kill()
        writer.drain(client)


def whole_volume(server: Daemon) -> bytes:
    step = 4 << 20
    with PipelinedClient(server.host_port, "demo") as client:
        assert client.size == SECTORS * SECTOR
        return b"".join(client.read(at, step) for at in range(0, client.size, step))


def test_no_acknowledged_write_is_lost_by_kill_9(daemon: StartDaemon) -> None:
    server = daemon("--volume", f"demo={SECTORS * SECTOR}")
    writer = Writer(seed=7, sectors=SECTORS)
    for _ in range(ROUNDS):
        crash_in_mid_write(server, writer)
        server.start()
        writer.settle(whole_volume(server))
