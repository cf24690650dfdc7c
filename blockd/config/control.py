"""Section [control]."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class ControlConfig:
    """[control]: the socket of the control API; None is control.sock in the data directory."""

    socket: Path | None = None
    """Its path."""
    group: str | None = None
    """Name or number of a group whose members may use it as well: its mode is 0660 then, else 0600.
    They may do everything to every volume. The directory of `socket` has to let them in."""
