"""/v1/snapshots, and what belongs to one volume: its snapshots by name, and their schedule.

Names of snapshots have no "/" and no "@", so they go into paths; any other version (a time, a seq,
a commit) is a ref and goes into queries and bodies, see `blockd.api.versions`.
"""

import asyncio
import time
from dataclasses import replace
from typing import Annotated

from fastapi import APIRouter, Query, Response
from pydantic import BaseModel, ConfigDict, Field

from blockd.api.node import Node, Store
from blockd.api.streaming import streamed_list
from volume.errors import WouldWait
from volume.model import ScheduleInfo, SnapshotInfo
from volume.snapshots import checked_schedule

MAX_GROUP = 1024  # volumes of one snapshot; all their writers wait for the one instant
QUICK_GROUP = 16  # volumes that are named on the event loop: some 0.2 ms, and 0.03 for each more


class SnapshotCreate(BaseModel):
    """One name for the states of one or more volumes at one instant."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: str
    volumes: list[str] = Field(min_length=1, max_length=MAX_GROUP)
    pinned: bool = Field(default=False, description="Only deleted by force.")
    sync: bool = Field(
        default=False,
        description="Answer when it survives a power cut; otherwise that follows by itself.",
    )


class SnapshotChange(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    pinned: bool


class ScheduleChange(BaseModel):
    """Snapshots that the store makes and removes by itself."""

    model_config = ConfigDict(extra="forbid", strict=True)

    every_s: int
    keep: str = Field(description="What stays, as 24h,7d,4w.")


def router(node: Node) -> APIRouter:
    routes = APIRouter(tags=["snapshots"])
    _add_snapshots(routes, node.store)
    _add_one_snapshot(routes, node.store)
    _add_schedule(routes, node)
    return routes


def _add_snapshots(routes: APIRouter, store: Store) -> None:
    @routes.get("/snapshots", response_model=list[SnapshotInfo])
    async def list_snapshots(
        volume: Annotated[str | None, Query(description="Those of one volume.")] = None,
        prefix: Annotated[str, Query(description="Whose names begin so.")] = "",
        limit: Annotated[int | None, Query(ge=1, description="The newest so many.")] = None,
    ) -> Response:
        """Snapshots by volume, then oldest first. The answer is streamed."""
        found = await asyncio.to_thread(store.snapshots.all, volume, prefix=prefix, limit=limit)
        return streamed_list(found, SnapshotInfo)

    @routes.post("/snapshots", status_code=201)
    async def create_snapshot(body: SnapshotCreate, response: Response) -> list[SnapshotInfo]:
        def create(*, wait: bool = True) -> tuple[list[SnapshotInfo], float]:
            began = time.perf_counter()
            made = store.snapshots.create(
                *(body.name, body.volumes), pinned=body.pinned, sync=body.sync, wait=wait
            )
            return made, (time.perf_counter() - began) * 1e3

        try:
            if body.sync or len(body.volumes) > QUICK_GROUP:
                raise WouldWait()
            # Two tenths of a millisecond here; a thread would wait for the interpreter lock again
            # and again while clients keep the loop busy, and the snapshot with it.
            made, took_ms = create(wait=False)
        except WouldWait:
            made, took_ms = await asyncio.to_thread(create)
        response.headers["server-timing"] = f"create;dur={took_ms:.3f}"
        return made


def _add_one_snapshot(routes: APIRouter, store: Store) -> None:
    path = "/volumes/{volume}/snapshots/{name}"

    @routes.get(path)
    async def show_snapshot(volume: str, name: str) -> SnapshotInfo:
        return await asyncio.to_thread(store.snapshots.get, volume, name)

    @routes.patch(path)
    async def pin_snapshot(volume: str, name: str, body: SnapshotChange) -> SnapshotInfo:
        await asyncio.to_thread(store.snapshots.pin, volume, name, body.pinned)
        return await asyncio.to_thread(store.snapshots.get, volume, name)

    @routes.delete(path, status_code=204)
    async def delete_snapshot(
        volume: str,
        name: str,
        force: Annotated[bool, Query(description="Delete it even if it is pinned.")] = False,
    ) -> None:
        await asyncio.to_thread(store.snapshots.delete, volume, name, force=force)


def _add_schedule(routes: APIRouter, node: Node) -> None:
    store = node.store
    path = "/volumes/{volume}/schedule"

    def share(volume: str, every_s: int, keep: str) -> bool:
        cluster = node.cluster
        return cluster is not None and cluster.settings.share(
            volume, lambda old: replace(old, schedule_s=every_s, schedule_keep=keep)
        )

    @routes.get(path)
    async def show_schedule(volume: str) -> ScheduleInfo | None:
        """null when the volume has none."""
        return await asyncio.to_thread(store.snapshots.schedule, volume)

    @routes.put(path)
    async def set_schedule(volume: str, body: ScheduleChange) -> ScheduleInfo:
        def schedule() -> ScheduleInfo:
            keep = checked_schedule(body.every_s, body.keep)
            if not share(volume, body.every_s, keep):
                return store.snapshots.set_schedule(volume, body.every_s, keep)
            made = store.snapshots.schedule(volume)
            assert made is not None
            return made

        return await asyncio.to_thread(schedule)

    @routes.delete(path, status_code=204)
    async def clear_schedule(volume: str) -> None:
        """The snapshots that it made stay until they are deleted."""

        def clear() -> None:
            if not share(volume, 0, ""):
                store.snapshots.clear_schedule(volume)

        await asyncio.to_thread(clear)
