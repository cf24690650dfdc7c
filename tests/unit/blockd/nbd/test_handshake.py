"""Negotiation without TLS."""

import contextlib

import pytest

from blockd.nbd import wire
from blockd.nbd.access import ExportPolicy
from blockd.nbd.limits import Limits
from tests.fakes import MemoryDevice
from tests.nbd_client import (
    OptionError,
    Session,
    context_query,
    export_query,
    option,
)
from tests.nbd_engine import Engine, open_export

GIB = 1 << 30
FIXED = wire.FLAG_C_FIXED_NEWSTYLE


def greeted(*devices: MemoryDevice, limits: Limits | None = None) -> tuple[Engine, Session]:
    engine = Engine(*devices, limits=limits)
    client = engine.client()
    client.greet()
    return engine, client


def refused(client: Session, number: int, data: bytes = b"") -> int:
    with pytest.raises(OptionError) as raised:
        client.option(number, data)
    return raised.value.reply


def test_greeting_offers_fixed_newstyle_and_no_zeroes_and_nothing_else() -> None:
    _, client = greeted()
    assert client.handshake_flags == wire.FLAG_FIXED_NEWSTYLE | wire.FLAG_NO_ZEROES


def test_go_tells_size_flags_and_default_block_sizes() -> None:
    _, client = greeted(MemoryDevice(size=5 * GIB))
    info = client.go("disk")
    assert info.size == 5 * GIB
    assert info.block_sizes == (1, 4096, 32 << 20)
    assert info.name is None
    assert info.description is None


def test_asked_for_block_size_is_the_devices() -> None:
    _, client = greeted(MemoryDevice(block_size=512))
    assert client.go("disk", wire.INFO_BLOCK_SIZE).block_sizes == (512, 4096, 32 << 20)


def test_preferred_block_size_is_at_least_the_minimum() -> None:
    _, client = greeted(MemoryDevice(block_size=65536))
    assert client.go("disk", wire.INFO_BLOCK_SIZE).block_sizes == (65536, 65536, 32 << 20)


def test_name_and_description_come_on_demand() -> None:
    _, client = greeted(MemoryDevice("disk", 10 * GIB))
    info = client.query_info("", wire.INFO_NAME, wire.INFO_DESCRIPTION, 999)
    assert info.name == "disk"
    assert info.description == "10 GiB, 4096-byte blocks"


def test_info_stays_in_negotiation_and_equals_go() -> None:
    engine, client = greeted()
    client.extended_headers()
    client.set_meta_context("disk", "base:allocation")
    told = client.query_info("disk", wire.INFO_BLOCK_SIZE, wire.INFO_NAME)
    assert engine.connection.negotiating
    assert client.go("disk", wire.INFO_BLOCK_SIZE, wire.INFO_NAME) == told
    assert not engine.connection.negotiating
    assert engine.connection.export_name == "disk"


def test_empty_name_opens_the_default_export() -> None:
    engine, client = greeted(MemoryDevice("a"), MemoryDevice("b"))
    client.go("")
    assert engine.connection.export_name == "a"


def test_unknown_export_leaves_negotiation_open() -> None:
    _, client = greeted()
    assert refused(client, wire.OPT_GO, export_query("other")) == wire.REP_ERR_UNKNOWN
    client.go("disk")


def test_each_attach_sees_the_size_of_its_moment() -> None:
    device = MemoryDevice(size=GIB)
    assert open_export(Engine(device)).info.size == GIB
    device.size = 2 * GIB
    assert open_export(Engine(device)).info.size == 2 * GIB


@pytest.mark.parametrize(("flags", "zeroes"), [(0, 124), (FIXED, 124), (2, 0), (FIXED | 2, 0)])
def test_export_name_pads_unless_no_zeroes(flags: int, zeroes: int) -> None:
    engine = Engine()
    client = engine.client()
    client.greet(flags)
    client.export_name("disk")  # checks the zeroes
    assert not engine.sent
    assert client.read(0, 512) == bytes(512)


def test_export_name_of_an_unknown_export_is_cut_off() -> None:
    engine, client = greeted()
    with pytest.raises(EOFError):
        client.export_name("other")
    assert engine.closed is not None
    assert not engine.closed.clean


