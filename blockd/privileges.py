"""Giving up root: whoever is root to bind a port below 1024 goes on as somebody else, for good.

    identity      names -> numbers; refuses what would leave root's power
    (here TCP sockets are bound, and listen: `blockd.sockets.EarlySockets`)
    drop          supplementary groups -> gid -> uid -> no new privileges, then the proof: numbers
                  and capabilities as the kernel tells them, and that there is no way back
    check_places  what this user has to read and write later, so that a reload or a rotated log does
                  not fail in the night

It happens once, in a process that has one thread and has read nothing but the configuration: no
byte of a client, a disk or a secret has been seen by then. Everything that is made afterwards
(data directory, lock, sockets, log, ready file) belongs to the user, and everything that a reload
reads again is read by the user the first time as well, secrets included: what starts can reload.
"""

import ctypes
import grp
import os
import pwd
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from blockd import systemd
from blockd.toml_decode import ConfigError
from volume.privatefile import user_name

if TYPE_CHECKING:
    from blockd.config import ServeConfig
    from blockd.sockets import EarlySockets

_PR_SET_NO_NEW_PRIVS = 38  # linux/prctl.h
_PROGRAM = Path(__file__).parent


class PrivilegeError(ConfigError):
    """Root cannot be given up as the settings say; the message has the way out."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Whom a process is to run as."""

    user: str
    uid: int
    gid: int
    groups: tuple[int, ...]
    """All of them, `gid` included."""


def identity(user: str, group: str | None) -> Identity:
    """The user by name, in `group` instead of its own if that is given. PrivilegeError."""
    try:
        entry = pwd.getpwnam(user)
    except (KeyError, ValueError):
        raise PrivilegeError(
            f"user {user!r}: not known here; make it: useradd --system {shlex.quote(user)}"
        ) from None
    gid = entry.pw_gid
    if group is not None:
        try:
            gid = grp.getgrnam(group).gr_gid
        except (KeyError, ValueError):
            raise PrivilegeError(
                f"group {group!r}: not known here; make it: groupadd --system {shlex.quote(group)}"
            ) from None
    groups = tuple(sorted({gid, *os.getgrouplist(user, gid)}))
    if entry.pw_uid == 0 or 0 in groups:
        raise PrivilegeError(
            f"user {user!r} is root or in the group root: nothing would be given up; name another"
        )
    return Identity(user, entry.pw_uid, gid, groups)


def drop(to: Identity) -> None:
    """Be `to` from here on, with no capability and no way back. Whoever is that user already only
    loses the ways to more. PrivilegeError: it did not work, and the process has to end."""
    if os.geteuid() == 0:
        _become(to)
    elif os.getresuid() != (to.uid,) * 3:
        me = user_name(os.geteuid())
        raise PrivilegeError(
            f"user {to.user!r}: only root can become somebody else, this is {me}; start as root, "
            "or leave --user (daemon.user) out"
        )
    _forbid_new_privileges()
    _prove(to)


def _become(to: Identity) -> None:
    try:
        os.setgroups(to.groups)
        os.setresgid(to.gid, to.gid, to.gid)
        os.setresuid(to.uid, to.uid, to.uid)  # takes the capabilities with it: capabilities(7)
    except OSError as error:
        raise PrivilegeError(
            f"user {to.user!r}: {error.strerror}: this root lacks CAP_SETGID and CAP_SETUID; grant "
            "them (cap_add of a container), or start as that user without --user"
        ) from error


def _forbid_new_privileges() -> None:
    """No program that is started from here on gains anything by its mode or its capabilities."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        reason = os.strerror(ctypes.get_errno())
        raise PrivilegeError(f"no_new_privs: {reason}; blockd needs Linux 3.5 or newer")


def _prove(to: Identity) -> None:
    """Ask the kernel, and try the ways back."""
    status = _status()
    numbers = {"Uid": [to.uid] * 4, "Gid": [to.gid] * 4}
    left = [name for name, wanted in numbers.items() if _numbers(status[name]) != wanted]
    left += [name for name in ("CapEff", "CapPrm", "CapAmb") if int(status[name], 16)]
    if not set(_numbers(status["Groups"])) <= set(to.groups):
        left.append("Groups")
    if status["NoNewPrivs"] != "1":
        left.append("NoNewPrivs")
    if left:
        shown = ", ".join(f"{name} {status[name]}" for name in left)
        raise PrivilegeError(f"user {to.user!r}: the kernel left {shown}; not served like that")
    ways_back: tuple[Callable[[int], None], ...] = (os.setuid, os.seteuid, os.setgid, os.setegid)
    for way_back in ways_back:
        try:
            way_back(0)
        except PermissionError:
            continue
        raise PrivilegeError(
            f"user {to.user!r}: {way_back.__name__}(0) still works; not served like that"
        )


def _status() -> dict[str, str]:
    lines = Path("/proc/self/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def _numbers(text: str) -> list[int]:
    return [int(each) for each in text.split()]


def give_up_root(config: "ServeConfig", sockets: "EarlySockets | None") -> Identity | None:
    """Have `sockets` listen where `config` says, be the user that it names, and look whether that
    user can serve it; who it is. Names it nobody, nothing happens. PrivilegeError, ListenError."""
    if config.daemon.user is None:
        return None
    to = identity(config.daemon.user, config.daemon.group)
    if sockets is not None and not systemd.passes_sockets(os.environ, os.getpid()):
        for address in config.nbd.listen:
            sockets.listen(address, "nbd")
        for portal in config.iscsi.listen:
            sockets.listen(portal.address, "iscsi")
        for address in config.metrics.listen:
            sockets.listen(address, "metrics")
    drop(to)
    check_places(config)
    return to


def check_places(config: "ServeConfig") -> None:
    """Whether the user that this process is now can use what the settings name. PrivilegeError
    with the command that mends it; secrets say it themselves when they are read."""
    me = user_name(os.geteuid())
    if not os.access(_PROGRAM, os.R_OK | os.X_OK):
        raise PrivilegeError(
            f"program {_PROGRAM}: user {me} cannot read it; install it where every user can, as "
            "/opt/blockd"
        )
    if config.file is not None and not os.access(config.file, os.R_OK):
        raise PrivilegeError(
            f"{config.file}: user {me} cannot read it, as a reload has to; let that user into its "
            f"folders, and run: chown {me} {_quoted(config.file)}"
        )
    _check_data(config.data.absolute(), me)


def _check_data(data: Path, me: str) -> None:
    try:
        owner = data.stat().st_uid
    except FileNotFoundError:
        if os.access(data.parent, os.W_OK | os.X_OK):
            return  # the store makes it
        raise PrivilegeError(
            f"data directory {data}: not there, and user {me} cannot make it; run: "
            f"install -d -o {me} -m 700 {_quoted(data)}"
        ) from None
    except OSError as error:
        raise PrivilegeError(
            f"data directory {data}: {error.strerror}; let user {me} into the folders above it"
        ) from error
    if owner != os.geteuid():
        raise PrivilegeError(
            f"data directory {data}: belongs to user {user_name(owner)}, the daemon runs as {me}; "
            f"run: chown -R {me} {_quoted(data)}"
        )


def _quoted(path: Path) -> str:
    return shlex.quote(str(path.absolute()))
