"""Section [nbd]."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from blockd.config.addresses import DEFAULT_NBD_PORT, Address, TcpAddress
from blockd.config.values import Count, MiB, Seconds
from blockd.sizes import exact_size
from blockd.toml_decode import ConfigError, SizeText

NBD_SOCKET_NAME = "nbd.sock"


@dataclass(frozen=True, slots=True)
class NbdConfig:
    """[nbd]: where clients connect and what one client may cost."""

    listen: tuple[Address, ...] = (TcpAddress("127.0.0.1", DEFAULT_NBD_PORT),)
    """TCP addresses; an empty array leaves TCP out."""
    unix: bool = True
    """Whether there is a unix socket as well."""
    socket: Path | None = None
    """Its path; None is nbd.sock in the data directory."""
    insecure: bool = False
    """Allows addresses that other machines reach in plain text, or by TLS without having to prove
    who they are."""
    handshake_timeout_s: Seconds = 10.0
    """A client whose negotiation, TLS included, takes longer is cut."""
    reply_timeout_s: Seconds = 0.0
    """Cuts a client that takes none of its replies for so long; 0 waits for it forever."""
    max_connections: Count = 1024
    """Of all clients together; one that comes later is refused."""
    max_in_flight_requests: Count = 1024
    """Of one connection; nothing more is read of it until some are answered."""
    max_in_flight_bytes: Annotated[int, SizeText(low=MiB)] = 64 * MiB
    """Of one connection: payloads received and reads promised."""
    max_payload: Annotated[int, SizeText(low=4096, high=1 << 30)] = 32 * MiB
    """Of one READ or WRITE."""
    list_versions: bool = False
    """Clients that ask for a list of exports are shown the snapshots, too."""


def check_nbd(nbd: NbdConfig) -> None:
    """Refuse settings that do not go together. Raises ConfigError."""
    if nbd.max_payload > nbd.max_in_flight_bytes:
        raise ConfigError(
            f"nbd: max_payload {exact_size(nbd.max_payload)} is above max_in_flight_bytes "
            f"{exact_size(nbd.max_in_flight_bytes)}: the largest request would never fit"
        )
