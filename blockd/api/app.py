"""The control API as an ASGI application: routers, error bodies, the bound on requests."""

import logging
import time
from typing import Any

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from blockd.api import (
    access,
    attach,
    backup,
    cluster,
    cluster_devices,
    cluster_stripes,
    cluster_volumes,
    connections,
    errors,
    limits,
    scrub,
    snapshots,
    space,
    status,
    targets,
    transfer,
    versions,
    volumes,
)
from blockd.api.node import Node
from blockd.metrics import app as metrics

logger = logging.getLogger(__name__)

READING = frozenset(("GET", "HEAD", "OPTIONS"))
MAX_BODY_BYTES = 64 * 1024  # the longest sensible request, a name and a few numbers, takes 300


def create_app(node: Node, version: str) -> FastAPI:
    """The API of `node`; requests are served on the event loop that runs it."""
    default: dict[int | str, dict[str, Any]] = {"default": {"model": errors.ErrorBody}}
    app = FastAPI(
        title="blockd control API",
        version=version,
        openapi_url="/v1/openapi.json",
        docs_url=None,  # the pages would load scripts from the network
        redoc_url=None,
    )
    errors.install(app)
    app.add_middleware(Boundary)
    for noun in (
        volumes,
        attach,
        limits,
        access,
        snapshots,
        versions,
        space,
        transfer,
        backup,
        scrub,
        status,
        connections,
        targets,
        cluster,
        cluster_devices,
        cluster_stripes,
        cluster_volumes,
    ):
        app.include_router(noun.router(node), prefix="/v1", responses=default)
    app.add_route(metrics.PATH, metrics.Scrapes(node).answer)  # no part of /v1: not JSON
    return app


class Boundary:
    """The layer around the routes: requests larger than the bound end here, and so do our own bugs.

    A bug is logged once, with its traceback, and answered with 500; the daemon goes on serving.
    What may have changed something is logged when it is over, with who asked for it.
    Answers say how long they took (Server-Timing), so that a slow caller can be told from a slow
    daemon.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        started = False
        began = time.perf_counter()
        stream = _is_stream(scope)
        status = 0

        async def sending(message: Message) -> None:
            nonlocal started, status
            if message["type"] == "http.response.start":
                status = message["status"]
            if stream and message["type"] == "http.response.start":
                # The rest of the body, as long as it may be, would be read and thrown away.
                message["headers"] = [*message.get("headers", ()), (b"connection", b"close")]
            if message["type"] == "http.response.start":
                took = f"app;dur={(time.perf_counter() - began) * 1e3:.3f}".encode()
                message["headers"] = [*message.get("headers", ()), (b"server-timing", took)]
            started = True
            await send(message)

        try:
            if not stream:
                if _declared_length(scope) > MAX_BODY_BYTES:
                    raise _too_large()
                receive = _bounded(receive)
            await self._app(scope, receive, sending)
        except ClientDisconnect:
            pass  # in the middle of its request: nobody is left to be answered
        except HTTPException as error:
            status = error.status_code
            response = errors.error_response(status, "body_too_large", error.detail)
            await response(scope, receive, send)
        except Exception:  # the request's task ends here
            logger.exception("request crashed", extra={"path": scope["path"]})
            if not started:
                status = 500
                message = "the daemon failed on this request; its log has the details"
                response = errors.error_response(500, "internal_error", message)
                await response(scope, receive, send)
        finally:
            if scope["method"] not in READING:
                _log_change(scope, status)


def _log_change(scope: Scope, status: int) -> None:
    """The path tells what it was about; bodies and queries may have secrets."""
    peer = scope.get("client")
    facts = {
        "method": scope["method"],
        "path": scope["path"],
        "status": status or "none",  # the caller has left
        "peer": peer[0] if peer else "unknown",
    }
    logger.info("control request", extra=facts)


def _is_stream(scope: Scope) -> bool:
    """Whether the body is as long as it likes and is not held anywhere."""
    path: str = scope["path"]
    return scope["method"] == "POST" and path.startswith("/v1/receive/")


def _declared_length(scope: Scope) -> int:
    for name, value in scope["headers"]:
        if name == b"content-length":
            return int(value)  # h11 has checked that it is a number
    return 0


def _bounded(receive: Receive) -> Receive:
    """`receive` that refuses to go on after MAX_BODY_BYTES, for bodies of undeclared length."""
    length = 0

    async def receiving() -> Message:
        nonlocal length
        message = await receive()
        length += len(message.get("body", b""))
        if length > MAX_BODY_BYTES:
            raise _too_large()
        return message

    return receiving


def _too_large() -> HTTPException:
    return HTTPException(413, f"the request's body is longer than {MAX_BODY_BYTES} bytes")
