"""All sections together, and the file that they are read from."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Annotated

from blockd.config.cluster import ClusterConfig
from blockd.config.control import ControlConfig
from blockd.config.daemon import DaemonConfig
from blockd.config.exports import ExportConfig
from blockd.config.iscsi import IscsiConfig
from blockd.config.log import LogConfig
from blockd.config.metrics import MetricsConfig
from blockd.config.nbd import NBD_SOCKET_NAME, NbdConfig
from blockd.config.store import StoreConfig
from blockd.config.tls import TlsConfig
from blockd.config.values import Seconds, Size
from blockd.places import CONTROL_NAME, DEFAULT_DATA
from blockd.toml_decode import ConfigError, Range, decode, load_toml

CONFIG_NAME = "blockd.toml"


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
