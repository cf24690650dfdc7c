"""/v1/cluster/status and /v1/cluster/volumes: volumes that several nodes have."""

import asyncio
from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel, Field

from blockd.api.cluster_types import ClusterStatus, ClusterVolume, MovedVolume, ReplacedMember
from blockd.api.node import Node, cluster_of
from volume.metastore_records import MAX_MEMBERS, Mode
from volume.model import DEFAULT_BLOCK_SIZE, DEFAULT_CHUNK_SIZE


class NewVolume(BaseModel):
    """`replicas`: R; `write_quorum`: W, by default more than half of them."""

    name: str
    size: int = Field(gt=0)
    block_size: int = DEFAULT_BLOCK_SIZE
    chunk_size: int = DEFAULT_CHUNK_SIZE
    replicas: int = Field(3, ge=1, le=MAX_MEMBERS)
    write_quorum: int | None = Field(None, ge=1, le=MAX_MEMBERS)
    mode: Literal["mirror", "strict"] = "mirror"


class Move(BaseModel):
    """`node`: name or id of a member."""

    node: str


class Replacement(BaseModel):
    """Names or ids of nodes; without `new` the one with the fewest volumes comes."""

    old: str
    new: str | None = None


def router(node: Node) -> APIRouter:
    routes = APIRouter(tags=["cluster"])

    @routes.get("/cluster/status")
    async def status() -> ClusterStatus:
        """Nodes and volumes, as found out by asking all members now."""
        return await asyncio.to_thread(cluster_of(node).volumes.status)

    @routes.post("/cluster/volumes", status_code=201)
    async def create(body: NewVolume) -> ClusterVolume:
        """Make a volume that `replicas` nodes have, and open it."""
        quorum = body.write_quorum or body.replicas // 2 + 1
        sizes = (body.size, body.block_size, body.chunk_size)
        made, mode = cluster_of(node).volumes.create, Mode(body.mode)
        return await asyncio.to_thread(made, body.name, sizes, body.replicas, quorum, mode)

    @routes.post("/cluster/volumes/{name}/move")
    async def move(name: str, body: Move) -> MovedVolume:
        """Have another member serve the volume; asked of the node that serves it now."""
        return await asyncio.to_thread(cluster_of(node).volumes.move, name, body.node)

    @routes.post("/cluster/volumes/{name}/members", status_code=202)
    async def replace_member(name: str, body: Replacement) -> ReplacedMember:
        """Have another node come in the place of a member; the status shows how it goes on."""
        volumes = cluster_of(node).volumes
        return await asyncio.to_thread(volumes.replace_member, name, body.old, body.new)

    return routes
