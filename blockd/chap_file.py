"""Files of CHAP users, lines of user:secret; empty lines and those that begin with # say nothing.

`blockd.secrets` says who may own and read them.
"""

from pathlib import Path

from blockd.iscsi.targets import Credentials
from blockd.registry.errors import InvalidTarget
from blockd.registry.stored import check_credentials
from blockd.secrets import read_secret
from blockd.toml_decode import ConfigError

MAX_BYTES = 1 << 20


def read_chap(path: Path) -> tuple[Credentials, ...]:
    """All users of the file, at least one. ConfigError."""
    found: dict[str, Credentials] = {}
    for number, line in enumerate(_lines(path), start=1):
        if not line or line.startswith("#"):
            continue
        user, colon, secret = line.partition(":")
        if not colon:
            raise ConfigError(f"{path}: line {number}: write user:secret")
        try:
            check_credentials(f"{path}: line {number}", user, secret.encode())
        except InvalidTarget as error:
            raise ConfigError(str(error)) from error
        found[user] = Credentials(user, secret.encode())
    if not found:
        raise ConfigError(f"{path}: no CHAP user in it; write lines of user:secret")
    return tuple(found.values())


def read_mutual_chap(path: Path) -> Credentials:
    """The one user of the file. ConfigError."""
    users = read_chap(path)
    if len(users) > 1:
        raise ConfigError(f"{path}: {len(users)} users; targets prove themselves by one")
    return users[0]


def _lines(path: Path) -> list[str]:
    try:
        return read_secret(path, "chap file", MAX_BYTES).decode().splitlines()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text") from error
