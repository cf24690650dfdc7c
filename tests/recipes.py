"""The commands of a page of documentation, run as they stand.

A page is cut at its `## ` headings. A block fenced with `sh` is run by bash, and must succeed; a
line of a block fenced with `text` is what somebody has been told, `…` standing for anything.

`systemctl` is a stand-in that starts and stops one daemon as a service manager does: as its own
user, and with what it says in a journal.
"""

import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from tests.docs.pages import Block, blocks_of

RUN_S = 120.0
READY_S = 120.0
POLL_S = 0.05

SYSTEMCTL = """#!/bin/sh
# systemctl start|stop UNIT...: tests/recipes.py does what is asked for.
exec {python} -m tests.recipes "$@"
"""


def recipes(page: Path) -> dict[str, list[Block]]:
    """Heading -> the blocks below it, in order."""
    _, *sections = page.read_text().split("\n## ")
    found = {}
    for section in sections:
        heading, _, text = section.partition("\n")
        found[heading] = list(blocks_of(page, text))
    return found


def told(pattern: str, text: str) -> bool:
    """Whether `text` has a line of a page, in which `…` stands for anything but a new line."""
    parts = (re.escape(part) for part in pattern.split("…"))
    return re.search(".*".join(parts), text) is not None


class Service:
    """One daemon that `systemctl start blockd.service` starts, as user `uid` unless that is None.

    `environ` is for the commands of a page: PATH finds blockd, systemctl, and what Debian has."""

    def __init__(self, folder: Path, data: Path, *, uid: int | None) -> None:
        folder.mkdir()
        self.folder = folder
        self.data = data
        self.journal = folder / "journal"
        self.journal.touch()
        self.uid = uid
        self._write("systemctl", SYSTEMCTL.format(python=sys.executable))
        self._write("blockd", f'#!/bin/sh\nexec {sys.executable} -m blockd "$@"\n')
        path = f"{folder}:{os.environ['PATH']}:/usr/sbin:/sbin"
        self.environ: dict[str, str] = {
            **os.environ,
            "PATH": path,
            "PYTHONPATH": str(Path(__file__).parents[1]),
            "DATA": str(data),
            "BLOCKD_CONTROL": str(data / "control.sock"),
            "RECIPES_FOLDER": str(folder),
            "RECIPES_UID": "" if uid is None else str(uid),
        }

    def _write(self, name: str, text: str) -> None:
        path = self.folder / name
        path.write_text(text)
        path.chmod(0o755)

    def run(self, commands: str, more: Mapping[str, str] | None = None) -> str:
        """What they print, both streams. AssertionError when one of them fails."""
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", commands],
            env={**self.environ, **(more or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=RUN_S,
            check=False,
        )
        shown = f"{commands}\nexited with {done.returncode}\n{done.stdout}\n{self.said()}"
        assert done.returncode == 0, shown
        return done.stdout

    def said(self) -> str:
        """By the daemon, over all its starts."""
        return self.journal.read_text(errors="replace")

    def start(self) -> None:
        self.run("systemctl start blockd.service")

    def stop(self) -> None:
        self.run("systemctl stop blockd.service")

    def fails_to_start(self) -> str:
        """What the daemon says."""
        before = len(self.said())
        done = subprocess.run(
            ["bash", "-c", "systemctl start blockd.service"],
            env=self.environ,
            capture_output=True,
            timeout=RUN_S,
            check=False,
        )
        assert done.returncode != 0, "the daemon started"
        return self.said()[before:]


# -- the stand-in


def _start(folder: Path, data: Path) -> int:
    if _running(folder) is not None:
        return 0
    ready = folder / "ready.json"
    ready.unlink(missing_ok=True)
    serve = [sys.executable, "-m", "blockd", "serve", "--data", str(data), "--ready-file", ready]
    config = folder / "blockd.toml"
    if config.exists():
        serve += ["--config", config]
    uid = os.environ["RECIPES_UID"]
    if uid:
        serve = ["setpriv", f"--reuid={uid}", "--clear-groups", *serve]
        os.chown(folder, int(uid), -1)
    with (folder / "journal").open("ab") as journal:
        process = subprocess.Popen(
            [*map(str, serve), "--nbd", "none"],
            stdout=subprocess.DEVNULL,
            stderr=journal,
            start_new_session=True,
            umask=0o077,
        )
    (folder / "pid").write_text(str(process.pid))
    deadline = time.monotonic() + READY_S
    while not ready.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            return 1
        time.sleep(POLL_S)
    return 0


def _stop(folder: Path) -> int:
    pid = _running(folder)
    if pid is None:
        return 0
    os.kill(pid, 15)
    deadline = time.monotonic() + READY_S
    while _running(folder) is not None:
        if time.monotonic() > deadline:
            return 1
        time.sleep(POLL_S)
    return 0


def _running(folder: Path) -> int | None:
    """The daemon's pid, unless it has ended."""
    try:
        pid = int((folder / "pid").read_text())
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return None
    return None if state == "Z" else pid


def main(arguments: list[str]) -> int:
    folder, data = Path(os.environ["RECIPES_FOLDER"]), Path(os.environ["DATA"])
    action, *units = arguments
    if not any(unit in ("blockd", "blockd.service") for unit in units):
        return 0
    return {"start": lambda: _start(folder, data), "stop": lambda: _stop(folder)}[action]()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
