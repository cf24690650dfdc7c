"""`blockd top`: what volumes do, again and again; on a terminal in its place, else line by line."""

import enum
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Protocol

import typer

from blockd.cli.options import ControlOption, JsonOption, connect
from blockd.cli.output import print_json, print_table, table
from blockd.cli.rates import Scrape, VolumeRates, between, parse
from blockd.cli.times import duration
from blockd.sizes import format_size

if TYPE_CHECKING:
    from rich.console import Console

COLUMNS = (
    *("VOLUME", "READ/S", "WRITE/S", "READ", "WRITTEN", "P50", "P99"),
    *("IN FLIGHT", "CLIENTS", "ERRORS/S", "NOT DESTAGED"),
)
NARROW = (*COLUMNS[:3], "P99", "CLIENTS")
NARROW_BELOW = 100  # columns of a terminal, which the wide table would not fit in
LINES_AROUND = 6  # of a screen, that are no volumes


class SortKey(enum.StrEnum):
    IOPS = "iops"
    BANDWIDTH = "bandwidth"
    LATENCY = "latency"
    NAME = "name"


_KEYS: dict[SortKey, Callable[[VolumeRates], float | str]] = {
    SortKey.IOPS: lambda each: -each.iops,
    SortKey.BANDWIDTH: lambda each: -each.bandwidth,
    SortKey.LATENCY: lambda each: -(each.p99_s or 0.0),
    SortKey.NAME: lambda each: each.volume,
}


def top(
    interval: Annotated[
        float, typer.Option(min=0.1, max=3600.0, metavar="SECONDS", help="Between two looks.")
    ] = 2.0,
    sort: Annotated[SortKey, typer.Option(help="What comes first.")] = SortKey.IOPS,
    once: Annotated[
        bool, typer.Option("--once", help="Look over one interval, print it, and end.")
    ] = False,
    control: ControlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what volumes do now: requests, bytes, latency, clients. Ctrl-C ends it.

    P50 and P99 are those of reads and writes, as the upper bounds of powers of two.
    With --json, or when the output is no terminal, it prints one document or table a look.
    """
    with connect(control) as client:
        if not once and not as_json and sys.stdout.isatty():
            live(client, interval, sort)
        else:
            _printed(client, interval, sort, once=once, as_json=as_json)


class Told(Protocol):
    """What is asked again and again."""

    def metrics(self) -> str: ...


def _look(client: Told) -> Scrape:
    return parse(client.metrics(), time.monotonic())


def _sorted(rates: Sequence[VolumeRates], sort: SortKey) -> list[VolumeRates]:
    return sorted(sorted(rates, key=lambda each: each.volume), key=_KEYS[sort])


def _printed(client: Told, interval: float, sort: SortKey, *, once: bool, as_json: bool) -> None:
    old = _look(client)
    while True:
        time.sleep(interval)
        new = _look(client)
        rates = _sorted(between(old, new), sort)
        if as_json:
            store: dict[str, object] = {"state": new.state, **new.store}
            print_json({"store": store, "volumes": finite(rates)})
        else:
            print(summary(new))
            print_table(COLUMNS, map(_row, rates), right=COLUMNS[1:])
        sys.stdout.flush()
        if once:
            return
        old = new


def finite(rates: Sequence[VolumeRates]) -> list[dict[str, object]]:
    """JSON has no infinity: a latency beyond the last bucket is told as null."""
    return [
        {key: None if value == math.inf else value for key, value in asdict(each).items()}
        for each in rates
    ]


def live(client: Told, interval: float, sort: SortKey, console: "Console | None" = None) -> None:
    """Draw until Ctrl-C, or until the client fails. `console`: the terminal, if not stdout's."""
    from rich.console import Console, Group
    from rich.live import Live
    from rich.text import Text

    console = console or Console()
    old = _look(client)
    with Live(Text("looking ..."), console=console, screen=True, auto_refresh=False) as screen:
        while True:
            time.sleep(interval)
            new = _look(client)
            size = console.size
            shown = NARROW if size.width < NARROW_BELOW else COLUMNS
            rates = _sorted(between(old, new), sort)
            rows = [
                [cell for name, cell in zip(COLUMNS, _row(each), strict=True) if name in shown]
                for each in rates[: max(1, size.height - LINES_AROUND)]
            ]
            more = len(rates) - len(rows)
            screen.update(
                Group(
                    Text(summary(new)),
                    table(shown, rows, right=shown[1:]),
                    Text(f"{more} more volumes" if more > 0 else ""),
                ),
                refresh=True,
            )
            old = new


def summary(scrape: Scrape) -> str:
    """The store on one line."""
    store = scrape.store
    fill = store["journal_bytes"] / max(store["journal_limit_bytes"], 1.0)
    parts = [
        f"store {scrape.state}",
        f"journal {fill:.0%}, oldest write {duration(store['destage_lag_seconds'])}",
        f"space left {format_size(int(store['space_left_bytes']))}",
    ]
    parts += ["gc runs"] if store["gc_running"] else []
    if store["scrub_running"]:
        parts.append(f"scrub {store['scrub_progress_ratio']:.0%}")
    if store["scrub_damage"]:
        parts.append(f"{store['scrub_damage']:.0f} DAMAGED")
    return " | ".join(parts)


def _row(rates: VolumeRates) -> tuple[str, ...]:
    return (
        rates.volume,
        f"{rates.read_iops:,.0f}",
        f"{rates.write_iops:,.0f}",
        f"{format_size(int(rates.read_bandwidth))}/s",
        f"{format_size(int(rates.write_bandwidth))}/s",
        _latency(rates.p50_s),
        _latency(rates.p99_s),
        str(rates.in_flight),
        str(rates.clients),
        f"{rates.errors:,.1f}",
        format_size(rates.hot_bytes),
    )


def _latency(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    if seconds == math.inf:
        return "over 17 s"
    if seconds < 1e-3:
        return f"{seconds * 1e6:.0f} us"
    return f"{seconds * 1e3:.1f} ms" if seconds < 1.0 else f"{seconds:.1f} s"
