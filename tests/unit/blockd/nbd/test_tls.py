"""Negotiation with TLS: modes, policies, and what is forgotten."""

import pytest

from blockd.nbd import wire
from blockd.nbd.access import ExportPolicy, TlsMode
from tests.fakes import MemoryDevice
from tests.nbd_client import OptionError, Session, context_query, export_query, option
from tests.nbd_engine import Engine

SECRET = {"secret": ExportPolicy(tls_required=True), "mine": ExportPolicy(clients=("alice",))}


def greeted(
    mode: TlsMode, policies: dict[str, ExportPolicy] | None = None
) -> tuple[Engine, Session]:
    devices = [MemoryDevice(name) for name in ("disk", "secret", "mine")]
    engine = Engine(*devices, tls=mode, policies=policies)
    client = engine.client()
    client.greet()
    return engine, client


def start_tls(engine: Engine, client: Session, *names: str) -> None:
    client.option(wire.OPT_STARTTLS)
    assert engine.starttls
    engine.start_tls(*names)
    client.forget_negotiation()


def refused(client: Session, number: int, data: bytes = b"") -> int:
    with pytest.raises(OptionError) as raised:
        client.option(number, data)
    return raised.value.reply


def cut_off(engine: Engine) -> bool:
    return engine.closed is not None and not engine.closed.clean


def test_without_tls_starttls_is_refused_and_nothing_asks_for_it() -> None:
    _, client = greeted(TlsMode.OFF, SECRET)
    assert refused(client, wire.OPT_STARTTLS) == wire.REP_ERR_POLICY
    for name in ("secret", "mine", "other"):
        assert refused(client, wire.OPT_GO, export_query(name)) == wire.REP_ERR_UNKNOWN
    client.go("disk")


def test_engine_reads_nothing_while_tls_is_set_up() -> None:
    engine, client = greeted(TlsMode.ALLOW)
    client.option(wire.OPT_STARTTLS)
    assert not engine.connection.wants_input
    engine.start_tls()
    assert engine.connection.wants_input


def test_starttls_with_data_is_invalid() -> None:
    engine, client = greeted(TlsMode.REQUIRE)
    assert refused(client, wire.OPT_STARTTLS, b"x") == wire.REP_ERR_INVALID
    assert not engine.starttls


def test_second_starttls_is_invalid() -> None:
    engine, client = greeted(TlsMode.ALLOW)
    start_tls(engine, client)
    assert refused(client, wire.OPT_STARTTLS) == wire.REP_ERR_INVALID


@pytest.mark.parametrize(
    "number", [wire.OPT_LIST, wire.OPT_INFO, wire.OPT_GO, wire.OPT_STRUCTURED_REPLY, 999]
)
def test_required_tls_refuses_every_option_before_it(number: int) -> None:
    engine, client = greeted(TlsMode.REQUIRE)
    assert refused(client, number, export_query("disk")) == wire.REP_ERR_TLS_REQD
    start_tls(engine, client)
    client.go("disk")


def test_required_tls_lets_a_client_abort_before_it() -> None:
    engine, client = greeted(TlsMode.REQUIRE)
    client.abort()
    assert engine.closed is not None


def test_required_tls_cuts_off_export_name() -> None:
    engine, client = greeted(TlsMode.REQUIRE)
    with pytest.raises(EOFError):
        client.export_name("disk")
    assert cut_off(engine)


def test_required_tls_cuts_off_a_client_that_is_not_fixed() -> None:
    engine = Engine(tls=TlsMode.REQUIRE)
    engine.client().greet(wire.FLAG_C_NO_ZEROES)
    assert cut_off(engine)


def test_export_name_works_under_tls() -> None:
    engine, client = greeted(TlsMode.REQUIRE)
    start_tls(engine, client)
    client.export_name("disk")


def test_selective_tls_hides_secret_and_unknown_exports_alike() -> None:
    _, client = greeted(TlsMode.ALLOW, SECRET)
    texts = set()
    for name in ("secret", "mine", "other"):
        for number in (wire.OPT_INFO, wire.OPT_GO):
            with pytest.raises(OptionError) as raised:
                client.option(number, export_query(name, wire.INFO_NAME))
            assert raised.value.reply == wire.REP_ERR_TLS_REQD
            texts.add(raised.value.text.replace(name, "NAME"))
    assert len(texts) == 1


