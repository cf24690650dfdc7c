"""Serving metrics: a route of the control API, and a server of its own for Prometheus."""

import asyncio

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from blockd.api.node import Node
from blockd.metrics.catalog import families
from blockd.metrics.definition import PREFIX
from blockd.metrics.facts import Facts, gather

PATH = "/metrics"


class _Told(Collector):
    """The metrics of one scrape."""

    def __init__(self, facts: Facts) -> None:
        self._facts = facts

    def collect(self) -> list[Metric]:
        return list(families(self._facts))


class Scrapes:
    """Answers the scrapes of one server, one at a time: a second one waits, so that any number of
    them takes no more than one thread."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._turn = asyncio.Lock()

    async def answer(self, request: Request) -> Response:
        """In the text format, or in OpenMetrics where the scraper asks for it."""
        async with self._turn:
            facts = await gather(self._node)
            encode, kind = choose_encoder(request.headers.get("accept", ""))
            body = await asyncio.to_thread(lambda: encode(_registry(facts)))
        return Response(body, media_type=kind)


def _registry(facts: Facts) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(_Told(facts))
    ProcessCollector(namespace=PREFIX.removesuffix("_"), registry=registry)
    return registry


def create_app(scrapes: Scrapes) -> Starlette:
    """For a listener that has nothing but metrics."""

    async def index(_: Request) -> Response:
        return PlainTextResponse(f"blockd: metrics are at {PATH}\n")

    return Starlette(routes=[Route("/", index), Route(PATH, scrapes.answer)])
