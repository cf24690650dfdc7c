"""/v1/cluster: the nodes of the cluster, tokens for those that are to join, and the way out."""

import asyncio

from fastapi import APIRouter
from pydantic import BaseModel, Field

from blockd.api.cluster_types import Draining
from blockd.api.node import Node, cluster_of
from blockd.api.types import ClusterInfo, TokenInfo

MIN_TTL_S = 60
MAX_TTL_S = 30 * 86400


class NewToken(BaseModel):
    """`ttl_s`: how long it can be used."""

    ttl_s: int = Field(3600, ge=MIN_TTL_S, le=MAX_TTL_S)


def router(node: Node) -> APIRouter:
    routes = APIRouter(tags=["cluster"])

    @routes.get("/cluster")
    async def show() -> ClusterInfo:
        """All nodes, as this one knows them."""
        return await asyncio.to_thread(cluster_of(node).info)

    @routes.post("/cluster/tokens", status_code=201)
    async def make_token(body: NewToken) -> TokenInfo:
        """Let one more node join, once; it is noted in etcd, without its secret."""
        return await asyncio.to_thread(cluster_of(node).make_token, body.ttl_s)

    @routes.delete("/cluster/nodes/{name}", status_code=204)
    async def remove(name: str, lost: bool = False) -> None:
        """Take a node out: it is cut off within seconds. Refused while volumes have it as a member,
        unless it is `lost`: then each gets another one."""
        await asyncio.to_thread(cluster_of(node).remove, name, lost=lost)

    @routes.put("/cluster/nodes/{name}/drain")
    async def drain(name: str) -> Draining:
        """Have other nodes come in its place as a member of all its volumes."""
        return await asyncio.to_thread(cluster_of(node).drain, name, drain=True)

    @routes.delete("/cluster/nodes/{name}/drain")
    async def undrain(name: str) -> Draining:
        """Have no more of them do so."""
        return await asyncio.to_thread(cluster_of(node).drain, name, drain=False)

    @routes.get("/cluster/nodes/{name}/drain")
    async def draining(name: str) -> Draining:
        """What is left of its volumes."""
        return await asyncio.to_thread(cluster_of(node).draining, name)

    return routes
