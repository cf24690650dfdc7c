"""Descriptors that are watched beside sockets."""

import os
import select
from collections.abc import Iterator

import pytest

from transport.descriptors import Descriptors


@pytest.fixture
def events() -> Iterator[tuple[int, int]]:
    made = os.eventfd(0, os.EFD_NONBLOCK), os.eventfd(0, os.EFD_NONBLOCK)
    yield made
    for descriptor in made:
        os.close(descriptor)


def nothing() -> None:
    pass


def is_readable(watched: Descriptors) -> bool:
    return bool(select.select([watched], [], [], 0)[0])


def test_each_time_that_one_becomes_readable_is_told_once(events: tuple[int, int]) -> None:
    all_of_them = Descriptors()
    first, _ = (all_of_them.watch(event, nothing) for event in events)
    assert not is_readable(all_of_them)
    for _ in range(2):  # it is not read in between
        os.eventfd_write(events[0], 1)
        assert is_readable(all_of_them)
        assert all_of_them.ready() == [first]
        assert not is_readable(all_of_them)
        assert all_of_them.ready() == []
    all_of_them.close()


def test_one_that_is_cancelled_is_not_told_and_may_be_closed(events: tuple[int, int]) -> None:
    all_of_them = Descriptors()
    first, second = (all_of_them.watch(event, nothing) for event in events)
    for event in events:
        os.eventfd_write(event, 1)
    first.cancel()
    first.cancel()
    assert all_of_them.ready() == [second]
    again = all_of_them.watch(events[0], nothing)
    first.cancel()
    assert all_of_them.ready() == [again]
    all_of_them.close()
    again.cancel()
