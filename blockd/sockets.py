"""TCP and unix sockets: how they are bound, tuned, named and removed. The only module beside
`blockd.client_listener` and `blockd.client_protocol` that touches them.

A host name may stand for several addresses ("localhost" is 127.0.0.1 and ::1): all of them are
bound, on one port. A unix socket path is bound under its final name; a file that is already there
is replaced only when it is a socket and nobody answers on it.
"""

import asyncio
import contextlib
import errno
import fcntl
import logging
import os
import socket
import stat
import struct
import termios
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypedDict

from blockd.config import TcpAddress

logger = logging.getLogger(__name__)

BACKLOG = 128  # connections that wait for accept(); the kernel's own bound is 4096
MAX_SOCKET_PATH = 107  # bytes: sockaddr_un.sun_path is 108 with its final zero
FREE_PORT_TRIES = 8  # a port that is free on the first address may be taken on the second
KEEPALIVE_IDLE_S = 60  # below the 5 minutes after which common firewalls forget a quiet connection
KEEPALIVE_INTERVAL_S = 15
KEEPALIVE_PROBES = 4  # a vanished client is noticed two minutes after its last sign of life
_PEERCRED = struct.Struct("3i")  # pid, uid, gid: struct ucred
_COUNT = struct.Struct("i")
_AddressInfo = tuple[int, int, int, str, tuple[Any, ...]]  # what getaddrinfo gives


class _Hints(TypedDict):
    type: int
    flags: int


_PASSIVE: _Hints = {"type": socket.SOCK_STREAM, "flags": socket.AI_PASSIVE}

Bind = Callable[[TcpAddress, str], Awaitable[list[socket.socket]]]
"""`bind_tcp`, or what has bound before."""


class ListenError(Exception):
    """An address cannot be listened on; the message says which, why and what to do."""

    code = "cannot_listen"


async def bind_tcp(address: TcpAddress, protocol: str = "nbd") -> list[socket.socket]:
    """Listening sockets for every address that `address.host` stands for ("" means every
    interface, v4 and v6). The caller owns them. `protocol` names the option that errors tell of.
    Raises ListenError."""
    loop = asyncio.get_running_loop()
    host = address.host or None
    try:
        found = await loop.getaddrinfo(host, address.port, **_PASSIVE)
    except OSError as error:
        raise _unknown(address, protocol, error) from error
    return _bind_found(found, address, protocol)


class EarlySockets:
    """TCP sockets that listen before there is a loop: bound by root, for who is not root any more
    when the listeners start. Clients that come meanwhile wait in the backlog."""

    def __init__(self) -> None:
        self._waiting: dict[tuple[str, TcpAddress], list[list[socket.socket]]] = {}

    def listen(self, address: TcpAddress, protocol: str) -> None:
        """As `bind_tcp`, for a later `take` of the same."""
        try:
            found = socket.getaddrinfo(address.host or None, address.port, **_PASSIVE)
        except OSError as error:
            raise _unknown(address, protocol, error) from error
        sockets = _bind_found(found, address, protocol)
        self._waiting.setdefault((protocol, address), []).append(sockets)

    async def take(self, address: TcpAddress, protocol: str = "nbd") -> list[socket.socket]:
        """What listens at `address`; the caller owns it from here on. Bound now, if it was not."""
        waiting = self._waiting.get((protocol, address))
        return waiting.pop(0) if waiting else await bind_tcp(address, protocol)

    def close(self) -> None:
        """Close what nobody took."""
        for sockets in self._waiting.values():
            for sock in (each for group in sockets for each in group):
                sock.close()
        self._waiting.clear()


def _unknown(address: TcpAddress, protocol: str, error: OSError) -> ListenError:
    return ListenError(
        f"{protocol} address {address}: {error.strerror}; use an address of this machine"
    )


def _bind_found(
    found: Sequence[_AddressInfo], address: TcpAddress, protocol: str
) -> list[socket.socket]:
    families = {entry[0]: None for entry in found}
    if address.loopback:
        _check_loopback(address, [str(entry[4][0]) for entry in found], protocol)
    targets = list(dict.fromkeys((entry[0], entry[4]) for entry in found))
    for tries_left in reversed(range(FREE_PORT_TRIES if address.port == 0 else 1)):
        try:
            return _bind_all(targets, optional_v6=len(families) > 1)
        except OSError as error:
            if error.errno == errno.EADDRINUSE and tries_left:
                continue
            raise ListenError(
                f"{protocol} address {address}: {error.strerror}; {_way_out(error, protocol)}"
            ) from error
    raise AssertionError("the last try returns or raises")


