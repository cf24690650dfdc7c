"""/v1/space: where the disk's bytes are, by volume and version; /v1/gc: what frees them."""

import asyncio
from dataclasses import replace
from typing import Annotated

from fastapi import APIRouter, Query, Response
from pydantic import BaseModel, ConfigDict, Field

from blockd.api.node import Node, Store
from blockd.api.streaming import streamed_object
from blockd.api.threads import LongCalls
from volume.gc import GcReport, GcStatus
from volume.model import SpaceReport


class GcRun(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    dry_run: bool = Field(default=False, description="Only find out what a run would do.")


def router(node: Node) -> APIRouter:
    routes = APIRouter(tags=["space"])
    _add_space(routes, node.store)
    _add_gc(routes, node.store)
    return routes


def _add_space(routes: APIRouter, store: Store) -> None:
    count = LongCalls()

    @routes.get("/space", response_model=SpaceReport)
    async def show_space(
        volume: Annotated[str | None, Query(description="The rows of one volume.")] = None,
    ) -> Response:
        """Exact, by a walk of every tree; the sums are of the whole store. Streamed."""
        return streamed_object(await count(_report, store, volume), "rows")


def _add_gc(routes: APIRouter, store: Store) -> None:
    run = LongCalls()

    @routes.get("/gc")
    async def show_gc() -> GcStatus:
        return await asyncio.to_thread(store.gc_status)

    @routes.post("/gc")
    async def run_gc(body: GcRun) -> GcReport:
        """Answers when the run is over."""
        return await run(store.collect, dry_run=body.dry_run)


def _report(store: Store, volume: str | None) -> SpaceReport:
    if volume is None:
        return store.space()
    store.info(volume)  # raises NoSuchVolume before the walk
    report = store.space()
    return replace(
        report,
        rows=tuple(row for row in report.rows if row.volume == volume),
        volumes=tuple(each for each in report.volumes if each[0] == volume),
    )
