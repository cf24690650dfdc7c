"""libiscsi's conformance tests, every suite: no failure, and no skip that the list does not name.

`iscsi_test_cu_skips.txt` has the tests that this kind of unit (fixed, writable, not removable)
cannot run, each with its reason. A test that begins to skip, or stops, fails here until the list
says so too. The same portal stands for a second path, so that the multipath tests run.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients import FindTool, finish_tool, run_tool
from tests.daemon import STORE, StartDaemon

SKIPS = Path(__file__).with_name("iscsi_test_cu_skips.txt")
RESET = "Sanitize.Reset"
TIMEOUT_S = 300.0  # most of it is the minute that the tool waits after a sanitize


def expected_skips() -> dict[str, str]:
    """ "Suite.Test" -> why it is skipped."""
    lines = SKIPS.read_text().splitlines()
    pairs = (line.split(maxsplit=1) for line in lines if line.strip() and line[0] != "#")
    return {each[0]: each[1] for each in pairs}


def outcomes(printed: str) -> Iterator[tuple[str, str, str]]:
    """("Suite.Test", "passed" or "failed" or "skipped", what was printed) of a verbose run."""
    suite = ""
    parts = re.split(r"^(Suite: .*|  Test: \S+ \.\.\.)", printed, flags=re.MULTILINE)
    for head, body in zip(parts[1::2], parts[2::2], strict=True):
        if head.startswith("Suite: "):
            suite = head.removeprefix("Suite: ").strip()
            continue
        name = f"{suite}.{head.split()[1]}"
        if re.search(r"^FAILED", body, flags=re.MULTILINE):  # "[FAILED]" may be what was expected
            yield name, "failed", body
        elif "[SKIPPED]" in body:
            yield name, "skipped", body
        else:
            assert "passed" in body, f"{name}: {body}"
            yield name, "passed", body


def run(tool: str, test: str, *urls: str) -> dict[str, tuple[str, str]]:
    """Run tests; "Suite.Test" -> (outcome, what was printed)."""
    done = finish_tool(
        *(tool, "--dataloss", "--allow-sanitize", "--verbose", "--test", test, *urls),
        timeout_s=TIMEOUT_S,
    )
    found = {name: (outcome, text) for name, outcome, text in outcomes(done.stdout)}
    failed = [
        f"{name}: {text[:2000]}" for name, (outcome, text) in found.items() if outcome == "failed"
    ]
    assert not failed, "\n".join(failed)  # before the status, which does not say which it was
    said = done.stdout[-3000:] + done.stderr[-1000:]
    assert done.returncode == 0, f"ended with {done.returncode}: {said}"
    return found


def parts(tool: str) -> list[str]:
    """What `--test` takes to run everything but `RESET`: suites, and the tests of its suite."""
    family = RESET.split(".")[0]
    suites, tests = set(), []
    for name in (line.split(".") for line in run_tool(tool, "--list").split()):
        if name[0] != "ALL":
            continue
        if len(name) == 2 and name[1] != family:
            suites.add(".".join(name))
        elif len(name) == 3 and name[1] == family and ".".join(name[1:]) != RESET:
            tests.append(".".join(name))
    return sorted(suites - {"ALL.MultipathIO"}) + tests


def test_every_suite_passes(daemon: StartDaemon, client_tool: FindTool) -> None:
    tool = client_tool("iscsi-test-cu")
    server = daemon("--iscsi", "127.0.0.1:0")
    server.create("unit", 256 << 20, 512)
    url = server.iscsi_url("unit")
    found = run(tool, "ALL.MultipathIO", url, url)
    for part in parts(tool):
        found |= run(tool, part, url)
    assert len(found) >= 229, f"ran {len(found)} tests"
    skipped = {name: text for name, (outcome, text) in found.items() if outcome == "skipped"}
    assert skipped.keys() == expected_skips().keys(), "\n".join(
        f"{name}: {skipped.get(name, 'is not skipped')}"
        for name in sorted(skipped.keys() ^ expected_skips().keys())
    )


def test_a_sanitize_survives_every_kind_of_reset(
    daemon: StartDaemon, client_tool: FindTool
) -> None:
    """It has to take longer than they do, however slow the machine is: 32 s at this rate, where
    the tool takes 4 s and some, and then looks once a minute whether it is over."""
    (server := daemon("--iscsi", "127.0.0.1:0", start=False)).data.mkdir(parents=True)
    (server.data / "blockd.toml").write_text(f'[iscsi]\nsanitize_rate = "8M"\n[store]\n{STORE}')
    server.start()
    server.create("unit", 256 << 20, 512)
    found = run(client_tool("iscsi-test-cu"), f"ALL.{RESET}", server.iscsi_url("unit"))
    assert found[RESET][0] == "passed"


@pytest.mark.parametrize(
    "suite",
    ["CompareAndWrite", "GetLBAStatus", "Inquiry", "ReadCapacity16", "Unmap", "WriteSame16"],
)
def test_units_with_blocks_of_4_kib_pass(
    daemon: StartDaemon, client_tool: FindTool, suite: str
) -> None:
    server = daemon("--iscsi", "127.0.0.1:0")
    server.create("unit", 512 << 20, 4096)
    found = run(client_tool("iscsi-test-cu"), f"ALL.{suite}", server.iscsi_url("unit"))
    assert any(outcome == "passed" for outcome, _ in found.values())


def test_a_past_version_is_a_write_protected_unit(
    daemon: StartDaemon, client_tool: FindTool
) -> None:
    server = daemon("--iscsi", "127.0.0.1:0")
    server.create("unit", 64 << 20, 512)
    server.run("snapshot", "create", "unit@monday")
    url = server.iscsi_url("unit:at:monday")
    found = run(client_tool("iscsi-test-cu"), "ALL.ReadOnly", url)
    assert found["ReadOnly.ReadOnlySBC"][0] == "passed"
