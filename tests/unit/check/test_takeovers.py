"""Another node goes on with a volume: replies of the old one may still come, its writes may not."""

from tests.unit.check.histories import Script


def taken_over(script: Script, *runs: list[int | str]) -> None:
    script.lines.append(["takeover"])
    script.state(*runs)


def test_a_reply_that_was_on_its_way_is_heard_after_the_takeover() -> None:
    script = Script()
    old = script.write(0, 2)
    new = script.begin("write")
    taken_over(script, [1, new], [1, old])
    script.end(new)
    script.read(0, [1, new], [1, old])
    assert script.found() == []


def test_a_write_without_a_reply_has_happened_by_the_takeover_or_never_does() -> None:
    script = Script()
    old = script.write()
    new = script.begin("write")
    taken_over(script, [1, old])
    script.read(0, [1, old])
    assert script.found() == []
    script.read(0, [1, new])
    assert script.found() == [("I1", 0, 1)]


def test_a_failed_write_has_happened_by_the_takeover_or_never_does() -> None:
    script = Script()
    old = script.write()
    new = script.begin("write")
    script.end(new, 5)
    taken_over(script, [1, old])
    script.read(0, [1, new])
    assert script.found() == [("I1", 0, 1)]


def test_an_acked_write_that_the_takeover_lost_is_caught() -> None:
    script = Script()
    script.write()
    taken_over(script)
    assert script.found() == [("I2", 0, 1)]


def test_a_write_that_is_acked_after_a_takeover_without_it_is_caught() -> None:
    script = Script()
    old = script.write()
    new = script.begin("write")
    taken_over(script, [1, old])
    script.end(new)
    script.read(0, [1, old])
    assert script.found() == [("I1", 0, 1)]


def test_a_read_that_began_before_may_show_what_was_before() -> None:
    script = Script()
    old = script.write()
    read = script.begin("read")
    taken_over(script, [1, old])
    new = script.write()
    script.saw(read, [1, old])
    script.read(0, [1, new])
    assert script.found() == []


def test_a_stale_read_at_a_node_that_does_not_know_is_caught() -> None:
    script = Script()
    old = script.write()
    taken_over(script, [1, old])
    script.write()
    script.read(0, [1, old])
    assert script.found() == [("I1", 0, 1)]


def test_zeros_that_were_being_written_show_or_do_not() -> None:
    for shown in (0, 1):
        script = Script()
        old = script.write()
        trim = script.begin("trim")
        taken_over(script, [1, (old, 0)[shown]])
        script.end(trim, (5, 0)[shown])
        script.read(0, [1, (old, 0)[shown]])
        assert script.found() == []


def test_what_was_acked_before_a_takeover_survives_power_cuts_after_it() -> None:
    script = Script()
    script.write()
    script.lines.append(["takeover"])
    script.crash("power")
    script.state()
    assert script.found() == [("I2", 0, 1)]