def test_transmission_flags_of_a_writable_export() -> None:
    _, client = greeted()
    flags = client.go("disk").flags
    assert flags == (
        wire.FLAG_HAS_FLAGS
        | wire.FLAG_SEND_FLUSH
        | wire.FLAG_SEND_FUA
        | wire.FLAG_SEND_TRIM
        | wire.FLAG_SEND_WRITE_ZEROES
        | wire.FLAG_CAN_MULTI_CONN
        | wire.FLAG_SEND_CACHE
        | wire.FLAG_SEND_FAST_ZERO
    )


def test_read_only_by_device_or_by_policy_shows_in_the_flags() -> None:
    by_device = Engine(MemoryDevice(read_only=True))
    by_policy = Engine(policies={"disk": ExportPolicy(read_only=True)})
    for engine in (by_device, by_policy):
        info = open_export(engine).info
        assert info.flags & wire.FLAG_READ_ONLY
        assert not info.flags & wire.FLAG_SEND_WRITE_ZEROES


def test_df_only_with_chunks() -> None:
    for structured, extended in [(False, False), (True, False), (False, True)]:
        info = open_export(Engine(), structured=structured, extended=extended).info
        assert bool(info.flags & wire.FLAG_SEND_DF) == (structured or extended)


def test_status_payload_only_with_extended_headers_and_a_context() -> None:
    contexts = ("base:allocation",)
    offered = open_export(Engine(), extended=True, contexts=contexts).info
    without_contexts = open_export(Engine(), extended=True).info
    structured = open_export(Engine(), structured=True, contexts=contexts).info
    assert offered.flags & wire.FLAG_BLOCK_STATUS_PAYLOAD
    for info in (without_contexts, structured):
        assert not info.flags & wire.FLAG_BLOCK_STATUS_PAYLOAD


def test_list_names_every_export() -> None:
    _, client = greeted(MemoryDevice("a"), MemoryDevice("b"))
    assert client.list_exports() == ["a", "b"]


@pytest.mark.parametrize(
    "number",
    [wire.OPT_LIST, wire.OPT_STRUCTURED_REPLY, wire.OPT_EXTENDED_HEADERS, wire.OPT_STARTTLS],
)
def test_data_where_none_belongs_is_invalid_and_stays_in_step(number: int) -> None:
    _, client = greeted()
    assert refused(client, number, b"surplus") == wire.REP_ERR_INVALID
    assert client.list_exports() == ["disk"]


@pytest.mark.parametrize("number", [4, 12, 0, 0xFFFFFFFF])
def test_unknown_option_is_unsupported_and_stays_in_step(number: int) -> None:
    _, client = greeted()
    assert refused(client, number, b"x" * 70000) == wire.REP_ERR_UNSUP
    assert client.list_exports() == ["disk"]


def test_abort_is_acknowledged_and_closes() -> None:
    engine, client = greeted()
    client.abort()
    assert engine.closed is not None
    assert engine.closed.clean


def test_abort_ignores_its_payload() -> None:
    engine, client = greeted()
    client.option(wire.OPT_ABORT, b"bye")
    assert engine.closed is not None
    assert engine.closed.clean


def test_structured_reply_may_be_asked_for_twice() -> None:
    _, client = greeted()
    client.structured_reply()
    client.structured_reply()


def test_extended_headers_replace_structured_replies_for_good() -> None:
    _, client = greeted()
    client.structured_reply()
    client.extended_headers()
    assert refused(client, wire.OPT_STRUCTURED_REPLY) == wire.REP_ERR_EXT_HEADER_REQD
    client.go("disk")
    client.write(0, b"x" * 100)
    assert client.read(0, 100) == b"x" * 100


def test_export_name_after_extended_headers_is_cut_off() -> None:
    engine, client = greeted()
    client.extended_headers()
    with pytest.raises(EOFError):
        client.export_name("disk")
    assert engine.closed is not None
    assert not engine.closed.clean


