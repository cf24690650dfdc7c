"""Plans follow from their seeds, and shrink to what a failure needs."""

from collections.abc import Sequence

from tests.sim.world import plan as plans
from tests.sim.world.shrink import shrunk
from tests.sim.world.world import Report


def test_spans_say_which_acts_are_kept_and_are_read_back() -> None:
    kept = {0, 1, 2, 7, 9, 10}
    assert plans.spans(kept) == "0-2,7,9-10"
    assert plans.parse_spans("0-2,7,9-10") == kept
    assert plans.parse_spans("") == set()


def test_plan_follows_from_its_seed() -> None:
    assert plans.drawn(5, 40) == plans.drawn(5, 40)
    assert plans.drawn(5, 40) != plans.drawn(6, 40)


def test_kept_acts_stay_what_they_are() -> None:
    plan = plans.drawn(5, 40)
    assert plan.keep({3, 8}).acts == (plan.acts[3], plan.acts[8])


def test_failure_shrinks_to_the_acts_that_it_needs() -> None:
    def live(kept: Sequence[int]) -> Report:
        error = "Violation: I3 broken" if {4, 17} <= set(kept) else ""
        return Report(1, "test", "", len(kept), error)

    kept, report = shrunk(live(range(30)), range(30), live, limit_s=60.0)
    assert kept == [4, 17]
    assert report.error


def test_another_error_is_not_taken_for_the_same_failure() -> None:
    def live(kept: Sequence[int]) -> Report:
        return Report(1, "test", "", 0, "Violation: I3 x" if len(kept) == 8 else "Stuck: y")

    kept, _ = shrunk(live(range(8)), range(8), live, limit_s=60.0)
    assert kept == list(range(8))
