"""The figures of all cells as one picture: IOPS to the first server, and CPU time per request."""

from collections.abc import Sequence
from pathlib import Path
from statistics import median

from cells import Cell
from report import Samples
from servers import Server


def draw(path: Path, cells: Sequence[Cell], servers: Sequence[Server], samples: Samples) -> None:
    """Two rows of bars, a group for each cell, written as SVG."""
    import matplotlib as mpl  # only where a page is written: it takes a while to load

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "blockd"  # the same figures make the same file
    import matplotlib.pyplot as plt

    baseline = servers[0].name
    rows = (
        (f"IOPS, {baseline} = 1", lambda name, cell: _iops_ratio(samples, baseline, name, cell)),
        ("server CPU us/request", lambda name, cell: _cpu(samples, name, cell)),
    )
    figure, axes = plt.subplots(
        len(rows), 1, figsize=(max(8.0, 1.5 * len(cells)), 8.0), sharex=True
    )
    width = 0.8 / len(servers)
    for axis, (title, value) in zip(axes, rows, strict=True):
        for number, server in enumerate(servers):
            places = [at + (number - (len(servers) - 1) / 2) * width for at in range(len(cells))]
            axis.bar(places, [value(server.name, cell) for cell in cells], width, label=server.name)
        axis.set_ylabel(title)
        axis.grid(axis="y", alpha=0.3)
    axes[1].set_yscale("log")
    axes[1].set_xticks(range(len(cells)), [cell.name for cell in cells], rotation=30, ha="right")
    axes[0].legend(ncols=4, fontsize="small")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _iops_ratio(samples: Samples, baseline: str, name: str, cell: Cell) -> float:
    pairs = zip(samples[name, cell.name], samples[baseline, cell.name], strict=True)
    return median(own.iops / other.iops for own, other in pairs)


def _cpu(samples: Samples, name: str, cell: Cell) -> float:
    return median(sample.cpu_us for sample in samples[name, cell.name])
