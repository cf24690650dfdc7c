"""Settings -> the parts of the daemon: the store, the listeners, policies and targets."""

import socket
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from blockd.access.book import VolumeAccess
from blockd.accounts import Accounts
from blockd.api.node import Store
from blockd.chap_file import read_chap, read_mutual_chap
from blockd.config import ExportConfig, ServeConfig, TlsChoice
from blockd.device import Exports
from blockd.iscsi.limits import Limits as IscsiLimits
from blockd.iscsi.targets import Access
from blockd.iscsi_listener import IscsiListener
from blockd.limits import RateLimits
from blockd.listener import NbdListener
from blockd.nbd.access import ExportPolicy, TlsMode
from blockd.nbd.limits import Limits
from blockd.registry.targets import TargetRegistry
from blockd.request_loop import RequestLoop
from blockd.scheduler import LoopScheduler
from blockd.sockets import Bind, bind_tcp
from blockd.tls import TlsProvider
from volume.options import StoreOptions
from volume.store import Store as VolumeStore

if TYPE_CHECKING:
    from blockd.cluster.node import ClusterNode


def open_store(config: ServeConfig, scheduler: LoopScheduler) -> Store:
    """The store in `config.data`; recovers it. Waits for disks. Raises VolumeError."""
    store = config.store
    given: dict[str, Any] = {
        "journal_limit": store.journal_limit,
        "reserve_bytes": store.reserve,
        "short_percent": store.short_percent,
        "cache_bytes": store.cache,
        "hot_map_bytes": store.hot_map,
        "destage_age_s": store.destage_age_s,
        "destage_idle_s": store.destage_idle_s,
        "gc_interval_s": store.gc_interval_s,
        "gc_condemn_s": store.gc_condemn_s,
        "scrub_interval_s": store.scrub_interval_s,
        "window_bytes": store.window,
        "window_s": None if store.window_s is None else int(store.window_s),
        "history_keep": store.keep,
        "accept_journal_loss": store.accept_journal_loss,
        "read_threads": store.read_threads,
        "pack_bytes": store.pack_size,
        "compression": store.compression and store.compression.value,
    }
    options = StoreOptions(**{name: value for name, value in given.items() if value is not None})
    return VolumeStore.open(config.data.absolute(), options, scheduler)


def make_cluster(config: ServeConfig, store: Store, version: str) -> "ClusterNode | None":
    """The node of a cluster that this daemon is, not started; None when it is by itself: then
    nothing of peers is loaded. Reads files. ConfigError, TransportError, OSError."""
    if not config.cluster.etcd:
        return None
    from blockd.cluster.node import ClusterNode

    assert isinstance(store, VolumeStore)
    return ClusterNode(
        config, store, store.replicas, store.stripe_home, store.chunk_repair, version
    )


class ConfiguredPolicies:
    """Policies of exports as the configuration has them; others get the default (blockd.nbd)."""

    def __init__(self, exports: Mapping[str, ExportConfig]) -> None:
        self._policies = {
            name: ExportPolicy(
                tls_required=export.tls_required,
                clients=export.clients,
                read_only=export.read_only,
            )
            for name, export in exports.items()
        }
        self._default = ExportPolicy()

    def policy(self, export_name: str) -> ExportPolicy:
        return self._policies.get(export_name, self._default)


def make_listener(
    config: ServeConfig,
    exports: Exports,
    access: VolumeAccess,
    adopted: list[socket.socket],
    request_loop: RequestLoop | None = None,
    accounts: Accounts | None = None,
    rate_limits: RateLimits | None = None,
    bind: Bind = bind_tcp,
) -> NbdListener:
    """The NBD listener; sockets from the service manager take the place of configured ones, which
    `bind` gives."""
    nbd = config.nbd
    tls = config.tls.mode is not TlsChoice.OFF
    return NbdListener(
        exports,
        ConfiguredPolicies(config.exports),
        access,
        tcp=() if adopted else nbd.listen,
        unix=None if adopted else config.nbd_socket,
        adopted=adopted,
        limits=Limits(
            handshake_timeout_s=nbd.handshake_timeout_s,
            max_connections=nbd.max_connections,
            max_payload=nbd.max_payload,
            max_in_flight_bytes=nbd.max_in_flight_bytes,
            max_in_flight_requests=nbd.max_in_flight_requests,
        ),
        tls_mode=TlsMode(config.tls.mode.value),
        tls=TlsProvider(config.tls.settings()) if tls else None,
        reply_timeout_s=nbd.reply_timeout_s,
        list_versions=nbd.list_versions,
        request_loop=request_loop,
        accounts=accounts,
        rate_limits=rate_limits,
        bind=bind,
    )


def open_targets(config: ServeConfig, store: Store) -> TargetRegistry:
    """The iSCSI targets over `store`; reads what is kept and the files of CHAP users. Waits for
    disks. ConfigError, VolumeError, OSError."""
    iscsi = config.iscsi
    defaults = Access(
        chap=() if iscsi.chap is None else read_chap(iscsi.chap),
        mutual=None if iscsi.mutual_chap is None else read_mutual_chap(iscsi.mutual_chap),
    )
    return TargetRegistry(
        store,
        defaults=defaults,
        auto=iscsi.has_auto_targets,
        own_rate=iscsi.sanitize_rate,
        ignore_isids=iscsi.ignore_isids,
    )


def make_iscsi(
    config: ServeConfig,
    targets: TargetRegistry,
    access: VolumeAccess,
    adopted: list[socket.socket],
    request_loop: RequestLoop | None = None,
    accounts: Accounts | None = None,
    rate_limits: RateLimits | None = None,
    bind: Bind = bind_tcp,
) -> IscsiListener:
    """The iSCSI listener; as `make_listener`."""
    iscsi = config.iscsi
    return IscsiListener(
        targets,
        access,
        portals=() if adopted else iscsi.listen,
        adopted=adopted,
        limits=IscsiLimits(
            login_timeout_s=iscsi.login_timeout_s,
            keepalive_s=iscsi.keepalive_s,
            max_connections=iscsi.max_connections,
            max_sessions=iscsi.max_sessions,
            max_in_flight_bytes=iscsi.max_in_flight_bytes,
        ),
        reply_timeout_s=iscsi.reply_timeout_s,
        request_loop=request_loop,
        accounts=accounts,
        rate_limits=rate_limits,
        bind=bind,
    )
