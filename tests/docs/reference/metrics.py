"""docs/reference/metrics.md: the table of blockd.metrics.catalog."""

from blockd.metrics.catalog import DEFINITIONS
from tests.docs.reference.markdown import code, page, table

INTRODUCTION = """\
`/metrics` is on the control socket, and wherever `[metrics] listen` or `--metrics HOST:PORT` says,
in the text format of Prometheus or, where the scraper asks for it, OpenMetrics. Beside what stands
below there are the metrics of the process (`blockd_process_...`). Counters begin at 0 with the
daemon. A volume has its requests here once a client has opened it; requests for its past versions
count for the volume.

`packaging/prometheus` has alert rules with their unit tests and an example of a configuration,
`packaging/grafana/blockd.json` is a dashboard."""


def page_text() -> str:
    rows = [
        (code(each.exposed), each.kind, ", ".join(map(code, each.labels)), each.help)
        for each in DEFINITIONS
    ]
    return page(
        "Metrics",
        "blockd/metrics/catalog.py",
        INTRODUCTION,
        table(("metric", "kind", "labels", "what"), rows),
    )
