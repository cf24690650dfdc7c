"""Running other people's NBD clients and showing what they said when they fail."""

import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

import pytest

REQUIRE_CLIENTS = "BLOCKD_REQUIRE_CLIENTS"
CLIENT_TIMEOUT_S = 120.0  # the longest run is fio's verify on a busy machine
SYSTEM_PATH = ("/usr/sbin", "/sbin")  # not on everybody's PATH: mkfs.ext4, nbd-client, losetup
SYSTEM_PYTHON = "/usr/bin/python3"  # python3-libnbd is built for this one

FindTool = Callable[[str], str]
"""The fixture `client_tool`: the path of a program by its name."""

LIBNBD_PREAMBLE = """\
import errno, nbd, sys
uri, arguments = sys.argv[1], sys.argv[2:]

def connected(structured=True, contexts=("base:allocation",)):
    handle = nbd.NBD()
    handle.set_request_structured_replies(structured)
    # Refusals are to come from the server.
    handle.set_strict_mode(handle.get_strict_mode() & ~(
        nbd.STRICT_COMMANDS | nbd.STRICT_BOUNDS | nbd.STRICT_FLAGS | nbd.STRICT_ALIGN))
    for context in contexts:
        handle.add_meta_context(context)
    handle.set_uri_allow_local_file(True)
    handle.connect_uri(uri)
    return handle

def refused(name, call, *arguments, **keywords):
    try:
        call(*arguments, **keywords)
    except nbd.Error as error:
        assert error.errno == name, (error.errno, name, error.string)
        return
    raise AssertionError(f"{call} was not refused")
"""


def unavailable(what: str) -> NoReturn:
    """Skip the running test, or fail it where every client is required."""
    if os.environ.get(REQUIRE_CLIENTS):
        pytest.fail(f"{what} is missing and {REQUIRE_CLIENTS} is set; scripts/check installs it")
    pytest.skip(f"{what} is missing")


def find_tool(name: str) -> str | None:
    """Where `name` is installed."""
    path = shutil.which(name)
    places = (Path(folder) / name for folder in SYSTEM_PATH)
    return path or next((str(place) for place in places if place.exists()), None)


def run_tool(
    *command: str | Path, timeout_s: float = CLIENT_TIMEOUT_S, stdin: str | None = None
) -> str:
    """The standard output of a command that must succeed; fails the test with all it printed."""
    done = finish_tool(*command, timeout_s=timeout_s, stdin=stdin)
    if done.returncode:
        shown = " ".join(str(part) for part in command)
        pytest.fail(f"{shown}\nexited with {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def finish_tool(
    *command: str | Path, timeout_s: float = CLIENT_TIMEOUT_S, stdin: str | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, whatever that is."""
    return subprocess.run(
        [str(part) for part in command],
        input=stdin,
        capture_output=True,
        text=True,
        errors="replace",  # other people's bytes
        timeout=timeout_s,
        check=False,
    )


def run_libnbd(uri: str, script: str, *arguments: str) -> str:
    """Run a script that drives libnbd: it gets `uri`, `arguments`, `connected()`, `refused()`."""
    source = LIBNBD_PREAMBLE + script
    return run_tool(SYSTEM_PYTHON, "-", uri, *arguments, stdin=source)


def has_libnbd_binding() -> bool:
    return find_tool(SYSTEM_PYTHON) is not None and _imports(("nbd",))


def _imports(modules: Sequence[str]) -> bool:
    return finish_tool(SYSTEM_PYTHON, "-c", f"import {', '.join(modules)}").returncode == 0
