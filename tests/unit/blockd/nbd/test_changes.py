"""Metadata contexts that tell what changed since a version."""

import struct

import pytest

from blockd.device import STATE_CHANGED
from blockd.nbd import wire
from blockd.nbd.contexts import MAX_LISTED_SNAPSHOTS, MAX_SELECTED
from tests.fakes import FakeChanges, MemoryDevice
from tests.nbd_client import OptionError, RequestError, Session, context_query
from tests.nbd_engine import Engine, open_export
from volume.errors import CorruptManifest

BLOCK = 4096
MONDAY, TUESDAY = "blockd:changed-since:monday", "blockd:changed-since:tuesday"
BITMAP = "qemu:dirty-bitmap:monday"

both_styles = pytest.mark.parametrize("extended", [False, True])


def changed_disk() -> MemoryDevice:
    """Blocks 0 to 3: written before monday, after it, after tuesday too, never."""
    device = MemoryDevice()
    device.write(0, b"0" * BLOCK)
    device.snapshot("monday")
    device.write(BLOCK, b"1" * BLOCK)
    device.snapshot("tuesday")
    device.write(2 * BLOCK, b"2" * BLOCK)
    return device


def opened(extended: bool, *contexts: str, name: str = "disk") -> tuple[Engine, Session]:
    engine = Engine(changed_disk())
    client = open_export(
        engine, name=name, structured=not extended, extended=extended, contexts=contexts
    )
    return engine, client


def negotiating(device: MemoryDevice | None = None) -> tuple[Engine, Session]:
    engine = Engine(device or changed_disk())
    client = engine.client()
    client.greet()
    client.structured_reply()
    return engine, client


def refusal(client: Session, number: int, *queries: str) -> int:
    with pytest.raises(OptionError) as raised:
        client.option(number, context_query("disk", *queries))
    return raised.value.reply


# --- what they tell -----------------------------------------------------------------------------


@both_styles
def test_bit_0_is_set_where_something_changed(extended: bool) -> None:
    _, client = opened(extended, MONDAY)
    changed, same = STATE_CHANGED, 0
    assert client.block_status(0, 4 * BLOCK) == {
        MONDAY: [(BLOCK, same), (2 * BLOCK, changed), (BLOCK, same)]
    }


@both_styles
def test_qemus_name_tells_the_same(extended: bool) -> None:
    _, client = opened(extended, MONDAY, BITMAP)
    found = client.block_status(0, 4 * BLOCK)
    assert found[MONDAY] == found[BITMAP]


@both_styles
def test_every_context_gets_its_own_answer_in_one_reply(extended: bool) -> None:
    engine, client = opened(
        extended, TUESDAY, "base:allocation", BITMAP, "qemu:allocation-depth", MONDAY
    )
    assert client.block_status(0, 4 * BLOCK) == {
        TUESDAY: [(2 * BLOCK, 0), (BLOCK, 1), (BLOCK, 0)],
        MONDAY: [(BLOCK, 0), (2 * BLOCK, 1), (BLOCK, 0)],
        BITMAP: [(BLOCK, 0), (2 * BLOCK, 1), (BLOCK, 0)],
        "base:allocation": [(3 * BLOCK, 0), (BLOCK, 3)],
        "qemu:allocation-depth": [(3 * BLOCK, 1), (BLOCK, 0)],
    }
    assert len(engine.submitted) == 3, "one for allocation, one for each version"
    assert engine.batches == [3]


@both_styles
def test_req_one_gives_one_descriptor_of_each(extended: bool) -> None:
    _, client = opened(extended, "base:allocation", MONDAY)
    found = client.block_status(100, 4 * BLOCK - 100, wire.CMD_FLAG_REQ_ONE)
    assert found == {"base:allocation": [(3 * BLOCK - 100, 0)], MONDAY: [(BLOCK - 100, 0)]}


def test_payload_asks_for_some_of_them_only() -> None:
    engine, client = opened(True, "base:allocation", MONDAY, TUESDAY)
    numbers = (client.contexts[TUESDAY],)
    payload = struct.pack(">QI", 4 * BLOCK, *numbers)
    client.send_request(
        wire.CMD_BLOCK_STATUS, 0, len(payload), flags=wire.CMD_FLAG_PAYLOAD_LEN, payload=payload
    )
    assert client.read_reply().extents == {numbers[0]: [(2 * BLOCK, 0), (BLOCK, 1), (BLOCK, 0)]}
    (request,) = engine.submitted
    assert request.offset == 0
    assert request.length == 4 * BLOCK


