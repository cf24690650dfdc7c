"""The security rules for an NBD server, each by a test. TLS rules are in test_tls.py too."""

import resource
import struct
from pathlib import Path

import pytest

from blockd.nbd import wire
from blockd.nbd.access import ExportPolicy, TlsMode
from blockd.nbd.limits import Limits
from tests.fakes import MemoryDevice
from tests.nbd_client import (
    OptionError,
    Session,
    context_query,
    export_query,
    option,
    request,
)
from tests.nbd_engine import Engine, open_export

MIB = 1 << 20


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def greeted(engine: Engine) -> Session:
    client = engine.client()
    client.greet()
    return client


def cut_off(engine: Engine) -> bool:
    return engine.closed is not None and not engine.closed.clean


def reply_to(client: Session, number: int, data: bytes) -> int:
    with pytest.raises(OptionError) as raised:
        client.option(number, data)
    return raised.value.reply


# 1. Strings: UTF-8, no NUL, at most 4096 bytes; lengths are checked before anything is allocated.


@pytest.mark.parametrize("name", [b"n" * 4097, b"disk\0", b"\xff\xfe", b"\0"])
def test_export_name_that_is_no_string_is_cut_off(name: bytes) -> None:
    engine = Engine()
    greeted(engine)
    engine.send(option(wire.OPT_EXPORT_NAME, name))
    assert cut_off(engine)


def test_name_with_nul_does_not_open_the_part_before_it() -> None:
    client = greeted(Engine())
    payload = struct.pack(">I5sH", 5, b"disk\0", 0)
    assert reply_to(client, wire.OPT_GO, payload) == wire.REP_ERR_INVALID


def test_export_name_of_2_to_the_32_is_cut_off_by_its_header() -> None:
    engine = Engine()
    greeted(engine)
    engine.send(wire.OPTION_HEADER.pack(wire.OPTION_MAGIC, wire.OPT_EXPORT_NAME, (1 << 32) - 1))
    assert cut_off(engine)


# 2. An inner length must fit into the option, and nothing may be left over (test_options.py).


@pytest.mark.parametrize("number", [wire.OPT_INFO, wire.OPT_GO])
def test_inner_length_beyond_the_option_is_invalid(number: int) -> None:
    client = greeted(Engine())
    payload = struct.pack(">I4sH", (1 << 32) - 1, b"disk", 0)
    assert reply_to(client, number, payload) == wire.REP_ERR_INVALID
    assert reply_to(client, number, export_query("disk") + b"\0\0") == wire.REP_ERR_INVALID


# 3. Unknown options are skipped in pieces and never kept; huge ones end the session.


def test_unknown_option_of_many_mib_costs_no_memory() -> None:
    engine = Engine()
    client = greeted(engine)
    before = resident_bytes()
    engine.send(wire.OPTION_HEADER.pack(wire.OPTION_MAGIC, 99, 32 * MIB))
    for _ in range(512):
        engine.send(bytes(65536))
    assert resident_bytes() - before < 8 * MIB
    assert client.read_option_reply().reply == wire.REP_ERR_UNSUP
    client.go("disk")


def test_larger_option_ends_the_session() -> None:
    engine = Engine()
    greeted(engine)
    engine.send(wire.OPTION_HEADER.pack(wire.OPTION_MAGIC, 99, 32 * MIB + 1))
    assert cut_off(engine)


# 4. Wrong magic, unknown client flags, EXPORT_NAME that cannot be served: hang up.


def test_wrong_option_magic_is_cut_off() -> None:
    engine = Engine()
    greeted(engine)
    engine.send(wire.OPTION_HEADER.pack(wire.OPTION_MAGIC + 1, wire.OPT_LIST, 0))
    assert cut_off(engine)


@pytest.mark.parametrize("extended", [False, True])
def test_wrong_request_magic_is_cut_off(extended: bool) -> None:
    engine = Engine()
    open_export(engine, extended=extended)
    engine.send(request(wire.CMD_READ, 0, 512, extended=not extended) + bytes(8))
    assert cut_off(engine)
    assert engine.device.seen == []


def test_requests_before_a_wrong_magic_are_answered() -> None:
    engine = Engine()
    client = open_export(engine)
    good, _ = client.prepare(wire.CMD_READ, 0, 512)
    engine.send(good + b"\0" * 28)
    assert client.read_reply().error == 0
    assert cut_off(engine)


@pytest.mark.parametrize("flags", [4, 0x80000000, 7])
def test_unknown_client_flags_are_cut_off(flags: int) -> None:
    engine = Engine()
    engine.client().greet(flags)
    assert cut_off(engine)


