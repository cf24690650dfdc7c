"""Seeds on several processes: each comes back once, and one that ends its process is a failure."""

import os
import signal

from tests.sim.world import workers
from tests.sim.world.workers import Settings

SETTINGS = Settings(acts=4, profile="calm", shrink_s=0.0)


def test_each_seed_comes_back_once() -> None:
    results = list(workers.run(range(1, 6), SETTINGS, jobs=2))
    assert sorted(result.report.seed for result in results) == [1, 2, 3, 4, 5]
    assert not any(result.report.error for result in results)


def test_process_that_dies_is_a_failure_of_its_seed_and_others_go_on() -> None:
    worker = workers._Worker(SETTINGS)
    pid = worker.process.pid
    assert pid is not None
    worker.give(7)
    os.kill(pid, signal.SIGKILL)
    result = worker.take(SETTINGS)
    assert result.report.seed == 7
    assert "died or hung" in result.report.error
    assert not worker.process.is_alive()
