"""Client of the control API, for the CLI and other tools on the same machine.

Raises NoDaemon when nothing answers on the socket, ApiError with the daemon's own code and message
when it refuses.
"""

import json
import os
import socket
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

from blockd.access.rules import Rule
from blockd.api.cluster_types import (
    AttachInfo,
    ClusterStatus,
    ClusterVolume,
    DeviceList,
    Draining,
    LostStripes,
    MovedVolume,
    RebuiltRows,
    ReplacedMember,
)
from blockd.api.iscsi_types import LunInfo, SessionInfo, TargetInfo
from blockd.api.limit_types import LimitsStatus, VolumeLimits
from blockd.api.types import (
    AccessInfo,
    ClusterInfo,
    ConnectionInfo,
    DamageLocations,
    Disconnected,
    NodeStatus,
    NoSuchClient,
    ScrubInfo,
    TokenInfo,
    VersionDiff,
    from_json,
)
from blockd.api.unix_http import Response, TransferError, Unreachable, exchange
from blockd.registry.errors import NoSuchTarget
from transport.errors import NoSuchNode
from volume.errors import NoSuchVersion, NoSuchVolume
from volume.model import (
    HistoryPolicy,
    ReceiveInfo,
    RestoreInfo,
    ScheduleInfo,
    SnapshotInfo,
    SpaceReport,
    VersionLog,
    VolumeInfo,
)

if TYPE_CHECKING:
    from volume.gc import GcReport, GcStatus

TIMEOUT_S = 60.0  # a change waits for a checkpoint or a full disk queue at worst
STREAM_TIMEOUT_S = 600.0  # without a byte: before the first, trees are walked and writes destaged
LONG_TIMEOUT_S = 6 * 3600.0  # what reads everything a large store has may take hours

T = TypeVar("T")


class NoDaemon(Exception):
    """Nobody answers on the control socket."""

    code = "no_daemon"


