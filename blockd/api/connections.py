"""/v1/connections: who is connected over NBD, and what they did."""

from fastapi import APIRouter

from blockd.api.node import Node
from blockd.api.types import ConnectionInfo


def router(node: Node) -> APIRouter:
    routes = APIRouter(prefix="/connections", tags=["connections"])

    @routes.get("")
    async def list_connections() -> list[ConnectionInfo]:
        return node.connections()

    return routes
