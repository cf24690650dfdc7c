"""What `blockd serve` is told: built-in defaults < TOML file < command line.

Every value is a field of one of the frozen dataclasses of this package, which has a file for each
section of the TOML file; that has exactly their shape (`blockd.toml_decode` says how types are
written). The file is the one that `--config` names, else `blockd.toml` in the data directory if
there is one. `check` refuses what is well-formed and still must not be served: a listener that lets
the network in without proof of who it is, TLS without keys, socket paths that the kernel cannot
bind.
"""

from blockd.config.addresses import (
    DEFAULT_ISCSI_PORT,
    DEFAULT_NBD_PORT,
    DEFAULT_PEER_PORT,
    MAX_SOCKET_PATH,
    Address,
    Portal,
    PortalAddress,
    TcpAddress,
    check_socket_path,
    parse_address,
    parse_portal,
    portal_groups,
)
from blockd.config.checks import check, check_exposure
from blockd.config.cluster import MAX_ADVERTISED, MAX_ADVERTISED_CHARS, ClusterConfig
from blockd.config.control import ControlConfig
from blockd.config.daemon import DaemonConfig
from blockd.config.exports import ExportConfig
from blockd.config.iscsi import IscsiConfig
from blockd.config.log import LogConfig, LogFormat, LogLevel
from blockd.config.metrics import MetricsConfig
from blockd.config.nbd import NBD_SOCKET_NAME, NbdConfig
from blockd.config.serve import CONFIG_NAME, ServeConfig, load_config
from blockd.config.store import Compression, StoreConfig
from blockd.config.tls import TlsChoice, TlsConfig, TlsVersion
from blockd.config.values import Count, MiB, Seconds, Size

__all__ = [
    "MiB",
    "Size",
    "Seconds",
    "Count",
    "DEFAULT_NBD_PORT",
    "DEFAULT_ISCSI_PORT",
    "DEFAULT_PEER_PORT",
    "MAX_SOCKET_PATH",
    "TcpAddress",
    "parse_address",
    "Address",
    "PortalAddress",
    "parse_portal",
    "portal_groups",
    "Portal",
    "check_socket_path",
    "NBD_SOCKET_NAME",
    "NbdConfig",
    "ExportConfig",
    "IscsiConfig",
    "TlsChoice",
    "TlsVersion",
    "TlsConfig",
    "Compression",
    "StoreConfig",
    "MAX_ADVERTISED",
    "MAX_ADVERTISED_CHARS",
    "ClusterConfig",
    "LogFormat",
    "LogLevel",
    "LogConfig",
    "MetricsConfig",
    "ControlConfig",
    "DaemonConfig",
    "CONFIG_NAME",
    "ServeConfig",
    "load_config",
    "check",
    "check_exposure",
]
