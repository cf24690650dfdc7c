"""What each codec costs and saves: .venv/bin/python scripts/benchmark/codecs.py [--help].

First the kernels alone, chunk by chunk as the store calls them, on four kinds of data. Then reads
through a real daemon, one data directory for each codec with the same volume in it, in interleaved
rounds beside qemu-nbd on the raw file. The tables go into docs/benchmarks.md.
"""

import argparse
import os
import random
import shutil
import sqlite3
import subprocess
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import report
from cells import CELLS, Cell, Sample, measure
from servers import RAW, SERVERS, Running, Server, fill_volume

import native
from volume.codecs import CODEC_NAMES, CODEC_NONE, MAX_STORED_PERCENT

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "benchmarks.md"
BEGIN = "<!-- scripts/benchmark/codecs.py writes from here -->"
END = "<!-- codecs to here -->"
MIB = 1 << 20
CODECS = [codec for codec in CODEC_NAMES if codec != CODEC_NONE]
READS = (
    CELLS["randread-32"],
    Cell("randread-32-hot", "randread", "4k", 32, size=8 * MIB),
    Cell("read-4k", "read", "4k", 32),
    CELLS["read-1m"],
)


# -- data


def text(folder: Path, length: int) -> bytes:
    """Headers and Python sources, one after the other."""
    data = bytearray()
    for root in ("/usr/include", "/usr/lib/python3", "/usr/lib/python3.11"):
        for path in sorted(Path(root).rglob("*")):
            if path.suffix in (".h", ".py") and path.is_file() and not path.is_symlink():
                data += path.read_bytes()
            if len(data) >= length:
                return bytes(data[:length])
    return bytes(data)


def file_system(folder: Path, length: int) -> bytes:
    """An ext4 image filled up with /usr/share: texts, tables, fonts, compressed files."""
    tree, left = folder / "tree", length * 3 // 4
    for path in sorted(Path("/usr/share").rglob("*")):
        if path.is_symlink() or not path.is_file():
            continue
        left -= path.stat().st_size + 4096
        if left < 0:
            break
        copy = tree / path.relative_to("/usr/share")
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    image = folder / "image"
    environment = {**os.environ, "PATH": os.environ["PATH"] + ":/usr/sbin:/sbin"}
    command = ["mkfs.ext4", "-q", "-d", str(tree), str(image), f"{length // MIB}m"]
    subprocess.run(command, check=True, env=environment)
    shutil.rmtree(tree)
    data = image.read_bytes()
    image.unlink()
    return data


def database(folder: Path, length: int) -> bytes:
    """Pages of an SQLite table: numbers, times, names, hashes, and an index."""
    path, generator = folder / "database", random.Random(1)
    names = [f"{first}{last}" for first in ("ann", "bob", "eve") for last in range(900)]
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA journal_mode = OFF")
        connection.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, at REAL, who, n, hash, note)")
        connection.execute("CREATE INDEX i ON t (who, at)")
        at = 1.7e9
        while path.stat().st_size < length:
            rows = []
            for _ in range(20_000):
                at += generator.random()
                note = " ".join(generator.choices(names, k=generator.randrange(6)))
                row = (at, generator.choice(names), generator.randrange(1000))
                rows.append((*row, generator.randbytes(16), note))
            connection.executemany("INSERT INTO t VALUES (NULL, ?, ?, ?, ?, ?)", rows)
            connection.commit()
    connection.close()
    data = path.read_bytes()[:length]
    path.unlink()
    return data


def noise(folder: Path, length: int) -> bytes:
    """What is compressed or encrypted already."""
    return random.Random(2).randbytes(length)


DATA: dict[str, Callable[[Path, int], bytes]] = {
    "text": text,
    "ext4 image": file_system,
    "database": database,
    "random": noise,
}


