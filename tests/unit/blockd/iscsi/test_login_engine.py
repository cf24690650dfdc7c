"""The login engine alone, header by header: what no well-meaning initiator sends, and any split."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockd.iscsi import chap, login, pdu, text
from blockd.iscsi.login import LoginRefused, Refused
from blockd.iscsi.names import is_name
from blockd.iscsi.targets import Access, Target
from blockd.scsi.target import TargetDevice
from tests.iscsi_initiator import ISID, NAME, TARGET, Pdu, pairs
from tests.login_host import (
    DISCOVERY,
    MUTUAL,
    NAMES,
    SECRET,
    SECURITY_TO_FULL,
    STAY_OPERATIONAL,
    STAY_SECURITY,
    TO_FULL,
    TO_OPERATIONAL,
    TSIH,
    WITH_CHAP,
    Host,
)

# What comes is no login.


@pytest.mark.parametrize("opcode", [pdu.NOP_OUT, pdu.SCSI_COMMAND, pdu.TEXT, pdu.LOGOUT, 0x3F])
def test_another_pdu_in_the_middle_of_a_login_is_020b(opcode: int) -> None:
    host = Host()
    host.ask(NAMES, STAY_OPERATIONAL)
    answer = host.ask({}, 0x80, opcode=opcode)
    assert answer.status == login.INVALID_DURING_LOGIN
    assert answer.bhs[8:14] == ISID
    assert answer.itt == 0x77
    assert f"{opcode:#04x}" in host.refused.reason


def test_another_pdu_before_the_login_is_not_answered() -> None:
    host = Host()
    assert host.send({}, 0x80, opcode=pdu.TEXT) is None
    assert host.refused.status == login.INVALID_DURING_LOGIN


@pytest.mark.parametrize(
    "changed",
    [{"isid": b"\x40\0\0\0\0\1"}, {"tsih": 7}, {"cid": 2}],
    ids=lambda each: next(iter(each)),
)
def test_who_it_is_does_not_change_in_the_middle(changed: dict[str, int]) -> None:
    host = Host()
    host.ask(NAMES, STAY_OPERATIONAL)
    assert host.ask({}, TO_FULL, **changed).status == login.INITIATOR_ERROR


@pytest.mark.parametrize("key", ["InitiatorName", "TargetName", "SessionType"])
def test_names_come_in_the_first_request_only(key: str) -> None:
    host = Host()
    host.ask(NAMES, STAY_OPERATIONAL)
    assert host.status({key: NAME}, TO_FULL) == login.INITIATOR_ERROR


def test_the_first_request_has_the_name_even_if_a_later_one_has_it() -> None:
    host = Host()
    assert host.status({"AuthMethod": "None"}, STAY_SECURITY) == login.MISSING_PARAMETER


def test_a_key_is_offered_once_in_a_login() -> None:
    host = Host()
    host.ask({**NAMES, "InitialR2T": "No"}, STAY_OPERATIONAL)
    assert host.status({"InitialR2T": "No"}, TO_FULL) == login.INITIATOR_ERROR
    assert Host().status(b"InitialR2T=No\0InitialR2T=No\0", TO_FULL) == login.INITIATOR_ERROR


# Numbers.


def test_numbers_of_responses() -> None:
    host = Host()
    first = host.ask(NAMES, TO_OPERATIONAL, exp_stat_sn=0xFFFFFFFF, cmd_sn=0xFFFFFFF0)
    assert (first.stat_sn, first.exp_cmd_sn) == (0xFFFFFFFF, 0xFFFFFFF0)
    assert first.max_cmd_sn == 0xFFFFFFF0  # no room for commands yet
    assert first.bhs[14:16] == b"\0\0"  # the TSIH comes with the last response (11.13.3)
    last = host.ask({}, TO_FULL, exp_stat_sn=0, cmd_sn=0xFFFFFFF0)
    assert last.stat_sn == 0  # after 2 ** 32 - 1
    assert last.bhs[14:16] == TSIH.to_bytes(2, "big")
    assert last.max_cmd_sn == (0xFFFFFFF0 + 127) % (1 << 32)
    assert (host.logged_in.cmd_sn, host.logged_in.stat_sn) == (0xFFFFFFF0, 1)
    assert host.logged_in.tsih == TSIH


def test_a_login_into_a_session_that_is_there_is_asked_for_by_its_number() -> None:
    host = Host(refusal=LoginRefused(login.TOO_MANY_CONNECTIONS, "one connection each"))
    answer = host.ask(NAMES, TO_FULL, tsih=7)
    assert answer.status == login.TOO_MANY_CONNECTIONS
    assert [each.tsih for each in host.opened] == [7]
    assert host.refused.reason == "one connection each"


def test_a_session_is_opened_at_the_end_and_once() -> None:
    host = Host()
    host.ask(NAMES, TO_OPERATIONAL)
    host.ask({"MaxBurstLength": "65536"}, STAY_OPERATIONAL)
    assert host.opened == []
    host.ask({}, TO_FULL)
    assert len(host.opened) == 1
    assert host.opened[0].parameters.max_burst_length == 65536


# Names.


@pytest.mark.parametrize("name", [NAME, NAME.upper(), NAME.title()])
def test_an_initiator_is_the_same_in_any_case(name: str) -> None:
    """Else it would have two sessions, and its reservations not back after the next login."""
    host = Host(access=Access(initiators=(NAME.upper(),)))
    host.ask({**NAMES, "InitiatorName": name}, TO_FULL)
    assert host.logged_in.initiator == NAME


@pytest.mark.parametrize(
    ("name", "good"),
    [
        ("iqn.2001-04.com.example:" + "a" * 199, True),  # 223 bytes
        ("iqn.2001-04.com.example:" + "a" * 200, False),
        ("iqn.2001-04.com.example:" + "\N{GREEK SMALL LETTER ALPHA}" * 99, True),
        ("iqn.2001-04.com.example:" + "\N{GREEK SMALL LETTER ALPHA}" * 100, False),  # bytes count
        ("IQN.2001-04.COM.EXAMPLE:HOST_1", True),
        ("iqn.2001-04.com.example:a b", False),
        ("iqn.2001-04.com.example:a,b", False),  # lists of names are made with commas
        ("iqn.2001-04.com.example:a\x7f", False),
        ("iqn.2001-04.com.example:a\N{RIGHT-TO-LEFT OVERRIDE}b", False),
        ("iqn.\N{ARABIC-INDIC DIGIT TWO}001-04.com.example", False),
        ("eui.02004567a425678", False),
        ("eui.02004567a425678g", False),
        ("naa.52004567ba64678d0", False),  # neither 16 nor 32 digits
        ("naa." + "52004567ba64678d" * 3, False),
        ("naa.52004567BA64678D", True),
        ("fc.52004567ba64678d", False),
    ],
)
def test_which_names_there_can_be(name: str, good: bool) -> None:
    assert is_name(name) is good
    expected = login.SUCCESS if good else login.INITIATOR_ERROR
    assert Host().status({**NAMES, "InitiatorName": name}, TO_FULL) == expected


@pytest.mark.parametrize(
    "name",
    [
        "iqn.2026-11.org.elsewhere:vm1@monday",  # not one of ours
        f"{TARGET}@" + "x" * 223,
        f"{TARGET}@" + "\N{GREEK SMALL LETTER ALPHA}" * 110,  # bytes count
        "@",
        "",
    ],
)
def test_names_that_cannot_be_versions_are_not_looked_up(name: str) -> None:
    host = Host()
    assert host.status({**NAMES, "TargetName": name}, TO_FULL) == login.NOT_FOUND
    assert host.login.look_up is None


def test_a_version_is_looked_up_as_it_was_named() -> None:
    """The registry knows which parts of the name have a case."""
    name = "IQN.2026-11.io.blockd:vm1@2026-11-22T10:31:05Z"
    host = Host()
    assert host.send({**NAMES, "TargetName": name}, TO_FULL) is None
    assert host.login.look_up == name


def test_a_request_while_a_version_is_looked_up_is_refused() -> None:
    host = Host()
    assert host.send({**NAMES, "TargetName": f"{TARGET}@monday"}, TO_FULL) is None
    assert host.login.look_up == f"{TARGET}@monday"
    assert host.ask({}, TO_FULL).status == login.INVALID_DURING_LOGIN


def test_a_version_is_for_those_whom_its_target_admits() -> None:
    host = Host()
    host.send({**NAMES, "TargetName": f"{TARGET}@monday"}, TO_FULL)
    found = Target(f"{TARGET}@monday", Access(addresses=("10.0.0.0/8",)), TargetDevice())
    answer = host.only(host.login.resume(found))
    assert answer is not None
    assert answer.status == login.AUTHORIZATION_FAILURE
    assert host.login.look_up is None


def test_who_is_not_on_the_list_does_not_learn_where_a_target_moved() -> None:
    access = Access(initiators=("iqn.2000-01.other",))
    host = Host(access=access, redirect="192.0.2.1:3260")
    answer = host.ask(NAMES, TO_FULL)
    assert answer.status == login.AUTHORIZATION_FAILURE
    assert answer.data == b""


# Keys of responses.


def test_a_refused_segment_length_is_not_declared_beside_its_refusal() -> None:
    host = Host()
    answer = host.ask({**NAMES, "MaxRecvDataSegmentLength": "1"}, STAY_OPERATIONAL)
    assert answer.keys["MaxRecvDataSegmentLength"] == "Reject"
    assert host.ask({}, TO_FULL).keys == {"MaxRecvDataSegmentLength": "262144"}
    assert host.logged_in.parameters.max_recv_data_segment_length == 8192


def test_operational_keys_are_not_declared_in_the_security_stage() -> None:
    host = Host()
    answer = host.ask({**NAMES, "AuthMethod": "None"}, SECURITY_TO_FULL)
    assert answer.keys == {
        "TargetPortalGroupTag": "1",
        "TargetAlias": "a disk",
        "AuthMethod": "None",
    }
    assert host.logged_in.parameters == text.Parameters()


def test_discovery_is_at_no_portal_group() -> None:
    host = Host()
    answer = host.ask({**DISCOVERY, "MaxBurstLength": "8192", "HeaderDigest": "None"}, TO_FULL)
    assert answer.keys == {
        "MaxBurstLength": "Irrelevant",
        "HeaderDigest": "None",
        "MaxRecvDataSegmentLength": "262144",
    }
    assert host.logged_in.discovery
    assert host.logged_in.target is None


def test_an_initiator_that_declares_more_than_asked_for_gets_in() -> None:
    declared = {"InitiatorAlias": "host 1", "X#NodeArchitecture": "Linux", "X-com.vendor": "1"}
    answer = Host().ask({**NAMES, **declared}, TO_FULL)
    assert answer.status == login.SUCCESS
    assert answer.keys["X-com.vendor"] == "NotUnderstood"
    assert not answer.keys.keys() & {"InitiatorAlias", "X#NodeArchitecture"}


# Authentication.


def prove(host: Host, offer: str, names: dict[str, str], more: dict[str, str]) -> Pdu:
    """From the first request to the proof, and on to the operational stage."""
    host.ask({**names, "AuthMethod": "CHAP"}, TO_OPERATIONAL)
    asked = host.ask({"CHAP_A": offer}, TO_OPERATIONAL).keys
    proof = chap.response(
        int(asked["CHAP_A"]), int(asked["CHAP_I"]), SECRET, chap.decode_binary(asked["CHAP_C"])
    )
    keys = {"CHAP_N": "host1", "CHAP_R": chap.encode_binary(proof), **more}
    return host.ask(keys, TO_OPERATIONAL)


@pytest.mark.parametrize("offer", ["5", "6", "7", "8", "0x8", "99,8,7"])
@pytest.mark.parametrize("names", [NAMES, DISCOVERY], ids=["normal", "discovery"])
def test_chap_in_both_directions(offer: str, names: dict[str, str]) -> None:
    host = Host(access=WITH_CHAP, discovery=WITH_CHAP)
    answer = prove(host, offer, names, {"CHAP_I": "0x2A", "CHAP_C": "0b3q2+7w=="})
    assert answer.status == login.SUCCESS
    assert answer.flags == TO_OPERATIONAL
    algorithm = {"0x8": 8, "99,8,7": 8}.get(offer) or int(offer)
    expected = chap.response(algorithm, 42, MUTUAL, bytes.fromhex("deadbeef"))
    assert answer.keys["CHAP_N"] == "target"
    assert chap.decode_binary(answer.keys["CHAP_R"]) == expected
    host.ask({}, TO_FULL)
    assert host.logged_in.user == "host1"


def test_discovery_has_its_own_list() -> None:
    assert Host(access=WITH_CHAP).status(DISCOVERY, TO_FULL) == login.SUCCESS
    host = Host(discovery=WITH_CHAP)
    assert host.status(DISCOVERY, TO_FULL) == login.AUTHENTICATION_FAILURE
    assert Host(discovery=WITH_CHAP).status(NAMES, TO_FULL) == login.SUCCESS


@pytest.mark.parametrize("flags", [TO_OPERATIONAL, SECURITY_TO_FULL, TO_FULL])
def test_who_passes_authentication_by_is_refused_at_once(flags: int) -> None:
    host = Host(access=WITH_CHAP)
    assert host.status(NAMES, flags) == login.AUTHENTICATION_FAILURE
    assert host.opened == []


def test_who_wants_to_leave_in_the_middle_of_chap_stays() -> None:
    host = Host(access=WITH_CHAP)
    for keys in ({**NAMES, "AuthMethod": "CHAP"}, {"CHAP_A": "7"}):
        answer = host.ask(keys, SECURITY_TO_FULL)
        assert answer.status == login.SUCCESS
        assert not answer.flags & pdu.TRANSIT
    assert host.opened == []


@pytest.mark.parametrize("method", ["CHAP", "None"])
@pytest.mark.parametrize("access", [WITH_CHAP, Access()], ids=["chap", "open"])
def test_the_method_is_settled_once(access: Access, method: str) -> None:
    host = Host(access=access)
    host.ask({**NAMES, "AuthMethod": "CHAP,None"}, STAY_SECURITY)
    assert host.status({"AuthMethod": method}, STAY_SECURITY) == login.AUTHENTICATION_FAILURE


def test_chap_is_not_begun_again_after_its_end() -> None:
    host = Host(access=WITH_CHAP)
    host.ask({**NAMES, "AuthMethod": "CHAP"}, STAY_SECURITY)
    asked = host.ask({"CHAP_A": "5"}, STAY_SECURITY).keys
    proof = chap.response(5, int(asked["CHAP_I"]), SECRET, chap.decode_binary(asked["CHAP_C"]))
    host.ask({"CHAP_N": "host1", "CHAP_R": chap.encode_binary(proof)}, STAY_SECURITY)
    assert host.status({"CHAP_A": "5"}, STAY_SECURITY) == login.AUTHENTICATION_FAILURE


# Anything at all.

KEY_TEXTS = st.sampled_from(
    [
        *(b"InitiatorName=" + NAME.encode() + b"\0", b"TargetName=" + TARGET.encode() + b"\0"),
        *(b"SessionType=Discovery\0", b"AuthMethod=CHAP,None\0", b"AuthMethod=None\0"),
        *(b"CHAP_A=5,8\0", b"CHAP_N=host1\0", b"CHAP_R=0x00\0", b"CHAP_I=1\0", b"CHAP_C=0b\0"),
        *(b"HeaderDigest=CRC32C\0", b"MaxBurstLength=0x1000\0", b"SendTargets=All\0"),
        *(b"TargetName=" + TARGET.encode() + b"@monday\0", b"Key\0", b"\xff=\0", b"\0\0", b"=\0"),
    ]
)
ANY_TEXT = st.binary(max_size=64) | st.lists(KEY_TEXTS, max_size=6).map(b"".join)
ANY_FLAGS = st.sampled_from((0x00, 0x04, 0x40, 0x44, 0x81, 0x83, 0x87)) | st.integers(0, 255)
ANY_HEADER = st.binary(min_size=47, max_size=47).map(lambda rest: b"\x43" + rest)


@given(
    st.lists(st.tuples(ANY_HEADER | st.binary(min_size=48, max_size=48), ANY_TEXT), max_size=8),
    st.booleans(),
)
def test_any_headers_with_any_text_are_answered_or_refused(
    requests: list[tuple[bytes, bytes]], with_chap: bool
) -> None:
    host = Host(access=WITH_CHAP if with_chap else Access())
    for bhs, data in requests:
        answer = host.only(host.login.receive(bhs, data))
        if host.login.look_up is not None and answer is None:
            answer = host.only(host.login.resume(None))
        if isinstance(host.login.outcome, Refused):
            assert answer is None or answer.status == host.login.outcome.status
            assert host.login.outcome.status[0] in (1, 2, 3)
            return
        if host.login.outcome is not None:
            return
        assert answer is not None
        assert answer.status == login.SUCCESS


@given(st.lists(st.tuples(ANY_FLAGS, ANY_TEXT), max_size=login.MAX_REQUESTS + 2), st.booleans())
def test_any_requests_of_one_login_come_to_an_end(
    requests: list[tuple[int, bytes]], with_chap: bool
) -> None:
    host = Host(access=WITH_CHAP if with_chap else Access())
    count = 0
    for flags, data in requests:
        if host.login.outcome is not None:
            break
        answer = host.send(data, flags)
        if host.login.look_up is not None:
            answer = host.only(host.login.resume(None))
        count += 1
        assert answer is not None
        assert len(answer.keys) == answer.data.count(b"\0")  # none twice
    assert count <= login.MAX_REQUESTS + 1
    assert not (with_chap and any(not each.discovery for each in host.opened))


@given(
    st.dictionaries(
        st.sampled_from(("HeaderDigest", "InitialR2T", "MaxBurstLength", "X-a", "MaxConnections")),
        st.sampled_from(("None", "CRC32C,None", "Yes", "No", "8192", "0x200", "")),
    ),
    st.sampled_from((NAMES, DISCOVERY, {"InitiatorName": NAME}, {})),
    st.lists(st.integers(0, 400), max_size=login.MAX_REQUESTS - 2),
)
def test_text_cut_anywhere_by_the_c_bit_is_the_same_text(
    keys: dict[str, str], names: dict[str, str], cuts: list[int]
) -> None:
    data = pairs({**names, **keys})
    whole, cut = Host(), Host()
    expected = whole.ask(data, TO_FULL)
    at = 0
    for end in sorted(min(each, len(data)) for each in cuts):
        answer = cut.ask(data[at:end], 0x44)
        assert (answer.status, answer.flags, answer.data) == (login.SUCCESS, 0x04, b"")
        at = end
    answer = cut.ask(data[at:], TO_FULL)
    assert (answer.status, answer.flags, answer.data) == (
        *(expected.status, expected.flags, expected.data),
    )
    assert [each.parameters for each in cut.opened] == [each.parameters for each in whole.opened]
