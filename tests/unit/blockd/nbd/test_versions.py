"""Exports named VOLUME@REF: how they are opened, who may, and that each is closed exactly once."""

from collections.abc import Iterator

import pytest

from blockd.access.book import Everybody
from blockd.access.rules import Client
from blockd.nbd import wire
from blockd.nbd.access import MAX_REF, ExportPolicy, TlsMode
from blockd.nbd.connection import Connection
from blockd.nbd.limits import Limits
from blockd.nbd.lookups import ListVersions, OpenVersion
from tests.fakes import FakePolicies, MemoryDevice
from tests.nbd_client import OptionError, Session, context_query, export_query, option, request
from tests.nbd_engine import Engine, open_export
from volume.errors import CorruptManifest

OLD, NEW = b"o" * 4096, b"n" * 4096
VERSION = "disk@monday"


@pytest.fixture
def disk() -> MemoryDevice:
    """It has changed since version monday."""
    device = MemoryDevice()
    device.write(0, OLD)
    device.snapshot("monday")
    device.write(0, NEW)
    device.snapshot("tuesday")
    return device


@pytest.fixture
def engine(disk: MemoryDevice) -> Iterator[Engine]:
    """Whatever the test does: when the client is gone, no version is open."""
    engine = Engine(disk, MemoryDevice("other"))
    yield engine
    engine.slow_disk = False
    if engine.question is not None:
        engine.answer()
    engine.finish()
    engine.eof()
    assert engine.closed is not None
    assert engine.exports.leaked == []


def greeted(engine: Engine) -> Session:
    client = engine.client()
    client.greet()
    return client


def refusal(client: Session, number: int, data: bytes) -> OptionError:
    with pytest.raises(OptionError) as raised:
        client.option(number, data)
    return raised.value


# --- what a version is --------------------------------------------------------------------------


def test_version_shows_the_bytes_of_its_time(engine: Engine) -> None:
    client = open_export(engine, name=VERSION)
    assert client.read(0, 8192) == OLD + bytes(4096)
    assert engine.connection.export_name == VERSION


def test_version_is_read_only(engine: Engine) -> None:
    client = open_export(engine, name=VERSION)
    assert client.info.flags & wire.FLAG_READ_ONLY
    client.send_request(wire.CMD_WRITE, 0, 4, payload=b"past")
    assert client.read_reply().error == wire.EPERM