def test_numbers_of_all_contexts_differ() -> None:
    _, client = opened(False, "qemu:allocation-depth", MONDAY, BITMAP, TUESDAY, "base:allocation")
    assert len(set(client.contexts.values())) == 5


def test_version_tells_what_changed_between_two_versions() -> None:
    _, client = opened(False, MONDAY, name="disk@tuesday")
    assert client.block_status(0, 4 * BLOCK) == {
        MONDAY: [(BLOCK, 0), (BLOCK, 1), (2 * BLOCK, 0)],
    }


# --- the reply waits for all of its parts -------------------------------------------------------


@both_styles
def test_reply_comes_when_the_last_part_is_there(extended: bool) -> None:
    engine, client = opened(extended, "base:allocation", MONDAY, TUESDAY)
    engine.device.deferred = True
    cookie = client.send_request(wire.CMD_BLOCK_STATUS, 0, 4 * BLOCK)
    client.send_request(wire.CMD_READ, 0, 512)
    engine.finish(2, newest_first=True)  # the READ overtakes, one part is there
    assert client.read_reply().data is not None
    assert not engine.sent
    engine.finish(1, newest_first=True)
    assert not engine.sent
    engine.finish()
    reply = client.read_reply()
    assert reply.cookie == cookie
    assert len(reply.extents) == 3


@both_styles
@pytest.mark.parametrize("failing", [0, 1, 2])
def test_one_part_that_fails_fails_the_whole(extended: bool, failing: int) -> None:
    engine, client = opened(extended, "base:allocation", MONDAY, TUESDAY)
    engine.device.deferred = True
    client.send_request(wire.CMD_BLOCK_STATUS, 0, 4 * BLOCK)
    engine.submitted[failing].error = 5
    engine.submitted[failing].message = "the tree is damaged"
    engine.finish()
    reply = client.read_reply()
    assert (reply.error, reply.message) == (wire.EIO, "the tree is damaged")
    assert not reply.extents
    assert engine.connection.stats.errors == 1
    assert engine.connection.idle


def test_parts_count_as_one_request_and_their_room_is_given_back() -> None:
    engine, client = opened(False, "base:allocation", MONDAY, TUESDAY)
    for _ in range(3000):  # more than may be in flight
        client.block_status(0, BLOCK)
    transmission = engine.connection._transmission
    assert transmission is not None
    assert not transmission._held_requests
    assert not transmission._held_bytes
    assert not transmission._asides
    assert engine.connection.stats.by_name()["block_status"] == 3000


def test_client_that_leaves_between_parts() -> None:
    engine, client = opened(False, "base:allocation", MONDAY)
    engine.device.deferred = True
    client.send_request(wire.CMD_BLOCK_STATUS, 0, BLOCK)
    engine.finish(1)
    engine.eof()
    assert engine.closed is None
    engine.finish()
    assert engine.closed is not None


# --- selecting ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "query",
    [
        "blockd:changed-since:friday",
        "qemu:dirty-bitmap:friday",
        "blockd:changed-since:",
        "qemu:dirty-bitmap:",
        "blockd:",
        "qemu:",
        "blockd:changed-since",
        "blockd:other:monday",
        "qemu:dirty-bitmap:monday ",
        "QEMU:dirty-bitmap:monday",
        "x-qemu:dirty-bitmap:monday",
        "qemu:dirty-bitmap:disk@monday",
        "qemu:dirty-bitmap:" + "m" * 4078,
        "qemu:dirty-bitmap:mon\nday",
    ],
)
def test_what_names_no_version_selects_nothing_and_is_no_error(query: str) -> None:
    _, client = negotiating()
    assert client.set_meta_context("disk", query) == {}
    assert client.set_meta_context("disk", query, BITMAP).keys() == {BITMAP}


def test_selected_twice_is_selected_once() -> None:
    _, client = negotiating()
    assert client.set_meta_context("disk", BITMAP, BITMAP).keys() == {BITMAP}


