"""Fuzz target of the control API: any requests to the real application over a real store, and

- every request is answered once, with a whole response; nothing escapes and nothing is a bug (500);
- what is no success has the API's error body: a code and a message, in every case;
- what says it is JSON is JSON, and no answer is longer than a store this small can need.

The store is on a simulated disk and new for each input, with a volume and a snapshot in it. Threads
are taken out: calls that the application hands to threads run at once, so the same input always
does the same.

Input: requests separated by NUL bytes, each as METHOD TARGET, a line feed, and the body.
"""

import asyncio
import atexit
import json
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, cast
from unittest.mock import patch
from urllib.parse import quote, unquote

from starlette.types import ASGIApp, Message

from blockd.access.book import AccessBook
from blockd.api.app import create_app
from blockd.limits import RateLimits
from blockd.registry.targets import TargetRegistry
from tests.fake_node import FakeNode
from tests.sim.simdisk import SimDisk
from tests.sim.store_rig import StoreRig

P = ParamSpec("P")
T = TypeVar("T")

MAX_REQUESTS = 12
MAX_ANSWER = 1 << 20
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS")
UNAVAILABLE = (503, 507)  # said of the store as it is: closing, moving, full
VOLUME_BYTES = 1 << 20
_VISIBLE = "".join(map(chr, range(0x21, 0x7F)))


def api_target(data: bytes) -> None:
    """Run one input; raises when an invariant is broken."""
    site = _site()
    site.begin()
    with site.bugs.kept():
        for request in data.split(b"\0")[:MAX_REQUESTS]:
            head, _, body = request.partition(b"\n")
            method, _, target = head.decode("latin-1").partition(" ")
            method = method if method in METHODS else "GET"
            # The HTTP parser in front lets only visible ASCII through.
            site.send(method, quote(target or "/", safe=_VISIBLE), body)


class _AtOnce(ThreadPoolExecutor):
    """Runs what it is given in the caller's thread."""

    def submit(self, call: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> "Future[T]":
        future: Future[T] = Future()
        try:
            future.set_result(call(*args, **kwargs))
        except BaseException as error:
            future.set_exception(error)
        return future


class _Current:
    """Stands for the store, or the targets, of the input that is run: the application is made once
    and keeps what it was given."""

    def __init__(self) -> None:
        self.of: Any = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.of, name)


class _Node(FakeNode):
    """With stand-ins for what each input has its own of."""

    def __init__(self) -> None:
        super().__init__(Path("control.sock"))
        self.store = cast(Any, _Current())
        self.targets = cast(Any, _Current())
        self.access = cast(Any, _Current())
        self.rate_limits = cast(Any, _Current())


class _Bugs(logging.Handler):
    """Keeps what the application logs of its own bugs."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.found.append(record)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Nobody else is told meanwhile."""
        logger = logging.getLogger("blockd")
        self.found.clear()
        logger.addHandler(self)
        logger.propagate = False
        try:
            yield
        finally:
            logger.propagate = True
            logger.removeHandler(self)


class _Site:
    """The application and the loop that it runs on."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        atexit.register(self.loop.close)
        self.loop.set_default_executor(_AtOnce())
        self.node = _Node()
        with patch("blockd.api.transfer.ThreadPoolExecutor", _AtOnce):
            self.app: ASGIApp = create_app(self.node, "0")
        self.bugs = _Bugs()

    def begin(self) -> None:
        rig = StoreRig(disk=SimDisk(record=False))
        rig.tend()
        rig.store.create_volume("vm", VOLUME_BYTES)
        assert rig.write("vm", 4096, b"fuzz" * 1024) == 0
        rig.store.snapshots.create("snap", ["vm"])
        cast(Any, self.node.store).of = rig.store
        cast(Any, self.node.targets).of = TargetRegistry(rig.store)
        cast(Any, self.node.access).of = AccessBook(rig.store)
        cast(Any, self.node.rate_limits).of = RateLimits(rig.store)

    def send(self, method: str, target: str, body: bytes) -> None:
        sent = self.loop.run_until_complete(self._ask(method, target, body))
        status, headers, answer = _whole(sent)
        if status >= 500 and status not in UNAVAILABLE:
            cause = next((each.exc_info for each in self.bugs.found if each.exc_info), None)
            raise AssertionError(f"{method} {target} {body!r}: {status} {answer!r}") from (
                cause[1] if cause else None
            )
        _check_answer(method, status, headers, answer)

    async def _ask(self, method: str, target: str, body: bytes) -> list[Message]:
        path, _, query = target.partition("?")
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": unquote(path),
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "root_path": "",
            "headers": [
                (b"content-type", b"application/json"),
                (b"content-length", str(len(body)).encode()),
            ],
            "client": None,
            "server": ("control", None),
        }
        bodies: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
        sent: list[Message] = []

        async def receive() -> Message:
            if not bodies:
                await asyncio.Event().wait()  # the client stays until it is answered
            return bodies.pop()

        async def send(message: Message) -> None:
            sent.append(message)

        await self.app(scope, receive, send)
        return sent


@cache
def _site() -> _Site:
    return _Site()


def _whole(sent: list[Message]) -> tuple[int, dict[bytes, bytes], bytes]:
    """Status, headers and body of one response, which must be whole."""
    assert sent, "no answer"
    start, *rest = sent
    assert start["type"] == "http.response.start"
    assert rest
    assert all(each["type"] == "http.response.body" for each in rest)
    assert [bool(each.get("more_body")) for each in rest] == [True] * (len(rest) - 1) + [False]
    body = b"".join(each.get("body", b"") for each in rest)
    assert len(body) <= MAX_ANSWER
    return start["status"], dict(start["headers"]), body


def _check_answer(method: str, status: int, headers: dict[bytes, bytes], answer: bytes) -> None:
    if status == 204:
        assert not answer
        return
    if headers.get(b"content-type") != b"application/json":
        assert status < 400
        return
    if method == "HEAD":
        return
    value = json.loads(answer)
    if status >= 400:
        assert set(value) == {"error"}
        assert set(value["error"]) == {"code", "message"}
        assert value["error"]["code"]
        assert value["error"]["message"]
