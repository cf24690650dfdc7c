"""What `blockd serve` is told: built-in defaults < TOML file < command line.

Every value is a field of one of the frozen dataclasses below, and the TOML file has exactly their
shape (`blockd.toml_decode` says how types are written). The file is the one that `--config` names,
else `blockd.toml` in the data directory if there is one. `check` refuses what is well-formed and
still must not be served: a listener that lets the network in without proof of who it is, TLS
without keys, socket paths that the kernel cannot bind.
"""

import enum
import ipaddress
import itertools
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated

from blockd.sizes import exact_size
from blockd.toml_decode import (
    ConfigError,
    Parsed,
    Range,
    SizeText,
    decode,
    load_toml,
)

if TYPE_CHECKING:
    from blockd.tls import TlsSettings

DEFAULT_DATA = Path("blockd-data")
DEFAULT_NBD_PORT = 10809
DEFAULT_ISCSI_PORT = 3260
DEFAULT_PEER_PORT = 10811
MAX_ADVERTISED = 8  # addresses of a node, each of so many characters: what its record takes
MAX_ADVERTISED_CHARS = 128
CONFIG_NAME = "blockd.toml"
CONTROL_NAME = "control.sock"
NBD_SOCKET_NAME = "nbd.sock"
_ETCD_ENDPOINT = re.compile(r"https?://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+):[0-9]{1,5}")
MAX_SOCKET_PATH = 107  # bytes: sockaddr_un.sun_path is 108 with its final zero

MiB = 1 << 20
Size = Annotated[int, SizeText()]
Seconds = Annotated[float, Range(0.0, 3600.0)]
Count = Annotated[int, Range(1, 1 << 20)]


class TlsChoice(enum.StrEnum):
    """Whether NBD clients may, or must, start TLS."""

    OFF = "off"
    ALLOW = "allow"
    REQUIRE = "require"


class TlsVersion(enum.StrEnum):
    """The oldest TLS that is spoken; older ones than these are broken (RFC 8996)."""

    TLS_1_2 = "1.2"
    TLS_1_3 = "1.3"


class Compression(enum.StrEnum):
    """Codec of new chunks."""

    NONE = "none"
    LZ4 = "lz4"
    ZSTD = "zstd"
    IGZIP = "igzip"


class LogFormat(enum.StrEnum):
    TEXT = "text"
    JSON = "json"


class LogLevel(enum.StrEnum):
    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """Where a TCP listener binds; port 0 takes a free one, an empty host every interface."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def loopback(self) -> bool:
        """True when only this machine can reach it. Host names other than localhost may move."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host.split("%")[0]).is_loopback
        except ValueError:
            return False

    @property
    def everywhere(self) -> bool:
        """Whether it is every interface, and so none that one can connect to."""
        return self.host in ("", "0.0.0.0", "::")

    @property
    def numeric(self) -> str | None:
        """The host as a numeric address, "" for every interface; None when it is a name."""
        host = {"": "", "localhost": "127.0.0.1"}.get(self.host)
        if host is not None:
            return host
        try:
            ipaddress.ip_address(self.host.split("%")[0])
        except ValueError:
            return None
        return self.host


def parse_address(text: str) -> TcpAddress:
    """HOST:PORT, [IPV6]:PORT, :PORT (every interface). Raises ValueError."""
    host, colon, port = text.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ValueError(
            f"address {text!r}: write HOST:PORT with a port of 0 to 65535, "
            f"as 127.0.0.1:{DEFAULT_NBD_PORT} or [::1]:0"
        )
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError(f"address {text!r}: write an IPv6 address in brackets, as [::1]:{port}")
    return TcpAddress(host, int(port))


Address = Annotated[TcpAddress, Parsed(parse_address, "HOST:PORT")]


@dataclass(frozen=True, slots=True)
class PortalAddress:
    """Where an iSCSI portal listens, and the tag of its portal group; None takes the next free."""

    address: TcpAddress
    group: int | None = None

    def __str__(self) -> str:
        return str(self.address) if self.group is None else f"{self.address},{self.group}"


def parse_portal(text: str) -> PortalAddress:
    """HOST:PORT or HOST:PORT,GROUP. Raises ValueError."""
    address, comma, group = text.partition(",")
    if not comma:
        return PortalAddress(parse_address(address))
    if not group.isascii() or not group.isdigit() or not 0 < int(group) < 65536:
        raise ValueError(
            f"portal {text!r}: write HOST:PORT,GROUP with a portal group tag of 1 to 65535"
        )
    return PortalAddress(parse_address(address), int(group))


