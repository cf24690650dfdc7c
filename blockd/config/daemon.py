"""Section [daemon]."""

from dataclasses import dataclass

from blockd.toml_decode import ConfigError


@dataclass(frozen=True, slots=True)
class DaemonConfig:
    """[daemon]: whom a daemon that root has started runs as, once its TCP sockets are bound."""

    user: str | None = None
    """Becomes this user, for good, before anything but the settings is read; None stays who it is.
    The data directory, secrets and the file of the settings have to be this user's to read."""
    group: str | None = None
    """The user's main group; None for the one that it has."""


def check_daemon(daemon: DaemonConfig) -> None:
    """Refuse settings that do not go together. Raises ConfigError."""
    if daemon.group is not None and daemon.user is None:
        raise ConfigError(f"daemon: group {daemon.group!r} needs a user; add --user NAME")
