"""What blockd depends on: do the oldest releases that it allows work, does what is installed have
known holes. scripts/check asks both.

    python -m tests.audit lowest FOLDER   put the oldest releases into FOLDER, for PYTHONPATH
    python -m tests.audit holes           ask pip-audit about what blockd runs with, no tools

Exit status: 0 well; 1 not, with what to do; 75 (EX_TEMPFAIL) the package index could not be asked,
which is nobody's fault and says nothing.
"""

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
UNASKED = os.EX_TEMPFAIL
ASK_S = 15  # for one answer of the index
PINS = "pins.txt"  # in a folder of the oldest releases: which these are
ACCEPTED: Mapping[str, str] = {}
"""Known holes that do not concern blockd, by id (PYSEC-, GHSA-), and why they do not."""


@dataclass(frozen=True, slots=True)
class Verdict:
    status: int
    text: str


def lowest_pins(requirements: Iterable[str]) -> list[str]:
    """Each requirement at its lower bound. ValueError names one that has none."""
    pins = []
    for each in map(Requirement, requirements):
        found = [part.version for part in each.specifier if part.operator in (">=", "==", "~=")]
        if len(found) != 1:
            raise ValueError(f"{each}: give it one lower bound, as {each.name}>=1.0")
        pins.append(f"{each.name}=={found[0]}")
    return sorted(pins)


def install_lowest(pins: list[str], folder: Path) -> Verdict:
    """Have `pins`, and what they need, in `folder`, if an earlier run has not left them there."""
    wanted = "".join(f"{pin}\n" for pin in [*pins, f"# for Python {sys.version.split()[0]}"])
    if (folder / PINS).exists() and (folder / PINS).read_text() == wanted:
        return Verdict(os.EX_OK, f"{len(pins)} oldest releases are there")
    shutil.rmtree(folder, ignore_errors=True)
    command = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--quiet"]
    command += ["--only-binary", ":all:", "--target", str(folder), *pins]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        (folder / PINS).write_text(wanted)
        return Verdict(os.EX_OK, f"{len(pins)} oldest releases are installed")
    said = (done.stderr or done.stdout).strip()
    if "(from versions: none)" in said:  # not even their names are known: nobody answered
        return Verdict(UNASKED, "no package index answers")
    return Verdict(1, f"{said}\nraise the lower bound in pyproject.toml to a release that installs")


def needed_by(name: str) -> set[str]:
    """Names of the installed packages that `name` runs with, itself left out; extras do not count,
    unless another package asks for them."""
    asked: list[tuple[str, str]] = [(name, "")]
    seen = set(asked)
    while asked:
        package, extra = asked.pop()
        for text in importlib.metadata.requires(package) or ():
            need = Requirement(text)
            if need.marker is not None and not need.marker.evaluate({"extra": extra}):
                continue
            more = {(canonicalize_name(need.name), each) for each in ("", *need.extras)}
            asked += more - seen
            seen |= more
    return {package for package, _ in seen} - {name}


def ask_about(pins: Iterable[str], service: Iterable[str] = ()) -> Verdict:
    """What pip-audit knows of them, by its options `service`; its default is the package index."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write("".join(f"{pin}\n" for pin in pins))
        file.flush()
        command = [sys.executable, "-m", "pip_audit", "--requirement", file.name, "--no-deps"]
        command += ["--disable-pip", "--format", "json", "--progress-spinner", "off"]
        command += ["--timeout", str(ASK_S), *service]
        command += [part for name in ACCEPTED for part in ("--ignore-vuln", name)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    return judge(done.returncode, done.stdout, done.stderr)


def judge(status: int, out: str, said: str) -> Verdict:
    """pip-audit ends with 1 when it found something and when it could not ask: only in the first
    case it has a report. The index answers for what it does not know with "skipped"."""
    try:
        packages = json.loads(out)["dependencies"]
    except (ValueError, KeyError, TypeError):
        last = said.strip().splitlines()[-1:] or [f"pip-audit ended with {status}"]
        return Verdict(UNASKED, f"no database of vulnerabilities answers: {last[0]}")
    holes = [line for package in packages for line in _holes(package)]
    if holes:
        return Verdict(1, "\n".join(holes))
    skipped = [package["name"] for package in packages if "skip_reason" in package]
    if len(skipped) == len(packages):
        count = len(packages)
        return Verdict(UNASKED, f"the package index has no word on any of {count} packages")
    text = f"{len(packages) - len(skipped)} packages without a known hole"
    return Verdict(os.EX_OK, text + (f", not known: {', '.join(skipped)}" if skipped else ""))


def _holes(package: Mapping[str, Any]) -> Iterator[str]:
    for hole in package.get("vulns", ()):
        names = ", ".join([hole["id"], *hole.get("aliases", ())])
        where = f"{package['name']} {package['version']}: {names}"
        if fixed := hole.get("fix_versions"):
            mended = f"mended in {', '.join(fixed)}; install that, and raise the lower bound"
            yield f"{where}: {mended} in pyproject.toml"
        else:
            yield f"{where}: not mended yet; if it does not concern blockd, say so in {__file__}"


def _installed(names: Iterable[str]) -> list[str]:
    return sorted(f"{name}=={importlib.metadata.version(name)}" for name in names)


def main(arguments: list[str]) -> int:
    match arguments:
        case ["lowest", folder]:
            project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
            verdict = install_lowest(lowest_pins(project["dependencies"]), Path(folder))
        case ["holes"]:
            verdict = ask_about(_installed(needed_by("blockd")))
        case _:
            print(__doc__, file=sys.stderr)
            return os.EX_USAGE
    print(verdict.text)
    return verdict.status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
