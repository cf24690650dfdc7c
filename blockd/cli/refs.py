"""`vol@version` on the command line. What it means is the daemon's business; see `volume.refs`."""

from blockd.cli.options import UsageError


def snapshot_argument(text: str) -> tuple[str, str]:
    """Volume and name of `vol@name`. Raises UsageError."""
    volume, _, name = text.partition("@")
    if not volume or not name:
        raise UsageError(f"{text!r} is not a snapshot; write VOL@NAME, as vm1@before-upgrade")
    return volume, name


def version_of(volume: str, text: str) -> str:
    """The version that `text` names, which may begin with `volume@`. Raises UsageError."""
    before, at, version = text.partition("@")
    if not at:
        return text
    if before != volume:
        raise UsageError(
            f"{text!r} is a version of volume {before}, not of {volume}; "
            f"`blockd volume clone {text} NAME` makes a new volume of it"
        )
    return version
