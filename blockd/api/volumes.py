"""/v1/volumes: list, create, show, resize, rename, delete. Sizes are bytes."""

import asyncio
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field, model_validator

from blockd.api.node import Node
from blockd.registry.errors import VolumeIsLun
from volume.model import DEFAULT_BLOCK_SIZE, DEFAULT_CHUNK_SIZE, VolumeInfo

Compression = Literal["none", "lz4", "zstd", "igzip"]


class VolumeCreate(BaseModel):
    """A new volume; it takes no space until it is written."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: str
    size: int
    block_size: int = DEFAULT_BLOCK_SIZE
    chunk_size: int = DEFAULT_CHUNK_SIZE
    compression: Compression | None = Field(
        default=None, description="Codec of its chunks; null: the store's default."
    )
    closed: bool = Field(
        default=False, description="With an access list that lets nobody in, from the beginning."
    )


class VolumeChange(BaseModel):
    """A new size or a new name: one of them, so that the change is all or nothing."""

    model_config = ConfigDict(extra="forbid", strict=True)

    size: int | None = None
    name: str | None = None
    force: bool = Field(default=False, description="Shrink even though data is cut off.")

    @model_validator(mode="after")
    def _one_change(self) -> "VolumeChange":
        if (self.size is None) == (self.name is None):
            raise ValueError("give either size or name")
        if self.name is not None and self.force:
            raise ValueError("force goes with size only")
        return self


def router(node: Node) -> APIRouter:
    routes = APIRouter(prefix="/volumes", tags=["volumes"])
    store = node.store

    @routes.get("")
    async def list_volumes() -> list[VolumeInfo]:
        return await asyncio.to_thread(store.volumes)

    @routes.post("", status_code=201)
    async def create_volume(body: VolumeCreate) -> VolumeInfo:
        options: dict[str, Any] = {"block_size": body.block_size, "chunk_size": body.chunk_size}
        if body.compression is not None:
            options["compression"] = body.compression
        make = partial(store.create_volume, body.name, body.size, **options)
        if body.closed:
            return await node.access.create_closed(body.name, make)
        return await asyncio.to_thread(make)

    @routes.get("/{name}")
    async def show_volume(name: str) -> VolumeInfo:
        return await asyncio.to_thread(store.info, name)

    @routes.patch("/{name}")
    async def change_volume(name: str, body: VolumeChange) -> VolumeInfo:
        if body.size is not None:
            return await asyncio.to_thread(store.resize_volume, name, body.size, force=body.force)
        new_name = body.name
        assert new_name is not None

        def rename() -> VolumeInfo:
            if node.cluster is not None and node.cluster.settings.rename(name, new_name):
                return store.info(new_name)
            return store.rename_volume(name, new_name)

        return await asyncio.to_thread(rename)

    @routes.delete("/{name}", status_code=204)
    async def delete_volume(
        name: str,
        force: Annotated[
            bool,
            Query(description="Even while attached, with its snapshots, and as a target's unit."),
        ] = False,
    ) -> None:
        if not force and (users := _targets_of(node, name)):
            raise VolumeIsLun(name, users)
        device = store.get(name) if name else None
        cluster = node.cluster
        if cluster is not None and await asyncio.to_thread(
            cluster.volumes.delete, name, force=force
        ):
            return
        await asyncio.to_thread(store.delete_volume, name, force=force)
        if device is not None:
            await asyncio.to_thread(node.rate_limits.forget, device)
            await node.access.forget(device)

    return routes


def _targets_of(node: Node, volume: str) -> list[str]:
    """Names of the targets that somebody made the volume, or a version of it, a unit of."""
    device = node.store.get(volume) if volume else None
    if device is None:
        return []
    uuid = device.volume_uuid.hex()
    return [
        each.stored.name
        for each in node.targets.configured()
        if any(lun.volume == uuid for lun in each.stored.luns)
    ]
