"""Files that hold secrets: private keys, pre-shared keys, passwords, CHAP users, a node's key.

Whoever reads one reads it here, so that all are held to the same: a regular file that belongs to
root or to whom it may, and is closed to everybody else. A group that may read is too much, as who
is in it changes without the file; an access list (setfacl) shows as such a group. What is checked
is the file that was opened, and what is returned was read from it: nothing can be put in its place
between the two. Symbolic links are followed, since that is how certbot and Kubernetes put a renewed
key where the old one was.

Two places are not looked at like that, as a runtime decides who gets there, and chooses owners and
modes that say nothing: systemd's $CREDENTIALS_DIRECTORY (LoadCredential=), which only the service
sees, and a container's /run/secrets.
"""

import os
import pwd
import shlex
import stat
from collections.abc import Collection
from pathlib import Path

CONTAINER_SECRETS = Path("/run/secrets")
_OTHERS = stat.S_IRWXG | stat.S_IRWXO
# Not waiting: a pipe that nobody writes to would hold up whoever opens it.
_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY


class NotPrivate(Exception):
    """A file that cannot be trusted with a secret. The message says what mends it, and shows
    nothing of what it has."""


def read_private(path: Path, max_bytes: int, owners: Collection[int] = ()) -> bytes:
    """What the file has, `max_bytes` at most. It may belong to root, to the effective user, and to
    `owners`. NotPrivate, OSError."""
    fd = os.open(path, _FLAGS)
    try:
        _check(fd, path, owners)
        with open(fd, "rb", closefd=False) as file:
            data = file.read(max_bytes + 1)
    finally:
        os.close(fd)
    if len(data) > max_bytes:
        raise NotPrivate(f"longer than {max_bytes} bytes; name the right file")
    return data


def _check(fd: int, path: Path, owners: Collection[int]) -> None:
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        raise NotPrivate("not a regular file; name one that is")
    if _is_guarded(fd):
        return
    name, me = shlex.quote(os.fspath(path)), os.geteuid()
    if status.st_uid not in (0, me, *owners):
        raise NotPrivate(
            f"belongs to user {user_name(status.st_uid)}, who could read and change it; run: "
            f"chown {user_name(me)} {name}"
        )
    mode = stat.S_IMODE(status.st_mode)
    if mode & _OTHERS:
        raise NotPrivate(f"mode {mode:04o} opens it to others; run: chmod 600 {name}")


def _is_guarded(fd: int) -> bool:
    """Whether a runtime decides who gets to the open file. The kernel says where it is: a path may
    lead somewhere else by now."""
    guarded = [CONTAINER_SECRETS]
    if passed := os.environ.get("CREDENTIALS_DIRECTORY"):
        guarded.append(Path(passed))
    place = Path(os.readlink(f"/proc/self/fd/{fd}"))
    return any(place.is_relative_to(folder.resolve()) for folder in guarded if folder.is_absolute())


def user_name(uid: int) -> str:
    """As `chown` takes it: the number, where the machine has no name for it."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
