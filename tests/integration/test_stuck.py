"""A daemon with a damaged manifest node: one volume waits for its repair, the others do not."""

from pathlib import Path

from blockd.cli import exits
from tests.daemon import Daemon, StartDaemon
from tests.damage import flip
from tests.nbd_client import NbdClient
from volume.store import Store

CHUNK = 65536


def written(server: Daemon, volume: str, offset: int, data: bytes) -> None:
    with NbdClient(server.host_port) as client:
        client.greet()
        client.go(volume)
        client.write(offset, data)
        client.flush()
        client.disconnect()


def read(server: Daemon, volume: str, offset: int, length: int) -> bytes:
    with NbdClient(server.host_port) as client:
        client.greet()
        client.go(volume)
        data = client.read(offset, length)
        client.disconnect()
    return data


def root_of(data: Path, volume: str) -> tuple[Path, int]:
    """Where a byte of the root of a volume's tree is stored; nobody serves `data`."""
    store = Store.open(data)
    try:
        found = store.get(volume)
        assert found is not None
        located = store._chunks.locate(found.record.head.root)
        return data / "packs" / f"{located.pack.number:08x}.pack", located.data_offset + 10
    finally:
        store.close()


def doctor(server: Daemon) -> tuple[int, bytes]:
    done = server.finish("doctor", "--data", str(server.data), "--json")
    return done.returncode, done.stdout


def test_a_damaged_node_holds_up_one_volume_until_it_is_repaired(daemon: StartDaemon) -> None:
    server = daemon("--volume", "sick=16M", "--volume", "well=16M")
    written(server, "sick", 0, b"1" * CHUNK)
    server.wait_for("destage", lambda status: status.hot_bytes == 0)
    server.stop()
    damaged = root_of(server.data, "sick")
    flip(*damaged)
    server.start()

    written(server, "sick", CHUNK, b"2" * CHUNK)
    written(server, "well", 0, b"3" * CHUNK)
    status = server.wait_for(
        "the other is destaged", lambda s: s.destage_held_up is not None and s.hot_bytes == CHUNK
    )
    assert status.state == "ok"
    assert status.destage_held_up is not None
    assert status.destage_held_up.startswith("volume sick is not destaged: ")
    assert "destaging is held up volume=sick" in server.stderr()
    code, said = doctor(server)
    assert code == exits.FAILED
    assert b"volume sick is not destaged" in said
    server.kill()
    server.start()
    assert read(server, "sick", CHUNK, CHUNK) == b"2" * CHUNK
    assert read(server, "well", 0, CHUNK) == b"3" * CHUNK

    server.wait_for("it is seen again", lambda status: status.destage_held_up is not None)
    flip(*damaged)
    server.wait_for("repair", lambda s: s.destage_held_up is None and s.hot_bytes == 0)
    assert read(server, "sick", 0, 2 * CHUNK) == b"1" * CHUNK + b"2" * CHUNK
