"""/v1/scrub: how far the check of all that is stored is, what it found, and what that hits."""

import asyncio
from itertools import islice
from typing import Annotated

from fastapi import APIRouter, Query

from blockd.api.node import Node, Store
from blockd.api.threads import LongCalls
from blockd.api.types import DamageInfo, DamageLocation, DamageLocations, ScrubInfo
from volume.scrub import ScrubStatus

MAX_LOCATIONS = 10_000  # in one answer; one damaged node of a much-cloned volume hits millions
DEFAULT_LOCATIONS = 1000


def router(node: Node) -> APIRouter:
    routes = APIRouter(prefix="/scrub", tags=["scrub"])
    store = node.store
    locate = LongCalls()

    @routes.get("")
    async def show_scrub() -> ScrubInfo:
        return await asyncio.to_thread(_status, store)

    @routes.post("")
    async def start_scrub() -> ScrubInfo:
        """From the beginning; answers at once."""
        await asyncio.to_thread(store.start_scrub)
        return await asyncio.to_thread(_status, store)

    @routes.delete("")
    async def stop_scrub() -> ScrubInfo:
        """What is being checked goes on without hurry."""
        await asyncio.to_thread(store.stop_scrub)
        return await asyncio.to_thread(_status, store)

    @routes.get("/hit")
    async def show_locations(
        limit: Annotated[int, Query(ge=1, le=MAX_LOCATIONS)] = DEFAULT_LOCATIONS,
    ) -> DamageLocations:
        """What of which volumes and versions cannot be read; walks their trees."""
        return await locate(_locations, store, limit)

    return routes


def _status(store: Store) -> ScrubInfo:
    found: ScrubStatus = store.scrub_status()
    return ScrubInfo(
        running=found.running,
        requested=found.requested,
        progress=found.progress,
        scanned_bytes=found.scanned_bytes,
        total_bytes=found.total_bytes,
        started_ns=found.started_ns,
        finished_ns=found.finished_ns,
        next_ns=found.next_ns,
        damage_count=found.damage_count,
        damages=tuple(
            DamageInfo(
                pack=damage.pack,
                offset=damage.offset,
                chunk=None if damage.chunk_id is None else damage.chunk_id.hex(),
                what=damage.what,
            )
            for damage in found.damages
        ),
    )


def _locations(store: Store, limit: int) -> DamageLocations:
    found = [
        DamageLocation(
            name=location.name,
            offset=location.offset,
            length=location.length,
            chunk=location.chunk_id.hex(),
            what=location.what,
        )
        for location in islice(store.damage_locations(), limit + 1)
    ]
    return DamageLocations(tuple(found[:limit]), more=len(found) > limit)
