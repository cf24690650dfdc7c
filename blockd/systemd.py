"""What systemd passes to a service, by its environment (sd_listen_fds(3), sd_notify(3)).

Sockets that are already listening start at descriptor 3; a socket unit may name them. Those named
"control" (FileDescriptorName=control) serve the control API, those named "iscsi" serve iSCSI, all
others NBD, whatever their name: libnbd's and qemu's socket activation pass one without a useful
name.
"""

import os
import socket
import stat
import time
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass, field

FIRST_FD = 3  # SD_LISTEN_FDS_START
MAX_FDS = 64  # more is a mistake in the environment, not a set of listeners
CONTROL_NAME = "control"
ISCSI_NAME = "iscsi"


class ActivationError(Exception):
    """The environment promises sockets that are not there."""

    code = "socket_activation"


@dataclass(frozen=True, slots=True)
class Passed:
    """Listening sockets by what they serve; all empty without activation."""

    nbd: list[socket.socket] = field(default_factory=list)
    iscsi: list[socket.socket] = field(default_factory=list)
    control: list[socket.socket] = field(default_factory=list)

    def close(self) -> None:
        for sock in (*self.nbd, *self.iscsi, *self.control):
            sock.close()


def passes_sockets(environ: MutableMapping[str, str], pid: int) -> bool:
    """Whether `take_sockets` has something to take."""
    return bool(environ.get("LISTEN_FDS")) and environ.get("LISTEN_PID") == str(pid)


def take_sockets(environ: MutableMapping[str, str], pid: int, first_fd: int = FIRST_FD) -> Passed:
    """The listening sockets passed to process `pid`.

    The caller owns the sockets. The variables are removed, so that children do not take them as
    well. Raises ActivationError when what was passed is no listening stream socket.
    """
    there = passes_sockets(environ, pid)
    count, _, names = (
        environ.pop(key, "") for key in ("LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES")
    )
    if not there:
        return Passed()
    if not count.isdigit() or not 0 <= int(count) <= MAX_FDS:
        raise ActivationError(f"LISTEN_FDS={count!r}: expected a number of 0 to {MAX_FDS}")
    name_of = dict(enumerate(names.split(":")))
    passed = Passed()
    try:
        for index in range(int(count)):
            sock, name = _listening(first_fd + index), name_of.get(index)
            if name == CONTROL_NAME:
                passed.control.append(_private(sock))
            elif name == ISCSI_NAME:
                passed.iscsi.append(_network(sock))
            else:
                passed.nbd.append(sock)
    except ActivationError:
        passed.close()
        raise
    return passed


def _private(sock: socket.socket) -> socket.socket:
    if sock.family == socket.AF_UNIX:
        path = os.fsencode(sock.getsockname())
        if path.startswith(b"/"):
            return _closed_to_others(sock, os.fsdecode(path))
        sock.close()
        raise ActivationError(
            f"LISTEN_FDNAMES: the socket {CONTROL_NAME!r} has no file, whose mode says who may use "
            "it: every user of this machine could delete volumes; give it a path"
        )
    sock.close()
    raise ActivationError(
        f"LISTEN_FDNAMES: the socket {CONTROL_NAME!r} is not a unix socket; whoever reaches "
        "the control API may delete volumes, so it is not for networks"
    )


def _closed_to_others(sock: socket.socket, path: str) -> socket.socket:
    """What a socket unit makes is open to all unless it says SocketMode."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return sock  # moved away, or not in our namespace: whoever did that has a reason
    if not mode & stat.S_IWOTH:
        return sock
    sock.close()
    raise ActivationError(
        f"LISTEN_FDNAMES: the socket {CONTROL_NAME!r}, {path}, has mode {stat.S_IMODE(mode):04o}: "
        "every user of this machine could delete volumes; set SocketMode=0600, or SocketMode=0660 "
        "and SocketGroup=, in the socket unit"
    )


def _network(sock: socket.socket) -> socket.socket:
    if sock.family != socket.AF_UNIX:
        return sock
    sock.close()
    raise ActivationError(
        f"LISTEN_FDNAMES: the socket {ISCSI_NAME!r} is a unix socket; initiators use TCP only"
    )


def _listening(fd: int) -> socket.socket:
    try:
        if not stat.S_ISSOCK(os.fstat(fd).st_mode):
            raise ActivationError(f"LISTEN_FDS: descriptor {fd} is not a socket")
        os.set_inheritable(fd, False)
        sock = socket.socket(fileno=fd)
    except OSError as error:
        raise ActivationError(f"LISTEN_FDS: descriptor {fd}: {error.strerror}") from error
    if sock.type != socket.SOCK_STREAM or not sock.getsockopt(
        socket.SOL_SOCKET, socket.SO_ACCEPTCONN
    ):
        sock.close()
        raise ActivationError(f"LISTEN_FDS: descriptor {fd} is not a listening stream socket")
    if sock.family not in (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6):
        family = sock.family
        sock.close()
        raise ActivationError(f"LISTEN_FDS: descriptor {fd} is of family {family}, not TCP or unix")
    sock.setblocking(False)
    return sock


def watchdog_s(environ: MutableMapping[str, str], pid: int) -> float | None:
    """How often to say `alive`: half the time after which the service manager gives us up
    (sd_watchdog_enabled(3)); None when it does not watch. The variables are removed."""
    usec, for_pid = (environ.pop(key, "") for key in ("WATCHDOG_USEC", "WATCHDOG_PID"))
    if not usec.isdigit() or not int(usec) or for_pid not in ("", str(pid)):
        return None
    return int(usec) / 2e6


class Notifier:
    """Tells the service manager about the daemon's state; silent when there is none."""

    def __init__(
        self, address: str | None, monotonic_ns: Callable[[], int] = time.monotonic_ns
    ) -> None:
        self._address = "\0" + address[1:] if address and address.startswith("@") else address
        self._monotonic_ns = monotonic_ns

    def ready(self, status: str) -> None:
        self._send(f"READY=1\nSTATUS={status}")

    def reloading(self) -> None:
        """Must be followed by `ready`."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={self._monotonic_ns() // 1000}")

    def alive(self) -> None:
        """To be said more often than the watchdog's time; see `watchdog_s`."""
        self._send("WATCHDOG=1")

    def stopping(self) -> None:
        self._send("STOPPING=1")

    def _send(self, text: str) -> None:
        if not self._address:
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
            try:
                sock.sendto(text.encode(), self._address)
            except OSError:
                return  # a service manager that went away must not stop the service
