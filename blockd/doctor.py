"""`blockd doctor`: what a daemon here, and a client here, would stumble over.

Each check looks at one thing, changes nothing, and gives one `Finding`: "ok", "warn" (works, but
not all of it or not for long) or "fail" (the daemon does not start, or must not be trusted), with
the way out. All checks work while the daemon runs and while it does not. What a client needs is a
warning at most: attaching may happen on other machines.
"""

import os
import stat
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from blockd.config import ServeConfig, check
from blockd.doctor_credentials import credentials
from blockd.findings import FAIL, OK, WARN, Finding, Machine
from blockd.sizes import format_size
from blockd.toml_decode import ConfigError
from volume.errors import VolumeError

__all__ = ["FAIL", "MODULES", "OK", "TOOLS", "WARN", "Finding", "Machine", "examine"]

LOW_SPACE_BYTES = 1 << 30
JOURNAL_SHARE = 0.5  # of the file system: a journal that large leaves no room for the data
FOLDERS = ("meta", "index", "journal", "packs")
MAX_ENTRIES = 100_000  # looked at in a folder: packs of 6 TiB

MODULES = {
    "nbd": "attaching as /dev/nbdN with nbd-client",
    "iscsi_tcp": "attaching over iSCSI with open-iscsi",
}
TOOLS = {
    "nbd-client": "nbd-client",
    "nbdinfo": "libnbd-bin",
    "nbdcopy": "libnbd-bin",
    "qemu-img": "qemu-utils",
    "fio": "fio",
    "iscsiadm": "open-iscsi",
    "iscsi-ls": "libiscsi-bin",
}


def examine(config: ServeConfig | ConfigError, data: Path, machine: Machine) -> list[Finding]:
    """All checks. `config` is what `blockd serve` would use, or why there is none."""
    findings = [_configuration(config)]
    settings = config if isinstance(config, ServeConfig) else ServeConfig(data=data)
    findings += _data_directory(data, machine)
    if data.is_dir():
        findings += [_owners(data), _lock(data, machine), _format(data), _free_space(data)]
        findings += _rows(data)
        findings.append(_journal(data, settings.store.journal_limit))
        findings += _sockets(settings, data)
    findings.append(_native())
    findings += credentials(settings, data, machine)
    findings += [_module(name, purpose, machine) for name, purpose in MODULES.items()]
    findings += [_tool(tool, package, machine) for tool, package in TOOLS.items()]
    return findings


def _configuration(config: ServeConfig | ConfigError) -> Finding:
    if isinstance(config, ConfigError):
        return Finding("configuration", FAIL, str(config), "correct the file")
    try:
        check(config)
    except ConfigError as error:
        return Finding("configuration", FAIL, str(error), "correct the file or the option")
    where = f"{config.file} is valid" if config.file else "no file, the defaults apply"
    return Finding("configuration", OK, where)


def _data_directory(data: Path, machine: Machine) -> Iterator[Finding]:
    name = "data directory"
    try:
        status = data.stat()
    except FileNotFoundError:
        yield Finding(
            name, WARN, f"{data} is not there", "`blockd serve` makes it, or name it with --data"
        )
        return
    except OSError as error:
        yield Finding(name, FAIL, f"{data}: {error.strerror}", "run as the daemon's user")
        return
    if not stat.S_ISDIR(status.st_mode):
        yield Finding(name, FAIL, f"{data} is not a directory", "name another with --data")
    elif status.st_uid != machine.uid and machine.uid != 0:
        yield Finding(
            name,
            FAIL,
            f"{data} belongs to user {status.st_uid}, this is user {machine.uid}",
            f"run as that user, or: sudo chown -R {machine.uid} {data}",
        )
    elif status.st_mode & 0o077:
        mode = stat.S_IMODE(status.st_mode)
        yield Finding(
            name, WARN, f"{data} is open to others (mode {mode:03o})", f"chmod 700 {data}"
        )
    else:
        yield Finding(name, OK, f"{data}, mode {stat.S_IMODE(status.st_mode):03o}")


def _owners(data: Path) -> Finding:
    """Whether everything is its owner's: what root has made here is not the daemon's."""
    name = "owners"
    try:
        owner = data.stat().st_uid
        for folder in (data, *(data / each for each in FOLDERS)):
            if not folder.is_dir():
                continue
            with os.scandir(folder) as entries:
                for entry in islice(entries, MAX_ENTRIES):
                    other = entry.stat(follow_symlinks=False).st_uid
                    if other != owner:
                        message = f"{entry.path} belongs to user {other}, {data} to user {owner}"
                        return Finding(name, FAIL, message, f"chown -R --reference={data} {data}")
    except OSError as error:
        return Finding(name, FAIL, f"{error.filename}: {error.strerror}", "run as root")
    return Finding(name, OK, f"all is user {owner}'s")


def _lock(data: Path, machine: Machine) -> Finding:
    try:
        inode = (data / "lock").stat().st_ino
        locks = (machine.proc / "locks").read_text()
    except OSError:
        return Finding("lock", OK, "no process uses the directory")
    for line in locks.splitlines():
        # "1: FLOCK  ADVISORY  WRITE 1234 08:01:5678 0 EOF"; waiters have "->" behind the number
        words = line.split()
        if len(words) >= 6 and "->" not in words and words[5].endswith(f":{inode}"):
            return Finding("lock", OK, f"process {words[4]} serves the directory")
    return Finding("lock", OK, "no process uses the directory")