def _check_loopback(address: TcpAddress, hosts: Sequence[str], protocol: str) -> None:
    """Whoever let `address` pass without authentication counted on it: what "localhost" stands
    for is up to a file or a name server."""
    for host in hosts:
        if not TcpAddress(host, address.port).loopback:
            raise ListenError(
                f"{protocol} address {address}: stands for {host} here, which other machines can "
                f"reach; correct /etc/hosts, or use 127.0.0.1:{address.port}"
            )


def _way_out(error: OSError, protocol: str) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"stop the server that uses it, or choose another port with --{protocol} HOST:PORT"
    if error.errno in (errno.EACCES, errno.EPERM):
        return (
            f"ports below 1024 need privileges; start as root with --user NAME, or choose a higher "
            f"one with --{protocol} HOST:PORT"
        )
    return f"choose an address of this machine with --{protocol} HOST:PORT"


def _bind_all(
    targets: Sequence[tuple[int, tuple[object, ...]]], *, optional_v6: bool
) -> list[socket.socket]:
    """Bind all of `targets` on the same port, or none. A machine without IPv6 still has "::1" in
    its hosts file, so with `optional_v6` an IPv6 address that does not exist is left out."""
    bound: list[socket.socket] = []
    port = 0
    try:
        for family, target in targets:
            host, wanted, *scope = target
            try:
                bound.append(_bind_one(family, (host, wanted or port, *scope)))
            except OSError as error:
                missing = error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
                if not (optional_v6 and family == socket.AF_INET6 and missing):
                    raise
                skipped = {"host": host, "reason": error.strerror}
                logger.info("address left out", extra=skipped)
                continue
            port = bound[-1].getsockname()[1]
    except BaseException:
        for sock in bound:
            sock.close()
        raise
    if not bound:
        raise OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))
    return bound


def _bind_one(family: int, target: tuple[object, ...]) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(target)
        sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


@dataclass(frozen=True, slots=True)
class UnixUse:
    """What a unix socket is for."""

    name: str
    """For errors and the log: "nbd", "control"."""
    option: str
    """That names its path on the command line."""
    shared_directory: bool
    """Whether it may lie in a directory like /tmp, where nobody removes another's files, but
    anybody may be there first with that name."""


NBD: Final = UnixUse("nbd", "--nbd-socket", shared_directory=True)
CONTROL: Final = UnixUse("control", "--control", shared_directory=False)


def check_directory(path: Path, use: UnixUse, user: int) -> None:
    """Whether `user` alone, or root, may put a socket at `path`: whoever may rename files in its
    directory may listen in his place. Raises ListenError."""
    folder, what = path.parent, f"{use.name} socket {path}"
    way_out = f"choose another path with {use.option} PATH"
    try:
        status = folder.stat()
    except OSError as error:
        raise ListenError(
            f"{what}: {folder}: {error.strerror}; the directory must exist and be writable, "
            f"or {way_out}"
        ) from error
    if status.st_uid not in (0, user):
        raise ListenError(
            f"{what}: {folder} belongs to user {status.st_uid}, who could put a socket of his own "
            f"there; run as that user, or {way_out}"
        )
    sticky = bool(status.st_mode & stat.S_ISVTX) and use.shared_directory
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not sticky:
        raise ListenError(
            f"{what}: others may write to {folder} (mode {stat.S_IMODE(status.st_mode):04o}), and "
            f"put a socket of their own there; run: chmod go-w {folder}, or {way_out}"
        )


