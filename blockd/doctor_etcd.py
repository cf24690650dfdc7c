"""`blockd doctor` on the etcd of [cluster]: whether it answers, and whether its release is sound.

Loss of etcd stops failover and attaching, never I/O: nothing here is worse than a warning, but for
settings that cannot be used."""

import ssl
from collections.abc import Iterator
from pathlib import Path

from blockd.config import ClusterConfig
from blockd.secrets import read_secret
from blockd.toml_decode import ConfigError
from transport.etcd.client import EtcdMetaStore, EtcdSettings
from transport.etcd.releases import known_faults
from volume.metastore import MetaStoreUnavailable
from volume.metastore_records import ClusterRecord

MAX_PASSWORD_BYTES = 4096  # of the file; far above any password

Line = tuple[bool | None, str, str | None]
"""Whether it is well (None: it cannot be used at all), what was seen, the way out."""


def etcd_settings(cluster: ClusterConfig) -> EtcdSettings:
    """What the client takes. ConfigError when a file cannot be read."""
    password = None
    if cluster.password_file is not None:
        password = _first_line(cluster.password_file)
    tls = None
    if cluster.ca is not None:
        try:
            tls = ssl.create_default_context(cafile=str(cluster.ca))
        except OSError as error:  # ssl.SSLError is one
            raise ConfigError(f"cluster: ca {cluster.ca}: {error}") from error
    return EtcdSettings(cluster.etcd, cluster.prefix, user=cluster.user, password=password, tls=tls)


def look_at_etcd(cluster: ClusterConfig) -> Iterator[Line]:
    """One line for each endpoint, and one for a read that needs a quorum."""
    try:
        store = EtcdMetaStore(etcd_settings(cluster))
    except ConfigError as error:
        yield None, str(error), "correct the file or the setting"
        return
    try:
        for endpoint, version in store.versions():
            if version is None:
                way_out = "start that member, or correct cluster.etcd"
                yield False, f"{endpoint} does not answer", way_out
            elif fault := known_faults(version):
                yield False, f"{endpoint}: {fault}", f"upgrade etcd {version}"
            else:
                yield True, f"{endpoint} has etcd {version}", None
        yield _quorum(store)
    finally:
        store.close()


def _quorum(store: EtcdMetaStore) -> Line:
    try:
        store.read(ClusterRecord.prefix)
    except MetaStoreUnavailable as error:
        return False, str(error), "have most members of etcd run, and check user and password"
    return True, "a quorum answers", None


def _first_line(path: Path) -> str:
    text = read_secret(path, "cluster: password_file", MAX_PASSWORD_BYTES)
    try:
        return text.partition(b"\n")[0].decode().rstrip("\r")
    except UnicodeDecodeError as error:
        raise ConfigError(f"cluster: password_file {path}: not UTF-8 text") from error