def portal_groups(portals: Sequence[PortalAddress]) -> list[int]:
    """The tag of each; those that say nothing have a group of their own."""
    taken = {portal.group for portal in portals}
    free = (tag for tag in itertools.count(1) if tag not in taken)
    return [next(free) if portal.group is None else portal.group for portal in portals]


Portal = Annotated[PortalAddress, Parsed(parse_portal, "HOST:PORT or HOST:PORT,GROUP")]


@dataclass(frozen=True, slots=True)
class NbdConfig:
    """[nbd]: where clients connect and what one client may cost."""

    listen: tuple[Address, ...] = (TcpAddress("127.0.0.1", DEFAULT_NBD_PORT),)
    """TCP addresses; an empty array leaves TCP out."""
    unix: bool = True
    """Whether there is a unix socket as well."""
    socket: Path | None = None
    """Its path; None is nbd.sock in the data directory."""
    insecure: bool = False
    """Allows addresses that other machines reach in plain text, or by TLS without having to prove
    who they are."""
    handshake_timeout_s: Seconds = 10.0
    """A client whose negotiation, TLS included, takes longer is cut."""
    reply_timeout_s: Seconds = 0.0
    """Cuts a client that takes none of its replies for so long; 0 waits for it forever."""
    max_connections: Count = 1024
    """Of all clients together; one that comes later is refused."""
    max_in_flight_requests: Count = 1024
    """Of one connection; nothing more is read of it until some are answered."""
    max_in_flight_bytes: Annotated[int, SizeText(low=MiB)] = 64 * MiB
    """Of one connection: payloads received and reads promised."""
    max_payload: Annotated[int, SizeText(low=4096, high=1 << 30)] = 32 * MiB
    """Of one READ or WRITE."""
    list_versions: bool = False
    """Clients that ask for a list of exports are shown the snapshots, too."""


@dataclass(frozen=True, slots=True)
class IscsiConfig:
    """[iscsi]: where initiators log in and what one may cost. Targets are made at runtime."""

    listen: tuple[Portal, ...] = ()
    """Portals, as 192.0.2.1:3260 or 192.0.2.1:3260,2 with the tag of its portal group. Portals
    without one have a group each: two of them are two paths to a unit."""
    insecure: bool = False
    """Allows logins without CHAP on addresses that other machines reach."""
    chap: Path | None = None
    """File of CHAP users, lines of user:secret; any of them may discover, and log in to targets
    that have no users of their own."""
    mutual_chap: Path | None = None
    """File with one line user:secret: what such targets, and discovery, prove themselves by."""
    auto_targets: bool | None = None
    """Whether every volume has a target by itself; None: while only this machine reaches us, or
    `insecure` says that it does not matter who does."""
    ignore_isids: bool = False
    """Persistent reservations are those of an initiator, not of one of its sessions: for initiators
    that take another ISID at each login, as Linux does, and look for their own afterwards."""
    login_timeout_s: Seconds = 15.0
    """An initiator whose login takes longer is cut."""
    keepalive_s: Seconds = 30.0
    """An initiator that is silent for so long is asked, and cut after as long again; 0: never."""
    reply_timeout_s: Seconds = 0.0
    """As in [nbd]."""
    max_connections: Count = 1024
    """Of all initiators together, those that still log in included."""
    max_sessions: Count = 1024
    """Of all initiators together."""
    max_in_flight_bytes: Annotated[int, SizeText(low=MiB)] = 64 * MiB
    """Of one session: data-out being collected and data-in promised."""
    sanitize_rate: Annotated[int, SizeText(low=MiB)] = 256 * MiB
    """Bytes per second that SANITIZE writes, of all units together; clients keep theirs."""

    @property
    def exposed(self) -> list[str]:
        """Addresses that other machines reach."""
        return [str(each.address) for each in self.listen if not each.address.loopback]

    @property
    def has_auto_targets(self) -> bool:
        if self.auto_targets is None:
            return self.insecure or not self.exposed
        return self.auto_targets


