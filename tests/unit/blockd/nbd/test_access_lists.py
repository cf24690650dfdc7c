"""Access lists in the negotiation: whom one keeps out cannot tell the volume from none."""

from collections.abc import Callable

import pytest

from blockd.access import networks
from blockd.access.rules import Client, Rule
from blockd.nbd import wire
from blockd.nbd.access import ExportPolicy, TlsMode
from tests.fakes import FakeAccess, MemoryDevice
from tests.nbd_client import OptionError, Session, context_query, export_query, option
from tests.nbd_engine import Engine

OFFICE = Rule(address="192.0.2.0/24")
INSIDE = Client(networks.address("192.0.2.7"))
OUTSIDE = Client(networks.address("192.0.3.7"))
SHA256 = "ab" * 32


@pytest.fixture
def access() -> FakeAccess:
    access = FakeAccess()
    access.put("mine", OFFICE)
    return access


def greeted(access: FakeAccess, known: Client, **options: object) -> tuple[Engine, Session]:
    devices = [MemoryDevice(name) for name in ("disk", "mine")]
    devices[1].snapshot("monday")
    engine = Engine(*devices, access=access, known=known, **options)  # type: ignore[arg-type]
    client = engine.client()
    client.greet()
    return engine, client


def refusal(client: Session, number: int, data: bytes) -> OptionError:
    with pytest.raises(OptionError) as raised:
        client.option(number, data)
    return raised.value


def test_who_is_on_the_list_attaches(access: FakeAccess) -> None:
    engine, client = greeted(access, INSIDE)
    assert client.list_exports() == ["disk", "mine"]
    assert not client.go("mine").flags & wire.FLAG_READ_ONLY
    assert engine.barred == []


def test_who_is_not_finds_the_others(access: FakeAccess) -> None:
    _, client = greeted(access, OUTSIDE)
    assert client.list_exports() == ["disk"]
    client.go("disk")


QUERIES: dict[int, Callable[..., bytes]] = {
    wire.OPT_INFO: export_query,
    wire.OPT_GO: export_query,
    wire.OPT_LIST_META_CONTEXT: context_query,
    wire.OPT_SET_META_CONTEXT: context_query,
}


@pytest.mark.parametrize("mode", TlsMode)
@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("number", QUERIES)
def test_a_volume_that_is_kept_from_a_client_is_like_none(
    access: FakeAccess, mode: TlsMode, tls: bool, number: int
) -> None:
    engine, client = greeted(access, OUTSIDE, tls=mode)
    if tls and mode is not TlsMode.OFF:
        client.option(wire.OPT_STARTTLS)
        engine.start_tls("alice")
        client.forget_negotiation()
    elif mode is TlsMode.REQUIRE:
        return  # nothing is told of any export there
    if number in (wire.OPT_LIST_META_CONTEXT, wire.OPT_SET_META_CONTEXT):
        client.structured_reply()
    query = QUERIES[number]
    for kept, none in (("mine", "ours"), ("mine@monday", "ours@monday"), ("mine@no", "ours@no")):
        seen = refusal(client, number, query(kept))
        wanted = refusal(client, number, query(none))
        assert seen.reply == wanted.reply
        assert seen.text.replace(kept, "X") == wanted.text.replace(none, "X")
    assert engine.exports.asked == [], "nobody looked for a version"
    assert engine.barred == ["mine"] * 3


def test_export_name_ends_as_for_none(access: FakeAccess) -> None:
    reasons = []
    for name in ("mine", "ours"):
        engine, client = greeted(access, OUTSIDE)
        with pytest.raises(EOFError):
            client.export_name(name)
        assert engine.closed is not None
        reasons.append(engine.closed.reason.replace(name, "X"))
    assert reasons[0] == reasons[1]


def test_versions_are_listed_for_who_may_have_the_volume(access: FakeAccess) -> None:
    listed = []
    for known in (INSIDE, OUTSIDE):
        _, client = greeted(access, known, list_versions=True)
        listed.append(client.list_exports())
    assert listed == [["disk", "mine", "mine@monday"], ["disk"]]


def test_who_may_read_only_is_told_so(access: FakeAccess) -> None:
    access.put("mine", Rule(address="192.0.2.0/24", read_only=True))
    _, client = greeted(access, INSIDE)
    assert client.go("mine").flags & wire.FLAG_READ_ONLY
    client.send_request(wire.CMD_WRITE, 0, 4, payload=b"none")
    assert client.read_reply().error == wire.EPERM


@pytest.mark.parametrize(
    ("rule", "names", "identity"),
    [
        (Rule(certificate="alice.example.org"), ("alice", "alice.example.org"), {}),
        (Rule(fingerprint=SHA256), ("alice",), {"fingerprint": SHA256}),
        (Rule(psk="alice"), ("alice",), {"by_psk": True}),
    ],
    ids=str,
)
def test_what_tls_proves_lets_in(
    access: FakeAccess, rule: Rule, names: tuple[str, ...], identity: dict[str, object]
) -> None:
    access.put("mine", rule)
    engine, client = greeted(access, OUTSIDE, tls=TlsMode.ALLOW)
    assert client.list_exports() == ["disk"]
    client.option(wire.OPT_STARTTLS)
    engine.start_tls(*names, **identity)
    client.forget_negotiation()
    assert client.list_exports() == ["disk", "mine"]
    client.go("mine")


@pytest.mark.parametrize(
    ("rule", "by_psk"), [(Rule(certificate="alice"), True), (Rule(psk="alice"), False)], ids=str
)
def test_a_key_is_no_certificate_of_the_same_name(
    access: FakeAccess, rule: Rule, by_psk: bool
) -> None:
    access.put("mine", rule)
    engine, client = greeted(access, OUTSIDE, tls=TlsMode.ALLOW)
    client.option(wire.OPT_STARTTLS)
    engine.start_tls("alice", by_psk=by_psk)
    client.forget_negotiation()
    assert client.list_exports() == ["disk"]


def test_list_and_policy_of_the_configuration_have_both_to_be_fulfilled(
    access: FakeAccess,
) -> None:
    policies = {"mine": ExportPolicy(clients=("alice",))}
    for known, name, let_in in (
        (INSIDE, "alice", True),
        (INSIDE, "mallory", False),
        (OUTSIDE, "alice", False),
    ):
        engine, client = greeted(access, known, tls=TlsMode.REQUIRE, policies=policies)
        client.option(wire.OPT_STARTTLS)
        engine.start_tls(name)
        client.forget_negotiation()
        assert ("mine" in client.list_exports()) is let_in


def test_a_list_that_changes_while_a_version_is_looked_for_holds(access: FakeAccess) -> None:
    engine, client = greeted(access, INSIDE)
    engine.slow_disk = True
    engine.send(option(wire.OPT_GO, export_query("mine@monday")))
    access.put("mine")
    engine.answer()
    reply = client.read_option_reply()
    assert reply.reply == wire.REP_ERR_UNKNOWN
    engine.eof()
    assert engine.exports.leaked == []
