"""One coverage-guided run of one target, as a child process: libFuzzer for C, atheris for Python.

Both speak libFuzzer's flags and print its lines, so one reader serves both. A run owns the folder
build/fuzz/NAME: `corpus` is what it works on and keeps from run to run, `findings` is what failed.

A run ends at its first finding, since the same bug would be found again and again. What libFuzzer
calls a timeout or too much memory is run once more alone: on a machine that is busy or was paused
it often is neither, and the run goes on.
"""

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.fuzz.targets import Target

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "fuzz"
PROGRAMS = BUILD / "native"
MEMORY_LIMIT_MB = 2048
SHRINK_S = 60
ENVIRONMENT = {
    "PYTHONHASHSEED": "0",
    "ASAN_OPTIONS": "quarantine_size_mb=8:detect_leaks=1:allocator_may_return_null=1",
    "UBSAN_OPTIONS": "print_stacktrace=1",
}

_LINE = re.compile(r"^#(\d+)\s+\w+\s+cov: (\d+) ft: (\d+) corp: (\d+)/")
_EXECUTED = re.compile(r"^stat::number_of_executed_units:\s+(\d+)")
_FINDING = re.compile(r"^(crash|leak|oom|timeout)-")


@dataclass(slots=True)
class Progress:
    """What the child's lines said last."""

    executions: int = 0
    coverage: int = 0
    features: int = 0
    corpus: int = 0


@dataclass(slots=True)
class Outcome:
    """What a run of a target came to. Times are seconds."""

    target: str
    wall_s: float = 0.0
    cpu_s: float = 0.0
    executions: int = 0
    coverage: int = 0
    features: int = 0
    corpus_before: int = 0
    corpus: int = 0
    findings: list[Path] = field(default_factory=list)
    dismissed: int = 0
    """Timeouts and the like that went well when they were run alone."""


class EngineFailed(Exception):
    """The fuzzer itself did not run; the message has the end of its output."""


def corpus_of(target: Target) -> Path:
    return BUILD / target.name / "corpus"


def findings_of(target: Target) -> Path:
    return BUILD / target.name / "findings"


def run(target: Target, seconds: float, show: Callable[[Progress, float], None]) -> Outcome:
    """Fuzz for `seconds` of wall clock, or up to a finding. EngineFailed.

    `show(progress, elapsed)` is called with every line of the child."""
    corpus, findings = corpus_of(target), findings_of(target)
    corpus.mkdir(parents=True, exist_ok=True)
    findings.mkdir(parents=True, exist_ok=True)
    outcome = Outcome(target.name, corpus_before=len(list(corpus.iterdir())))
    began = time.monotonic()
    while not outcome.findings and (left := seconds - (time.monotonic() - began)) >= 1:
        before = set(findings.iterdir())
        progress = _child(
            target, left, outcome, lambda found: show(found, time.monotonic() - began)
        )
        outcome.coverage = max(outcome.coverage, progress.coverage)
        outcome.features = max(outcome.features, progress.features)
        new = [path for path in findings.iterdir() if path not in before]
        failed = [path for path in new if _FINDING.match(path.name)]
        for path in failed:
            if path.name.startswith("crash") or fails(target, path):
                outcome.findings.append(path)
            else:
                path.unlink()
                outcome.dismissed += 1
        if not failed:
            break
    outcome.wall_s = time.monotonic() - began
    outcome.corpus = len(list(corpus.iterdir()))
    return outcome


def _child(
    target: Target, seconds: float, outcome: Outcome, show: Callable[[Progress], None]
) -> Progress:
    command = [
        *_program(target, "fuzz"),
        str(corpus_of(target)),
        *(str(folder) for folder in target.folders),
        f"-max_total_time={int(seconds)}",
        f"-timeout={target.limit_s}",
        f"-max_len={target.max_length}",
        f"-rss_limit_mb={MEMORY_LIMIT_MB}",
        f"-artifact_prefix={findings_of(target)}/",
        "-print_final_stats=1",
        "-reload=0",
    ]
    log_path = BUILD / target.name / "log"
    progress = Progress()
    executed = 0
    with (
        log_path.open("w") as log,
        subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | ENVIRONMENT,
            text=True,
            errors="replace",
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        ) as child,
    ):
        assert child.stderr is not None
        for line in child.stderr:
            log.write(line)
            if match := _LINE.match(line):
                progress = Progress(*map(int, match.groups()))
                show(progress)
            elif match := _EXECUTED.match(line):
                executed = int(match[1])
        _, _, usage = os.wait4(child.pid, 0)
        child.returncode = 0  # waited for already
    outcome.cpu_s += usage.ru_utime + usage.ru_stime
    outcome.executions += max(executed, progress.executions)
    if not progress.executions:
        tail = "".join(log_path.read_text(errors="replace").splitlines(keepends=True)[-30:])
        raise EngineFailed(f"{target.name}: the fuzzer did not start; {log_path} ends so:\n{tail}")
    return progress


def _program(target: Target, mode: str) -> list[str]:
    if target.in_c:
        return [str(PROGRAMS / target.program)]
    return [sys.executable, "-m", "tests.fuzz.python_main", target.name, mode]


def replay(target: Target, path: Path) -> subprocess.CompletedProcess[str]:
    """Run one input alone, with the target's time limit."""
    command = [*_program(target, "run"), str(path)]
    try:
        return subprocess.run(
            command,
            cwd=ROOT,
            env=os.environ | ENVIRONMENT,
            text=True,
            errors="replace",
            capture_output=True,
            check=False,
            timeout=6 * target.limit_s,
        )
    except subprocess.TimeoutExpired as error:
        return subprocess.CompletedProcess(command, 1, "", f"still running after {error.timeout} s")


def fails(target: Target, path: Path) -> bool:
    return replay(target, path).returncode != 0


def shrink(target: Target, path: Path) -> Path:
    """The smallest input that was found to fail like `path`; `path` itself when there is none."""
    goal = path.with_name(f"small-{path.name}")
    if target.in_c:
        command = [
            *_program(target, "fuzz"), "-minimize_crash=1", f"-max_total_time={SHRINK_S}",
            f"-exact_artifact_path={goal}", str(path),
        ]  # fmt: skip
    else:
        command = [*_program(target, "shrink"), str(path), str(goal)]
    subprocess.run(
        command, cwd=ROOT, env=os.environ | ENVIRONMENT, capture_output=True, check=False
    )
    return goal if goal.exists() and fails(target, goal) else path
