"""/v1/meta-backup: a copy of meta/, which names what is in the data directory.

It is a stream of bytes, so that who asks for it decides where it is kept: the daemon may write to
its data directory only, and a copy beside the original is of little use.
"""

import os
from collections.abc import Iterator
from typing import IO

from fastapi import APIRouter
from fastapi.responses import StreamingResponse

from blockd.api.node import Node
from blockd.api.threads import LongCalls

PIECE_BYTES = 256 * 1024
MEDIA_TYPE = "application/octet-stream"


def router(node: Node) -> APIRouter:
    routes = APIRouter(tags=["backup"])
    store = node.store
    copy = LongCalls()

    @routes.get("/meta-backup", response_class=StreamingResponse)
    async def backup_meta() -> StreamingResponse:
        """A copy of meta/ as it is at one moment, checked, and marked as a copy."""
        file = await copy(store.backup_meta)
        length = file.seek(0, os.SEEK_END)
        file.seek(0)
        return StreamingResponse(
            _pieces(file), media_type=MEDIA_TYPE, headers={"content-length": str(length)}
        )

    return routes


def _pieces(file: IO[bytes]) -> Iterator[bytes]:
    with file:
        while piece := file.read(PIECE_BYTES):
            yield piece
