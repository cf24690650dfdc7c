"""Client of the control API, for the CLI and other tools on the same machine.

Raises NoDaemon when nothing answers on the socket, ApiError with the daemon's own code and message
when it refuses. httpx is imported when a client is made: commands that need none start quicker.
"""

import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from blockd.api.types import ConnectionInfo, NodeStatus, from_json
from volume.errors import NoSuchVolume
from volume.model import VolumeInfo

if TYPE_CHECKING:
    import httpx

TIMEOUT_S = 60.0  # a change waits for a checkpoint or a full disk queue at worst


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
        import httpx

        self._path = path
        self._http = httpx.Client(
            transport=httpx.HTTPTransport(uds=str(path)),
            base_url="http://blockd",
            timeout=timeout_s,
        )

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *exc: object) -> None:
        self._http.close()

    def volumes(self) -> list[VolumeInfo]:
        return [from_json(VolumeInfo, item) for item in self._call("GET", "/v1/volumes")]

    def volume(self, name: str) -> VolumeInfo:
        return from_json(VolumeInfo, self._call("GET", _path(name)))

    def create_volume(self, name: str, size: int, **options: int) -> VolumeInfo:
        body = {"name": name, "size": size, **options}
        return from_json(VolumeInfo, self._call("POST", "/v1/volumes", json=body))

    def resize_volume(self, name: str, size: int, *, force: bool = False) -> VolumeInfo:
        body = {"size": size, "force": force}
        return from_json(VolumeInfo, self._call("PATCH", _path(name), json=body))

    def rename_volume(self, name: str, new_name: str) -> VolumeInfo:
        return from_json(VolumeInfo, self._call("PATCH", _path(name), json={"name": new_name}))

    def delete_volume(self, name: str, *, force: bool = False) -> None:
        self._call("DELETE", _path(name), params={"force": str(force).lower()})

    def status(self) -> NodeStatus:
        return from_json(NodeStatus, self._call("GET", "/v1/status"))

    def connections(self) -> list[ConnectionInfo]:
        return [from_json(ConnectionInfo, item) for item in self._call("GET", "/v1/connections")]

    def _call(self, method: str, path: str, **options: Any) -> Any:
        import httpx

        try:
            response = self._http.request(method, path, **options)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise _no_daemon(self._path) from error
        except httpx.HTTPError as error:
            raise ApiError(
                "control_failed",
                f"control socket {self._path}: {method} {path}: "
                f"{str(error) or type(error).__name__}; the daemon's log may say why",
            ) from error
        return _answer(response)


def _answer(response: "httpx.Response") -> Any:
    """The decoded body of a success. Raises ApiError otherwise."""
    if response.is_success:
        return response.json() if response.content else None
    try:
        error = response.json()["error"]
        code, message = str(error["code"]), str(error["message"])
    except (ValueError, KeyError, TypeError):
        code, message = "http_error", f"HTTP status {response.status_code}: is this blockd?"
    raise ApiError(code, message)


def _path(name: str) -> str:
    """The address of volume `name`. Names that a URL cannot carry cannot exist either."""
    if not name or "/" in name or name in (".", ".."):
        raise NoSuchVolume(name or '""')
    return "/v1/volumes/" + quote(name, safe="")


def _probe(path: Path, timeout_s: float) -> None:
    """Raises NoDaemon. Quicker than to load httpx first, and tells the reasons apart."""
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
