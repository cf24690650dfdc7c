"""`blockd top`: rates between two scrapes, and what is shown of them."""

import io
import math

import pytest
from rich.console import Console

from blockd.api.client import ApiError
from blockd.cli.rates import VolumeCounts, between, parse, quantile
from blockd.cli.top import SortKey, finite, live
from native import OP_READ, OP_WRITE
from tests.command import Blockd
from tests.fake_node import FakeNode

MS = 1_000_000
STORE = (
    "blockd_journal_limit_bytes 100\nblockd_destage_lag_seconds 0\nblockd_space_left_bytes 1\n"
    "blockd_gc_running 1\nblockd_scrub_running 1\nblockd_scrub_progress_ratio 0.5\n"
    "blockd_scrub_damage 3\n"
)


def scrape(reads: int, le_small: int, *, at_s: float, volume: str = "vm1") -> str:
    labels = f'volume="{volume}",protocol="nbd",op="read"'
    return (
        f"blockd_requests_total{{{labels}}} {reads}\n"
        f"blockd_request_bytes_total{{{labels}}} {reads * 4096}\n"
        f'blockd_request_duration_seconds_bucket{{{labels},le="0.001"}} {le_small}\n'
        f'blockd_request_duration_seconds_bucket{{{labels},le="+Inf"}} {reads}\n'
        f'blockd_volume_clients{{volume="{volume}"}} 2\n'
        f'blockd_store_state{{state="ok"}} 1\nblockd_store_state{{state="sealed"}} 0\n'
        f"blockd_journal_bytes {at_s}\n"
    )


def test_rates_are_what_was_counted_between_two_scrapes() -> None:
    old = parse(scrape(100, 100, at_s=5), 10.0)
    new = parse(scrape(300, 298, at_s=7), 12.0)
    (rates,) = between(old, new)
    assert (rates.volume, rates.read_iops, rates.read_bandwidth) == ("vm1", 100.0, 409600.0)
    assert (rates.p50_s, rates.p99_s, rates.clients) == (0.001, 0.001, 2)
    assert new.state == "ok"
    assert new.store == {"journal_bytes": 7.0}


def test_a_daemon_that_was_restarted_counts_from_its_start() -> None:
    (rates,) = between(parse(scrape(900, 900, at_s=0), 0.0), parse(scrape(50, 50, at_s=0), 1.0))
    assert rates.read_iops == 50.0


def test_a_volume_that_is_new_counts_from_nothing() -> None:
    old = parse(scrape(900, 900, at_s=0), 0.0)
    new = parse(scrape(10, 10, at_s=0, volume="vm2"), 1.0)
    assert [(each.volume, each.read_iops) for each in between(old, new)] == [("vm2", 10.0)]


def test_protocols_of_a_volume_are_added() -> None:
    both = scrape(10, 10, at_s=0) + scrape(5, 5, at_s=0).replace("nbd", "iscsi")
    assert parse(both, 0.0).volumes["vm1"].requests["read"] == 15


@pytest.mark.parametrize(
    ("buckets", "part", "found"),
    [
        ({}, 0.5, None),
        ({1.0: 0.0, math.inf: 0.0}, 0.5, None),
        ({1.0: 50.0, 2.0: 99.0, math.inf: 100.0}, 0.5, 1.0),
        ({1.0: 50.0, 2.0: 99.0, math.inf: 100.0}, 0.99, 2.0),
        ({1.0: 50.0, math.inf: 100.0}, 0.99, math.inf),
    ],
)
def test_a_quantile_is_the_bound_of_its_bucket(
    buckets: dict[float, float], part: float, found: float | None
) -> None:
    assert quantile(buckets, part) == found


def test_counts_of_nothing_are_nothing() -> None:
    assert VolumeCounts().requests["read"] == 0


@pytest.fixture(autouse=True)
def volumes(node: FakeNode) -> None:
    for name in ("a", "b"):
        node.store.create_volume(name, 1 << 20)
        device = node.store.get(name)
        assert device is not None
        account = node.accounts.of(device, "nbd")
        account.record(OP_READ, 4096, False, 2 * MS)
        account.record(OP_WRITE, 4096, False, 30_000 * MS)


def test_once_prints_one_table_and_ends(blockd: Blockd) -> None:
    done = blockd("top", "--once", "--interval", "0.1")
    assert done.code == 0, done.err
    first, columns, *rows = done.out.splitlines()
    assert first.startswith("store ok | journal 0%, oldest write 1.5 s | space left ")
    assert columns.split()[:3] == ["VOLUME", "READ/S", "WRITE/S"]
    assert [row.split()[0] for row in rows] == ["a", "b"]


def test_json_is_one_document_with_the_store(blockd: Blockd) -> None:
    told = blockd("top", "--once", "--json", "--interval", "0.1").json
    assert [each["volume"] for each in told["volumes"]] == ["a", "b"]
    assert told["store"]["state"] == "ok"


def test_a_latency_beyond_the_last_bucket_is_no_number_in_json() -> None:
    (rates,) = between(parse(scrape(0, 0, at_s=0), 0.0), parse(scrape(10, 0, at_s=0), 1.0))
    assert rates.p99_s == math.inf
    assert finite([rates])[0]["p99_s"] is None


@pytest.mark.parametrize("width", [200, 60])
def test_a_screen_is_drawn_until_the_daemon_is_gone(width: int) -> None:
    looks = iter([scrape(0, 0, at_s=0), scrape(5, 5, at_s=0)])

    class Ending:
        def metrics(self) -> str:
            try:
                return next(looks) + STORE
            except StopIteration:
                raise ApiError("gone", "the daemon is gone") from None

    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=width, height=7)
    with pytest.raises(ApiError):
        live(Ending(), 0.01, SortKey.IOPS, console)
    assert "vm1" in screen.getvalue()
    assert "3 DAMAGED" in screen.getvalue()
    assert ("NOT DESTAGED" in screen.getvalue()) is (width == 200)


def test_an_interval_of_nothing_is_refused(blockd: Blockd) -> None:
    assert blockd("top", "--interval", "0").code == 2
