"""/v1/volumes/NAME/log, /history and /restore; /v1/clones; /v1/diff.

A ref names a version: `snapshot`, `seq:N`, `commit:HEX`, a time or an age where the volume is known
already (restore), with `vol@` in front of it elsewhere; `vol` alone is the head. Refs are in
queries and bodies only. What walks trees takes its turn, see `blockd.api.threads`.
"""

import asyncio
from dataclasses import replace
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Query, Response
from pydantic import BaseModel, ConfigDict, Field

from blockd.api.node import Node, Store
from blockd.api.streaming import streamed_object
from blockd.api.threads import LongCalls
from blockd.api.types import VersionDiff
from blockd.api.volume_settings import VolumeSettings
from blockd.device import BlockDevice
from volume import retention
from volume.errors import InvalidPolicy, NoSuchVolume, VolumeExists
from volume.model import HistoryPolicy, RestoreInfo, VersionLog, VolumeInfo

MAX_LOG = 100_000  # versions in one answer
DEFAULT_LOG = 50
MAX_WINDOW_S = (1 << 32) - 1


class Restore(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    to: str = Field(description="A ref of the same volume, without its name.")
    force: bool = Field(default=False, description="Even while clients have it attached.")


class Clone(BaseModel):
    """A new, writable volume that starts as a version of another."""

    model_config = ConfigDict(extra="forbid", strict=True)

    source: str
    name: str
    alone: bool = Field(
        default=False, description="Of this node alone, where several nodes have the source."
    )


class HistoryChange(BaseModel):
    """What is not given stays as it is."""

    model_config = ConfigDict(extra="forbid", strict=True)

    window_s: int | None = None
    keep: str | None = Field(default=None, description='As 60m,24h,7d; "" for nothing.')


def router(node: Node) -> APIRouter:
    routes = APIRouter(tags=["versions"])
    _add_log(routes, node.store)
    _add_history(routes, node)
    _add_restore(routes, node)
    _add_diff(routes, node.store)
    return routes


def _add_log(routes: APIRouter, store: Store) -> None:
    read = LongCalls()  # with writes it reads journal segments

    @routes.get("/volumes/{volume}/log", response_model=VersionLog)
    async def show_log(
        volume: str,
        limit: Annotated[int, Query(ge=1, le=MAX_LOG)] = DEFAULT_LOG,
        writes: Annotated[bool, Query(description="Single writes of the window, too.")] = False,
    ) -> Response:
        """The newest `limit` versions, newest first. The answer is streamed."""
        log = await read(store.versions.log, volume, limit=limit, writes=writes)
        return streamed_object(log, "versions")


def _add_history(routes: APIRouter, node: Node) -> None:
    store = node.store

    @routes.get("/volumes/{volume}/history")
    async def show_history(volume: str) -> HistoryPolicy:
        return await asyncio.to_thread(store.versions.policy, volume)

    @routes.patch("/volumes/{volume}/history")
    async def change_history(volume: str, body: HistoryChange) -> HistoryPolicy:
        keep = None if body.keep is None else str(retention.parse(body.keep))
        window_s = body.window_s
        if window_s is not None and not 0 <= window_s <= MAX_WINDOW_S:
            raise InvalidPolicy(f"window {window_s}s", f"give 0 to {MAX_WINDOW_S} s")

        def change(old: VolumeSettings) -> VolumeSettings:
            return replace(
                old,
                window_s=old.window_s if window_s is None else window_s,
                keep=old.keep if keep is None else keep,
            )

        def set_policy() -> HistoryPolicy:
            cluster = node.cluster
            if cluster is not None and cluster.settings.share(volume, change):
                return store.versions.policy(volume)
            return store.versions.set_policy(volume, window_s=window_s, keep=keep)

        return await asyncio.to_thread(set_policy)


def _add_restore(routes: APIRouter, node: Node) -> None:
    store = node.store

    @routes.post("/volumes/{volume}/restore")
    async def restore_volume(volume: str, body: Restore) -> RestoreInfo:
        return await asyncio.to_thread(store.versions.restore, volume, body.to, force=body.force)

    @routes.post("/clones", status_code=201)
    async def clone_volume(body: Clone) -> VolumeInfo:
        """The clone has the access list of its source, and is on the nodes that have that."""
        volume = body.source.partition("@")[0]
        source = store.get(volume) if volume else None
        if not body.alone and source is not None and node.cluster is not None:
            sizes = await asyncio.to_thread(store.versions.sizes, body.source)
            make_empty = partial(node.cluster.volumes.create_like, volume, body.name, sizes)
            if await asyncio.to_thread(make_empty):
                return await _begun(node, source, body, sizes[0])
        make = partial(store.versions.clone, body.source, body.name)
        return await node.access.clone(source, body.name, make)


async def _begun(node: Node, source: BlockDevice, body: Clone, size: int) -> VolumeInfo:
    """A clone that is on all of its nodes and empty yet: who may attach it is settled before it has
    anything to be read. After a crash the same command goes on here; a volume that was made for
    something else is left as it is."""
    access, made = node.access.list_of(source), node.store.get(body.name)
    if made is None:
        raise NoSuchVolume(body.name)
    own = node.access.list_of(made)
    if made.size != size or own not in (None, access):
        raise VolumeExists(body.name)
    if access is not None:
        await node.access.change(made, access.rules)
    return await asyncio.to_thread(node.store.versions.begin_as, body.name, body.source)


def _add_diff(routes: APIRouter, store: Store) -> None:
    compare = LongCalls()

    @routes.get("/diff", response_model=VersionDiff)
    async def show_diff(
        old: Annotated[str, Query(description="vol@ref, or vol for its head.")],
        new: Annotated[str, Query(description="The same.")],
        limit: Annotated[int | None, Query(ge=0, description="The first so many extents.")] = None,
    ) -> Response:
        """Where two versions differ. The answer is streamed."""
        diff = await compare(store.versions.diff, old, new, limit=limit)
        page = VersionDiff(
            old=diff.old,
            new=diff.new,
            old_size=diff.old_size,
            new_size=diff.new_size,
            changed_bytes=diff.changed_bytes,
            extent_count=diff.extent_count,
            extents=diff.extents,
        )
        return streamed_object(page, "extents")