class ApiError(Exception):
    """The daemon refused; `code` is one of the API's."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Client:
    """Talks to the daemon whose control socket is `path`; a context manager."""

    def __init__(self, path: Path, timeout_s: float = TIMEOUT_S) -> None:
        """Raises NoDaemon."""
        _probe(path, timeout_s)
        self.server_ms: dict[str, float] = {}
        """Of the last answer: what the daemon says it took. "app" is all of it."""
        self._path = path
        self._timeout_s = timeout_s

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *exc: object) -> None:
        """Nothing is kept open between calls."""

    def metrics(self) -> str:
        """What Prometheus would be told, in its text format."""
        with self._failures("GET", "/metrics"), self._asked("GET", "/metrics") as response:
            if not response.success:
                _answer(response)  # raises
            return response.read().decode()

    # -- volumes

    def volumes(self) -> list[VolumeInfo]:
        return _list(VolumeInfo, self._call("GET", "/v1/volumes"))

    def volume(self, name: str) -> VolumeInfo:
        return from_json(VolumeInfo, self._call("GET", _path(name)))

    def create_volume(self, name: str, size: int, **options: int | str | bool) -> VolumeInfo:
        """`options`: block_size, chunk_size, compression, closed."""
        body = {"name": name, "size": size, **options}
        return from_json(VolumeInfo, self._call("POST", "/v1/volumes", body=body))

    def resize_volume(self, name: str, size: int, *, force: bool = False) -> VolumeInfo:
        body = {"size": size, "force": force}
        return from_json(VolumeInfo, self._call("PATCH", _path(name), body=body))

    def limits(self, name: str) -> LimitsStatus:
        return from_json(LimitsStatus, self._call("GET", f"{_path(name)}/limits"))

    def set_limits(self, name: str, limits: VolumeLimits) -> LimitsStatus:
        """All of them, durably and at once."""
        body = asdict(limits)
        return from_json(LimitsStatus, self._call("PUT", f"{_path(name)}/limits", body=body))

    def rename_volume(self, name: str, new_name: str) -> VolumeInfo:
        return from_json(VolumeInfo, self._call("PATCH", _path(name), body={"name": new_name}))

    def access(self, name: str) -> AccessInfo:
        return from_json(AccessInfo, self._call("GET", _path(name, "access")))

    def set_access(
        self, name: str, rules: Sequence[Rule] | None, revision: str | None = None
    ) -> AccessInfo:
        """The whole list; None for no list. `revision` is that of the list that it was made
        from."""
        body = {"rules": None if rules is None else [asdict(rule) for rule in rules]}
        found = self._call("PUT", _path(name, "access"), body={**body, "revision": revision})
        return from_json(AccessInfo, found)

    def delete_volume(self, name: str, *, force: bool = False) -> None:
        self._call("DELETE", _path(name), query=_query(force=force))

    # -- snapshots

    def snapshots(
        self, volume: str | None = None, *, prefix: str = "", limit: int | None = None
    ) -> list[SnapshotInfo]:
        """Those of `volume`, or all; by volume, oldest first; the newest `limit` of them."""
        query = _query(volume=volume, prefix=prefix, limit=limit)
        return _list(SnapshotInfo, self._call("GET", "/v1/snapshots", query=query))

    def snapshot(self, volume: str, name: str) -> SnapshotInfo:
        return from_json(SnapshotInfo, self._call("GET", _snapshot_path(volume, name)))

    def create_snapshot(
        self, name: str, volumes: Sequence[str], *, pinned: bool = False, sync: bool = False
    ) -> list[SnapshotInfo]:
        """One of each volume, all at one instant."""
        body = {"name": name, "volumes": list(volumes), "pinned": pinned, "sync": sync}
        return _list(SnapshotInfo, self._call("POST", "/v1/snapshots", body=body))

    def pin_snapshot(self, volume: str, name: str, pinned: bool) -> SnapshotInfo:
        path = _snapshot_path(volume, name)
        return from_json(SnapshotInfo, self._call("PATCH", path, body={"pinned": pinned}))

    def delete_snapshot(self, volume: str, name: str, *, force: bool = False) -> None:
        self._call("DELETE", _snapshot_path(volume, name), query=_query(force=force))

    def schedule(self, volume: str) -> ScheduleInfo | None:
        found = self._call("GET", _path(volume, "schedule"))
        return None if found is None else from_json(ScheduleInfo, found)

    def set_schedule(self, volume: str, every_s: int, keep: str) -> ScheduleInfo:
        body = {"every_s": every_s, "keep": keep}
        return from_json(ScheduleInfo, self._call("PUT", _path(volume, "schedule"), body=body))

    def clear_schedule(self, volume: str) -> None:
        self._call("DELETE", _path(volume, "schedule"))

    # -- versions

    def version_log(self, volume: str, *, limit: int = 50, writes: bool = False) -> VersionLog:
        query = _query(limit=limit, writes=writes)
        return from_json(VersionLog, self._long("GET", _path(volume, "log"), query=query))

    def history(self, volume: str) -> HistoryPolicy:
        return from_json(HistoryPolicy, self._call("GET", _path(volume, "history")))

    def set_history(
        self, volume: str, *, window_s: int | None = None, keep: str | None = None
    ) -> HistoryPolicy:
        """None leaves that part as it is."""
        body = {"window_s": window_s, "keep": keep}
        return from_json(HistoryPolicy, self._call("PATCH", _path(volume, "history"), body=body))

    def restore_volume(self, volume: str, to: str, *, force: bool = False) -> RestoreInfo:
        """`to` is a ref of `volume` without its name."""
        body = {"to": to, "force": force}
        return from_json(RestoreInfo, self._long("POST", _path(volume, "restore"), body=body))

    def clone_volume(self, source: str, name: str, *, alone: bool = False) -> VolumeInfo:
        """`source` is vol@ref, or vol for its head. `alone`: of this node, whoever has that."""
        body = {"source": source, "name": name, "alone": alone}
        return from_json(VolumeInfo, self._long("POST", "/v1/clones", body=body))

    def diff(self, old: str, new: str, *, limit: int | None = None) -> VersionDiff:
        """Refs as of `clone_volume`; the first `limit` extents, or all."""
        query = _query(old=old, new=new, limit=limit)
        return from_json(VersionDiff, self._long("GET", "/v1/diff", query=query))

    # -- the store

    def space(self, volume: str | None = None) -> SpaceReport:
        """The rows of `volume`, or of all; the sums are of the whole store."""
        query = _query(volume=volume)
        return from_json(SpaceReport, self._long("GET", "/v1/space", query=query))

    def gc_status(self) -> "GcStatus":
        from volume.gc import GcStatus

        return from_json(GcStatus, self._call("GET", "/v1/gc"))

    def collect(self, *, dry_run: bool = False) -> "GcReport":
        """Run gc to its end, or find out what it would do."""
        from volume.gc import GcReport

        return from_json(GcReport, self._long("POST", "/v1/gc", body={"dry_run": dry_run}))

    def scrub_status(self) -> ScrubInfo:
        return from_json(ScrubInfo, self._call("GET", "/v1/scrub"))

    def start_scrub(self) -> ScrubInfo:
        """Check everything from the beginning; returns at once."""
        return from_json(ScrubInfo, self._call("POST", "/v1/scrub"))

    def stop_scrub(self) -> ScrubInfo:
        """The pass that goes on takes its time from now on."""
        return from_json(ScrubInfo, self._call("DELETE", "/v1/scrub"))

    def damage_locations(self, *, limit: int = 1000) -> DamageLocations:
        """What the damage that scrub knows of hits; the first `limit` places."""
        query = _query(limit=limit)
        return from_json(DamageLocations, self._long("GET", "/v1/scrub/hit", query=query))

    # -- streams

    @contextmanager
    def send(
        self, source: str, base: str | None = None, resume: str | None = None
    ) -> Iterator[Iterator[bytes]]:
        """The stream of a version, while the block runs. One without its end frame was broken
        off by the daemon; its last frame, and the daemon's log, say why."""
        query = _query(source=source, base=base, resume=resume)
        with self._stream("/v1/stream", query=query) as pieces:
            yield pieces

    @contextmanager
    def backup_meta(self) -> Iterator[Iterator[bytes]]:
        """The bytes of a copy of meta/, while the block runs."""
        with self._stream("/v1/meta-backup") as pieces:
            yield pieces

    def receive(self, name: str, pieces: Iterable[bytes]) -> VolumeInfo:
        """Send a stream's bytes, to be volume `name`; waits for `pieces` as long as they take."""
        path = _receive_path(name)
        made = self._call("POST", path, content=pieces, timeout_s=STREAM_TIMEOUT_S)
        return from_json(VolumeInfo, made)

    def receives(self) -> list[ReceiveInfo]:
        return _list(ReceiveInfo, self._call("GET", "/v1/receive"))

    def abort_receive(self, name: str) -> None:
        self._call("DELETE", _receive_path(name))

    # -- the daemon

    def status(self) -> NodeStatus:
        return from_json(NodeStatus, self._call("GET", "/v1/status"))

    def connections(self) -> list[ConnectionInfo]:
        return _list(ConnectionInfo, self._call("GET", "/v1/connections"))

    def disconnect(self, client_id: str) -> Disconnected:
        """End a connection or session; returns when it is gone."""
        if not _in_path(client_id):
            raise NoSuchClient(client_id or '""')
        path = "/v1/clients/" + quote(client_id, safe="")
        return from_json(Disconnected, self._call("DELETE", path))

    def disconnect_all(self, volume: str) -> Disconnected:
        """The same of all clients of `volume`, or of one of its versions (vol@version)."""
        return from_json(
            Disconnected, self._call("DELETE", "/v1/clients", query=_query(volume=volume))
        )

    # -- cluster

    def cluster(self) -> ClusterInfo:
        return from_json(ClusterInfo, self._call("GET", "/v1/cluster"))

    def cluster_status(self) -> ClusterStatus:
        return from_json(ClusterStatus, self._call("GET", "/v1/cluster/status"))

    def ways(self, name: str) -> AttachInfo:
        return from_json(AttachInfo, self._call("GET", _path(name) + "/ways"))

    def create_cluster_volume(self, name: str, size: int, **options: int | str) -> ClusterVolume:
        """`options`: replicas, write_quorum, mode, block_size, chunk_size."""
        body = {"name": name, "size": size, **options}
        return from_json(ClusterVolume, self._call("POST", "/v1/cluster/volumes", body=body))

    def move_volume(self, name: str, node: str) -> MovedVolume:
        path = f"/v1/cluster/volumes/{quote(name, safe='')}/move"
        return from_json(MovedVolume, self._call("POST", path, body={"node": node}))

    def cluster_devices(self) -> DeviceList:
        return from_json(DeviceList, self._call("GET", "/v1/cluster/devices"))

    def change_device(self, action: str, device: str, other: str | None = None) -> DeviceList:
        """`action`: drain, return, fail, remove, replace."""
        body = {"action": action, "device": device, "other": other}
        return from_json(DeviceList, self._call("POST", "/v1/cluster/devices", body=body))

    def rebuild_stripe_rows(self, *, force: bool, dry_run: bool) -> RebuiltRows:
        body = {"force": force, "dry_run": dry_run}
        path = "/v1/cluster/stripes/rebuild-rows"
        return from_json(RebuiltRows, self._call("POST", path, body=body))

    def lost_stripes(self) -> LostStripes:
        return from_json(LostStripes, self._call("GET", "/v1/cluster/stripes/lost"))

    def give_up_stripes(self, packs: Sequence[str] | None, *, dry_run: bool = False) -> LostStripes:
        """None: all that are lost."""
        body = {"packs": "all" if packs is None else list(packs), "dry_run": dry_run}
        path = "/v1/cluster/stripes/give-up"
        return from_json(LostStripes, self._call("POST", path, body=body))

    def make_token(self, ttl_s: int) -> TokenInfo:
        body = {"ttl_s": ttl_s}
        return from_json(TokenInfo, self._call("POST", "/v1/cluster/tokens", body=body))

    def replace_member(self, name: str, old: str, new: str | None) -> ReplacedMember:
        path = f"/v1/cluster/volumes/{quote(name, safe='')}/members"
        return from_json(ReplacedMember, self._call("POST", path, body={"old": old, "new": new}))

    def remove_node(self, name: str, *, lost: bool = False) -> None:
        self._call("DELETE", _node_path(name), query=_query(lost=lost))

    def drain_node(self, name: str) -> Draining:
        return from_json(Draining, self._call("PUT", _node_path(name) + "/drain"))

    def undrain_node(self, name: str) -> Draining:
        return from_json(Draining, self._call("DELETE", _node_path(name) + "/drain"))

    def draining(self, name: str) -> Draining:
        return from_json(Draining, self._call("GET", _node_path(name) + "/drain"))

    # -- iSCSI

    def sessions(self) -> list[SessionInfo]:
        return _list(SessionInfo, self._call("GET", "/v1/sessions"))

    def targets(self, *, automatic: bool = True) -> list[TargetInfo]:
        """By name; `automatic`: those that volumes have by themselves, too."""
        query = _query(automatic=automatic)
        return _list(TargetInfo, self._call("GET", "/v1/targets", query=query))

    def target(self, name: str) -> TargetInfo:
        return from_json(TargetInfo, self._call("GET", _target_path(name)))

    def create_target(
        self, name: str, *, alias: str = "", redirect: str | None = None, luns: Sequence[str] = ()
    ) -> TargetInfo:
        """`luns`: volumes or vol@version, from LUN 0 on."""
        body = {"name": name, "alias": alias, "redirect": redirect, "luns": list(luns)}
        return from_json(TargetInfo, self._call("POST", "/v1/targets", body=body))

    def change_target(
        self, name: str, *, alias: str | None = None, redirect: str | None = None
    ) -> TargetInfo:
        """None leaves that part as it is, "" clears it."""
        body = {"alias": alias, "redirect": redirect}
        return from_json(TargetInfo, self._call("PATCH", _target_path(name), body=body))

    def delete_target(self, name: str, *, force: bool = False) -> None:
        self._call("DELETE", _target_path(name), query=_query(force=force))

    def add_lun(self, name: str, source: str, lun: int | None = None) -> LunInfo:
        body = {"source": source, "lun": lun}
        return from_json(LunInfo, self._call("POST", _target_path(name, "luns"), body=body))

    def remove_lun(self, name: str, lun: int) -> None:
        self._call("DELETE", _target_path(name, "luns", str(lun)))

    def add_acl(self, name: str, entry: str) -> TargetInfo:
        """An initiator's name, its beginning and *, or a network."""
        body = {"entry": entry}
        return from_json(TargetInfo, self._call("POST", _target_path(name, "acl"), body=body))

    def remove_acl(self, name: str, entry: str) -> TargetInfo:
        query = _query(entry=entry)
        return from_json(TargetInfo, self._call("DELETE", _target_path(name, "acl"), query=query))

    def set_chap(self, name: str, user: str, secret: str, *, mutual: bool = False) -> TargetInfo:
        body = {"user": user, "secret": secret, "mutual": mutual}
        return from_json(TargetInfo, self._call("PUT", _target_path(name, "chap"), body=body))

    def clear_chap(self, name: str, user: str | None = None, *, mutual: bool = False) -> TargetInfo:
        """Of `user`, of the target itself (`mutual`), or all of it."""
        query = _query(user=user, mutual=mutual)
        return from_json(TargetInfo, self._call("DELETE", _target_path(name, "chap"), query=query))

    # -- inside

    def _long(self, method: str, path: str, **options: Any) -> Any:
        """A call that walks trees or packs, or waits for its turn to."""
        return self._call(method, path, timeout_s=LONG_TIMEOUT_S, **options)

    def _call(self, method: str, path: str, **options: Any) -> Any:
        with self._failures(method, path), self._asked(method, path, **options) as response:
            self.server_ms = _server_ms(response)
            return _answer(response)

    @contextmanager
    def _stream(self, path: str, **options: Any) -> Iterator[Iterator[bytes]]:
        options["timeout_s"] = STREAM_TIMEOUT_S
        with self._failures("GET", path), self._asked("GET", path, **options) as response:
            if not response.success:
                _answer(response)  # raises
            yield response.pieces()

    def _asked(
        self, method: str, path: str, *, timeout_s: float | None = None, **options: Any
    ) -> AbstractContextManager[Response]:
        return exchange(self._path, method, path, timeout_s=timeout_s or self._timeout_s, **options)

    @contextmanager
    def _failures(self, method: str, path: str) -> Iterator[None]:
        """Turns failures to talk to the daemon into errors of our own."""
        try:
            yield
        except Unreachable as error:
            raise _no_daemon(self._path) from error
        except TransferError as error:
            raise ApiError(
                "control_failed",
                f"control socket {self._path}: {method} {path}: {error}; "
                "the daemon's log may say why",
            ) from error


