"""Bounds on what one initiator may cost, each with its reason."""

from dataclasses import dataclass
from typing import Final

COMMAND_WINDOW: Final = 128
"""Commands of one session at a time, as MaxCmdSN tells: as long as open-iscsi's queue."""
MAX_IMMEDIATE: Final = 32
"""Immediate commands beside them; more are rejected (RFC 7143 4.2.2.1)."""
MAX_LOGIN_DATA: Final = 65536
"""Bytes of one login PDU; 8192 is what an initiator may assume (13.12)."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What the configuration may set."""

    login_timeout_s: float = 15.0
    """From accept to the full feature phase; as open-iscsi waits."""
    keepalive_s: float = 30.0
    """A session that is silent for so long is asked (NOP-In), and closed when it stays so for as
    long again; 0 never asks."""
    max_connections: int = 1024
    max_sessions: int = 1024
    max_in_flight_bytes: int = 64 << 20
    """Of one session: data-out being collected and data-in promised. Commands beyond wait."""
