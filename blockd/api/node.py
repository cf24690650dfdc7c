"""What the control API needs from the daemon around it.

`volume.store.Store` satisfies `Store`; its calls wait for disks, so routers make them in threads.
`blockd.daemon.Daemon` satisfies `Node`; its calls are quick and belong to the event loop's thread.
"""

from typing import Protocol

from blockd.api.types import ConnectionInfo, NodeStatus
from blockd.device import Exports
from volume.model import StoreStatus, VolumeInfo


class Store(Exports, Protocol):
    """A data directory with its volumes. Changes are durable on return; raises VolumeError."""

    def volumes(self) -> list[VolumeInfo]: ...
    def info(self, name: str) -> VolumeInfo: ...
    def create_volume(
        self, name: str, size: int, *, block_size: int = ..., chunk_size: int = ...
    ) -> VolumeInfo: ...
    def delete_volume(self, name: str, *, force: bool = False) -> None: ...
    def rename_volume(self, name: str, new_name: str) -> VolumeInfo: ...
    def resize_volume(self, name: str, size: int, *, force: bool = False) -> VolumeInfo: ...
    def status(self) -> StoreStatus: ...
    def close(self) -> None: ...


class Node(Protocol):
    """The daemon as its control API sees it."""

    @property
    def store(self) -> Store: ...

    def node_status(self, store: StoreStatus) -> NodeStatus:
        """The node with `store`, which the caller fetched in a thread."""

    def connections(self) -> list[ConnectionInfo]:
        """The NBD connections that are open now."""
