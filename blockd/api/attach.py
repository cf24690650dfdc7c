"""/v1/volumes/NAME/ways: where clients attach a volume, on all nodes that have it."""

import asyncio

from fastapi import APIRouter

from blockd.api.cluster_types import AttachInfo, WayInfo
from blockd.api.node import Node
from blockd.iscsi_attach import target_of
from blockd.paths import WayState


def router(node: Node) -> APIRouter:
    routes = APIRouter(prefix="/volumes", tags=["volumes"])

    @routes.get("/{name}/ways")
    async def ways(name: str) -> AttachInfo:
        """Addresses of NBD and iSCSI on each node that has the volume, and what a client finds
        there now, as far as the node that is asked knows."""
        info = await asyncio.to_thread(node.store.info, name)
        status = node.node_status(await asyncio.to_thread(node.store.status))
        cluster = node.cluster
        found = () if cluster is None else cluster.paths.ways(bytes.fromhex(info.uuid))
        shown = [
            WayInfo(each.node, each.here, each.state.value, each.nbd, each.iscsi) for each in found
        ]
        if not shown:
            device = node.store.get(info.name)
            away = device is not None and getattr(device, "elsewhere", None) is not None
            state = WayState.STANDBY if away else WayState.SERVING
            shown = [WayInfo("", True, state.value, status.nbd, status.iscsi)]
        target = target_of(info.name) if status.auto_targets and status.iscsi else ""
        return AttachInfo(info.name, target, status.tls == "require", tuple(shown))

    return routes
