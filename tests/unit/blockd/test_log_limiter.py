"""Lines that strangers cause are bounded, and what was held back is counted."""

import logging
from collections.abc import Callable

import pytest

from blockd.log_limiter import BURST, MAX_KIND_LENGTH, MAX_KINDS, PERIOD_S, LogLimiter

logger = logging.getLogger("limited")


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def events(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


def test_burst_passes_and_the_rest_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    limiter = LogLimiter(logger, Clock())
    for _ in range(BURST + 3):
        limiter.log(logging.WARNING, "magic", "dropped", peer="p")
    assert events(caplog) == ["dropped"] * BURST
    assert vars(caplog.records[0])["peer"] == "p"
    limiter.report()
    last = caplog.records[-1]
    assert (last.getMessage(), last.levelno) == ("log lines suppressed", logging.WARNING)
    assert (vars(last)["kind"], vars(last)["count"]) == ("magic", 3)


def test_kinds_do_not_use_up_each_others_lines(caplog: pytest.LogCaptureFixture) -> None:
    limiter = LogLimiter(logger, Clock())
    for _ in range(BURST + 1):
        limiter.log(logging.WARNING, "magic", "dropped")
    limiter.log(logging.WARNING, "timeout", "expired")
    assert events(caplog)[-1] == "expired"


def test_next_period_begins_with_the_count_of_the_last(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    limiter = LogLimiter(logger, clock)
    for _ in range(BURST + 1):
        limiter.log(logging.WARNING, "magic", "dropped")
    clock.now = PERIOD_S
    limiter.log(logging.WARNING, "magic", "dropped")
    assert events(caplog)[BURST:] == ["log lines suppressed", "dropped"]


def test_kinds_that_strangers_invent_are_bounded(caplog: pytest.LogCaptureFixture) -> None:
    limiter = LogLimiter(logger, Clock())
    for number in range(10 * MAX_KINDS):
        limiter.log(logging.WARNING, f"{number}" + "x" * 2 * MAX_KIND_LENGTH, "dropped")
    assert len(events(caplog)) == MAX_KINDS + BURST


def test_report_is_scheduled_once_for_the_end_of_the_period(
    caplog: pytest.LogCaptureFixture,
) -> None:
    scheduled: list[tuple[float, Callable[[], None]]] = []
    clock = Clock()
    limiter = LogLimiter(logger, clock)
    limiter.report_with(lambda delay_s, callback: scheduled.append((delay_s, callback)))
    clock.now = 10.0
    for _ in range(BURST + 4):
        limiter.log(logging.WARNING, "magic", "dropped")
    ((delay_s, callback),) = scheduled
    assert delay_s == PERIOD_S - 10.0
    callback()
    assert vars(caplog.records[-1])["count"] == 4


def test_traceback_goes_along_when_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    limiter = LogLimiter(logger, Clock())
    try:
        raise RuntimeError("bug")
    except RuntimeError:
        limiter.log(logging.ERROR, "bug", "failed", trace=True)
    assert "RuntimeError: bug" in caplog.text