def test_context_options_hide_them_too_without_saying_tls() -> None:
    _, client = greeted(TlsMode.ALLOW, SECRET)
    client.structured_reply()
    for name in ("secret", "mine", "other"):
        for number in (wire.OPT_LIST_META_CONTEXT, wire.OPT_SET_META_CONTEXT):
            assert refused(client, number, context_query(name)) == wire.REP_ERR_UNKNOWN


def test_selective_tls_serves_open_exports_in_the_clear() -> None:
    _, client = greeted(TlsMode.ALLOW, SECRET)
    assert client.list_exports() == ["disk"]
    client.go("disk")


def test_selective_tls_cuts_off_export_name_of_a_secret_export() -> None:
    engine, client = greeted(TlsMode.ALLOW, SECRET)
    with pytest.raises(EOFError):
        client.export_name("secret")
    assert cut_off(engine)


def test_under_tls_unknown_is_unknown_and_nothing_asks_for_tls() -> None:
    engine, client = greeted(TlsMode.ALLOW, SECRET)
    start_tls(engine, client)
    assert refused(client, wire.OPT_GO, export_query("other")) == wire.REP_ERR_UNKNOWN
    client.go("secret")


@pytest.mark.parametrize("names", [(), ("bob",), ("Alice", "alice.example")])
def test_client_list_keeps_others_out(names: tuple[str, ...]) -> None:
    engine, client = greeted(TlsMode.REQUIRE, SECRET)
    start_tls(engine, client, *names)
    assert client.list_exports() == ["disk", "secret"]
    assert refused(client, wire.OPT_GO, export_query("mine")) == wire.REP_ERR_POLICY
    assert refused(client, wire.OPT_INFO, export_query("mine")) == wire.REP_ERR_POLICY


def test_client_list_lets_a_listed_name_in() -> None:
    engine, client = greeted(TlsMode.REQUIRE, SECRET)
    start_tls(engine, client, "pc17", "alice")
    assert client.list_exports() == ["disk", "secret", "mine"]
    client.go("mine")


def test_clear_bytes_behind_starttls_are_thrown_away() -> None:
    engine, client = greeted(TlsMode.ALLOW)
    injected = option(wire.OPT_LIST) + option(wire.OPT_GO, export_query("disk"))
    engine.send(option(wire.OPT_STARTTLS) + injected)
    engine.send(injected)  # a listener that had read it before it saw the event
    assert client.read_option_reply().reply == wire.REP_ACK
    engine.start_tls()
    assert not engine.sent
    assert engine.connection.negotiating
    assert client.list_exports() == ["disk", "secret", "mine"]


def test_tls_forgets_structured_replies() -> None:
    engine, client = greeted(TlsMode.ALLOW)
    client.structured_reply()
    start_tls(engine, client)
    assert not client.go("disk").flags & wire.FLAG_SEND_DF
    assert client.read(0, 512) == bytes(512)  # a simple reply


def test_tls_forgets_extended_headers_and_contexts() -> None:
    engine, client = greeted(TlsMode.ALLOW)
    client.extended_headers()
    client.set_meta_context("disk", "base:allocation")
    start_tls(engine, client)
    client.structured_reply()  # refused under extended headers
    client.go("disk")
    client.send_request(wire.CMD_BLOCK_STATUS, 0, 4096)
    assert client.read_reply().error == wire.EINVAL


def test_failed_tls_ends_the_session() -> None:
    engine, client = greeted(TlsMode.ALLOW)
    client.option(wire.OPT_STARTTLS)
    engine.eof()
    assert cut_off(engine)


def test_stopping_server_does_not_start_tls() -> None:
    engine, client = greeted(TlsMode.REQUIRE)
    engine.drain()
    assert refused(client, wire.OPT_STARTTLS) == wire.REP_ERR_SHUTDOWN
    assert not engine.starttls
