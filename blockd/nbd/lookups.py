"""Questions about versions, which wait for disks and so cannot be answered on the event loop.

The handshake asks one at a time (event `LookUp`); the listener lets `look_up` answer it on another
thread and hands the answer to `Connection.answered`. Every question gets exactly one answer, an
error too.
"""

from dataclasses import dataclass

from blockd.device import BlockDevice, Changes, TracksChanges, Versions
from volume.errors import InvalidName, NoSuchVersion, NoSuchVolume, VolumeError

_MISSING = (NoSuchVersion, NoSuchVolume, InvalidName)  # what nothing can be called, is not there


@dataclass(frozen=True, slots=True)
class OpenVersion:
    """Open the version with this canonical name, "volume@ref"."""

    name: str


@dataclass(frozen=True, slots=True)
class OpenChanges:
    """What changed in `device` since each of `refs`."""

    device: BlockDevice
    refs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ListVersions:
    """Names of the newest `limit` snapshots of `volume`, or of all volumes."""

    volume: str | None
    limit: int


@dataclass(frozen=True, slots=True)
class VersionOpened:
    """Whoever takes the answer owns the device: attaches it, and detaches it again."""

    device: BlockDevice


@dataclass(frozen=True, slots=True)
class ChangesFound:
    """In the order of `OpenChanges.refs`; None where there is no such version."""

    found: tuple[Changes | None, ...]


@dataclass(frozen=True, slots=True)
class VersionsListed:
    """Full names, "volume@snapshot"."""

    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Unavailable:
    """The question has no answer; `message` is for the client, and when `unusual` for the log."""

    message: str
    unusual: bool = False
    bug: Exception | None = None
    """What was raised, when nothing should have been."""


@dataclass(frozen=True, slots=True)
class Prove:
    """Does the attach token of this node for that volume hold? Whoever is asked knows the ways to
    volumes (`blockd.paths`), which `look_up` does not."""

    device: BlockDevice


@dataclass(frozen=True, slots=True)
class Proved:
    """None: it does; else why not."""

    refusal: str | None


VersionQuestion = OpenVersion | OpenChanges | ListVersions
Question = VersionQuestion | Prove
Answer = VersionOpened | ChangesFound | VersionsListed | Proved | Unavailable


def look_up(question: VersionQuestion, versions: Versions) -> Answer:
    """Answer `question`; waits for disks, and raises nothing that a disk or a name can cause."""
    try:
        match question:
            case OpenVersion(name):
                return VersionOpened(versions.open_version(name))
            case OpenChanges(device, refs):
                return ChangesFound(tuple(_changes(device, ref) for ref in refs))
            case ListVersions(volume, limit):
                return VersionsListed(tuple(versions.version_names(volume, limit)[:limit]))
    except VolumeError as error:
        return Unavailable(str(error), not isinstance(error, _MISSING))
    except OSError as error:
        return Unavailable(f"the version cannot be read: {error.strerror}", unusual=True)


def _changes(device: BlockDevice, ref: str) -> Changes | None:
    if not isinstance(device, TracksChanges):
        return None
    try:
        return device.changes_since(ref)
    except _MISSING:
        return None
