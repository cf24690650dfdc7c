"""What a soak tells: a line each minute (a table on a terminal), and a summary in Markdown."""

import time
from typing import TYPE_CHECKING, Self

from growth import MiB
from rich.console import Console
from rich.live import Live
from rich.table import Table

from blockd.api.client import ApiError, NoDaemon

if TYPE_CHECKING:
    from __main__ import Soak

LINE_S = 60.0
COLUMNS = ("time", "operations", "versions", "kills", "verified", "memory", "files", "threads")
ROWS = 20


class Progress:
    """A context manager. Lines go to stdout."""

    def __init__(self, seconds: float) -> None:
        self._console = Console()
        self._every_s = min(LINE_S, seconds / 4)
        self._next_s = time.monotonic() + self._every_s
        self._rows: list[tuple[str, ...]] = []
        self._live = Live(console=self._console, auto_refresh=False)

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._console.is_terminal:
            self._live.stop()

    def tick(self, soak: "Soak") -> None:
        if time.monotonic() >= self._next_s:
            self._next_s = time.monotonic() + self._every_s
            self.line(soak)

    def line(self, soak: "Soak") -> None:
        values = figures(soak)
        if not self._console.is_terminal:
            print("  ".join(f"{k} {v}" for k, v in zip(COLUMNS, values, strict=True)), flush=True)
            return
        self._rows = [*self._rows, values][-ROWS:]
        table = Table(*COLUMNS)
        for row in self._rows:
            table.add_row(*row)
        self._live.update(table, refresh=True)


def figures(soak: "Soak") -> tuple[str, ...]:
    try:
        taken = soak.server.sample()
        versions = str(soak.server.daemon.store().lsn)
        process = (f"{taken.anonymous_bytes / MiB:.1f} MiB", str(taken.files), str(taken.threads))
    except (AssertionError, OSError, NoDaemon, ApiError):  # it has ended
        versions, process = "-", ("-", "-", "-")
    return (
        f"{time.monotonic() - soak.began:.0f} s",
        str(soak.recorder.count),
        versions,
        str(soak.server.kills),
        f"{sum(guest.bytes for guest in soak.guests) / MiB:.0f} MiB",
        *process,
    )


def summary(soak: "Soak", judged: str) -> str:
    """For docs/reliability.md."""
    longest = soak.longest
    memory, files, threads = longest.rises()
    most = [sample for life in soak.server.lives for sample in life.samples]
    done = ", ".join(f"{count} {what}" for what, count in sorted(soak.administrator.done.items()))
    guests = "; ".join(
        f"`{guest.name}` {guest.turns} passes, {guest.bytes / MiB:.0f} MiB" for guest in soak.guests
    )
    connections = soak.clients.connections if soak.clients else 0
    rows = [
        ("Time", f"{time.monotonic() - soak.began:.0f} s, {soak.server.kills} kill -9"),
        ("Recorded clients", f"{connections} connections; {judged}"),
        ("Verified by fio (NBD) and qemu-io (iSCSI)", guests),
        ("Administrator", done or "nothing"),
    ]
    if most:
        rows += [
            (
                "Most in use",
                f"{max(s.anonymous_bytes for s in most) / MiB:.1f} MiB anonymous memory, "
                f"{max(s.files for s in most)} files, {max(s.threads for s in most)} threads",
            ),
            (
                f"Rise over the longest life ({longest.seconds:.0f} s), by its straight line",
                f"{memory / MiB:+.2f} MiB, {files:+.1f} files, {threads:+.1f} threads",
            ),
        ]
    rows.append(("Verdict", "ok" if not soak.findings else f"{len(soak.findings)} findings"))
    table = ["| Soak | |", "| --- | --- |", *(f"| {what} | {text} |" for what, text in rows)]
    return "\n".join([*table, *(f"\n- {finding}" for finding in soak.findings)])
