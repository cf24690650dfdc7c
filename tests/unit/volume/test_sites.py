"""Sites: named, armed only by a test rig, and each name used in the product exactly as listed."""

import ast
import logging
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

import native
from tests.integration import test_kill_journal as journal
from tests.integration import test_kill_upkeep as upkeep
from tests.integration import test_kill_versions as versions
from tests.storm.points import WAYS
from volume import sites
from volume.sites import FAIL_POINTS, RARE_SITES

ROOT = Path(__file__).parents[3]
PRODUCT = ("blockd", "volume", "transport", "native")


@pytest.fixture(autouse=True)
def disarmed() -> Iterator[None]:
    yield
    sites.disarm()
    native.report_sites(-1)


def core_sites(kind: str) -> set[str]:
    return {name for found, name, _, _ in native.native_sites() if found == kind}


def named_in_python(function: str) -> Counter[str]:
    """Every name that the product's Python calls `function` with."""
    found: Counter[str] = Counter()
    for package in PRODUCT:
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if (
                    isinstance(node, ast.Call)
                    and isinstance(node.func, ast.Name)
                    and node.func.id == function
                ):
                    found.update(
                        each.value
                        for argument in node.args
                        for each in ast.walk(argument)
                        if isinstance(each, ast.Constant) and isinstance(each.value, str)
                    )
    return found


@pytest.mark.parametrize(
    ("function", "kind", "listed"),
    [("fail_point", "point", FAIL_POINTS), ("rare", "rare", RARE_SITES)],
)
def test_what_is_listed_is_what_the_product_has(
    function: str, kind: str, listed: dict[str, object]
) -> None:
    python = named_in_python(function)
    assert set(python) | core_sites(kind) == set(listed)
    assert not set(python) & core_sites(kind)


def test_each_site_of_the_core_is_used() -> None:
    code = "".join(path.read_text() for path in (ROOT / "native/src").glob("*.c"))
    rows = re.findall(r"SITE\((\w+), \w+,", (ROOT / "native/src/sites.h").read_text())
    assert len(rows) == len(native.native_sites())
    assert [row for row in rows if f"BD_SITE_{row})" not in code] == []


def test_nothing_happens_unarmed() -> None:
    assert not sites.rare("gc.yields")
    sites.fail_point("gc.marked")
    assert sites.counts().get("gc.yields", (0, 0)) == (0, 0)


def test_a_rare_site_draws_the_same_from_the_same_seed() -> None:
    def drawn(seed: str) -> list[bool]:
        sites.arm("gc.yields", chance=0.5, seed=seed)
        return [sites.rare("gc.yields") for _ in range(64)]

    first = drawn("1")
    assert first == drawn("1") != drawn("2")
    assert 16 < sum(first) < 48
    assert sites.counts()["gc.yields"] == (64, sum(drawn("2")))


def test_arming_one_site_arms_no_other() -> None:
    sites.arm("gc.yields", chance=1.0)
    assert sites.rare("gc.yields")
    assert not sites.rare("gc.due")


@pytest.mark.parametrize("variable", [sites.FAIL_POINT, sites.RARE])
def test_an_unknown_name_is_refused(variable: str) -> None:
    with pytest.raises(ValueError, match="no 'typo'"):
        sites.arm_from({variable: "1:typo=1" if variable == sites.RARE else "typo"})


def test_an_environment_without_the_variables_arms_nothing() -> None:
    sites.arm_from({sites.REPORT: "/nowhere"})
    assert not sites.rare("gc.yields")


def test_an_armed_process_says_so(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        sites.arm_from({sites.RARE: "1:gc.yields=0.5"})
    assert "not for production" in caplog.text


def test_the_report_has_what_was_reached_and_what_fired(tmp_path: Path) -> None:
    report = tmp_path / "report"
    chosen = "7:gc.yields=1,gc.due=0,journal.no-segment=0"
    sites.arm_from({sites.RARE: chosen, sites.REPORT: str(report)})
    for _ in range(3):
        sites.rare("gc.yields")
        sites.rare("gc.due")
    assert report.read_text().splitlines() == [
        "reached gc.yields",
        "fired gc.yields",
        "reached gc.due",
    ]


@pytest.mark.parametrize("name", ["gc.marked", "journal.append.before"])
def test_a_fail_point_kills_at_the_nth_time(name: str, tmp_path: Path) -> None:
    program = """
import os
from native import Journal
from volume import sites

sites.arm_from(os.environ)
journal = Journal(bytes(16), 65536, 1)
fd = os.memfd_create("segment")
os.truncate(fd, 65536)
journal.add_ready(0, fd)
for number in range(5):
    print(number, flush=True)
    sites.fail_point("gc.marked")
    journal.append_mark(number)
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, sites.FAIL_POINT: f"{name}:3", sites.REPORT: str(tmp_path / "report")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert done.stdout.split() == ["0", "1", "2"]
    assert (tmp_path / "report").read_text().splitlines()[-1] == f"fired {name}"


def test_all_names_can_be_listed() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "volume.sites"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    listed = {line.split()[1] for line in done.stdout.splitlines()}
    assert listed == {*FAIL_POINTS, *RARE_SITES}


def test_the_storm_knows_a_way_to_each_fail_point() -> None:
    prefixes = [*journal.PREFIXES, *versions.PREFIXES, *upkeep.PREFIXES]
    assert set(WAYS) == set(FAIL_POINTS)
    for name in FAIL_POINTS:
        assert sum(name.startswith(prefix) for prefix in prefixes) == 1, name
