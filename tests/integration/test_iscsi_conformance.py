"""libiscsi's conformance tests, every suite: no failure, and no skip that the list does not name.

`iscsi_test_cu_skips.txt` has the tests that this kind of unit (fixed, writable, not removable)
cannot run, each with its reason. A test that begins to skip, or stops, fails here until the list
says so too. The same portal stands for a second path, so that the multipath tests run.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients import FindTool, finish_tool
from tests.daemon import StartDaemon

SKIPS = Path(__file__).with_name("iscsi_test_cu_skips.txt")
TIMEOUT_S = 300.0  # 15 s on a machine with nothing else to do


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
    said = done.stdout[-3000:] + done.stderr[-1000:]
    assert done.returncode == 0, f"ended with {done.returncode}: {said}"
    found = {name: (outcome, text) for name, outcome, text in outcomes(done.stdout)}
    failed = [
        f"{name}: {text[:2000]}" for name, (outcome, text) in found.items() if outcome == "failed"
    ]
    assert not failed, "\n".join(failed)
    return found


def test_every_suite_passes(daemon: StartDaemon, client_tool: FindTool) -> None:
    """The sanitize that is to survive resets has to take longer than they do: 8 s, at that rate.
    The tool then waits for it in steps of a minute."""
    tool = client_tool("iscsi-test-cu")
    (data := daemon("--iscsi", "127.0.0.1:0", start=False)).data.mkdir(parents=True)
    (data.data / "blockd.toml").write_text('[iscsi]\nsanitize_rate = "32M"\n')
    data.start()
    data.create("unit", 256 << 20, 512)
    url = data.iscsi_url("unit")
    found = {**run(tool, "ALL", url), **run(tool, "ALL.MultipathIO", url, url)}
    assert len(found) >= 230, f"ran {len(found)} tests"
    skipped = {name: text for name, (outcome, text) in found.items() if outcome == "skipped"}
    assert skipped.keys() == expected_skips().keys(), "\n".join(
        f"{name}: {skipped.get(name, 'is not skipped')}"
        for name in sorted(skipped.keys() ^ expected_skips().keys())
    )


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