def test_client_without_fixed_newstyle_may_only_name_an_export() -> None:
    engine = Engine()
    engine.client().greet(0)
    engine.send(option(wire.OPT_LIST))
    assert cut_off(engine)
    assert not engine.sent


# 5. The payload of a refused WRITE is consumed, whatever refused it.


@pytest.mark.parametrize("length", [1, 4096, 300_000])
@pytest.mark.parametrize("reason", ["past the end", "read-only", "flag", "drain", "alignment"])
def test_payload_of_a_refused_write_is_consumed(length: int, reason: str) -> None:
    policies = {"disk": ExportPolicy(read_only=reason == "read-only")}
    engine = Engine(policies=policies, piece=65536)
    items = (wire.INFO_BLOCK_SIZE,) if reason == "alignment" else ()
    client = open_export(engine, items=items)
    if reason == "drain":
        engine.connection.drain()
    flags = 0x8000 if reason == "flag" else 0
    offset = MIB if reason == "past the end" else 1
    client.send_request(wire.CMD_WRITE, offset, length, flags=flags, payload=b"\x25" * length)
    assert client.read_reply().error != 0
    client.send_request(wire.CMD_FLUSH)
    assert client.read_reply().error in (0, wire.ESHUTDOWN)
    assert all(seen.length == 0 for seen in engine.device.seen)


# 6. offset + length in 64 bits without wrap (test_requests.py has every command).


def test_write_that_wraps_touches_nothing() -> None:
    engine = Engine()
    client = open_export(engine)
    client.send_request(wire.CMD_WRITE, (1 << 64) - 4096, 8192, payload=b"x" * 8192)
    assert client.read_reply().error == wire.ENOSPC
    assert engine.device.seen == []


# 7. to 9. STARTTLS, downgrade, hiding: test_tls.py. Names are looked up, never used as paths.


@pytest.mark.parametrize("name", ["../disk", "/etc/passwd", "disk/", "."])
def test_name_is_only_ever_looked_up(name: str) -> None:
    client = greeted(Engine())
    assert reply_to(client, wire.OPT_GO, export_query(name)) == wire.REP_ERR_UNKNOWN


def test_context_options_need_the_same_right_as_go() -> None:
    engine = Engine(tls=TlsMode.ALLOW, policies={"disk": ExportPolicy(clients=("alice",))})
    client = greeted(engine)
    client.option(wire.OPT_STARTTLS)
    engine.start_tls("bob")
    client.structured_reply()
    query = context_query("disk", "base:allocation")
    assert reply_to(client, wire.OPT_SET_META_CONTEXT, query) == wire.REP_ERR_POLICY


# 10. Any order, duplicate cookies, never answered twice: test_transmission.py.


# 11. Memory is bounded, and announced bytes cost nothing.


def test_announced_payloads_cost_no_memory() -> None:
    before = resident_bytes()
    engines = [Engine() for _ in range(32)]
    for engine in engines:
        open_export(engine)
        engine.send(request(wire.CMD_WRITE, 0, 32 * MIB) + b"just this")
    assert resident_bytes() - before < 128 * MIB  # of 1 GiB announced


def test_nothing_is_read_while_replies_are_not_taken() -> None:
    engine = Engine(MemoryDevice(size=64 * MIB))
    open_export(engine)
    engine.taking = False
    engine.send(request(wire.CMD_READ, 0, 32 * MIB) * 3)
    assert not engine.connection.wants_input
    assert len(engine.device.seen) == 2


def test_options_wait_while_their_replies_are_not_taken() -> None:
    engine = Engine(limits=Limits(max_handshake_output_bytes=1000))
    greeted(engine)
    engine.taking = False
    engine.send(option(wire.OPT_LIST) * 500)
    assert not engine.connection.wants_input
    engine.taking = True
    engine.pump()
    assert engine.connection.wants_input
    reply_bytes = 2 * wire.OPTION_REPLY.size + 4 + len("disk")
    assert len(engine.sent) == 500 * reply_bytes


def test_option_flood_is_cut_off() -> None:
    engine = Engine()
    greeted(engine)
    engine.send(option(wire.OPT_LIST) * 1024)
    assert engine.closed is None
    engine.send(option(wire.OPT_LIST))
    assert cut_off(engine)


# 12. Reasons for the log say what happened, and a client that just leaves is not one of them.


def test_reason_of_a_violation_names_it() -> None:
    engine = Engine()
    engine.client().greet(64)
    assert engine.closed is not None
    assert "0x40" in engine.closed.reason


# 13. Stop and 14. DISC: test_connection.py, test_requests.py.