# -- the kernels


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one codec on one kind of data. Rates are raw bytes per second."""

    stored: float
    """Part of the raw bytes, zero chunks left out; chunks that save too little count as raw."""
    packed: float
    """Part of the chunks that were worth packing."""
    encode: float
    decode: float


def chunks_of(data: bytes, chunk_size: int) -> Iterator[bytes]:
    for at in range(0, len(data) - chunk_size + 1, chunk_size):
        chunk = data[at : at + chunk_size]
        if not native.is_zero(chunk):
            yield chunk


def kernel_figures(codec: int, data: bytes, chunk_size: int) -> Figures:
    chunks = list(chunks_of(data, chunk_size))
    capacity = chunk_size * MAX_STORED_PERCENT // 100
    began = time.thread_time()
    stored = [native.encode(codec, chunk, capacity) for chunk in chunks]
    encoded = time.thread_time()
    count = 0
    for packed in stored:
        if packed is not None:
            native.decode(codec, packed, chunk_size)
            count += 1
    decoded = time.thread_time()
    raw = len(chunks) * chunk_size
    return Figures(
        stored=sum(len(packed or chunk) for packed, chunk in zip(stored, chunks, strict=True))
        / raw,
        packed=count / len(chunks),
        encode=raw / (encoded - began),
        decode=count * chunk_size / (decoded - encoded) if count else 0.0,
    )


def kernel_lines(data: dict[str, bytes], chunk_size: int) -> list[str]:
    lines = [
        f"### Kernels, chunks of {chunk_size >> 10} KiB, one thread",
        "",
        "| data | codec | stored | chunks packed | encode GB/s | decode GB/s | decode us/chunk |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, content in data.items():
        runs: dict[int, list[Figures]] = defaultdict(list)
        for _ in range(3):
            for codec in CODECS:
                runs[codec].append(kernel_figures(codec, content, chunk_size))
        for codec in CODECS:
            best = max(run.decode for run in runs[codec])
            rate = f"{best / 1e9:.2f} | {chunk_size / best * 1e6:.0f}" if best else "- | -"
            lines.append(
                f"| {name} | {CODEC_NAMES[codec]} | {runs[codec][0].stored:.1%} "
                f"| {runs[codec][0].packed:.0%} "
                f"| {max(run.encode for run in runs[codec]) / 1e9:.2f} | {rate} |"
            )
    return [*lines, ""]


# -- the daemon


def servers_of(folder: Path, raw: Path) -> list[tuple[Server, Path]]:
    """qemu-nbd on the raw file, and blockd for each codec, each with a folder of its own."""
    qemu, blockd = SERVERS[0], SERVERS[-1]
    found = []
    for name in (None, *CODEC_NAMES.values()):
        own = folder / (name or "qemu")
        own.mkdir()
        os.link(raw, own / RAW)
        server = qemu
        if name is not None:
            config = own / "blockd.toml"
            config.write_text(f'[store]\ncompression = "{name}"\n')
            server = replace(
                blockd,
                name=f"blockd {name}",
                command=lambda where, port, config=config: [
                    *blockd.command(where, port),
                    *("--config", str(config)),
                ],
            )
            fill_volume(server, own)
        found.append((server, own))
    return found


def daemon_lines(
    servers: list[tuple[Server, Path]], rounds: int, seconds: int
) -> Iterator[list[str]]:
    samples: dict[tuple[str, str], list[Sample]] = defaultdict(list)
    for number in range(rounds):
        first = number % len(servers)
        for server, own in servers[first:] + servers[:first]:
            with Running(server, own) as running:
                for cell in READS:
                    samples[server.name, cell.name].append(measure(cell, running, seconds, own))
        print(f"round {number + 1} of {rounds} done", flush=True)
    baseline = "blockd none"
    for cell in READS:
        lines = [
            f"### {cell.title}",
            "",
            f"| server | IOPS | to qemu-nbd | to {baseline} | server CPU us/request | RSS MiB |",
            "| --- | ---: | ---: | ---: | ---: | ---: |",
        ]
        for server, _ in servers:
            own_samples = samples[server.name, cell.name]
            ratios = [
                median(
                    a.iops / b.iops
                    for a, b in zip(own_samples, samples[other, cell.name], strict=True)
                )
                for other in (servers[0][0].name, baseline)
            ]
            errors = sum(sample.errors for sample in own_samples)
            lines.append(
                f"| {server.name}{f' ({errors} errors)' if errors else ''} "
                f"| {median(s.iops for s in own_samples):,.0f} | {ratios[0]:.2f} | {ratios[1]:.2f} "
                f"| {median(s.cpu_us for s in own_samples):.1f} "
                f"| {median(s.resident_bytes for s in own_samples) / MIB:,.0f} |"
            )
        yield [*lines, ""]


def pack_bytes(own: Path) -> int:
    return sum(path.stat().st_size for path in (own / "blockd" / "packs").iterdir())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size-mib", type=int, default=96, help="of each kind of data")
    parser.add_argument("--rounds", type=int, default=3, help="through the daemon; 0: none")
    parser.add_argument("--seconds", type=int, default=3, help="of each cell")
    parser.add_argument("--folder", type=Path, default=ROOT / "build", help="where the files go")
    parser.add_argument("--dry", action="store_true", help="print, leave the page alone")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="codecs-", dir=options.folder))
    try:
        data = {name: make(folder, options.size_mib * MIB) for name, make in DATA.items()}
        lines: list[str] = []
        if options.rounds:
            raw = folder / RAW  # what can be packed; noise is raw with every codec
            raw.write_bytes(b"".join(data[name] for name in DATA if name != "random"))
            servers = servers_of(folder, raw)
            lines += report.facts(
                [server for server, _ in servers[:2]],
                raw.stat().st_size,
                options.rounds,
                options.seconds,
            )
            sizes = [
                f"{name} {pack_bytes(folder / name) / MIB:,.0f} MiB"
                for name in CODEC_NAMES.values()
            ]
            lines += [f"The volume's packs: {', '.join(sizes)}.", ""]
        for chunk_size in (4096, 65536, MIB):
            lines += kernel_lines(data, chunk_size)
        if options.rounds:
            for table in daemon_lines(servers, options.rounds, options.seconds):
                lines += table
    finally:
        shutil.rmtree(folder)
    if options.dry:
        print("\n".join(lines))
    else:
        report.write(PAGE, lines, begin=BEGIN, end=END)
        print(f"written to {PAGE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
