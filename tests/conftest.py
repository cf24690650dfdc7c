"""Fixtures for all tests, and the check that the native code under test is the one in the tree.

A test that needs another program asks `client_tool` for it: without the program it is skipped, or
fails where BLOCKD_REQUIRE_CLIENTS is set (scripts/check sets it, so that nothing is passed over).
"""

import importlib.util
import os
import shutil
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from tests import forks
from tests.clients import FindTool, find_tool, has_libnbd_binding, unavailable
from tests.daemon import Daemon, StartDaemon

ROOT = Path(__file__).parent.parent
KERNEL_TESTS = ROOT / "tests/kernel"
LONG = ("integration", "sim", "docs")
"""Folders whose tests take seconds, where those of others take milliseconds."""
LONGEST = (
    *("test_cluster_clients.py", "test_cluster_worlds_1.py", "test_failover.py"),
    *("test_cluster_worlds_2.py", "test_iscsi_conformance.py", "test_cluster_worlds_3.py"),
    *("test_partitions.py", "test_cluster_worlds_4.py", "test_disaster_recovery.py"),
    *("test_cluster.py", "test_cluster_stripes.py", "test_crash_states.py", "test_limits.py"),
    *("test_crash_writes.py", "test_cluster_members.py", "test_space.py", "test_streams.py"),
    *("test_crash_volumes.py", "test_crash_versions.py", "test_crash_collection.py"),
    *("test_version_crash_states.py", "test_cluster_nodes.py", "test_kill.py"),
    *("test_clone_chain.py", "test_takeover_lives.py", "test_placement.py", "test_changing.py"),
)
"""Files that take ten seconds and more, the longest first, those that mostly wait between those
that mostly count. `-p tests.costs` tells who counts."""
ALLOW_STALE = "BLOCKD_ALLOW_STALE_NATIVE"
_FAILED = pytest.StashKey[bool]()

# How long an example takes, to be made or to run, says something of the machine, not of the code.
hypothesis.settings.register_profile(
    "blockd", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("blockd")


def pytest_configure(config: pytest.Config) -> None:
    """Stop when the extension was built from older sources: its tests would prove nothing."""
    reinstall = "reinstall with `pip install -e '.[dev]'` (scripts/check does it by itself)"
    spec = importlib.util.find_spec("native._native")
    if spec is None or spec.origin is None:
        pytest.exit(f"native code is not built: {reinstall}", 4)
    built = Path(spec.origin).stat().st_mtime
    sources = [ROOT / "native/CMakeLists.txt", *(ROOT / "native/src").glob("*.[ch]")]
    newer = sorted(path.name for path in sources if path.stat().st_mtime > built)
    if newer and not os.environ.get(ALLOW_STALE):
        pytest.exit(
            f"native code is older than {', '.join(newer)}: {reinstall}, "
            f"or set {ALLOW_STALE}=1 to test what was built before",
            4,
        )
    forks.shared.wanted = True


def pytest_unconfigure() -> None:
    forks.shared.close()


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """The tests of the virtual machine run only where they are named."""
    named = any(KERNEL_TESTS in (path, *path.parents) for path in _named(config))
    return True if collection_path == KERNEL_TESTS and not named else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take long begin first, or a run would end with one process waiting for them.

    They are the real daemons and clients, which mostly wait, and the worlds, which mostly count:
    in LONGEST, and then by name, they mix. The order is kept by --no-loadscope-reorder; by itself
    pytest-xdist begins with the files that have the most tests, and these are the quickest ones.
    """
    items.sort(key=_first_where_it_takes_long)


def _first_where_it_takes_long(item: pytest.Item) -> tuple[int, int, str]:
    folder, name = item.path.relative_to(ROOT / "tests").parts[0], item.path.name
    if name in LONGEST:
        return (0, LONGEST.index(name), name)
    return (1, 0, name) if folder in LONG else (2, 0, "")


def _named(config: pytest.Config) -> list[Path]:
    return [(config.invocation_params.dir / name.split("::")[0]).resolve() for name in config.args]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    item.stash[_FAILED] = item.stash.get(_FAILED, False) or report.failed
    return report


@pytest.fixture(scope="session")
def client_tool() -> FindTool:
    """The path of a program by its name; skips or fails the test without it."""

    def find(name: str) -> str:
        path = find_tool(name)
        if path is None:
            unavailable(name)
        assert path is not None
        return path

    return find


@pytest.fixture(scope="session")
def libnbd() -> None:
    """The Python binding of libnbd is there; tests.clients.run_libnbd uses it."""
    if not has_libnbd_binding():
        unavailable("python3-libnbd")


@pytest.fixture
def failed(request: pytest.FixtureRequest) -> Callable[[], bool]:
    """Whether the test has failed so far."""
    return lambda: request.node.stash.get(_FAILED, False)


@pytest.fixture
def data_dir(failed: Callable[[], bool], tmp_path_factory: Any) -> Iterator[Path]:
    """A data directory to be, with a path short enough for unix sockets; kept after a failure."""
    folder = tmp_path_factory.mktemp("d")
    yield folder / "data"
    if not failed():
        shutil.rmtree(folder)


@pytest.fixture
def daemon(data_dir: Path) -> Iterator[StartDaemon]:
    """Starts daemons on `data_dir` (or on `data`): `daemon("--volume", "demo=64M")`.

    They are ended by their pid when the test is over; what they wrote to stderr is shown when it
    failed.
    """
    made: list[Daemon] = []

    def make(*options: str, start: bool = True, data: Path = data_dir, **keywords: Any) -> Daemon:
        made.append(Daemon(data, options, **keywords))
        if start:
            made[-1].start()
        return made[-1]

    yield make
    for daemon in made:
        daemon.discard()
        print(f"--- stderr of blockd on {daemon.data}\n{daemon.stderr()}")  # pytest shows it