def _server_ms(response: Response) -> dict[str, float]:
    """What the Server-Timing headers say: milliseconds by name."""
    found = {}
    for entry in response.header("server-timing").split(","):
        name, _, duration = entry.strip().partition(";dur=")
        with suppress(ValueError):
            found[name] = float(duration)
    return found


def _answer(response: Response) -> Any:
    """The decoded body of a success. Raises ApiError otherwise."""
    content = response.read()
    if response.success:
        return json.loads(content) if content else None
    try:
        error = json.loads(content)["error"]
        code, message = str(error["code"]), str(error["message"])
    except (ValueError, KeyError, TypeError):
        code, message = "http_error", f"HTTP status {response.status}: is this blockd?"
    raise ApiError(code, message)


def _list(cls: type[T], items: list[Any]) -> list[T]:
    return [from_json(cls, item) for item in items]


def _query(**values: str | int | None) -> dict[str, str]:
    """Parameters of a request; None is left out."""
    texts = {}
    for name, value in values.items():
        if value is not None:
            texts[name] = str(value).lower() if isinstance(value, bool) else str(value)
    return texts


def _path(name: str, *more: str) -> str:
    """The address of volume `name`, or of something of it. NoSuchVolume: no URL carries it."""
    if not _in_path(name):  # names that a URL cannot carry cannot exist either
        raise NoSuchVolume(name or '""')
    return "/".join(["/v1/volumes", *(quote(part, safe="") for part in (name, *more))])


