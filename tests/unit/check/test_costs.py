"""tests.costs: what is counted, and that what workers tell is added up."""

import os
import subprocess
import sys
from types import SimpleNamespace

from tests import forks
from tests.costs import Costs, cpu_s

BUSY_S = 0.2
BUSY = f"import time\nwhile time.process_time() < {BUSY_S}: pass"


def test_a_process_counts_once_it_has_ended() -> None:
    before = cpu_s()
    subprocess.run([sys.executable, "-c", BUSY], check=True)
    assert cpu_s() - before > BUSY_S / 2


def test_children_of_the_process_that_forks_count() -> None:
    shared = forks.shared.get()
    assert shared is not None
    before = cpu_s()
    for _ in range(5):
        assert shared.run(["--help"], environ=os.environ, timeout_s=60.0).returncode == 0
    assert cpu_s() > before + 0.01


def test_each_part_has_what_was_spent_since_the_one_before() -> None:
    costs = Costs()
    costs.spent_on("first")
    subprocess.run([sys.executable, "-c", BUSY], check=True)
    costs.spent_on("second")
    costs.spent_on("third")
    assert costs.seconds["second"] > BUSY_S / 2 > costs.seconds["third"]


def test_what_workers_tell_is_added_up() -> None:
    costs = Costs()
    for _ in range(2):
        costs.pytest_testnodedown(SimpleNamespace(workeroutput={"costs": {"a": 1.5, "b": 1.0}}))
    costs.pytest_testnodedown(SimpleNamespace())  # one that has crashed
    assert costs.seconds == {"a": 3.0, "b": 2.0}
