"""What accounts have after real clients: the request loop and the engines, NBD and iSCSI."""

from pathlib import Path

import pytest

from blockd.accounts import Accounts
from native import ACCOUNT_OPS
from tests import iscsi_loop_rig, nbd_loop_rig, served
from tests.clients import FindTool
from tests.fakes import MemoryDevice
from tests.integration.qemu import io
from tests.served import TIMEOUT_S

SECOND_NS = 10**9
KIB = 1 << 10
COMMANDS = ("write -P 7 0 64k", "read -P 7 0 4k", "read -P 7 4k 4k", "flush", "discard 0 64k")


@pytest.fixture
def qemu_io(client_tool: FindTool) -> str:
    return client_tool("qemu-io")


def counted(accounts: Accounts, volume: str, protocol: str) -> dict[str, tuple[int, int]]:
    """Requests and bytes by op, of ops that were asked for. All of them were answered well, in a
    time that can be."""
    ((name, told, account),) = accounts.all()
    assert (name, told) == (volume, protocol)
    assert account.in_flight() == (0, 0)
    found = {}
    for op, (requests, payload, errors, sum_ns, buckets) in zip(
        ACCOUNT_OPS, account.snapshot(), strict=True
    ):
        assert requests == sum(buckets)
        assert not errors or op == "other"  # iSCSI: initiators ask for what there is
        assert sum_ns < TIMEOUT_S * SECOND_NS * max(1, requests)
        assert not requests or sum_ns or op == "other"
        if requests:
            found[op] = (requests, payload)
    return found


def is_what_was_asked(found: dict[str, tuple[int, int]]) -> None:
    assert found["write"] == (1, 64 * KIB)
    assert found["read"][0] >= 2  # qemu looks at the image as well
    assert found["read"][1] >= 8 * KIB
    assert found["flush"][0] >= 1
    assert found["unmap"] == (1, 0)


def test_the_loop_counts_what_an_nbd_client_asks_for(qemu_io: str) -> None:
    with nbd_loop_rig.serving() as server:
        io(qemu_io, f"nbd://{server.listener.addresses[0]}/{nbd_loop_rig.VOLUME}", *COMMANDS)
        server.until_empty()
        is_what_was_asked(counted(server.listener.accounts, nbd_loop_rig.VOLUME, "nbd"))


def test_the_engine_counts_what_an_nbd_client_asks_for(qemu_io: str) -> None:
    with served.serving(device=MemoryDevice()) as server:
        host, port = server.address
        io(qemu_io, f"nbd://{host}:{port}/{server.device.name}", *COMMANDS)
        server.until_empty()
        is_what_was_asked(counted(server.listener.accounts, server.device.name, "nbd"))


@pytest.mark.parametrize("threads", [0, 1])
def test_what_an_initiator_asks_for_counts(qemu_io: str, tmp_path: Path, threads: int) -> None:
    with iscsi_loop_rig.serving(tmp_path / "store", threads=threads) as server:
        host, port = server.address
        many = [f"read -P 7 {at}k 4k" for at in range(0, 64, 4)]  # the loop's, after some
        commands = (COMMANDS[0], *many, *COMMANDS[3:])
        io(qemu_io, f"iscsi://{host}:{port}/iqn.2026-11.io.blockd:vm1/0", *commands)
        server.until(lambda: not server.listener.sessions())
        found = counted(server.listener.accounts, "vm1", "iscsi")
        is_what_was_asked(found)
        assert found["read"][0] >= len(many)
        assert found["other"][0] >= 3  # INQUIRY, READ CAPACITY, and such