@dataclass(frozen=True, slots=True)
class TlsConfig:
    """[tls]: PEM files, read at start and at each SIGHUP."""

    mode: TlsChoice = TlsChoice.OFF
    """Plain text only, either, or TLS only."""
    cert: Path | None = None
    """The server's certificate, with those between it and its authority."""
    key: Path | None = None
    """The certificate's private key; None when it is in the same file."""
    client_ca: Path | None = None
    """Clients must show a certificate of this authority."""
    psk: Path | None = None
    """File of pre-shared keys, lines of identity:hexkey as psktool writes them."""
    min_version: TlsVersion = TlsVersion.TLS_1_2
    """The oldest that is spoken."""

    def settings(self) -> "TlsSettings":
        """As the listener takes them. Loads OpenSSL, so only when TLS is on."""
        from blockd.tls import TlsSettings

        return TlsSettings(
            certificate=self.cert,
            key=self.key,
            client_ca=self.client_ca,
            psk_file=self.psk,
            min_version=self.min_version.value,
        )


@dataclass(frozen=True, slots=True)
class StoreConfig:
    """[store]: the data directory. None leaves the store's own default."""

    journal_limit: Size | None = None
    """The most that the journal takes; it does not shrink when this is lowered."""
    reserve: Size | None = None
    """Free space that is never filled."""
    short_percent: Annotated[int, Range(0, 90)] | None = None
    """Old versions without a name give way when less than this part of the disk is left."""
    cache: Size | None = None
    """Memory for chunk places and decoded chunks."""
    hot_map: Size | None = None
    """Memory of the hot maps at which destaging starts."""
    destage_age_s: Seconds | None = None
    """About how old a write may get before it is in chunks."""
    destage_idle_s: Seconds | None = None
    """Destage when nothing was written for this long."""
    gc_interval_s: Seconds | None = None
    """At least this long between two garbage collections."""
    gc_condemn_s: Seconds | None = None
    """What nothing reaches is removed when it has been so for this long."""
    scrub_interval_s: Seconds | None = None
    """Every stored byte is read and verified once in this time."""
    window: Size | None = None
    """Disk space for the any-write window; as much again for versions that only a policy keeps."""
    window_s: Seconds | None = None
    """Of new volumes: single writes of at least this long can be restored, while there is room."""
    keep: str | None = None
    """Of new volumes: what stays of versions after that, as "60m,24h,7d"."""
    read_threads: Annotated[int, Range(1, 64)] | None = None
    """Threads for reads that have to wait for the disk."""
    compression: Compression | None = None
    """Of new volumes: how their chunks are packed, where that saves 12 %."""
    accept_journal_loss: bool | None = None
    """Open although flushed records of the journal are damaged: what follows them is dropped."""


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

    @property
    def addresses(self) -> tuple[str, ...]:
        """What other nodes are told."""
        found = self.advertise or self.listen
        return tuple(str(replace(each, host=each.numeric or each.host)) for each in found)


@dataclass(frozen=True, slots=True)
class DaemonConfig:
    """[daemon]: whom a daemon that root has started runs as, once its TCP sockets are bound."""

    user: str | None = None
    """Becomes this user, for good, before anything but the settings is read; None stays who it is.
    The data directory, secrets and the file of the settings have to be this user's to read."""
    group: str | None = None
    """The user's main group; None for the one that it has."""


@dataclass(frozen=True, slots=True)
class LogConfig:
    """[log]: lines on stderr, which the service manager keeps, or in a file."""

    format: LogFormat = LogFormat.TEXT
    """Lines for people, or a JSON object each."""
    level: LogLevel = LogLevel.INFO
    """The least important line that is shown."""
    file: Path | None = None
    """Append to this file instead. One that was renamed or removed is made anew with the next line,
    so logrotate needs no signal."""


@dataclass(frozen=True, slots=True)
class MetricsConfig:
    """[metrics]: where Prometheus finds /metrics; the control socket has it in any case."""

    listen: tuple[Address, ...] = ()
    """HTTP servers of their own."""
    insecure: bool = False
    """Allows addresses that other machines reach: they learn the names of volumes, and how busy
    they are."""


@dataclass(frozen=True, slots=True)
class ControlConfig:
    """[control]: the socket of the control API; None is control.sock in the data directory."""

    socket: Path | None = None
    """Its path."""
    group: str | None = None
    """Name or number of a group whose members may use it as well: its mode is 0660 then, else 0600.
    They may do everything to every volume. The directory of `socket` has to let them in."""


@dataclass(frozen=True, slots=True)
class ExportConfig:
    """[exports."NAME"]: who may attach volume NAME, and how."""

    tls_required: bool = False
    """Clients have to use TLS for this volume, whatever `mode` says."""
    clients: tuple[str, ...] = ()
    """Names in the TLS certificate or of the PSK; empty lets everybody attach."""
    read_only: bool = False
    """Nobody writes to it over NBD."""


