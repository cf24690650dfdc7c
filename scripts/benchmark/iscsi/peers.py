"""The iSCSI targets that are compared. Each serves one unit of the same size and content."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from servers import RAW, VOLUME, Running, Server

TARGET = f"iqn.2026-11.io.blockd:{VOLUME}"
CONTROL_PORTS = 1000  # of tgtd: names of abstract sockets, not ports of the network


class RunningTarget(Running):
    """A target that serves its unit while the context lasts."""

    def __init__(self, server: Server, folder: Path, lun: int, set_up: "SetUp | None") -> None:
        super().__init__(server, folder)
        self._lun = lun
        self._set_up = set_up

    @property
    def uri(self) -> str:
        return f"iscsi://127.0.0.1:{self._port}/{TARGET}/{self._lun}"

    def __enter__(self) -> "RunningTarget":
        super().__enter__()
        if self._set_up is not None:
            try:
                self._set_up(self._folder, self._port)
            except BaseException:
                self.__exit__()
                raise
        return self


SetUp = Callable[[Path, int], None]


def _tgtd(folder: Path, port: int) -> list[str]:
    portal = f"portal=127.0.0.1:{port}"
    return ["tgtd", "-f", "-C", str(_control(port)), "--iscsi", portal]


def _control(port: int) -> int:
    return port % CONTROL_PORTS + 1


def _tgtd_set_up(backing: str) -> SetUp:
    def set_up(folder: Path, port: int) -> None:
        def admin(*words: str) -> None:
            command = ("tgtadm", "-C", str(_control(port)), "--lld", "iscsi", *words)
            subprocess.run(command, check=True)

        unit = ("--tid", "1", "--lun", "1", "-b", str(folder / RAW), "-E", backing)
        admin("--op", "new", "--mode", "target", "--tid", "1", "-T", TARGET)
        admin("--op", "new", "--mode", "logicalunit", *unit)
        admin("--op", "bind", "--mode", "target", "--tid", "1", "-I", "ALL")

    return set_up


def _blockd(folder: Path, port: int) -> list[str]:
    size = (folder / RAW).stat().st_size
    return [
        *(sys.executable, "-m", "blockd", "serve", "--json", "--log-level", "warning"),
        *("--data", str(folder / "blockd"), "--nbd", "none"),
        *("--iscsi", f"127.0.0.1:{port}", "--volume", f"{VOLUME}={size}"),
    ]


_TGTD = ("tgtd", "--version")
SERVERS: tuple[tuple[Server, int, SetUp | None], ...] = (
    (Server("tgtd", "tgtd", _tgtd, _TGTD), 1, _tgtd_set_up("rdwr")),
    (Server("tgtd aio", "tgtd", _tgtd, _TGTD), 1, _tgtd_set_up("aio")),
    (
        Server("blockd", sys.executable, _blockd, (sys.executable, "-m", "blockd", "--version")),
        0,
        None,
    ),
)
"""Server, LUN of its unit, what is to be done after its start."""


def usable() -> bool:
    """tgtd wants to be root: it locks its memory and takes what it likes of priorities."""
    return os.geteuid() == 0
