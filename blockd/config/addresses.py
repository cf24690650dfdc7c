"""Where listeners are: TCP addresses, iSCSI portals, paths of unix sockets."""

import ipaddress
import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from blockd.toml_decode import ConfigError, Parsed

DEFAULT_NBD_PORT = 10809
DEFAULT_ISCSI_PORT = 3260
DEFAULT_PEER_PORT = 10811
MAX_SOCKET_PATH = 107  # bytes: sockaddr_un.sun_path is 108 with its final zero


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """Where a TCP listener binds; port 0 takes a free one, an empty host every interface."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def loopback(self) -> bool:
        """True when only this machine can reach it. Host names other than localhost may move."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host.split("%")[0]).is_loopback
        except ValueError:
            return False

    @property
    def everywhere(self) -> bool:
        """Whether it is every interface, and so none that one can connect to."""
        return self.host in ("", "0.0.0.0", "::")

    @property
    def numeric(self) -> str | None:
        """The host as a numeric address, "" for every interface; None when it is a name."""
        host = {"": "", "localhost": "127.0.0.1"}.get(self.host)
        if host is not None:
            return host
        try:
            ipaddress.ip_address(self.host.split("%")[0])
        except ValueError:
            return None
        return self.host


def parse_address(text: str) -> TcpAddress:
    """HOST:PORT, [IPV6]:PORT, :PORT (every interface). Raises ValueError."""
    host, colon, port = text.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ValueError(
            f"address {text!r}: write HOST:PORT with a port of 0 to 65535, "
            f"as 127.0.0.1:{DEFAULT_NBD_PORT} or [::1]:0"
        )
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError(f"address {text!r}: write an IPv6 address in brackets, as [::1]:{port}")
    return TcpAddress(host, int(port))


Address = Annotated[TcpAddress, Parsed(parse_address, "HOST:PORT")]


@dataclass(frozen=True, slots=True)
class PortalAddress:
    """Where an iSCSI portal listens, and the tag of its portal group; None takes the next free."""

    address: TcpAddress
    group: int | None = None

    def __str__(self) -> str:
        return str(self.address) if self.group is None else f"{self.address},{self.group}"


def parse_portal(text: str) -> PortalAddress:
    """HOST:PORT or HOST:PORT,GROUP. Raises ValueError."""
    address, comma, group = text.partition(",")
    if not comma:
        return PortalAddress(parse_address(address))
    if not group.isascii() or not group.isdigit() or not 0 < int(group) < 65536:
        raise ValueError(
            f"portal {text!r}: write HOST:PORT,GROUP with a portal group tag of 1 to 65535"
        )
    return PortalAddress(parse_address(address), int(group))


def portal_groups(portals: Sequence[PortalAddress]) -> list[int]:
    """The tag of each; those that say nothing have a group of their own."""
    taken = {portal.group for portal in portals}
    free = (tag for tag in itertools.count(1) if tag not in taken)
    return [next(free) if portal.group is None else portal.group for portal in portals]


Portal = Annotated[PortalAddress, Parsed(parse_portal, "HOST:PORT or HOST:PORT,GROUP")]


def check_socket_path(path: Path, option: str) -> None:
    """Refuse a path that does not fit into a socket address. Raises ConfigError."""
    length = len(os.fsencode(path))
    if length > MAX_SOCKET_PATH:
        raise ConfigError(
            f"unix socket {path}: {length} bytes long, the kernel takes {MAX_SOCKET_PATH}; "
            f"give a shorter path with --{option}"
        )
