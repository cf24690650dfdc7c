"""Section [cluster]."""

import enum
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from blockd.config.addresses import DEFAULT_PEER_PORT, Address, Portal, PortalAddress
from blockd.config.values import Size
from blockd.toml_decode import ConfigError, Range

_ETCD_ENDPOINT = re.compile(r"https?://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+):[0-9]{1,5}")
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")  # as transport.devicemap has it
Days = Annotated[float, Range(0.1, 366 * 86400.0)]
MAX_ADVERTISED = 8  # addresses of a node, each of so many characters: what its record takes
MAX_ADVERTISED_CHARS = 128
MAX_LOCAL_GROUP = 255  # as `blockd.paths.MAX_LOCAL_TAG`


class FailureDomain(enum.StrEnum):
    """Levels of `transport.devicemap`, which would load all of it here."""

    DEVICE = "device"
    HOST = "host"
    RACK = "rack"
    SITE = "site"


@dataclass(frozen=True, slots=True)
class ClusterConfig:
    """[cluster]: this node is one of several. `blockd cluster` makes it one."""

    etcd: tuple[str, ...] = ()
    """Where nodes agree on who may do what: http://host:port or https://host:port, all of one
    etcd. Without it a daemon is a node by itself."""
    prefix: str = "blockd/"
    """Before all keys in etcd."""
    ca: Path | None = None
    """Authority of etcd's certificates; None for those that the system trusts."""
    user: str | None = None
    """Whom etcd is to take us for."""
    password_file: Path | None = None
    """First line: the user's password."""
    listen: tuple[Address, ...] = ()
    """Where other nodes connect: numeric addresses, an empty host for every interface. What comes
    and goes there is encrypted, and only nodes of the cluster are let in."""
    advertise: tuple[Address, ...] = ()
    """Where others reach that, numeric and best first; those of `listen` if nothing is said."""
    site: str = "site"
    """Where the data directory stands: no two shards of a pack are in one failure domain..."""
    rack: str = "rack"
    """...of a site,"""
    host: str = ""
    """...of a rack; the node's own name if nothing is said."""
    weight: Size | None = None
    """Its share of shards, as a size; that of its file system if nothing is said."""
    stripes: bool = False
    """Have cold packs of this node become stripes: shards on several nodes instead of copies."""
    failure_domain: FailureDomain = FailureDomain.HOST
    """What is to fail alone. The same on all nodes."""
    cold_after_s: Days = 3600.0
    """A pack is cold so long after it was sealed..."""
    cold_unread_s: Annotated[float, Range(0.0, 366 * 86400.0)] | None = None
    """...and after clients have read something of it last: what is read stays a copy. As
    `cold_after_s` if nothing is said; 0: reads do not count."""
    unused_after_s: Days = 3600.0
    """A stripe that no node needs, and a shard that belongs to none, goes after so long."""
    replace_after: int = 600
    """Seconds after which a node that cannot be reached counts as dead: volumes that this node
    serves get another member in its place. 0: only when somebody says so."""

    nbd: tuple[Address, ...] = ()
    """Where clients reach the NBD listener of this node; those that it listens on if nothing is
    said. Other nodes tell them to clients of a volume that is served here."""
    iscsi: tuple[Portal, ...] = ()
    """Where initiators reach its portals, as 192.0.2.1:3260 or 192.0.2.1:3260,2 with the tag of the
    portal group; likewise. Discovery lists them on all nodes that have a volume."""

    @property
    def addresses(self) -> tuple[str, ...]:
        """What other nodes are told."""
        found = self.advertise or self.listen
        return tuple(str(replace(each, host=each.numeric or each.host)) for each in found)


def check_portals(cluster: ClusterConfig, portals: Sequence[PortalAddress]) -> None:
    """Refuse portal groups whose tags leave no room for the node's number. Raises ConfigError."""
    named = [*cluster.iscsi, *(portals if cluster.etcd else ())]
    for portal in named:
        if (portal.group or 1) > MAX_LOCAL_GROUP:
            raise ConfigError(
                f"iscsi: portal {portal}: in a cluster the tag of a portal group is 1 to "
                f"{MAX_LOCAL_GROUP}, and the node's number is put in front of it"
            )


def check_cluster(cluster: ClusterConfig) -> None:
    """Refuse settings that do not go together. Raises ConfigError."""
    if not cluster.etcd:
        if cluster.listen or cluster.advertise or cluster.nbd or cluster.iscsi:
            raise ConfigError('cluster: listen is of no use without etcd = ["http://host:2379"]')
        return
    for endpoint in cluster.etcd:
        if _ETCD_ENDPOINT.fullmatch(endpoint) is None:
            raise ConfigError(f"cluster: etcd {endpoint!r} is not http(s)://host:port")
    if not cluster.prefix.endswith("/"):
        raise ConfigError(f"cluster: prefix {cluster.prefix!r} has to end with '/'")
    if (cluster.user is None) != (cluster.password_file is None):
        raise ConfigError("cluster: user and password_file go together")
    for name in ("site", "rack", "host"):
        label = getattr(cluster, name)
        if _LABEL.fullmatch(label) is None and (name, label) != ("host", ""):
            raise ConfigError(
                f"cluster: {name} {label!r}: use up to 64 letters, digits, '.', '_' and '-', "
                "beginning with a letter or digit"
            )
    if cluster.weight == 0:
        raise ConfigError("cluster: weight 0: to have no shards, drain the device")
    if cluster.replace_after < 0:
        raise ConfigError(f"cluster: replace_after {cluster.replace_after} is below 0")
    _check_peers(cluster)


def _check_peers(cluster: ClusterConfig) -> None:
    if not cluster.listen:
        example = f'listen = ["192.0.2.1:{DEFAULT_PEER_PORT}"]'
        raise ConfigError(f"cluster: other nodes have to reach this one: {example}")
    for address in (*cluster.listen, *cluster.advertise):
        if address.numeric is None:
            raise ConfigError(f"cluster: {address}: write a numeric address, not a name")
    if not cluster.advertise and any(each.everywhere for each in cluster.listen):
        example = f'advertise = ["192.0.2.1:{cluster.listen[0].port}"]'
        raise ConfigError(f"cluster: listening everywhere; say where others reach it: {example}")
    for name in ("addresses", "nbd", "iscsi"):
        count = len(getattr(cluster, name))
        if count > MAX_ADVERTISED:
            raise ConfigError(f"cluster: {count} {name}, above {MAX_ADVERTISED}")
    for address in (*cluster.listen, *cluster.advertise):
        if address.port == 0:
            raise ConfigError(f"cluster: {address}: port 0 would be another one at each start")
    for address in (*cluster.advertise, *cluster.nbd, *(each.address for each in cluster.iscsi)):
        if address.everywhere or len(str(address)) > MAX_ADVERTISED_CHARS:
            raise ConfigError(f"cluster: advertise {address}: nobody can connect to that")
