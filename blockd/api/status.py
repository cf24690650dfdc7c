"""/v1/status: the node and its data directory; /v1/health: a yes or no for supervisors."""

import asyncio

from fastapi import APIRouter, Response
from pydantic import BaseModel

from blockd.api.node import Node
from blockd.api.types import NodeStatus


class Health(BaseModel):
    """`state` is that of the store; only "sealed" is unhealthy, as a restart must look at it."""

    healthy: bool
    state: str
    reason: str | None


def router(node: Node) -> APIRouter:
    routes = APIRouter(tags=["status"])

    @routes.get("/status")
    async def status() -> NodeStatus:
        """The daemon, its data directory, and how many clients are connected."""
        return node.node_status(await asyncio.to_thread(node.store.status))

    @routes.get("/health", responses={503: {"model": Health}})
    async def health(response: Response) -> Health:
        """For supervisors: 200, or 503 when the data directory is sealed."""
        store = await asyncio.to_thread(node.store.status)
        healthy = store.state != "sealed"
        if not healthy:
            response.status_code = 503
        return Health(healthy=healthy, state=store.state, reason=store.reason)

    return routes
