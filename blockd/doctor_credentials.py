"""`blockd doctor` on who the daemon is and what it proves itself by: its user, keys, certificates,
files of secrets, etcd's password, the keys of a node. They are read as the daemon reads them."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from blockd.certificates import Validity, read_end, validity
from blockd.config import (
    ClusterConfig,
    DaemonConfig,
    IscsiConfig,
    ServeConfig,
    TlsChoice,
    TlsConfig,
)
from blockd.findings import FAIL, OK, WARN, Finding, Machine
from blockd.toml_decode import ConfigError
from volume.privatefile import user_name


def credentials(settings: ServeConfig, data: Path, machine: Machine) -> Iterator[Finding]:
    """All of these checks."""
    if settings.daemon.user is not None:
        yield _user(settings.daemon, settings.daemon.user, data)
    with _as_owner(data, machine):
        found: list[Finding] = []
        if settings.tls.mode is not TlsChoice.OFF:
            found += _tls(settings.tls, machine)
        found += _chap(settings.iscsi)
        if settings.cluster.etcd:
            found += _etcd(settings.cluster)
            found.append(_node(data))
    yield from found


def _user(daemon: DaemonConfig, user: str, data: Path) -> Finding:
    """Whether a daemon that root starts could be that user, and serve the data directory."""
    from blockd.privileges import PrivilegeError, identity

    try:
        who = identity(user, daemon.group)
    except PrivilegeError as error:
        return Finding("user", FAIL, str(error), "make the user, or correct daemon.user")
    owner = data.stat().st_uid if data.is_dir() else who.uid
    if owner != who.uid:
        message = f"{data} belongs to user {user_name(owner)}, the daemon becomes {user}"
        return Finding("user", FAIL, message, f"chown -R {user} {data}")
    return Finding("user", OK, f"the daemon becomes {user} ({who.uid}) when root starts it")


@contextlib.contextmanager
def _as_owner(data: Path, machine: Machine) -> Iterator[None]:
    """Root may read every file of secrets, and owns none of those that are the daemon's: look at
    them as the user whom the data directory belongs to."""
    owner = data.stat().st_uid if machine.uid == 0 and data.is_dir() else machine.uid
    if owner == machine.uid:
        yield
        return
    os.seteuid(owner)
    try:
        yield
    finally:
        os.seteuid(machine.uid)


def _tls(tls: TlsConfig, machine: Machine) -> Iterator[Finding]:
    """TLS files as the daemon reads them, then what it does not mind but a person would."""
    try:
        from blockd.tls import TlsConfigError, TlsProvider
    except ImportError as error:
        yield Finding("tls", FAIL, str(error), "pip install -e . in the checkout")
        return
    try:
        TlsProvider(tls.settings())
    except TlsConfigError as error:
        yield Finding("tls", FAIL, str(error), "correct the [tls] settings or the file")
        return
    if tls.cert:
        yield Finding("tls key", OK, f"{tls.key or tls.cert} is private")
        yield _certificate("tls certificate", tls.cert, machine)
    if tls.client_ca:
        yield _certificate("tls client authority", tls.client_ca, machine)
    if tls.psk:
        yield Finding("tls pre-shared keys", OK, f"{tls.psk} is private")


def _chap(iscsi: IscsiConfig) -> Iterator[Finding]:
    """Files of CHAP users as the daemon reads them."""
    files = {"iscsi chap users": iscsi.chap, "iscsi mutual chap user": iscsi.mutual_chap}
    for name, path in files.items():
        if path is None:
            continue
        try:
            from blockd.chap_file import read_chap, read_mutual_chap
        except ImportError as error:
            yield Finding(name, FAIL, str(error), "pip install -e . in the checkout")
            return
        try:
            users = read_chap(path) if path is iscsi.chap else (read_mutual_chap(path),)
        except ConfigError as error:
            yield Finding(name, FAIL, str(error), "correct the file or its permissions")
        else:
            yield Finding(name, OK, f"{path} is private and has {len(users)} user(s)")


def _etcd(cluster: ClusterConfig) -> Iterator[Finding]:
    from blockd.doctor_etcd import look_at_etcd  # httpx: not for those who have no etcd

    for well, message, fix in look_at_etcd(cluster):
        level = FAIL if well is None else OK if well else WARN
        yield Finding("etcd", level, message, fix)


def _node(data: Path) -> Finding:
    from transport.errors import TransportError
    from transport.keys import read_identity

    try:
        identity = read_identity(data)
    except (TransportError, OSError) as error:
        return Finding("node", FAIL, str(error), "correct the file or its permissions")
    if identity is None or not identity.joined:
        what = f"{data} is not in a cluster yet"
        return Finding("node", WARN, what, "blockd cluster init NAME, or join TOKEN")
    return Finding("node", OK, f"{identity.name} of cluster {identity.cluster_id}")


def _certificate(name: str, path: Path, machine: Machine) -> Finding:
    try:
        ends = read_end(path)
    except (OSError, ValueError) as error:
        return Finding(name, FAIL, f"{path}: {error}", "give a PEM certificate")
    text = f"{path}, valid until {ends:%Y-%m-%d}"
    match validity(ends, machine.now()):
        case Validity.ENDED:
            return Finding(name, FAIL, text, "renew it; SIGHUP makes the daemon read it")
        case Validity.ENDS_SOON:
            return Finding(name, WARN, text, "renew it soon; SIGHUP makes the daemon read it")
    return Finding(name, OK, text)
