"""Values about iSCSI that the control API answers with; as `blockd.api.types`."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LunInfo:
    """One unit of a target. Sizes are bytes."""

    lun: int
    source: str
    """The volume, or vol@version; of one that is gone its uuid."""
    present: bool
    """False: the volume or version is gone, and initiators find nothing at that number."""
    size: int
    block_size: int
    read_only: bool
    naa: str
    """By which initiators know the unit on every path, as in /dev/disk/by-id/wwn-0x...; hex."""


@dataclass(frozen=True, slots=True)
class TargetInfo:
    """A target. Secrets are shown nowhere."""

    name: str
    automatic: bool
    """It is there by itself, for the volume of that name."""
    alias: str
    redirect: str | None
    """HOST:PORT where initiators are sent instead."""
    luns: tuple[LunInfo, ...]
    """Ascending."""
    initiators: tuple[str, ...]
    """Names that may log in, a trailing * for any rest; empty: all."""
    addresses: tuple[str, ...]
    """Networks that may log in; empty: all."""
    chap_users: tuple[str, ...]
    """Who may log in by CHAP, the server's own users included; empty: without CHAP."""
    mutual_user: str | None
    """What the target proves itself as, to initiators that ask."""
    session_count: int


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """An initiator that is logged in."""

    initiator: str
    isid: str
    """Which of its sessions; 12 hex digits."""
    tsih: int
    target: str | None
    """None: a discovery session."""
    peer: str
    user: str | None
    """Who it proved to be, by CHAP."""
    commands: int
    """That have not been answered."""
    id: str = ""
    """What `blockd client disconnect` takes; no other session that is open has it."""
    volumes: tuple[str, ...] = ()
    """Behind the units of the target, or vol@version; by name."""
    age_s: float = 0.0
    """Since the initiator connected. Counts and bytes are since then, too."""
    read_count: int = 0
    read_bytes: int = 0
    write_count: int = 0
    write_bytes: int = 0
    error_count: int = 0
    """Commands that ended with CHECK CONDITION."""