def test_too_many_contexts_are_too_big_and_nothing_is_looked_up() -> None:
    engine, client = negotiating()
    engine.slow_disk = True  # a question would be left over
    queries = [f"{BITMAP}{number}" for number in range(MAX_SELECTED + 1)]
    for number in (wire.OPT_SET_META_CONTEXT, wire.OPT_LIST_META_CONTEXT):
        assert refusal(client, number, *queries) == wire.REP_ERR_TOO_BIG
    assert engine.question is None


def test_as_many_contexts_as_allowed_are_served_together() -> None:
    device = MemoryDevice()
    refs = [f"s{number}" for number in range(MAX_SELECTED)]
    for ref in refs:
        device.snapshot(ref)
    engine = Engine(device)
    names = tuple(f"qemu:dirty-bitmap:{ref}" for ref in refs)
    client = open_export(engine, structured=True, contexts=names)
    assert len(client.block_status(0, BLOCK)) == MAX_SELECTED


class DamagedDevice(MemoryDevice):
    def changes_since(self, ref: str) -> FakeChanges:
        raise CorruptManifest(f"the tree of {ref} is damaged")


def test_damage_fails_the_option_and_is_not_taken_for_a_missing_version() -> None:
    _, client = negotiating(DamagedDevice())
    assert refusal(client, wire.OPT_SET_META_CONTEXT, BITMAP) == wire.REP_ERR_PLATFORM
    client.go("disk")
    with pytest.raises(RequestError):
        client.call(wire.CMD_BLOCK_STATUS, 0, BLOCK)


def test_client_that_leaves_while_its_changes_are_looked_up() -> None:
    engine, client = negotiating()
    engine.slow_disk = True
    client.send_raw(b"")
    with pytest.raises(EOFError):
        client.set_meta_context("disk", BITMAP)
    assert not engine.connection.wants_input
    engine.eof()
    assert engine.closed is None
    engine.answer()
    assert engine.closed is not None


# --- listing ------------------------------------------------------------------------------------


def test_no_query_lists_the_contexts_of_every_snapshot() -> None:
    _, client = negotiating()
    assert client.list_meta_context("disk") == [
        "base:allocation",
        "qemu:allocation-depth",
        TUESDAY,
        MONDAY,
        "qemu:dirty-bitmap:tuesday",
        BITMAP,
    ]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("blockd:", [TUESDAY, MONDAY]),
        ("blockd:changed-since:", [TUESDAY, MONDAY]),
        ("qemu:dirty-bitmap:", ["qemu:dirty-bitmap:tuesday", BITMAP]),
        ("qemu:", ["qemu:allocation-depth", "qemu:dirty-bitmap:tuesday", BITMAP]),
        (BITMAP, [BITMAP]),
        ("qemu:dirty-bitmap:friday", []),
        ("base:", ["base:allocation"]),
    ],
)
def test_query_lists_what_matches(query: str, expected: list[str]) -> None:
    _, client = negotiating()
    assert client.list_meta_context("disk", query) == expected


def test_snapshots_of_other_volumes_are_not_listed() -> None:
    other = MemoryDevice("other")
    other.snapshot("secret")
    engine = Engine(changed_disk(), other)
    client = engine.client()
    client.greet()
    client.structured_reply()
    assert client.list_meta_context("disk@tuesday", "blockd:") == [TUESDAY, MONDAY]


def test_the_newest_are_listed_and_all_can_be_selected() -> None:
    device = MemoryDevice()
    for number in range(MAX_LISTED_SNAPSHOTS + 10):
        device.snapshot(f"s{number}")
    _, client = negotiating(device)
    listed = client.list_meta_context("disk", "qemu:dirty-bitmap:")
    assert len(listed) == MAX_LISTED_SNAPSHOTS
    assert listed[0] == f"qemu:dirty-bitmap:s{MAX_LISTED_SNAPSHOTS + 9}"
    assert client.set_meta_context("disk", "qemu:dirty-bitmap:s0")


def test_listing_that_cannot_read_the_snapshots_is_an_error() -> None:
    engine, client = negotiating()
    engine.exports.fail_with = CorruptManifest("the table of snapshots is damaged")
    assert refusal(client, wire.OPT_LIST_META_CONTEXT) == wire.REP_ERR_PLATFORM
    assert client.list_meta_context("disk", "base:") == ["base:allocation"]
