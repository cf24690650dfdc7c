"""What a volume gets of its own limit while its neighbour on the same daemon is noisy.

Each volume has clients of its own: the quiet one asks, 16 requests deep, for more than its limit
lets go on, the noisy one writes 64 KiB, 64 deep, as fast as it may. In each round the quiet one is
measured alone, beside a noisy neighbour without a limit, and beside one with a limit. Over NBD it
is fio that asks; over iSCSI it is qemu, whose time for a fixed count of requests is taken.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from statistics import median

from report import machine, write
from servers import wait_until_destaged

from blockd.api.limit_types import VolumeLimits
from tests.daemon import Daemon

BEGIN = "<!-- scripts/bench neighbours: from here -->"
END = "<!-- scripts/bench neighbours: to here -->"
LIMITS = {
    "500 IOPS": VolumeLimits(iops=500),
    "1000 IOPS": VolumeLimits(iops=1000),
    "16 MiB/s": VolumeLimits(bandwidth=16 << 20),
    "64 MiB/s": VolumeLimits(bandwidth=64 << 20),
}
NOISY_LIMIT = VolumeLimits(bandwidth=32 << 20)
NEIGHBOURS = ("none", "noisy, not limited", "noisy, limited to 32 MiB/s")
OPERATIONS = {"nbd": ("randread", 4096), "iscsi": ("write", 4096)}
BANDWIDTH = {"nbd": ("randwrite", 65536), "iscsi": ("write", 65536)}
JOBS = {name: OPERATIONS if limit.iops else BANDWIDTH for name, limit in LIMITS.items()}
FIO = ("fio", "--ioengine=nbd", "--size=256m", "--time_based", "--output-format=json")


def main(argv: list[str], page: Path) -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench neighbours", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=8, help="of each measurement (default: 8)")
    parser.add_argument("--folder", type=Path, help="where the data goes (default: /tmp)")
    parser.add_argument("--dry-run", action="store_true", help="do not write the page")
    options = parser.parse_args(argv)
    found: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    loads: list[float] = []
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for number in range(options.rounds):
            loads.append(os.getloadavg()[0])
            data = Path(folder) / f"round-{number}"
            one_round(data, options.seconds, found)
            shutil.rmtree(data)
    lines = [
        "",
        f"{machine()}; load average {min(loads):.1f} to {max(loads):.1f} before the rounds. "
        f"{options.rounds} rounds of {options.seconds} s; share of its limit that the quiet volume "
        "gets, median (least) of the rounds.",
        "",
        "| its limit, protocol | " + " | ".join(f"neighbour: {each}" for each in NEIGHBOURS) + " |",
        "| --- |" + " ---: |" * len(NEIGHBOURS),
    ]
    for limit, jobs in JOBS.items():
        for protocol in jobs:
            cells = []
            for neighbour in NEIGHBOURS:
                shares = found[limit, protocol, neighbour]
                cells.append(f"{median(shares):.1%} ({min(shares):.1%})")
            lines.append(f"| {limit}, {protocol} | " + " | ".join(cells) + " |")
    lines.append("")
    print("\n".join(lines))
    if not options.dry_run:
        write(page, lines, begin=BEGIN, end=END)


def one_round(data: Path, seconds: int, found: dict[tuple[str, str, str], list[float]]) -> None:
    volumes = ("--volume", "quiet=256M", "--volume", "noisy=256M", "--iscsi", "127.0.0.1:0")
    server = Daemon(data, volumes)
    server.start()
    try:
        fill(server)
        for limit, jobs in JOBS.items():
            for protocol in jobs:
                for neighbour in NEIGHBOURS:
                    share = measured(server, limit, protocol, neighbour, seconds)
                    found[limit, protocol, neighbour].append(share)
                    print(f"{limit}, {protocol}, neighbour {neighbour}: {share:.1%}", flush=True)
    finally:
        server.stop()


def fill(server: Daemon) -> None:
    """Reads are to find something."""
    command = [*FIO[:3], "--name=fill", f"--uri={server.uri('quiet')}", "--rw=write", "--bs=1m"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def measured(server: Daemon, limit: str, protocol: str, neighbour: str, seconds: int) -> float:
    """What the quiet volume gets, as a part of its limit. What earlier noise has left to destage is
    gone before: nearly full, the journal slows all writers down."""
    wait_until_destaged(str(server.data / "control.sock"))
    with server.control() as client:
        client.set_limits("quiet", LIMITS[limit])
        client.set_limits("noisy", NOISY_LIMIT if "limited to" in neighbour else VolumeLimits())
    noise = None if neighbour == "none" else make_noise(server, seconds + 30)
    try:
        time.sleep(1)  # the noise is on, and the burst is there
        mode, size = JOBS[limit][protocol]
        rate = LIMITS[limit].iops or LIMITS[limit].bandwidth / size
        ask = ask_nbd if protocol == "nbd" else ask_iscsi
        return ask(server, mode, size, rate, seconds) / rate
    finally:
        if noise is not None:
            noise.terminate()
            noise.wait()


def make_noise(server: Daemon, seconds: int) -> "subprocess.Popen[bytes]":
    job = ("--name=noise", f"--uri={server.uri('noisy')}", "--rw=randwrite", "--bs=64k")
    more = ("--iodepth=64", "--numjobs=2", f"--runtime={seconds}")
    return subprocess.Popen([*FIO, *job, *more], stdout=subprocess.DEVNULL)


def ask_nbd(server: Daemon, mode: str, size: int, rate: float, seconds: int) -> float:
    """Requests a second, by fio."""
    del rate
    job = ("--name=quiet", f"--uri={server.uri('quiet')}", f"--rw={mode}", f"--bs={size}")
    more = ("--iodepth=16", f"--runtime={seconds}", "--ramp_time=1")
    done = subprocess.run([*FIO, *job, *more], check=True, capture_output=True, text=True)
    result = json.loads(done.stdout[done.stdout.index("{") :])["jobs"][0]
    return float(result["read"]["iops"] + result["write"]["iops"])


def ask_iscsi(server: Daemon, mode: str, size: int, rate: float, seconds: int) -> float:
    """Requests a second, by qemu; the burst, which is not for nothing, is taken off."""
    burst = rate * VolumeLimits().burst_s
    count = round(rate * seconds + burst)
    options = ("-f", "raw", "-t", "none", "-c", str(count), "-d", "16", "-s", str(size))
    writes = ("-w",) if mode == "write" else ()
    command = ["qemu-img", "bench", *options, *writes, server.iscsi_url("quiet")]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    took = re.search(r"completed in ([\d.]+) seconds", done.stdout)
    assert took is not None, done.stdout
    return (count - burst) / float(took.group(1))