def _target_path(name: str, *more: str) -> str:
    if not _in_path(name):
        raise NoSuchTarget(name or '""')
    return "/".join(["/v1/targets", *(quote(part, safe="") for part in (name, *more))])


def _snapshot_path(volume: str, name: str) -> str:
    if not _in_path(name):
        raise NoSuchVersion(volume, name or '""')
    return _path(volume, "snapshots", name)


def _receive_path(name: str) -> str:
    if not _in_path(name):
        raise NoSuchVolume(name or '""')
    return "/v1/receive/" + quote(name, safe="")


def _node_path(name: str) -> str:
    if not _in_path(name):
        raise NoSuchNode(name or '""')
    return "/v1/cluster/nodes/" + quote(name, safe="")


def _in_path(name: str) -> bool:
    return bool(name) and "/" not in name and name not in (".", "..")


def _probe(path: Path, timeout_s: float) -> None:
    """Raises NoDaemon, which tells the reasons apart."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(timeout_s)
        try:
            probe.connect(os.fspath(path))
        except PermissionError as error:
            raise NoDaemon(
                f"control socket {path}: permission denied; it is for the user that runs the "
                "daemon, so become that user (or root)"
            ) from error
        except OSError as error:
            raise _no_daemon(path) from error


def _no_daemon(path: Path) -> NoDaemon:
    return NoDaemon(
        f"no daemon answers on {path}; start one with `blockd serve`, or name its socket with "
        "--control or BLOCKD_CONTROL"
    )
