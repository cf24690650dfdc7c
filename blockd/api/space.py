"""/v1/space: where the disk's bytes are, by volume and version."""

from dataclasses import replace
from typing import Annotated

from fastapi import APIRouter, Query, Response

from blockd.api.node import Node, Store
from blockd.api.streaming import streamed_object
from blockd.api.threads import LongCalls
from volume.model import SpaceReport


def router(node: Node) -> APIRouter:
    routes = APIRouter(tags=["space"])
    count = LongCalls()

    @routes.get("/space", response_model=SpaceReport)
    async def show_space(
        volume: Annotated[str | None, Query(description="The rows of one volume.")] = None,
    ) -> Response:
        """Exact, by a walk of every tree; the sums are of the whole store. Streamed."""
        return streamed_object(await count(_report, node.store, volume), "rows")

    return routes


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
