"""/v1/connections: who is connected over NBD, and what they did; /v1/clients: end connections and
iSCSI sessions (/v1/sessions has these).

A client may connect again at once: who must not is kept out by access lists, or by the volume.
"""

import asyncio
from typing import Annotated

from fastapi import APIRouter, Query

from blockd.api.node import Node
from blockd.api.types import ConnectionInfo, Disconnected, NoSuchClient


def router(node: Node) -> APIRouter:
    routes = APIRouter(tags=["connections"])

    @routes.get("/connections")
    async def list_connections() -> list[ConnectionInfo]:
        return node.connections()

    @routes.delete("/clients/{client_id}")
    async def disconnect(client_id: str) -> Disconnected:
        """Answers when it is gone: what is in flight is finished first, for some seconds. iSCSI
        initiators are asked to log out."""
        done = await node.disconnect(client_id)
        if done is None:
            raise NoSuchClient(client_id)
        return Disconnected((client_id,), () if done else (client_id,))

    @routes.delete("/clients")
    async def disconnect_all(
        volume: Annotated[
            str, Query(description="Whose; with @version, the clients of that version only.")
        ],
    ) -> Disconnected:
        """The same for all that have a volume open, or one of its versions; all at once."""
        await asyncio.to_thread(node.store.info, volume.partition("@")[0])
        ids = clients_of(node, volume)
        done = await asyncio.gather(*map(node.disconnect, ids))
        ended = [each for each in zip(ids, done, strict=True) if each[1] is not None]
        return Disconnected(
            tuple(client_id for client_id, _ in ended),
            tuple(client_id for client_id, clean in ended if not clean),
        )

    return routes


def clients_of(node: Node, name: str) -> list[str]:
    """The ids of all that have volume `name` open, or one of its versions; with vol@version, that
    version only."""

    def meant(opened: str) -> bool:
        return name in (opened, opened.partition("@")[0])

    found = [each.id for each in node.connections() if each.export and meant(each.export)]
    return found + [each.id for each in node.sessions() if any(map(meant, each.volumes))]