def _format(data: Path) -> Finding:
    folders = {name for name in ("meta", "journal", "packs") if (data / name).is_dir()}
    if not folders:
        return Finding("format", OK, "no store yet; `blockd serve` makes one")
    rebuild = f"blockd doctor --rebuild-meta --data {data} (--from COPY, if there is one)"
    if "meta" in folders and not (data / "meta" / "data.mdb").is_file():
        return Finding("format", FAIL, f"{data}/meta is empty", rebuild)
    if len(folders) < 3:
        missing = ", ".join(sorted({"meta", "journal", "packs"} - folders))
        fix = rebuild if missing == "meta" else "put it back from a copy"
        return Finding("format", FAIL, f"{data} lacks {missing}", fix)
    return _meta(data, rebuild)


def _meta(data: Path, rebuild: str) -> Finding:
    """Format and seal as `meta/` has them; LMDB lets us read beside a running daemon."""
    try:
        from volume.datadir import META_MAP_BYTES
        from volume.disk import SystemClock
        from volume.kv import LmdbKeyValue
        from volume.meta import Meta
    except ImportError:
        return Finding("format", WARN, "unread: the native extension does not load", "see below")
    try:
        kv = LmdbKeyValue(data / "meta", synced=True, map_size=META_MAP_BYTES)
        try:
            if kv.count() == 0:
                return Finding("format", FAIL, f"{data}/meta is empty", rebuild)
            meta = Meta(kv, SystemClock())
        finally:
            kv.close()
    except (VolumeError, OSError) as error:
        fix = f"mv {data}/meta {data}/meta.old, then: {rebuild}"
        return Finding("format", FAIL, f"{data}/meta: {error}", fix)
    if meta.sealed_reason is not None:
        fix = f"check the disk, then: blockd doctor --unseal --data {data}"
        return Finding("format", FAIL, f"{data} is sealed: {meta.sealed_reason}", fix)
    return Finding("format", OK, f"store {meta.uuid.hex()}, opened {meta.node_epoch} times")


def _rows(data: Path) -> list[Finding]:
    """What volumes are to have; what is wrong with meta/ as a whole, "format" says."""
    try:
        from blockd.doctor_rows import rows

        return rows(data / "meta") if (data / "meta" / "data.mdb").is_file() else []
    except (ImportError, VolumeError, OSError):
        return []


def _free_space(data: Path) -> Finding:
    try:
        status = os.statvfs(data)
    except OSError as error:
        return Finding("free space", FAIL, f"{data}: {error.strerror}", "check the disk")
    free = status.f_bavail * status.f_frsize
    text = f"{format_size(free)} of {format_size(status.f_blocks * status.f_frsize)}"
    if free == 0:
        return Finding("free space", FAIL, text, "make room: clients' writes fail")
    if free < LOW_SPACE_BYTES:
        return Finding("free space", WARN, text, "make room: writes fail when it is used up")
    return Finding("free space", OK, text)


def _journal(data: Path, limit: int | None) -> Finding:
    try:
        used = sum(entry.stat().st_size for entry in os.scandir(data / "journal"))
        status = os.statvfs(data)
    except FileNotFoundError:
        return Finding("journal", OK, "none yet")
    except OSError as error:
        return Finding("journal", FAIL, f"{data}/journal: {error.strerror}", "check the disk")
    total = status.f_blocks * status.f_frsize
    if limit is not None and limit > total * JOURNAL_SHARE:
        return Finding(
            "journal",
            WARN,
            f"journal_limit {format_size(limit)} is most of a {format_size(total)} file system",
            "lower store.journal_limit",
        )
    return Finding("journal", OK, f"{format_size(used)} in segments")


def _sockets(settings: ServeConfig, data: Path) -> Iterator[Finding]:
    """Whether the unix sockets are where nobody else could put one."""
    try:
        from blockd.sockets import CONTROL, NBD, ListenError, check_directory
    except ImportError:
        return  # `_native` has the reason
    user = data.stat().st_uid
    for path, use in ((settings.control_socket, CONTROL), (settings.nbd_socket, NBD)):
        if path is None:
            continue
        try:
            check_directory(path, use, user)
        except ListenError as error:
            yield Finding(f"{use.name} socket", FAIL, str(error), f"see {use.option}")
        else:
            yield Finding(f"{use.name} socket", OK, f"nobody else may write to {path.parent}")


def _native() -> Finding:
    try:
        import native  # noqa: F401 - loading it is the check
    except ImportError as error:
        return Finding("native extension", FAIL, str(error), "pip install -e . in the checkout")
    return Finding("native extension", OK, "loads")


def _module(module: str, purpose: str, machine: Machine) -> Finding:
    name = f"kernel module {module}"
    if (machine.sys_module / module).is_dir() or module in _loaded(machine):
        return Finding(name, OK, "loaded")
    if machine.modinfo(module):
        return Finding(name, OK, f"available; sudo modprobe {module} loads it")
    return Finding(
        name,
        WARN,
        f"not available; needed for {purpose} on this machine",
        "install the full kernel (linux-image-amd64), or attach with qemu or nbdfuse",
    )


def _loaded(machine: Machine) -> set[str]:
    try:
        lines = (machine.proc / "modules").read_text().splitlines()
    except OSError:
        return set()
    return {line.split(" ", 1)[0] for line in lines}


def _tool(tool: str, package: str, machine: Machine) -> Finding:
    if path := machine.which(tool):
        return Finding(f"client {tool}", OK, path)
    return Finding(f"client {tool}", WARN, "not installed", f"sudo apt install {package}")
