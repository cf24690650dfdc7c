"""What one connection did, for operators."""

from dataclasses import dataclass


@dataclass(slots=True)
class Stats:
    reads: int = 0
    read_bytes: int = 0
    writes: int = 0
    written_bytes: int = 0
    errors: int = 0
    """Commands that ended with CHECK CONDITION."""
    rejects: int = 0
    """PDUs that were answered with Reject."""
    ignored: int = 0
    """PDUs outside of the command window, or of commands that were over."""
