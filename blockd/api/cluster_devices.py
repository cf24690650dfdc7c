"""/v1/cluster/devices: disks of the cluster, and what is done to them."""

import asyncio
from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel

from blockd.api.cluster_types import DeviceList
from blockd.api.node import Node, cluster_of


class DeviceAct(BaseModel):
    """`device`: an id, the beginning of one, or the name of a node that has one device; `other`:
    the same, of the device that takes the place of a replaced one."""

    action: Literal["drain", "return", "fail", "remove", "replace"]
    device: str
    other: str | None = None


def router(node: Node) -> APIRouter:
    routes = APIRouter(tags=["cluster"])

    @routes.get("/cluster/devices")
    async def show() -> DeviceList:
        """All devices, and what is on each."""
        return await asyncio.to_thread(cluster_of(node).devices.list)

    @routes.post("/cluster/devices")
    async def act(body: DeviceAct) -> DeviceList:
        """Change what a device is used for; durable on return, shards move after that."""
        devices = cluster_of(node).devices
        return await asyncio.to_thread(devices.act, body.action, body.device, body.other)

    return routes
