"""/v1/volumes/NAME/limits: how much the clients of a volume may ask for per second."""

import asyncio
from dataclasses import replace

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from blockd.api.limit_types import (
    DEFAULT_BURST_S,
    MAX_BURST_S,
    MAX_RATE,
    MIN_BURST_S,
    LimitsStatus,
    VolumeLimits,
)
from blockd.api.node import Node


class LimitsChange(BaseModel):
    """All limits of a volume; what is left out is none."""

    model_config = ConfigDict(extra="forbid", strict=True)

    iops: int = Field(default=0, ge=0, le=MAX_RATE, description="Reads and writes; 0: no limit.")
    bandwidth: int = Field(default=0, ge=0, le=MAX_RATE, description="Bytes, read and written.")
    read_iops: int = Field(default=0, ge=0, le=MAX_RATE)
    write_iops: int = Field(default=0, ge=0, le=MAX_RATE)
    read_bandwidth: int = Field(default=0, ge=0, le=MAX_RATE)
    write_bandwidth: int = Field(default=0, ge=0, le=MAX_RATE)
    burst_s: float = Field(
        default=DEFAULT_BURST_S,
        ge=MIN_BURST_S,
        le=MAX_BURST_S,
        description="After a pause, as much as is due in this time may come at once; seconds.",
    )


def router(node: Node) -> APIRouter:
    routes = APIRouter(prefix="/volumes/{name}/limits", tags=["volumes"])

    @routes.get("")
    async def show_limits(name: str) -> LimitsStatus:
        return node.rate_limits.get(name)

    @routes.put("")
    async def set_limits(name: str, body: LimitsChange) -> LimitsStatus:
        wanted = VolumeLimits(**body.model_dump())

        def change() -> None:
            cluster = node.cluster
            if cluster is None or not cluster.settings.share(
                name, lambda old: replace(old, limits=wanted)
            ):
                node.rate_limits.set(name, wanted)

        await asyncio.to_thread(change)
        return node.rate_limits.get(name)

    return routes
