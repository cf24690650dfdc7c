"""The bounds of a connection. A client can cost no more than these, whatever it sends."""

from dataclasses import dataclass
from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB

PREFERRED_BLOCK_SIZE: Final = 4096  # the size at which no read-modify-write happens below us
DEFAULT_MINIMUM_BLOCK_SIZE: Final = 1  # what a client that did not ask may rely on


@dataclass(frozen=True, slots=True)
class Limits:
    """Bytes, counts and seconds. The listener enforces the ones marked so."""

    handshake_timeout_s: float = 10.0
    """Listener: from accept to transmission; qemu chose the same after CVE-2024-7409."""
    max_connections: int = 1024
    """Listener: open connections of all clients together."""
    max_options: int = 1024
    """Options in one negotiation; a client needs about ten, a lister one or two per export."""
    max_option_bytes: int = 64 * KIB
    """Longest option payload that is kept: fifteen context queries of the longest name."""
    max_option_skip_bytes: int = 32 * MIB
    """Longest option payload that is read and thrown away (in pieces); a longer one is cut off."""
    max_lookups: int = 64
    """Questions about versions in one negotiation: each may read a disk for a while."""
    max_handshake_output_bytes: int = 1 * MIB
    """Replies to options that the client did not take yet; no option is read beyond that."""
    max_payload: int = 32 * MIB
    """READ and WRITE; advertised as maximum block size. 32 MiB must not count as an attack."""
    max_in_flight_bytes: int = 64 * MIB
    """Payloads received and reads promised whose reply output() has not handed out yet."""
    max_in_flight_requests: int = 1024
    """Requests accepted whose reply output() has not handed out yet."""
    base_buffer_bytes: int = 256 * KIB
    """Address space of an idle connection's receive buffer; pages cost memory once used."""
    kept_buffer_bytes: int = 2 * MIB
    """A receive buffer that grew beyond this is given back as soon as it is empty."""

    def __post_init__(self) -> None:
        assert self.max_payload <= self.max_in_flight_bytes  # else the largest WRITE never fits
        assert self.base_buffer_bytes <= self.kept_buffer_bytes
        assert self.max_in_flight_requests > 0
