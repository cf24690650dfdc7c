"""`blockd cluster stripes ...` against a real control API."""

from dataclasses import replace

import pytest

from blockd.api.client import ApiError, Client
from blockd.api.cluster_types import LostRange, LostStripe, LostStripes, RebuiltRows
from blockd.cli import exits
from blockd.cluster.stripeorders import CannotGiveUp
from tests.command import Blockd
from tests.fake_cluster import FakeCluster, FakeStripeOrders
from tests.fake_node import FakeNode
from transport.striperebuild import CannotRebuild

PACK = "ab" * 32
LOST = LostStripes(
    (LostStripe(PACK, 64 << 20, "lost", False, 16, ("n1", "n2")),),
    (LostRange("vm1", 1 << 20, 64 << 10, PACK), LostRange("vm1@monday", 0, 4096, PACK)),
    False,
)


@pytest.fixture
def orders(node: FakeNode) -> FakeStripeOrders:
    cluster = FakeCluster()
    node.cluster = cluster
    return cluster.stripe_orders


def lines(text: str) -> list[str]:
    return [" ".join(line.split()) for line in text.splitlines()]


def test_what_is_lost_is_named_by_volume_and_range(
    orders: FakeStripeOrders, blockd: Blockd
) -> None:
    done = blockd("cluster", "stripes", "lost")
    assert (done.code, done.out) == (exits.OK, "no stripe is lost\n")
    orders.shown = LOST
    done = blockd("cluster", "stripes", "lost")
    assert done.code == exits.DAMAGED
    shown = lines(done.out)
    assert shown[1] == "abababababababab 64 MiB lost 16 n1, n2"
    assert shown[-2:] == [
        "vm1 1048576 64 KiB abababababababab",
        "vm1@monday 0 4 KiB abababababababab",
    ]
    shown_json = blockd("cluster", "stripes", "lost", "--json").json
    assert shown_json["ranges"][0] == {
        "name": "vm1",
        "offset": 1 << 20,
        "length": 64 << 10,
        "pack": PACK,
    }


def test_nothing_is_given_up_unless_that_is_forced(
    orders: FakeStripeOrders, blockd: Blockd
) -> None:
    orders.shown = LOST
    done = blockd("cluster", "stripes", "give-up", PACK)
    assert done.code == exits.USAGE
    assert "vm1@monday" in done.out
    assert "--force" in done.err
    done = blockd("cluster", "stripes", "give-up", PACK, "--force")
    assert done.code == exits.OK
    assert done.out.endswith("gave up 1 stripe\n")
    blockd("cluster", "stripes", "give-up", "--all", "--force")
    assert orders.ordered == [
        ("would give up", (PACK,)),
        ("give up", (PACK,)),
        ("give up", None),
    ]


def test_where_no_stripe_is_lost_nobody_is_told_to_force_it(
    orders: FakeStripeOrders, blockd: Blockd
) -> None:
    done = blockd("cluster", "stripes", "give-up", "--all")
    assert (done.code, done.out, done.err) == (exits.OK, "no stripe is lost\n", "")


def test_what_is_no_id_of_a_pack_is_named(orders: FakeStripeOrders, blockd: Blockd) -> None:
    done = blockd("cluster", "stripes", "give-up", PACK, "nonsense")
    assert done.code == exits.USAGE
    assert "packs: 'nonsense': name 1 to 4096 packs, each by 8 to 64 hex digits" in done.err


def test_what_would_be_given_up_is_what_was_named(orders: FakeStripeOrders, blockd: Blockd) -> None:
    other = replace(LOST.stripes[0], pack="cd" * 32)
    orders.shown = replace(LOST, stripes=(*LOST.stripes, other))
    done = blockd("cluster", "stripes", "give-up", "cdcdcdcd", "--json")
    assert done.code == exits.USAGE
    assert [each["pack"] for each in done.json["stripes"]] == [other.pack]
    done = blockd("cluster", "stripes", "give-up", "--all", "--json")
    assert [each["pack"] for each in done.json["stripes"]] == [PACK, other.pack]


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"packs": None},
        {"packs": []},
        {"packs": ""},
        {"packs": ["all"]},
        {"packs": ["abab"]},
        {"packs": [PACK, "*"]},
        {"packs": [PACK], "everything": True},
    ],
)
def test_a_request_that_does_not_say_which_gives_nothing_up(
    orders: FakeStripeOrders, node: FakeNode, body: dict[str, object]
) -> None:
    orders.shown = LOST
    with Client(node.control) as client, pytest.raises(ApiError):
        client._call("POST", "/v1/cluster/stripes/give-up", body=body)
    assert orders.ordered == []


def test_who_names_nothing_or_too_much_is_told(orders: FakeStripeOrders, blockd: Blockd) -> None:
    assert blockd("cluster", "stripes", "give-up", "--force").code == exits.USAGE
    assert blockd("cluster", "stripes", "give-up", PACK, "--all", "--force").code == exits.USAGE
    assert orders.ordered == []


def test_rows_that_were_made_again_are_counted(orders: FakeStripeOrders, blockd: Blockd) -> None:
    done = blockd("cluster", "stripes", "rebuild-rows", "--dry-run")
    assert done.code == exits.OK
    assert lines(done.out)[0] == "would make 5 rows"
    orders.rebuilt = RebuiltRows(False, 1, 2, 3, 4, 1, (PACK,), ("n3 (not connected)",))
    done = blockd("cluster", "stripes", "rebuild-rows", "--force")
    assert done.code == exits.FAILED
    assert lines(done.out) == [
        "made 1 row",
        "kept 2 rows, as they are",
        "not needed 3 stripes",
        "damaged 4 files of shards",
        "too few shards 1 stripe",
        f"pack {PACK}",
        "away n3 (not connected)",
    ]
    assert orders.ordered == [("rebuild", False, True), ("rebuild", True, False)]


def test_what_is_in_the_way_is_a_conflict(orders: FakeStripeOrders, blockd: Blockd) -> None:
    orders.error = CannotRebuild("n3 is away")
    done = blockd("cluster", "stripes", "rebuild-rows")
    assert (done.code, "n3 is away" in done.err) == (exits.CONFLICT, True)
    orders.error = CannotGiveUp("it may come back")
    done = blockd("cluster", "stripes", "give-up", "--all", "--force")
    assert (done.code, "come back" in done.err) == (exits.CONFLICT, True)
