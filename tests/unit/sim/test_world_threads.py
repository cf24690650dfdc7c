"""Simulated threads: one runs at a time, in an order and a time that the seed decides."""

import threading
from collections.abc import Iterator

import pytest

from tests.sim.world import threads as world
from tests.sim.world.primitives import Condition, Event, Executor, Lock, installed
from tests.sim.world.threads import Group, Killed, Stuck, Threads
from volume import flusher


@pytest.fixture
def run() -> Iterator[Threads]:
    threads = Threads("test")
    with installed(threads):
        yield threads


def order_of(seed: str) -> list[int]:
    """In which order ten threads come by, three times each."""
    seen: list[int] = []
    threads = Threads(seed)
    with installed(threads):

        def work(number: int) -> None:
            for _ in range(3):
                seen.append(number)
                threads.pause()

        started = [threads.spawn(f"t{n}", lambda n=n: work(n)) for n in range(10)]  # type: ignore[misc]
        for thread in started:
            threads.join(thread)
    return seen


def test_order_follows_from_the_seed() -> None:
    assert order_of("a") == order_of("a")
    assert order_of("a") != order_of("b")


def test_sleeping_takes_no_real_time_and_wakes_in_order(run: Threads) -> None:
    woken: list[float] = []

    def work(seconds: float) -> None:
        run.sleep(seconds)
        woken.append(run.now_s)

    for seconds in (86400.0, 1.0, 3600.0):
        run.spawn("sleeper", lambda s=seconds: work(s))  # type: ignore[misc]
    run.sleep(100_000.0)
    assert woken == [1.0, 3600.0, 86400.0]


def test_lock_keeps_others_out_while_its_holder_waits(run: Threads) -> None:
    lock, events = Lock(), []

    def work(name: str) -> None:
        with lock:
            events.append(f"{name} in")
            run.sleep(1.0)
            events.append(f"{name} out")

    started = [run.spawn(name, lambda n=name: work(n)) for name in "ab"]  # type: ignore[misc]
    for thread in started:
        run.join(thread)
    assert sorted(events[:2]) in (["a in", "a out"], ["b in", "b out"])
    assert run.now_s == 2.0


def test_condition_tells_a_wake_up_from_a_timeout(run: Threads) -> None:
    condition, results = Condition(), []

    def work() -> None:
        with condition:
            results.append(condition.wait(5.0))
            results.append(condition.wait(5.0))

    thread = run.spawn("waiter", work)
    run.sleep(1.0)
    with condition:
        condition.notify_all()
    run.join(thread)
    assert results == [True, False]
    assert run.now_s == 6.0


def test_killed_thread_unwinds_and_lets_go_of_its_locks(run: Threads) -> None:
    lock, event, ended = Lock(), Event(), []

    def work() -> None:
        try:
            with lock:
                event.wait()
        except Killed:
            ended.append("killed")
            raise

    group = Group("daemon")
    run.spawn("victim", work, group)
    run.sleep(1.0)
    assert lock.locked()
    run.kill(group)
    assert ended == ["killed"]
    assert not lock.locked()
    assert group.threads == []


def test_nobody_left_to_go_on_is_told(run: Threads) -> None:
    with pytest.raises(Stuck):
        Event().wait()
    run.ending = True


def test_failure_of_a_thread_ends_the_first_one(run: Threads) -> None:
    def work() -> None:
        raise ValueError("broken")

    run.spawn("faulty", work)
    with pytest.raises(ValueError, match="broken"):
        run.sleep(1.0)


def test_executor_runs_calls_on_bounded_threads_and_hands_results_back(run: Threads) -> None:
    pool = Executor(2, "pool")

    def work(number: int) -> int:
        run.sleep(1.0)
        return number * number

    futures = [pool.submit(work, number) for number in range(4)]
    assert [future.result() for future in futures] == [0, 1, 4, 9]
    assert run.now_s == 2.0
    pool.shutdown()


def test_product_modules_get_the_stand_ins_and_their_own_back() -> None:
    names = vars(flusher)
    with installed(Threads("x")):
        assert names["threading"].Condition is Condition
    assert names["threading"] is threading
    assert world.running is None
