"""The process that runs a Python target: `python -m tests.fuzz.python_main NAME fuzz|run|shrink`.

    fuzz FLAGS...   coverage-guided by atheris, which is libFuzzer and takes its flags
    run FILE...     these inputs, as they are; ends with a traceback at the first that fails
    shrink IN OUT   write the smallest input found that fails in the same way as IN

Only `fuzz` needs atheris (`pip install '.[fuzz]'`).
"""

import importlib
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from tests.fuzz.targets import HERE, Run, Target, named

INSTRUMENTED = ["blockd", "volume", "transport"]
SHRINK_S = 60.0


def fuzz(target: Target, flags: list[str]) -> None:
    atheris: Any = importlib.import_module("atheris")  # not everybody has it, nor does mypy
    _forget_editable()
    with atheris.instrument_imports(include=INSTRUMENTED):
        function = target.load()
    atheris.Setup([sys.argv[0], *flags], function)
    atheris.Fuzz()


def _forget_editable() -> None:
    """Import packages from their folders, as usual: the finder of an editable installation
    loads them in its own way, which atheris does not instrument. Only extensions need it."""
    for extension in ("native._native", "native._tls"):
        importlib.import_module(extension)
    sys.meta_path = [each for each in sys.meta_path if "editable" not in type(each).__module__]
    sys.path.insert(0, str(HERE.parents[1]))


def failure(function: Run, data: bytes) -> str | None:
    """What tells one bug from another: type and innermost frame of what `data` makes it raise."""
    try:
        function(data)
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        return f"{type(error).__name__} at {frames[-1].filename}:{frames[-1].lineno}"
    return None


def shrink(function: Run, data: bytes, deadline: float) -> bytes:
    """Leave out ever smaller pieces, then zero bytes, while the failure stays the same."""
    wanted = failure(function, data)
    assert wanted is not None, "this input does not fail"
    size = len(data)
    while size := size // 2:
        at = 0
        while at < len(data) and time.monotonic() < deadline:
            shorter = data[:at] + data[at + size :]
            if failure(function, shorter) == wanted:
                data = shorter
            else:
                at += size
    for at in range(len(data)):
        if data[at] and time.monotonic() < deadline:
            simpler = data[:at] + b"\0" + data[at + 1 :]
            if failure(function, simpler) == wanted:
                data = simpler
    return data


def main() -> None:
    name, mode, *rest = sys.argv[1:]
    target = named(name)
    if mode == "fuzz":
        fuzz(target, rest)
    elif mode == "run":
        function = target.load()
        for path in rest:
            print(path, file=sys.stderr)
            function(Path(path).read_bytes())
    elif mode == "shrink":
        source, goal = rest
        deadline = time.monotonic() + SHRINK_S
        Path(goal).write_bytes(shrink(target.load(), Path(source).read_bytes(), deadline))
    else:
        raise SystemExit(f"{mode}: not one of fuzz, run, shrink")


if __name__ == "__main__":
    main()
