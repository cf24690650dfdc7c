"""Checkouts of blockd that are measured in turns: the only way to see what a change does on a
machine that is never the same twice.

A checkout has an environment of its own, `.venv`, in which it is installed (`scripts/bench` in it
makes that). The rig is always this checkout's: its fio jobs, its client, its way to start a daemon.
"""

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.daemon import Daemon

OWN = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True)
class Checkout:
    name: str
    """Its commit, with a + when its files are others."""
    root: Path

    @property
    def program(self) -> tuple[str, ...]:
        # -P: the folder that we are in, which is perhaps another checkout, does not go first.
        return str(self.root / ".venv" / "bin" / "python"), "-P", "-m", "blockd"

    @property
    def environ(self) -> dict[str, str]:
        return {"PYTHONPATH": str(self.root)}

    def daemon(self, data: Path, options: Sequence[str] = ()) -> Daemon:
        """One of this checkout, not started yet."""
        return Daemon(data, options, program=self.program, environ=self.environ)


def find(roots: Sequence[Path]) -> list[Checkout]:
    """This checkout, and those; SystemExit for one that is not installed."""
    found: list[Checkout] = []
    for root in (OWN, *(each.resolve() for each in roots)):
        name = _name(root)
        if any(each.name == name for each in found):
            name = f"{name} ({root.name})"
        checkout = Checkout(name, root)
        if not Path(checkout.program[0]).exists():
            raise SystemExit(f"{root}: it has no .venv; scripts/bench --help in it makes one")
        found.append(checkout)
    return found


def _name(root: Path) -> str:
    command = ["git", "-C", str(root), "describe", "--always", "--dirty=+", "--exclude=*"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or root.name
