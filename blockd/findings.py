"""What a check of `blockd doctor` tells, and the machine that it looks at."""

import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

OK = "ok"
WARN = "warn"
FAIL = "fail"

MODINFO_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check saw; `fix` is None when there is nothing to do."""

    check: str
    level: str
    message: str
    fix: str | None = None


def _which(tool: str) -> str | None:
    """Like the shell's, but also where root's PATH looks: nbd-client lives in /usr/sbin."""
    return shutil.which(tool) or shutil.which(tool, path="/usr/sbin:/sbin")


def _modinfo(module: str) -> bool:
    """Whether the running kernel can load `module`."""
    tool = _which("modinfo")
    if tool is None:
        return False
    run = subprocess.run(
        [tool, "--field", "name", module], capture_output=True, timeout=MODINFO_TIMEOUT_S
    )
    return run.returncode == 0


@dataclass(frozen=True, slots=True)
class Machine:
    """Where the checks look; tests point it elsewhere."""

    proc: Path = Path("/proc")
    sys_module: Path = Path("/sys/module")
    which: Callable[[str], str | None] = _which
    modinfo: Callable[[str], bool] = _modinfo
    uid: int = os.getuid()
    now: Callable[[], datetime] = lambda: datetime.now(UTC)
