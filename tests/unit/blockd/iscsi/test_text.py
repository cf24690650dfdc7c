"""Text: pairs, and the result of negotiating each key."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockd.iscsi import text
from blockd.iscsi.text import Negotiation, Parameters, TextError


@pytest.mark.parametrize(
    ("key", "offer", "answer"),
    [
        ("HeaderDigest", "CRC32C,None", "CRC32C"),
        ("HeaderDigest", "None,CRC32C", "None"),
        ("DataDigest", "Bogus,None", "None"),  # unknown values are passed over
        ("DataDigest", "Bogus", "Reject"),
        ("MaxConnections", "8", "1"),
        ("InitialR2T", "No", "No"),
        ("InitialR2T", "Yes", "Yes"),
        ("InitialR2T", "yes", "Reject"),
        ("ImmediateData", "Yes", "Yes"),
        ("ImmediateData", "No", "No"),
        ("MaxBurstLength", "16776192", "16776192"),
        ("MaxBurstLength", "0x40000", "262144"),
        ("MaxBurstLength", "511", "Reject"),
        ("FirstBurstLength", "1048576", "262144"),
        ("DefaultTime2Wait", "0", "2"),
        ("DefaultTime2Wait", "3601", "Reject"),
        ("DefaultTime2Retain", "20", "0"),
        ("MaxOutstandingR2T", "64", "16"),
        ("MaxOutstandingR2T", "0", "Reject"),
        ("DataPDUInOrder", "No", "Yes"),
        ("DataSequenceInOrder", "No", "Yes"),
        ("ErrorRecoveryLevel", "2", "0"),
        ("ErrorRecoveryLevel", "-1", "Reject"),
        ("TaskReporting", "FastAbort,RFC3720", "RFC3720"),
        ("iSCSIProtocolLevel", "2", "1"),
        ("IFMarker", "Yes", "No"),
        ("OFMarkInt", "2048~8192", "Reject"),
        ("X-com.example.thing", "1", "NotUnderstood"),
    ],
)
def test_a_key_is_answered_by_the_table(key: str, offer: str, answer: str) -> None:
    assert Negotiation().offered(key, offer) == (key, answer)


def test_what_the_initiator_declares_gets_no_answer() -> None:
    negotiation = Negotiation()
    assert negotiation.offered("MaxRecvDataSegmentLength", "65536") is None
    assert negotiation.parameters.max_recv_data_segment_length == 65536
    assert negotiation.offered("MaxRecvDataSegmentLength", "Reject") is None


def test_a_refused_value_leaves_the_default() -> None:
    negotiation = Negotiation()
    negotiation.offered("MaxBurstLength", "1")
    assert negotiation.parameters == Parameters()


def test_a_key_is_negotiated_once() -> None:
    negotiation = Negotiation()
    negotiation.offered("InitialR2T", "No")
    with pytest.raises(TextError, match="InitialR2T"):
        negotiation.offered("InitialR2T", "Yes")


def test_the_first_burst_is_part_of_a_burst() -> None:
    negotiation = Negotiation()
    negotiation.offered("FirstBurstLength", "65536")
    negotiation.offered("MaxBurstLength", "8192")
    assert negotiation.settled().first_burst_length == 8192


def test_keys_of_normal_sessions_are_irrelevant_to_discovery() -> None:
    assert Negotiation(discovery=True).offered("MaxBurstLength", "8192") == (
        "MaxBurstLength",
        "Irrelevant",
    )


def test_only_the_segment_length_changes_after_the_login() -> None:
    negotiation = Negotiation()
    assert negotiation.renewed("MaxRecvDataSegmentLength", "512") is None
    assert negotiation.parameters.max_recv_data_segment_length == 512
    assert negotiation.renewed("MaxBurstLength", "512") == ("MaxBurstLength", "Reject")


@pytest.mark.parametrize(
    "data",
    [
        b"NoEquals\0",
        b"=value\0",
        b"9Key=1\0",
        b"K" * 64 + b"=1\0",
        b"Key=" + b"v" * 256 + b"\0",
        b"Key=\xff\0",
        b"Key=1\0Key=2\0",
        b"CHAP_C=0x" + b"0" * 2100 + b"\0",
        b"".join(b"K%d=1\0" % number for number in range(300)),
    ],
)
def test_text_that_is_none_is_refused(data: bytes) -> None:
    with pytest.raises(TextError):
        text.parse(data)


def test_a_missing_last_nul_is_forgiven() -> None:
    assert text.parse(b"A=1\0B=2") == {"A": "1", "B": "2"}
    assert text.parse(b"") == {}


@given(st.binary(max_size=200))
def test_any_bytes_are_pairs_or_refused(data: bytes) -> None:
    try:
        found = text.parse(data)
    except TextError:
        return
    assert text.parse(text.encode(list(found.items()))) == found