class UnixListener:
    """A bound and listening unix socket. `sock` belongs to it until `remove`."""

    def __init__(
        self, path: Path, mode: int = 0o600, *, use: UnixUse = NBD, group: int | None = None
    ) -> None:
        """Bind `path` with permissions `mode`; the file is of `group`, if there is one, before
        anybody can connect. Raises ListenError, also for a directory in which others could put a
        socket of their own in its place."""
        self._use = use
        if len(os.fsencode(path)) > MAX_SOCKET_PATH:
            raise self._error(
                path,
                f"longer than the {MAX_SOCKET_PATH} bytes that the kernel takes; "
                f"choose a shorter path with {use.option} PATH",
            )
        check_directory(path, use, os.geteuid())
        self._remove_stale(path)
        self.path = path
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            # Linux takes the new file's mode from the socket, so nobody can slip in before chmod;
            # chmod is for what the umask took away.
            os.fchmod(self.sock.fileno(), mode if group is None else 0o600)
            self.sock.bind(os.fspath(path))
            if group is not None:
                self._give_to(path, group)
            os.chmod(path, mode)
            self.sock.listen(BACKLOG)
            # Held open, so that its inode number cannot become another file's.
            self._file: int | None = os.open(path, os.O_PATH | os.O_NOFOLLOW)
        except OSError as error:
            self.sock.close()
            raise self._error(
                path,
                f"{error.strerror}; the directory must exist and be writable, "
                f"or choose another path with {use.option} PATH",
            ) from error
        except ListenError:
            self.sock.close()
            path.unlink(missing_ok=True)
            raise

    def remove(self) -> None:
        """Take the file away, unless another server has put its own there since."""
        if self._file is None:
            return
        with contextlib.suppress(OSError):
            if os.path.samestat(self.path.lstat(), os.fstat(self._file)):
                self.path.unlink()
        os.close(self._file)
        self._file = None

    def _error(self, path: Path, text: str) -> ListenError:
        return ListenError(f"{self._use.name} socket {path}: {text}")

    def _give_to(self, path: Path, group: int) -> None:
        try:
            os.chown(path, -1, group)
        except OSError as error:
            raise self._error(
                path,
                f"cannot be given to group {group}: {error.strerror}; the daemon's user has to be "
                "a member of it",
            ) from error
        folder = path.parent.stat()
        of_group = stat.S_IXGRP if folder.st_gid == group else stat.S_IXOTH
        if not folder.st_mode & of_group:
            facts = {"path": path, "group": group, "way_out": f"another path by {self._use.option}"}
            logger.warning("socket out of reach of its group", extra=facts)

    def _remove_stale(self, path: Path) -> None:
        try:
            if not stat.S_ISSOCK(path.lstat().st_mode):
                raise self._error(
                    path,
                    "a file that is not a socket is there; "
                    f"move it away or choose another path with {self._use.option} PATH",
                )
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
                probe.connect(os.fspath(path))
        except FileNotFoundError:
            return
        except ConnectionRefusedError:
            logger.info(f"stale {self._use.name} socket replaced", extra={"path": path})
            path.unlink(missing_ok=True)
            return
        except BlockingIOError:
            pass  # its backlog is full: very much alive
        except OSError as error:
            raise self._error(path, f"{error.strerror}; choose another path") from error
        raise self._error(
            path,
            "another server answers there; "
            f"stop it or choose another path with {self._use.option} PATH",
        )


def tune(transport: asyncio.BaseTransport) -> None:
    """Set what a client's TCP socket needs: no Nagle, and a peer that vanished is noticed."""
    sock = transport.get_extra_info("socket")
    if sock is None or sock.family == socket.AF_UNIX:
        return
    with contextlib.suppress(OSError):  # reset before we got here: connection_lost follows
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_PROBES)


@dataclass(frozen=True, slots=True)
class Peer:
    """Who is at the other end of a socket. `str` is for logs and operators: HOST:PORT, or
    unix:pid=PID,uid=UID, or what is known of that."""

    address: TcpAddress | None = None
    pid: int | None = None
    uid: int | None = None
    """As the kernel saw them when the client connected to a unix socket."""
    unix: bool = False

    def __str__(self) -> str:
        if self.unix:
            return "unix" if self.pid is None else f"unix:pid={self.pid},uid={self.uid}"
        return "unknown" if self.address is None else str(self.address)


def peer_of(transport: asyncio.BaseTransport) -> Peer:
    sock = transport.get_extra_info("socket")
    if sock is not None and sock.family == socket.AF_UNIX:
        with contextlib.suppress(OSError):
            raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEERCRED.size)
            pid, uid, _ = _PEERCRED.unpack(raw)
            return Peer(pid=pid, uid=uid, unix=True)
        return Peer(unix=True)
    name = transport.get_extra_info("peername")
    return Peer(TcpAddress(*name[:2]) if name else None)


def unacknowledged(transport: asyncio.BaseTransport) -> int:
    """Bytes that the kernel has of `transport` and the peer's kernel has not acknowledged, the end
    of the stream counting as one. 0 for unix sockets, whose peers have what was sent, and for one
    that is closed."""
    sock = transport.get_extra_info("socket")
    if sock is None or sock.family == socket.AF_UNIX or sock.fileno() < 0:
        return 0
    with contextlib.suppress(OSError):
        raw = fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(_COUNT.size))  # SIOCOUTQ: tcp(7)
        return int(_COUNT.unpack(raw)[0])
    return 0


def bound_name(sock: socket.socket) -> str:
    """Where a listening socket can be reached: HOST:PORT, or a unix socket's path."""
    name = sock.getsockname()
    if sock.family == socket.AF_UNIX:
        return os.fsdecode(name)
    return str(TcpAddress(*name[:2]))
