"""Files of secrets that the settings or the command line name, as `volume.privatefile` reads them:
what keeps them from being used is a mistake in the configuration, and named like one."""

import os
import shlex
from pathlib import Path

from blockd.toml_decode import ConfigError
from volume.privatefile import NotPrivate, read_private, user_name


class SecretError(ConfigError):
    """A file of secrets cannot be used. The message names it and what mends it, and shows nothing
    of what it has."""


def read_secret(path: Path, what: str, max_bytes: int) -> bytes:
    """What the file has, `max_bytes` at most; `what` is what errors call it, as "psk file".
    SecretError."""
    try:
        return read_private(path, max_bytes)
    except NotPrivate as error:
        raise SecretError(f"{what} {path}: {error}") from error
    except OSError as error:
        raise SecretError(f"{what} {path}: {error.strerror}; {_way_out(error, path)}") from error


def _way_out(error: OSError, path: Path) -> str:
    if isinstance(error, PermissionError):
        me = user_name(os.geteuid())
        return (
            f"user {me} has to be let into its folders, and run: "
            f"chown {me} {shlex.quote(os.fspath(path))}"
        )
    return "check the path"
