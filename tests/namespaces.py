"""Machines of a test, each a network namespace of its own, and what goes wrong between them.

    with Lan(("n1", "n2", "etcd1", "client")) as lan:    # root; `missing()` says why it cannot be
        Popen([*lan.prefix("n1"), "program"])             # runs there
        with lan.entered("client"): ...                   # so does this thread, and what it starts
        lan.cut("n1", "peers")                            # as if its cable had been pulled
        lan.lose("n1", "n2", "peers")                     # what n1 sends to n2 does not arrive
        lan.heal()

There are three networks, each a bridge in a namespace of its own (`switch`): `front` for clients,
`peers` for nodes among themselves, `store` for etcd. Every machine has a leg in each of them, so a
node can be cut off from some and not from others. Nothing of it is in the namespace that the tests
run in, and no module of the kernel is needed but veth and bridge:

    cut     the machine's end of the link is set down: the kernel says so at once, as it does when
            a cable is pulled
    lose    the neighbour's entry is pinned to an address that nobody has. Frames leave, and arrive
            nowhere; no program is told. The other direction works, so this is a partition of one
            direction, which a link that is down cannot be.

Namespaces are named by the pid of the tests. Those of tests that were killed are removed with what
still runs in them, before the next ones are made.
"""

import ctypes
import ipaddress
import os
import re
import signal
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Final

from tests import forks

NETS: Final = {"front": "10.177.1.0/24", "peers": "10.177.2.0/24", "store": "10.177.3.0/24"}
NOBODY: Final = "02:00:00:00:00:01"
FOLDER: Final = Path("/run/netns")
_SWITCH: Final = "switch"
_CLONE_NEWNET: Final = 0x40000000
_NAME: Final = re.compile(r"blockd-(\d+)-[a-z0-9]+")

_libc = ctypes.CDLL(None, use_errno=True)


def missing() -> str:
    """Why there can be no namespaces here; "" where they can be."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    probe = f"blockd-{os.getpid()}-probe"
    try:
        _ip(f"netns add {probe}\nnetns del {probe}\n")
    except FileNotFoundError:
        return "network namespaces need ip (iproute2)"
    except AssertionError as error:
        return f"network namespaces cannot be made here: {error}"
    return ""


class Lan:
    """See the module. AssertionError with what `ip` said where something is refused."""

    def __init__(self, machines: Sequence[str]) -> None:
        self._machines = tuple(machines)
        self._id = f"blockd-{os.getpid()}"
        self._troubles: list[tuple[str, str]] = []
        """(machine, commands of `ip` there that end a trouble)."""

    def __enter__(self) -> "Lan":
        remove_leftovers()
        try:
            self._make()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._remove()

    # -- who is where

    def address(self, machine: str, net: str) -> str:
        first = ipaddress.ip_network(NETS[net]).network_address
        return str(first + 1 + self._machines.index(machine))

    def prefix(self, machine: str) -> list[str]:
        """Before a command, that it runs there; the process is still the one that was started."""
        return ["nsenter", f"--net={FOLDER / self._name(machine)}"]

    @contextmanager
    def entered(self, machine: str) -> Iterator[None]:
        """This thread is there, with threads and processes that it starts."""
        forks.shared.get()  # serves all tests: it must not begin there, and end with the machine
        here = os.open(f"/proc/self/task/{threading.get_native_id()}/ns/net", os.O_RDONLY)
        try:
            there = os.open(FOLDER / self._name(machine), os.O_RDONLY)
            try:
                _enter(there)
            finally:
                os.close(there)
            try:
                yield
            finally:
                _enter(here)
        finally:
            os.close(here)

    # -- what goes wrong

    def cut(self, machine: str, *nets: str) -> None:
        """It is in none of these networks any more."""
        for net in nets:
            self._trouble(machine, f"link set {net} down\n", f"link set {net} up\n")

    def lose(self, source: str, target: str, net: str) -> None:
        """What `source` sends to `target` is lost, and nothing else."""
        self._trouble(
            source,
            f"neigh replace {self.address(target, net)} lladdr {NOBODY} dev {net} nud permanent\n",
            f"neigh del {self.address(target, net)} dev {net}\n",
        )

    def heal(self) -> None:
        """All is as it was."""
        troubles, self._troubles = self._troubles, []
        for machine, end in reversed(troubles):
            self._in(machine, end)

    def _trouble(self, machine: str, begin: str, end: str) -> None:
        self._in(machine, begin)
        self._troubles.append((machine, end))

    # -- life

    def _name(self, machine: str) -> str:
        assert machine in (*self._machines, _SWITCH), machine
        return f"{self._id}-{machine}"

    def _in(self, machine: str, commands: str) -> None:
        _ip(commands, "-netns", self._name(machine))

    def _make(self) -> None:
        _ip("".join(f"netns add {self._name(each)}\n" for each in (*self._machines, _SWITCH)))
        switch = "".join(f"link add {net} type bridge\nlink set {net} up\n" for net in NETS)
        self._in(_SWITCH, switch)
        for machine in self._machines:
            name = self._name(machine)
            legs, ports = "link set lo up\n", ""
            links = ""
            for net, network in NETS.items():
                port = f"{net}-{self._machines.index(machine)}"
                links += f"link add {net} netns {name} type veth "
                links += f"peer name {port} netns {self._name(_SWITCH)}\n"
                length = ipaddress.ip_network(network).prefixlen
                legs += f"addr add {self.address(machine, net)}/{length} dev {net}\n"
                legs += f"link set {net} up\n"
                ports += f"link set {port} master {net}\nlink set {port} up\n"
            _ip(links)
            self._in(machine, legs)
            self._in(_SWITCH, ports)

    def _remove(self) -> None:
        _remove([self._name(each) for each in (*self._machines, _SWITCH)])


def remove_leftovers() -> None:
    """End what tests left that were killed: processes in their namespaces, and these."""
    if not FOLDER.is_dir():
        return
    left = []
    for path in FOLDER.iterdir():
        found = _NAME.fullmatch(path.name)
        if found is not None and not Path(f"/proc/{found[1]}").exists():
            left.append(path.name)
    _remove(left)


def _remove(names: Sequence[str]) -> None:
    for name in names:
        if not (FOLDER / name).exists():
            continue
        done = subprocess.run(
            ["ip", "netns", "pids", name], capture_output=True, text=True, check=False
        )
        for pid in done.stdout.split():
            if int(pid) != os.getpid():
                with suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
        _ip(f"netns del {name}\n")


def _enter(namespace: int) -> None:
    if _libc.setns(namespace, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


def _ip(commands: str, *options: str) -> None:
    done = subprocess.run(
        ["ip", *options, "-batch", "-"], input=commands, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"ip: {done.stderr.strip()} of\n{commands}"
