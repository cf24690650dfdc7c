"""Account against its twin, and what it is given as Requests."""

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from native import (
    ACCOUNT_BOUNDS_NS,
    ACCOUNT_OPS,
    OP_FLUSH,
    OP_OTHER,
    OP_READ,
    OP_UNMAP,
    OP_WRITE,
    Account,
    Request,
    reference_account,
)

near_bounds = st.builds(
    lambda bound, off: bound + off, st.sampled_from(ACCOUNT_BOUNDS_NS), st.integers(-2, 2)
)
elapsed = st.one_of(st.integers(0, 1 << 40), near_bounds)
records = st.lists(
    st.tuples(st.integers(0, OP_OTHER), st.integers(0, 1 << 26), st.booleans(), elapsed)
)


def test_ops_and_bounds_are_the_twins() -> None:
    assert ACCOUNT_OPS == reference_account.OPS
    assert ACCOUNT_BOUNDS_NS == reference_account.BOUNDS_NS
    assert ACCOUNT_OPS[OP_READ] == "read"
    assert ACCOUNT_OPS[OP_OTHER] == "other"


@given(records)
def test_a_snapshot_is_the_twins(records: list[tuple[int, int, bool, int]]) -> None:
    account, twin = Account(), reference_account.Account()
    for record in records:
        account.record(*record)
        twin.record(*record)
    assert account.snapshot() == twin.snapshot()


def test_requests_are_the_sum_of_the_buckets() -> None:
    account = Account()
    for elapsed_ns in (0, 5000, 10**12):
        account.record(OP_READ, 512, False, elapsed_ns)
    requests, _, _, sum_ns, buckets = account.snapshot()[OP_READ]
    assert requests == sum(buckets) == 3
    assert sum_ns == 5000 + 10**12
    assert buckets[-1] == 1
    assert len(buckets) == len(ACCOUNT_BOUNDS_NS) + 1


def test_requests_count_from_begin_to_end() -> None:
    account = Account()
    read, write = Request(OP_READ, 0, 4096), Request(OP_WRITE, 0, 512, bytes(512))
    trim = Request(OP_UNMAP, 0, 1 << 20)
    account.begin([read, write, trim], 1000)
    assert account.in_flight() == (3, 4608)
    account.end([read], 6000)
    write.error = 5
    account.end([write, trim], 11_000)
    assert account.in_flight() == (0, 0)
    snapshot = account.snapshot()
    assert snapshot[OP_READ][:4] == (1, 4096, 0, 5000)
    assert snapshot[OP_WRITE][:4] == (1, 0, 1, 10_000)
    assert snapshot[OP_UNMAP][:4] == (1, 0, 0, 10_000)
    assert snapshot[OP_FLUSH][:4] == (0, 0, 0, 0)


def test_a_clock_that_stood_still_is_no_time() -> None:
    account, flush = Account(), Request(OP_FLUSH)
    account.begin([flush], 7)
    account.end([flush], 6)
    assert account.snapshot()[OP_FLUSH][3] == 0


def test_what_is_no_op_and_no_request_is_refused() -> None:
    account = Account()
    with pytest.raises(ValueError, match="op 8: ACCOUNT_OPS has 8"):
        account.record(OP_OTHER + 1, 0, False, 0)
    with pytest.raises(TypeError):
        account.begin([None], 0)  # type: ignore[list-item]
    with pytest.raises(TypeError):
        account.end([None], 0)  # type: ignore[list-item]
    with pytest.raises(TypeError):
        Account(1)  # type: ignore[call-arg]
    assert account.in_flight() == (0, 0)


def test_threads_record_into_one_account() -> None:
    account, count = Account(), 5000

    def record() -> None:
        for _ in range(count):
            account.record(OP_WRITE, 10, False, 1)

    threads = [threading.Thread(target=record) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert account.snapshot()[OP_WRITE][:4] == (4 * count, 40 * count, 0, 4 * count)
