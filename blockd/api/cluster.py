"""/v1/cluster: the nodes of the cluster, tokens for those that are to join, and the way out."""

import asyncio

from fastapi import APIRouter
from pydantic import BaseModel, Field

from blockd.api.node import Cluster, Node
from blockd.api.types import ClusterInfo, NoCluster, TokenInfo

MIN_TTL_S = 60
MAX_TTL_S = 30 * 86400


class NewToken(BaseModel):
    """`ttl_s`: how long it can be used."""

    ttl_s: int = Field(3600, ge=MIN_TTL_S, le=MAX_TTL_S)


def router(node: Node) -> APIRouter:
    routes = APIRouter(tags=["cluster"])

    def cluster() -> Cluster:
        if node.cluster is None:
            raise NoCluster
        return node.cluster

    @routes.get("/cluster")
    async def show() -> ClusterInfo:
        """All nodes, as this one knows them."""
        return await asyncio.to_thread(cluster().info)

    @routes.post("/cluster/tokens", status_code=201)
    async def make_token(body: NewToken) -> TokenInfo:
        """Let one more node join, once; it is noted in etcd, without its secret."""
        return await asyncio.to_thread(cluster().make_token, body.ttl_s)

    @routes.delete("/cluster/nodes/{name}", status_code=204)
    async def remove(name: str) -> None:
        """Take a node out: it is cut off within seconds. Refused while volumes have it."""
        await asyncio.to_thread(cluster().remove, name)

    return routes