def test_contexts_need_chunks_first() -> None:
    _, client = greeted()
    for number in (wire.OPT_LIST_META_CONTEXT, wire.OPT_SET_META_CONTEXT):
        assert refused(client, number, context_query("disk")) == wire.REP_ERR_INVALID


def test_list_meta_context_lists_all_or_what_matches() -> None:
    _, client = greeted()
    client.structured_reply()
    assert client.list_meta_context("disk") == ["base:allocation", "qemu:allocation-depth"]
    assert client.list_meta_context("disk", "base:") == ["base:allocation"]
    assert client.list_meta_context("disk", "x-other:all") == []


def test_set_meta_context_takes_exact_names_only() -> None:
    _, client = greeted()
    client.structured_reply()
    assert client.set_meta_context("disk", "base:", "qemu:allocation-depth").keys() == {
        "qemu:allocation-depth"
    }


def test_contexts_of_an_unknown_export_are_unknown() -> None:
    _, client = greeted()
    client.structured_reply()
    query = context_query("other", "base:allocation")
    assert refused(client, wire.OPT_SET_META_CONTEXT, query) == wire.REP_ERR_UNKNOWN


def test_truncated_context_query_is_invalid_and_the_session_goes_on() -> None:
    _, client = greeted()
    client.structured_reply()
    query = context_query("disk", "base:allocation")[:-1]
    assert refused(client, wire.OPT_SET_META_CONTEXT, query) == wire.REP_ERR_INVALID
    assert client.set_meta_context("disk", "base:allocation")


@pytest.mark.parametrize(
    "second",
    [context_query("disk"), context_query("other", "base:allocation"), b"broken", b"x" * 70000],
)
def test_set_meta_context_replaces_the_old_set_even_when_it_fails(second: bytes) -> None:
    _, client = greeted()
    client.structured_reply()
    client.set_meta_context("disk", "base:allocation")
    with contextlib.suppress(OptionError):
        client.option(wire.OPT_SET_META_CONTEXT, second)
    client.go("disk")
    client.send_request(wire.CMD_BLOCK_STATUS, 0, 4096)
    assert client.read_reply().error == wire.EINVAL


def test_contexts_of_another_export_do_not_count() -> None:
    _, client = greeted(MemoryDevice("a"), MemoryDevice("b"))
    client.structured_reply()
    client.set_meta_context("a", "base:allocation")
    client.go("b")
    client.send_request(wire.CMD_BLOCK_STATUS, 0, 4096)
    assert client.read_reply().error == wire.EINVAL


def test_contexts_of_the_default_export_count_under_its_name() -> None:
    _, client = greeted()
    client.structured_reply()
    client.set_meta_context("", "base:allocation")
    client.go("disk")
    assert client.block_status(0, 4096)


def test_too_long_an_option_is_too_big_and_stays_in_step() -> None:
    _, client = greeted()
    reply = refused(client, wire.OPT_GO, export_query("disk", *range(33000)))
    assert reply == wire.REP_ERR_TOO_BIG
    assert client.list_exports() == ["disk"]


def test_error_replies_carry_a_text() -> None:
    _, client = greeted()
    with pytest.raises(OptionError, match="'other'"):
        client.go("other")


def test_pipelined_options_are_answered_in_order() -> None:
    engine, client = greeted()
    engine.send(option(wire.OPT_LIST) + option(77) + option(wire.OPT_STRUCTURED_REPLY))
    replies = [client.read_option_reply().reply for _ in range(4)]
    assert replies == [wire.REP_SERVER, wire.REP_ACK, wire.REP_ERR_UNSUP, wire.REP_ACK]


def test_stopping_server_refuses_options_but_acknowledges_abort() -> None:
    engine, client = greeted()
    engine.drain()
    assert refused(client, wire.OPT_LIST) == wire.REP_ERR_SHUTDOWN
    assert refused(client, wire.OPT_GO, export_query("disk")) == wire.REP_ERR_SHUTDOWN
    client.abort()
    assert engine.closed is not None


def test_stopping_server_cuts_off_export_name() -> None:
    engine, client = greeted()
    engine.drain()
    with pytest.raises(EOFError):
        client.export_name("disk")
    assert engine.closed is not None
