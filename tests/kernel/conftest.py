"""One machine and one daemon for all tests; what a test leaves in the guest is undone after it.

These tests run where they are named only (`scripts/check --kernel`, `pytest tests/kernel`).
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.clients import find_tool, unavailable
from tests.daemon import Daemon
from tests.kernel.image import build
from tests.kernel.machine import GuestError, Machine
from tests.kernel.rig import Rig
from tests.ports import free_ports

ROOT = Path(__file__).parents[2]
HOST_TOOLS = (
    "qemu-system-x86_64",
    "apt-get",
    "dpkg",
    "depmod",
    "cpio",
    "gcc",
    "readelf",
    "setpriv",
)


@pytest.fixture(scope="session")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    for name in HOST_TOOLS:
        if find_tool(name) is None:
            unavailable(name)
    folder = tmp_path_factory.mktemp("vm")
    machine = Machine(build(ROOT / "build/kernel"), folder)
    machine.start()
    yield machine
    machine.stop()


@pytest.fixture(scope="session")
def kernel_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon that has the same addresses after each start: NBD, and two iSCSI portals."""
    folder = tmp_path_factory.mktemp("s")
    nbd, one, two = free_ports(3)
    listen = ["--nbd", f"127.0.0.1:{nbd}"]
    listen += ["--iscsi", f"127.0.0.1:{one}", "--iscsi", f"127.0.0.2:{two}"]
    server = Daemon(folder / "data", listen=listen)
    server.start()
    yield server
    server.discard()
    shutil.rmtree(folder)


@pytest.fixture
def rig(machine: Machine, kernel_server: Daemon) -> Iterator[Rig]:
    said = len(kernel_server.stderr())
    with undone(machine):
        yield Rig(machine, kernel_server)
        if not kernel_server.running:
            kernel_server.discard()
            kernel_server.start()
    print(f"--- stderr of blockd\n{kernel_server.stderr()[said:]}")


@contextmanager
def undone(machine: Machine) -> Iterator[None]:
    """A test in the guest, which begins the next one as after the boot. Its server lives on."""
    said = len(machine.kernel_log())
    try:
        yield
    finally:
        try:
            machine.run("undo")
        except GuestError as error:
            print(f"--- the guest is started anew, a test's leavings stayed: {error}")
            machine.stop()
            machine.start()
        # pytest shows what is printed only for a test that failed.
        print(f"--- kernel log of the guest\n{machine.kernel_log()[said:]}")