def test_version_is_read_only_even_if_its_device_says_otherwise(
    engine: Engine, disk: MemoryDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    writable = disk.copy(VERSION, read_only=False)
    monkeypatch.setattr(engine.exports, "open_version", lambda name: writable)
    assert open_export(engine, name=VERSION).info.flags & wire.FLAG_READ_ONLY


def test_export_name_opens_a_version(engine: Engine) -> None:
    client = greeted(engine)
    client.export_name(VERSION)
    assert client.read(0, 4096) == OLD


def test_export_name_of_an_unknown_version_is_cut_off(engine: Engine) -> None:
    client = greeted(engine)
    with pytest.raises(EOFError):
        client.export_name("disk@friday")
    assert engine.closed is not None
    assert "disk@friday" in engine.closed.reason


def test_version_of_the_default_export_has_its_canonical_name(engine: Engine) -> None:
    info = greeted(engine).go("@monday", wire.INFO_NAME)
    assert info.name == VERSION
    assert engine.exports.asked == [VERSION]


def test_info_of_a_version_equals_go_and_opens_it_once(engine: Engine) -> None:
    client = greeted(engine)
    told = client.query_info(VERSION, wire.INFO_BLOCK_SIZE)
    assert client.go(VERSION, wire.INFO_BLOCK_SIZE) == told
    assert engine.exports.asked == [VERSION]


def test_contexts_of_a_version_hold_until_go(engine: Engine) -> None:
    client = open_export(engine, name=VERSION, structured=True, contexts=("base:allocation",))
    assert client.block_status(0, 8192) == {"base:allocation": [(4096, 0), (4096, 3)]}
    assert engine.exports.asked == [VERSION]


def test_contexts_are_forgotten_when_the_version_was_opened_anew(engine: Engine) -> None:
    """The name may mean another moment by then, as vol@-10m does."""
    client = greeted(engine)
    client.structured_reply()
    client.set_meta_context(VERSION, "base:allocation")
    client.query_info("disk@tuesday")
    client.go(VERSION)
    client.send_request(wire.CMD_BLOCK_STATUS, 0, 4096)
    assert client.read_reply().error == wire.EINVAL


def test_several_connections_are_offered_unless_the_name_moves_with_time(
    engine: Engine, disk: MemoryDevice
) -> None:
    disk.snapshot("-10m")
    client = greeted(engine)
    assert client.query_info(VERSION).flags & wire.FLAG_CAN_MULTI_CONN
    assert not client.query_info("disk@-10m").flags & wire.FLAG_CAN_MULTI_CONN


# --- what is refused ----------------------------------------------------------------------------


def test_unknown_version_is_unknown_with_the_reason_and_negotiation_goes_on(engine: Engine) -> None:
    client = greeted(engine)
    refused = refusal(client, wire.OPT_GO, export_query("disk@friday"))
    assert refused.reply == wire.REP_ERR_UNKNOWN
    assert "disk@friday" in refused.text
    assert "volume log" in refused.text
    client.go(VERSION)


@pytest.mark.parametrize("number", [wire.OPT_SET_META_CONTEXT, wire.OPT_LIST_META_CONTEXT])
def test_contexts_of_an_unknown_version_are_unknown(engine: Engine, number: int) -> None:
    client = greeted(engine)
    client.structured_reply()
    refused = refusal(client, number, context_query("disk@friday", "base:allocation"))
    assert refused.reply == wire.REP_ERR_UNKNOWN


def test_damage_is_told_and_not_taken_for_a_missing_version(engine: Engine) -> None:
    engine.exports.fail_with = CorruptManifest("node 3f9a is damaged")
    refused = refusal(greeted(engine), wire.OPT_GO, export_query(VERSION))
    assert "3f9a" in refused.text


@pytest.mark.parametrize(
    "name",
    [
        "disk@",
        "disk@@",
        "disk@monday@tuesday",
        "nodisk@monday",
        "disk@" + "m" * (MAX_REF + 1),
        "disk@" + "m" * 4091,
        "disk@mon\nday",
        "disk@\x1b[2J",
        "@" * 4096,
        "disk\u200b@monday",
    ],
)
def test_name_that_cannot_be_a_version_is_unknown_and_never_looked_up(
    engine: Engine, name: str
) -> None:
    refused = refusal(greeted(engine), wire.OPT_GO, export_query(name))
    assert refused.reply == wire.REP_ERR_UNKNOWN
    assert engine.exports.asked == []


def test_name_longer_than_the_protocol_allows_is_invalid(engine: Engine) -> None:
    refused = refusal(greeted(engine), wire.OPT_GO, export_query("disk@" + "m" * 4092))
    assert refused.reply == wire.REP_ERR_INVALID
    assert engine.exports.asked == []


def test_version_flood_is_cut_off(disk: MemoryDevice) -> None:
    engine = Engine(disk, limits=Limits(max_lookups=4))
    client = greeted(engine)
    for ref in ("monday", "tuesday") * 2:
        client.query_info(f"disk@{ref}")
    with pytest.raises(EOFError):
        client.query_info(VERSION)
    assert engine.closed is not None
    assert "flood" in engine.closed.reason
    assert engine.exports.leaked == []


class Plain:
    """Exports without a past."""

    def names(self) -> list[str]:
        return ["disk"]

    def get(self, name: str) -> MemoryDevice | None:
        return MemoryDevice() if name == "disk" else None


def test_exports_without_versions_know_none() -> None:
    connection = Connection(
        Plain(),
        limits=Limits(),
        tls=TlsMode.OFF,
        policies=FakePolicies(),
        access=Everybody(),
        client=Client(),
        peer="test",
    )
    sent = bytearray()

    def send(data: bytes) -> None:
        connection.feed(data)
        assert connection.next_event() is None
        sent.extend(b"".join(connection.output()))

    def take(count: int) -> bytes:
        taken = bytes(sent[:count])
        del sent[:count]
        return taken

    send(b"")
    client = Session(send, take)
    client.greet()
    refused = refusal(client, wire.OPT_GO, export_query(VERSION))
    assert refused.reply == wire.REP_ERR_UNKNOWN
    client.structured_reply()
    assert client.set_meta_context("disk", "qemu:dirty-bitmap:monday") == {}
    assert client.list_meta_context("disk", "blockd:") == []


# --- whose policy -------------------------------------------------------------------------------


def guarded(disk: MemoryDevice, mode: TlsMode, policy: ExportPolicy) -> Engine:
    engine = Engine(disk, tls=mode, policies={"disk": policy})
    engine.slow_disk = True  # a question would be left over, and be seen
    return engine


@pytest.mark.parametrize("mode", [TlsMode.OFF, TlsMode.ALLOW])
@pytest.mark.parametrize("number", [wire.OPT_INFO, wire.OPT_GO])
def test_in_the_clear_a_guarded_version_looks_like_one_that_is_not_there(
    disk: MemoryDevice, mode: TlsMode, number: int
) -> None:
    answers = set()
    for name in (VERSION, "disk@friday", "nodisk@monday"):
        engine = guarded(disk, mode, ExportPolicy(tls_required=True))
        refused = refusal(greeted(engine), number, export_query(name))
        answers.add((refused.reply, refused.text.replace(name, "NAME")))
        assert engine.question is None
    assert len(answers) == 1


@pytest.mark.parametrize("name", [VERSION, "disk@friday"])
def test_client_off_the_list_learns_nothing_of_versions(disk: MemoryDevice, name: str) -> None:
    engine = guarded(disk, TlsMode.ALLOW, ExportPolicy(clients=("alice",)))
    client = greeted(engine)
    client.option(wire.OPT_STARTTLS)
    engine.start_tls("bob")
    client.structured_reply()
    query = context_query(name, "qemu:dirty-bitmap:monday")
    for number, data in [(wire.OPT_GO, export_query(name)), (wire.OPT_SET_META_CONTEXT, query)]:
        assert refusal(client, number, data).reply == wire.REP_ERR_POLICY
    assert engine.question is None


def test_client_on_the_list_opens_versions(disk: MemoryDevice) -> None:
    engine = Engine(disk, tls=TlsMode.ALLOW, policies={"disk": ExportPolicy(clients=("alice",))})
    client = greeted(engine)
    client.option(wire.OPT_STARTTLS)
    engine.start_tls("alice")
    client.go(VERSION)
    assert client.read(0, 4096) == OLD


# --- LIST ---------------------------------------------------------------------------------------


def test_list_shows_no_versions_unless_the_server_was_told_to(engine: Engine) -> None:
    assert greeted(engine).list_exports() == ["disk", "other"]


def test_list_shows_versions_on_request(disk: MemoryDevice) -> None:
    engine = Engine(disk, MemoryDevice("other"), list_versions=True)
    assert greeted(engine).list_exports() == ["disk", "other", "disk@tuesday", VERSION]


def test_list_shows_versions_of_open_volumes_only(disk: MemoryDevice) -> None:
    other = MemoryDevice("other")
    other.snapshot("monday")
    policies = {"disk": ExportPolicy(tls_required=True)}
    engine = Engine(disk, other, tls=TlsMode.ALLOW, policies=policies, list_versions=True)
    assert greeted(engine).list_exports() == ["other", "other@monday"]


def test_list_asks_for_a_bounded_number(disk: MemoryDevice) -> None:
    engine = Engine(disk, list_versions=True)
    engine.slow_disk = True
    greeted(engine)
    engine.send(option(wire.OPT_LIST))
    assert engine.question == ListVersions(None, 4096)


def test_list_that_cannot_read_the_versions_is_an_error(disk: MemoryDevice) -> None:
    engine = Engine(disk, list_versions=True)
    engine.exports.fail_with = CorruptManifest("the table of snapshots is damaged")
    assert refusal(greeted(engine), wire.OPT_LIST, b"").reply == wire.REP_ERR_PLATFORM


# --- while the disk takes its time --------------------------------------------------------------


def asking(engine: Engine, sent: bytes) -> Session:
    """A client whose question waits for the disk."""
    client = greeted(engine)
    engine.slow_disk = True
    engine.send(sent)
    assert engine.question == OpenVersion(VERSION)
    return client


GO = option(wire.OPT_GO, export_query(VERSION))


def test_nothing_is_read_while_a_version_is_opened(engine: Engine) -> None:
    asking(engine, GO)
    assert not engine.connection.wants_input
    assert not engine.sent
    engine.answer()
    assert engine.connection.wants_input
    assert not engine.connection.negotiating


def test_what_came_meanwhile_is_served_in_order(engine: Engine) -> None:
    behind = option(99) + option(wire.OPT_LIST) + option(wire.OPT_GO, export_query("other"))
    client = asking(engine, option(wire.OPT_INFO, export_query(VERSION)) + behind)
    engine.send(request(wire.CMD_READ, 0, 512, cookie=5))
    assert not engine.sent
    engine.answer()
    replies = [client.read_option_reply() for _ in range(10)]
    assert [reply.option for reply in replies] == [6, 6, 6, 99, 3, 3, 3, 7, 7, 7]
    assert engine.take(16)[-8:] == (5).to_bytes(8, "big")
    assert engine.connection.export_name == "other"


def test_any_split_of_the_bytes_opens_the_same(disk: MemoryDevice) -> None:
    for piece in (1, 3, 17):
        engine = Engine(disk, piece=piece)
        client = open_export(engine, name=VERSION)
        assert client.read(0, 4096) == OLD


def test_client_that_leaves_while_its_version_is_opened_does_not_leak_it(engine: Engine) -> None:
    asking(engine, GO + option(wire.OPT_LIST))
    engine.eof()
    assert engine.closed is None, "the connection is counted until the question is answered"
    engine.answer()
    assert engine.closed is not None
    assert not engine.closed.clean
    assert [version.closes for version in engine.exports.opened] == [1]


def test_client_that_leaves_before_a_refusal_is_closed_by_it(engine: Engine) -> None:
    client = greeted(engine)
    engine.slow_disk = True
    engine.send(option(wire.OPT_GO, export_query("disk@friday")))
    engine.eof()
    assert engine.closed is None
    engine.answer()
    assert engine.closed is not None
    with pytest.raises(EOFError):
        client.read_option_reply()


def test_stop_while_a_version_is_opened(engine: Engine) -> None:
    client = asking(engine, GO + request(wire.CMD_READ, 0, 512, cookie=1))
    engine.drain()
    engine.answer()
    assert [client.read_option_reply().reply for _ in range(3)] == [3, 3, wire.REP_ACK]
    _, error, _ = wire.SIMPLE_REPLY.unpack(engine.take(wire.SIMPLE_REPLY.size))
    assert error == wire.ESHUTDOWN


# --- closed exactly once (the fixture checks that it is at all) ----------------------------------


def closes(engine: Engine) -> list[int]:
    return [version.closes for version in engine.exports.opened]


def test_version_stays_open_while_requests_are_in_flight(engine: Engine) -> None:
    client = open_export(engine, name=VERSION)
    (version,) = engine.exports.opened
    version.deferred = True
    client.send_request(wire.CMD_READ, 0, 4096)
    engine.eof()
    assert version.clients == ["test"]
    engine.finish()
    assert closes(engine) == [1]


def test_version_that_was_only_looked_at_is_closed_when_another_is_named(engine: Engine) -> None:
    client = greeted(engine)
    client.query_info(VERSION)
    assert closes(engine) == [0]
    client.query_info("disk@tuesday")
    assert closes(engine) == [1, 0]
    client.go("other")
    assert closes(engine) == [1, 1]


def test_attached_version_has_one_client(engine: Engine) -> None:
    open_export(engine, name=VERSION)
    (version,) = engine.exports.opened
    assert version.clients == ["test"]
    engine.eof()
    assert closes(engine) == [1]


def test_tls_closes_what_was_opened_in_the_clear(disk: MemoryDevice) -> None:
    engine = Engine(disk, tls=TlsMode.ALLOW)
    client = greeted(engine)
    client.query_info(VERSION)
    client.option(wire.OPT_STARTTLS)
    assert closes(engine) == [1]
    engine.start_tls()
    client.go(VERSION)
    engine.eof()
    assert closes(engine) == [1, 1]


def test_abort_closes_what_was_opened(engine: Engine) -> None:
    client = greeted(engine)
    client.query_info(VERSION)
    client.abort()
    assert closes(engine) == [1]
