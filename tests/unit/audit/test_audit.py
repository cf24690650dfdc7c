"""What the audit of dependencies says, for each answer that pip-audit and the index may give."""

import json
import os
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests import audit
from tests.audit import UNASKED, Verdict, install_lowest, judge, lowest_pins, needed_by

WELL = {"name": "httpx", "version": "0.28.1", "vulns": []}
UNKNOWN = {"name": "other", "skip_reason": "Dependency not found and could not be audited"}
HOLE = {
    "name": "starlette",
    "version": "0.40.0",
    "vulns": [
        {
            "id": "PYSEC-2026-1",
            "aliases": ["CVE-2026-1"],
            "fix_versions": ["0.47.2"],
            "description": "",
        }
    ],
}


def report(*packages: object) -> str:
    return json.dumps({"dependencies": packages, "fixes": []})


def test_packages_without_a_known_hole_are_well() -> None:
    assert judge(0, report(WELL, UNKNOWN), "") == Verdict(
        os.EX_OK, "1 packages without a known hole, not known: other"
    )


def test_a_known_hole_fails_and_says_what_mends_it() -> None:
    found = judge(1, report(WELL, HOLE), "Found 1 known vulnerability in 1 package")
    assert found.status == 1
    assert found.text.startswith("starlette 0.40.0: PYSEC-2026-1, CVE-2026-1: mended in 0.47.2;")


def test_a_hole_that_is_not_mended_yet_fails_too() -> None:
    hole = {**HOLE, "vulns": [{"id": "PYSEC-2026-1", "fix_versions": []}]}
    found = judge(1, report(hole), "")
    assert (found.status, "not mended yet" in found.text) == (1, True)


@pytest.mark.parametrize(
    ("status", "out", "said"),
    [
        (1, "", "ERROR:pip_audit._cli:Could not connect to PyPI's vulnerability feed\n"),
        (1, "Traceback", ""),
        (1, "[]", ""),
        (0, report(UNKNOWN, UNKNOWN), ""),
    ],
    ids=["offline", "rubbish", "another format", "all unknown"],
)
def test_who_could_not_be_asked_is_told_apart(status: int, out: str, said: str) -> None:
    assert judge(status, out, said).status == UNASKED


class Database(BaseHTTPRequestHandler):
    """Knows of one hole, as OSV tells of it."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        name, known = asked["package"]["name"], {"starlette": [KNOWN]}
        body = json.dumps({"vulns": known[name]} if name in known else {}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nobody asks."""


KNOWN = {
    "id": "PYSEC-2026-1",
    "aliases": ["CVE-2026-1"],
    "summary": "",
    "affected": [
        {
            "package": {"name": "starlette", "ecosystem": "PyPI"},
            "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "0.47.2"}]}],
        }
    ],
}


def test_pip_audit_itself_is_understood(tmp_path: Path) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Database) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        service = ("-s", "osv", "--osv-url", url, "--cache-dir", str(tmp_path))
        found = audit.ask_about(["starlette==0.40.0", "httpx==0.28.1"], service)
        well = audit.ask_about(["httpx==0.28.1"], service)
        server.shutdown()
    assert found.status == 1
    assert found.text.startswith("starlette 0.40.0: PYSEC-2026-1, CVE-2026-1: mended in 0.47.2;")
    assert well == Verdict(os.EX_OK, "1 packages without a known hole")
    assert audit.ask_about(["httpx==0.28.1"], service).status == UNASKED  # it is gone


def test_lower_bounds_are_taken_from_requirements() -> None:
    assert lowest_pins(["b>=2,<3", "a~=1.4", "c[x]==7"]) == ["a==1.4", "b==2", "c==7"]


@pytest.mark.parametrize("requirement", ["a", "a<3"])
def test_a_requirement_without_a_lower_bound_is_refused(requirement: str) -> None:
    with pytest.raises(ValueError, match=r"give it one lower bound, as a>=1\.0"):
        lowest_pins([requirement])


def test_what_blockd_runs_with_has_no_tools_in_it() -> None:
    found = needed_by("blockd")
    assert {"fastapi", "starlette", "h11", "cryptography", "cffi"} <= found
    assert not {"pytest", "ruff", "mypy", "blockd"} & found


class Pip:
    """Takes the place of `subprocess.run`."""

    def __init__(self, status: int, said: str = "") -> None:
        self.runs = 0
        self._done = subprocess.CompletedProcess[str]([], status, "", said)

    def __call__(self, command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        self.runs += 1
        if self._done.returncode == 0:
            Path(command[command.index("--target") + 1]).mkdir()
        return self._done


def test_the_oldest_releases_are_installed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "run", pip := Pip(0))
    folder = tmp_path / "lowest"
    for _ in range(2):
        assert install_lowest(["a==1"], folder).status == os.EX_OK
    assert pip.runs == 1
    install_lowest(["a==2"], folder)
    assert pip.runs == 2


@pytest.mark.parametrize(
    ("said", "status"),
    [
        ("ERROR: Could not find a version that satisfies the requirement a==1 "
         "(from versions: none)", UNASKED),
        ("ERROR: Could not find a version that satisfies the requirement a==1 "
         "(from versions: 2.0, 2.1)", 1),
        ("ERROR: Cannot install a==1 and b==1: ResolutionImpossible", 1),
    ],
)  # fmt: skip
def test_an_index_that_does_not_answer_is_told_apart_from_a_bound_that_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, status: int
) -> None:
    monkeypatch.setattr(subprocess, "run", Pip(1, said))
    assert install_lowest(["a==1"], tmp_path / "lowest").status == status
