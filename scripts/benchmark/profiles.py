"""scripts/bench profile: where the daemon's CPU time goes in each cell, by perf.

Samples of all its threads by the CPU's clock (a virtual machine may have no counters), with the
kernel's and the programs' stacks. A sample belongs to the first kind below of which a frame is in
its stack, so a switch to another thread counts where the thread went to sleep.
"""

import shutil
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import report
from cells import CELLS, DEFAULT_CELLS, Cell, measure
from servers import BLOCKD, Running, make_volume, settle

BEGIN = "<!-- scripts/bench profile: from here -->"
END = "<!-- scripts/bench profile: to here -->"

HERTZ = 997
BEFORE_S = 1
"""Of the cell's job before the samples are taken."""

KINDS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("waiting", ("epoll_wait",)),
    ("handing over", ("futex", "pthread_cond")),
    ("receive", ("tcp_recvmsg", "sys_recvmsg", "sys_recvfrom")),
    ("send", ("tcp_sendmsg", "sys_sendmsg", "sys_sendto", "sock_write_iter")),
    ("fdatasync", ("do_fsync", "fdatasync")),
    ("write-behind", ("sync_file_range", "fadvise")),
    ("append", ("pwritev",)),
    ("packs", ("sys_pwrite64", "ksys_write", "sys_write")),
    ("read of files", ("preadv", "sys_pread64")),
    ("crc32c", ("crc32_iscsi",)),
    ("codecs", ("LZ4_", "ZSTD_")),
    ("BLAKE3", ("blake3",)),
    ("blockd's C", ("_native.",)),
    ("Python", ("bin/python", "libpython")),
)
REST = "rest"


def kind_of(stack: Sequence[str]) -> str:
    """Of one sample: its frames, each `symbol (object)`."""
    found = (kind for kind, marks in KINDS if any(m in frame for frame in stack for m in marks))
    return next(found, REST)


def stacks(script: Iterable[str]) -> Iterable[list[str]]:
    """Of what `perf script` prints: samples are parted by empty lines, the first line is a head."""
    stack: list[str] | None = None
    for line in script:
        text = line.strip()
        if not text:
            if stack is not None:
                yield stack
            stack = None
        elif stack is None:
            stack = []
        else:
            stack.append(text.split(" ", 1)[-1])
    if stack is not None:
        yield stack


def profile(cell: Cell, server: Running, seconds: int, folder: Path) -> Counter[str]:
    """Samples by kind, while fio runs the cell's job."""
    data = folder / "perf.data"
    job = threading.Thread(target=measure, args=(cell, server, seconds + 2 * BEFORE_S, folder))
    job.start()
    record = ["perf", "record", "-q", "-g", "-F", str(HERTZ), "-e", "cpu-clock"]
    record += ["-D", str(1000 * BEFORE_S), "-p", str(server.pid), "-o", str(data)]
    try:
        subprocess.run(
            [*record, "--", "sleep", str(BEFORE_S + seconds)], check=True, capture_output=True
        )
    finally:
        job.join()
    script = subprocess.run(
        ["perf", "script", "-i", str(data), "-F", "tid,ip,sym,dso"],
        check=True,
        capture_output=True,
        text=True,
    )
    data.unlink()
    return Counter(kind_of(stack) for stack in stacks(script.stdout.splitlines()))


def table(found: Sequence[tuple[Cell, Counter[str]]]) -> list[str]:
    """A row for each cell: percent of its samples by kind, nothing where it is less than one."""
    kinds = [*(kind for kind, _ in KINDS), REST]
    kinds = [kind for kind in kinds if any(samples[kind] for _, samples in found)]
    lines = [f"| cell | {' | '.join(kinds)} |", f"| --- |{' ---: |' * len(kinds)}"]
    for cell, samples in found:
        total = max(1, samples.total())
        shares = [round(100 * samples[kind] / total) for kind in kinds]
        cells = " | ".join(str(share) if share else "" for share in shares)
        lines.append(f"| {cell.title} | {cells} |")
    return [*lines, ""]


def main(arguments: Sequence[str], page: Path) -> None:
    parser = report.options("scripts/bench profile", __doc__, seconds=4, size_mib=1024)
    parser.add_argument("--cells", nargs="+", choices=list(CELLS), default=list(DEFAULT_CELLS))
    options = parser.parse_args(arguments)
    options.folder.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix="p-", dir=options.folder))
    found: list[tuple[Cell, Counter[str]]] = []
    try:
        make_volume(work, options.size_mib << 20)
        with Running(BLOCKD, work) as running:
            for name in options.cells:
                settle(BLOCKD, work)
                found.append((CELLS[name], profile(CELLS[name], running, options.seconds, work)))
                print(f"{CELLS[name].title} done", file=sys.stderr, flush=True)
    finally:
        shutil.rmtree(work)
    lines = [
        f"{report.machine()}; {report.version_of(BLOCKD.version)}, "
        f"{report.version_of(('fio', '--version'))}. {options.seconds} s a cell, {HERTZ} Hz, "
        f"volume of {options.size_mib} MiB; percent of the daemon's CPU time.",
        "",
        *table(found),
    ]
    if options.dry:
        print("\n".join(lines))
    else:
        report.write(page, lines, begin=BEGIN, end=END)
