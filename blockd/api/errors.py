"""Errors -> HTTP, once: one table from the `code` of our own errors to a status.

A code that is missing here is a fault of the daemon as far as HTTP is concerned: 500.
"""

import logging
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from blockd.access.rules import AccessError
from blockd.api.types import NoCluster, NoSuchClient
from blockd.registry.errors import TargetError
from transport.errors import TransportError
from volume.errors import VolumeError

logger = logging.getLogger(__name__)

HTTP_STATUS = {
    "no_such_volume": 404,
    "no_such_version": 404,
    "volume_exists": 409,
    "volume_busy": 409,
    "volume_has_snapshots": 409,
    "versions_busy": 409,
    "snapshot_exists": 409,
    "snapshot_pinned": 409,
    "shrink_refused": 409,
    "directory_locked": 409,
    "meta_exists": 409,
    "meta_lost": 503,
    "old_meta": 503,
    "stream_refused": 409,
    "stream_interrupted": 422,
    "invalid_stream": 422,
    "invalid_name": 422,
    "invalid_size": 422,
    "invalid_policy": 422,
    "store_sealed": 503,
    "store_closing": 503,
    "packs_moving": 503,
    "out_of_space": 507,
    "no_such_target": 404,
    "no_such_lun": 404,
    "no_such_entry": 404,
    "target_exists": 409,
    "epoch_goes_back": 409,
    "metastore_unavailable": 503,
    "target_busy": 409,
    "lun_taken": 409,
    "volume_is_lun": 409,
    "invalid_target": 422,
    "no_such_client": 404,
    "no_cluster": 409,
    "cannot_join": 409,
    "no_such_node": 404,
    "node_needed": 409,
    "invalid_rule": 422,
    "access_changed": 409,
    "cannot_make_volume": 409,
    "no_number_left": 409,
    "volume_replicated": 409,
    "not_primary": 409,
    "cannot_restore": 409,
    "mixed_group": 422,
    "not_confirmed": 503,
    "cannot_move": 409,
    "wrong_device_map": 409,
    "stripe_unavailable": 503,
    "stripe_given_up": 500,
    "cannot_replace": 409,
    "cannot_delete": 409,
    "cannot_rebuild_rows": 409,
    "cannot_give_up": 409,
}

_HTTP_CODES = {404: "not_found", 405: "method_not_allowed", 413: "body_too_large"}


class ErrorDetail(BaseModel):
    code: str
    message: str


class ErrorBody(BaseModel):
    """The body of every answer that is not a success."""

    error: ErrorDetail


def error_response(status: int, code: str, message: str) -> JSONResponse:
    return JSONResponse({"error": {"code": code, "message": message}}, status_code=status)


def install(app: FastAPI) -> None:
    """Make `app` answer its errors in the API's own shape."""

    @app.exception_handler(NoSuchClient)
    @app.exception_handler(NoCluster)
    @app.exception_handler(TransportError)
    @app.exception_handler(AccessError)
    @app.exception_handler(TargetError)
    @app.exception_handler(VolumeError)
    async def on_own_error(
        request: Request,
        error: NoSuchClient | NoCluster | AccessError | TransportError | VolumeError | TargetError,
    ) -> JSONResponse:
        status = HTTP_STATUS.get(error.code, 500)
        if status == 500:
            logger.error("request failed", extra=_fields(request, error.code, error))
        return error_response(status, error.code, str(error))

    @app.exception_handler(OSError)
    async def on_os_error(request: Request, error: OSError) -> JSONResponse:
        logger.error("request failed", extra=_fields(request, "io_error", error))
        return error_response(500, "io_error", f"the data directory failed: {error}")

    @app.exception_handler(RequestValidationError)
    async def on_invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return error_response(422, "invalid_request", _explain(error.errors()))

    @app.exception_handler(HTTPException)
    async def on_http_error(request: Request, error: HTTPException) -> JSONResponse:
        code = _HTTP_CODES.get(error.status_code, "http_error")
        # Not request.url, which has to decode the query as well, and may not be able to.
        where = f"{request.method} {request.scope['path']}: {error.detail}"
        return error_response(error.status_code, code, where)


def _fields(request: Request, code: str, error: Exception) -> dict[str, str]:
    return {
        "method": request.method,
        "path": request.scope["path"],
        "code": code,
        "reason": str(error),
    }


def _explain(errors: Sequence[Any]) -> str:
    """One line for a person from pydantic's list: `size: Input should be a valid integer`."""
    parts = []
    for error in errors:
        where = ".".join(str(part) for part in error["loc"] if part not in ("body", "query"))
        parts.append(f"{where}: {error['msg']}" if where else str(error["msg"]))
    return "; ".join(parts)