def _default_threads() -> int:
    """More than four only help where more cores are idle than clients keep busy."""
    return min(4, os.cpu_count() or 1)


@dataclass(frozen=True, slots=True)
class ServeConfig:
    """Everything that the daemon is told."""

    data: Path = DEFAULT_DATA
    """The data directory; a file that lies in it cannot name another."""
    drain_s: Seconds = 10.0
    """How long a stop waits for requests in flight."""
    loop_threads: Annotated[int, Range(0, 64)] = field(
        default_factory=_default_threads, metadata={"default": "as many as cores, at most 4"}
    )
    """Native threads that serve plain reads and writes; 0 has the event loop do all of it."""
    loop_polling: bool = True
    """Threads that are asked a little at a time look for the next request up to 0.12 ms before they
    sleep: the latency of one request halves, for up to half of the cores while clients ask."""
    daemon: DaemonConfig = field(default_factory=DaemonConfig)
    nbd: NbdConfig = field(default_factory=NbdConfig)
    iscsi: IscsiConfig = field(default_factory=IscsiConfig)
    tls: TlsConfig = field(default_factory=TlsConfig)
    store: StoreConfig = field(default_factory=StoreConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    log: LogConfig = field(default_factory=LogConfig)
    control: ControlConfig = field(default_factory=ControlConfig)
    metrics: MetricsConfig = field(default_factory=MetricsConfig)
    volumes: Mapping[str, Size] = field(default_factory=lambda: MappingProxyType({}))
    """Volumes to create if there is none of that name, with their sizes."""
    exports: Mapping[str, ExportConfig] = field(default_factory=lambda: MappingProxyType({}))
    file: Path | None = field(default=None, metadata={"toml": False})
    """Where the settings were read, None when there was no file."""

    @property
    def control_socket(self) -> Path:
        """Absolute, as clients in other directories need it."""
        return (self.control.socket or self.data / CONTROL_NAME).absolute()

    @property
    def nbd_socket(self) -> Path | None:
        """Absolute; None when there is to be none."""
        path = self.nbd.socket or self.data / NBD_SOCKET_NAME
        return path.absolute() if self.nbd.unix else None


def load_config(file: Path | None, data: Path | None) -> ServeConfig:
    """The settings of `file`, or of blockd.toml in `data`, or the defaults. Raises ConfigError.

    `data` is what the command line says. A blockd.toml that lies in the data directory cannot move
    the data elsewhere.
    """
    if file is not None:
        config = replace(decode(ServeConfig, load_toml(file), file), file=file)
        return replace(config, data=data) if data else config
    data = data or DEFAULT_DATA
    file = data / CONFIG_NAME
    if not file.exists():
        return ServeConfig(data=data)
    table = load_toml(file)
    if "data" in table:
        raise ConfigError(
            f"{file}: data: a file in the data directory cannot name another one; remove the key, "
            f"or keep the file elsewhere and use --config"
        )
    return replace(decode(ServeConfig, table, file), data=data, file=file)


def check(config: ServeConfig) -> None:
    """Refuse settings that must not be served. Raises ConfigError; reads no files."""
    check_exposure(config)
    _check_limits(config)
    _check_tls(config)
    _check_exports(config)
    _check_cluster(config.cluster)
    if config.daemon.group is not None and config.daemon.user is None:
        raise ConfigError(f"daemon: group {config.daemon.group!r} needs a user; add --user NAME")
    for option, path in (("control", config.control_socket), ("nbd-socket", config.nbd_socket)):
        if path is not None:
            check_socket_path(path, option)
    if not config.nbd.listen and not config.nbd.unix and not config.iscsi.listen:
        raise ConfigError("nbd: neither TCP nor a unix socket is left; nobody could attach")


def check_exposure(config: ServeConfig) -> None:
    """Refuse listeners that other machines reach without proving who they are, unless `insecure`
    says that this is meant. Raises ConfigError."""
    exposed = [str(address) for address in config.nbd.listen if not address.loopback]
    if exposed and not config.nbd.insecure:
        if config.tls.mode is not TlsChoice.REQUIRE:
            raise ConfigError(
                f"nbd: {', '.join(exposed)} can be reached by other machines in plain text; use "
                "--tls require with --tls-cert, --tls-key and --tls-client-ca (or --tls-psk), or "
                "say --insecure if that is meant"
            )
        if config.tls.client_ca is None and config.tls.psk is None:
            raise ConfigError(
                f"nbd: {', '.join(exposed)} can be reached by other machines, and nobody would "
                "have to prove who he is: TLS alone proves the server; use --tls-client-ca PEM or "
                "--tls-psk FILE, or say --insecure if that is meant"
            )
    iscsi = config.iscsi
    if iscsi.exposed and iscsi.chap is None and not iscsi.insecure:
        raise ConfigError(
            f"iscsi: {', '.join(iscsi.exposed)} can be reached by other machines, and nobody would "
            "have to prove who he is; use --iscsi-chap FILE, or say --insecure if that is meant"
        )
    exposed = [str(address) for address in config.metrics.listen if not address.loopback]
    if exposed and not config.metrics.insecure:
        raise ConfigError(
            f"metrics: {', '.join(exposed)} can be reached by other machines, and nobody has to "
            "prove who he is; listen on loopback behind a proxy that asks, or set "
            "metrics.insecure = true (--insecure) if that is meant"
        )
    if iscsi.mutual_chap is not None and iscsi.chap is None:
        raise ConfigError(
            f"iscsi: mutual_chap {iscsi.mutual_chap}: targets prove themselves only to initiators "
            "that do; add --iscsi-chap FILE"
        )


def _check_limits(config: ServeConfig) -> None:
    nbd = config.nbd
    if nbd.max_payload > nbd.max_in_flight_bytes:
        raise ConfigError(
            f"nbd: max_payload {exact_size(nbd.max_payload)} is above max_in_flight_bytes "
            f"{exact_size(nbd.max_in_flight_bytes)}: the largest request would never fit"
        )


def _check_tls(config: ServeConfig) -> None:
    tls = config.tls
    if tls.key and not tls.cert:
        raise ConfigError(f"tls: key {tls.key} is of no use alone; add --tls-cert")
    if tls.mode is not TlsChoice.OFF and tls.cert is None and tls.psk is None:
        raise ConfigError(
            f"tls: mode {tls.mode} needs a certificate (--tls-cert and --tls-key) "
            "or pre-shared keys (--tls-psk)"
        )
    for name, export in config.exports.items():
        if export.tls_required and tls.mode is TlsChoice.OFF:
            raise ConfigError(
                f'exports."{name}": tls_required, but TLS is off; use --tls allow or require'
            )
        if export.clients and tls.client_ca is None and tls.psk is None:
            raise ConfigError(
                f'exports."{name}": clients are named, but nothing proves a client\'s name; '
                "use --tls-client-ca or --tls-psk"
            )


def _check_exports(config: ServeConfig) -> None:
    for name in config.exports:
        volume, mark, _ = name.partition("@")
        if mark:
            raise ConfigError(
                f'exports."{name}": versions have the settings of their volume; '
                f'use exports."{volume}"'
            )


def _check_cluster(cluster: ClusterConfig) -> None:
    if not cluster.etcd:
        if cluster.listen or cluster.advertise:
            raise ConfigError('cluster: listen is of no use without etcd = ["http://host:2379"]')
        return
    for endpoint in cluster.etcd:
        if _ETCD_ENDPOINT.fullmatch(endpoint) is None:
            raise ConfigError(f"cluster: etcd {endpoint!r} is not http(s)://host:port")
    if not cluster.prefix.endswith("/"):
        raise ConfigError(f"cluster: prefix {cluster.prefix!r} has to end with '/'")
    if (cluster.user is None) != (cluster.password_file is None):
        raise ConfigError("cluster: user and password_file go together")
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
    if len(cluster.addresses) > MAX_ADVERTISED:
        raise ConfigError(f"cluster: {len(cluster.addresses)} addresses, above {MAX_ADVERTISED}")
    for address in (*cluster.listen, *cluster.advertise):
        if address.port == 0:
            raise ConfigError(f"cluster: {address}: port 0 would be another one at each start")
    for address in cluster.advertise:
        if address.everywhere or len(str(address)) > MAX_ADVERTISED_CHARS:
            raise ConfigError(f"cluster: advertise {address}: nobody can connect to that")


def check_socket_path(path: Path, option: str) -> None:
    """Refuse a path that does not fit into a socket address. Raises ConfigError."""
    length = len(os.fsencode(path))
    if length > MAX_SOCKET_PATH:
        raise ConfigError(
            f"unix socket {path}: {length} bytes long, the kernel takes {MAX_SOCKET_PATH}; "
            f"give a shorter path with --{option}"
        )
