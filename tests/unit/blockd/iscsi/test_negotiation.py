"""Negotiation of whole texts against an obvious model: what is answered, and what holds then.

The model is the column "result function" of RFC 7143 section 13 for what this target wants, written
down once more and without the code's table.
"""

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockd.iscsi.text import KEYS, MAX_PAIRS, Negotiation, Parameters, TextError, encode, parse

NUMBERS = {
    # key: lowest and highest value, what we want, function of both
    "MaxConnections": (1, 65535, 1, min),
    "MaxBurstLength": (512, 16777215, 16776192, min),
    "FirstBurstLength": (512, 16777215, 262144, min),
    "DefaultTime2Wait": (0, 3600, 2, max),
    "DefaultTime2Retain": (0, 3600, 0, min),
    "MaxOutstandingR2T": (1, 65535, 16, min),
    "ErrorRecoveryLevel": (0, 2, 0, min),
    "iSCSIProtocolLevel": (0, 31, 1, min),
}
BOOLEANS = {
    # key: the answer to No, and to Yes
    "InitialR2T": ("No", "Yes"),
    "ImmediateData": ("No", "Yes"),
    "DataPDUInOrder": ("Yes", "Yes"),
    "DataSequenceInOrder": ("Yes", "Yes"),
    "IFMarker": ("No", "No"),
    "OFMarker": ("No", "No"),
}
LISTS = {
    "HeaderDigest": ("CRC32C", "None"),
    "DataDigest": ("CRC32C", "None"),
    "TaskReporting": ("RFC3720",),
}
IN_DISCOVERY_TOO = {  # the rest is "Irrelevant when: SessionType=Discovery"
    *("HeaderDigest", "DataDigest", "MaxRecvDataSegmentLength", "DefaultTime2Wait"),
    *("DefaultTime2Retain", "ErrorRecoveryLevel", "iSCSIProtocolLevel"),
    *("IFMarker", "OFMarker", "IFMarkInt", "OFMarkInt", "InitiatorAlias", "X#NodeArchitecture"),
}
FIELDS = {
    "HeaderDigest": "header_digest",
    "DataDigest": "data_digest",
    "InitialR2T": "initial_r2t",
    "ImmediateData": "immediate_data",
    "MaxRecvDataSegmentLength": "max_recv_data_segment_length",
    "MaxBurstLength": "max_burst_length",
    "FirstBurstLength": "first_burst_length",
    "DefaultTime2Wait": "default_time2wait",
    "DefaultTime2Retain": "default_time2retain",
    "MaxOutstandingR2T": "max_outstanding_r2t",
    "DataPDUInOrder": "data_pdu_in_order",
    "DataSequenceInOrder": "data_sequence_in_order",
}
VALUES = {"Yes": True, "No": False, "CRC32C": True, "None": False}


def modelled(key: str, offer: str) -> str:
    """The answer to one offer in a normal session, on its own."""
    if key in NUMBERS:
        low, high, ours, choose = NUMBERS[key]
        digits = offer[2:] if offer[:2] in ("0x", "0X") else offer
        base = 10 if digits is offer else 16
        alphabet = "0123456789" if base == 10 else "0123456789abcdefABCDEF"
        if not digits or any(each not in alphabet for each in digits):
            return "Reject"
        value = int(digits, base)
        return str(choose(value, ours)) if low <= value <= high else "Reject"
    if key in BOOLEANS:
        return dict(zip(("No", "Yes"), BOOLEANS[key], strict=True)).get(offer, "Reject")
    if key in LISTS:
        return next((each for each in offer.split(",") if each in LISTS[key]), "Reject")
    return "Reject" if key in ("IFMarkInt", "OFMarkInt") else "NotUnderstood"


numbers = st.integers(-2, 1 << 25) | st.integers(0, 70000) | st.integers(0, 40)
hexadecimal = numbers.filter(lambda value: value >= 0).map(lambda value: f"0x{value:x}")
items = st.sampled_from(("CRC32C", "None", "Bogus", "crc32c", "RFC3720", "FastAbort", ""))
lists = st.lists(items, max_size=4).map(",".join)
odd = st.sampled_from(
    ("", "0x", "0b1", "1.5", "1 ", " 1", "yes", "Yes,No", "\N{ARABIC-INDIC DIGIT FIVE}")
)
offers = hexadecimal | numbers.map(str) | st.sampled_from(("Yes", "No")) | lists | odd
keys = st.sampled_from((*NUMBERS, *BOOLEANS, *LISTS, "IFMarkInt", "OFMarkInt", "X-org.example.a"))
texts = st.dictionaries(keys, offers)


@given(texts)
def test_every_key_is_answered_as_in_the_model(offered: Mapping[str, str]) -> None:
    negotiation = Negotiation()
    answers = dict(negotiation.answers(offered))
    assert answers.keys() == offered.keys()
    expected = {key: modelled(key, offer) for key, offer in offered.items()}
    # 13.14: a first burst is no longer than a burst, which is 262144 unless negotiated.
    burst = expected.get("MaxBurstLength", "Reject")
    first = expected.get("FirstBurstLength", "Reject")
    if first != "Reject":
        expected["FirstBurstLength"] = str(
            min(int(first), 262144 if burst == "Reject" else int(burst))
        )
    assert answers == expected


@given(texts)
def test_what_was_answered_holds_and_the_rest_keeps_its_default(
    offered: Mapping[str, str],
) -> None:
    negotiation = Negotiation()
    answers = dict(negotiation.answers(offered))
    held = negotiation.settled()
    for key, name in FIELDS.items():
        answer = answers.get(key, "Reject")
        if answer == "Reject":
            expected = getattr(Parameters(), name)
            if key == "FirstBurstLength":
                expected = min(expected, held.max_burst_length)
        else:
            expected = VALUES[answer] if answer in VALUES else int(answer)
        assert getattr(held, name) == expected, key


@given(texts)
def test_in_discovery_most_is_irrelevant(offered: Mapping[str, str]) -> None:
    answers = dict(Negotiation(discovery=True).answers(offered))
    for key, offer in offered.items():
        if key in IN_DISCOVERY_TOO or modelled(key, "") == "NotUnderstood":
            assert answers[key] == modelled(key, offer)
        else:
            assert answers[key] == "Irrelevant"


@given(texts, st.data())
def test_it_does_not_matter_over_how_many_texts_keys_are_spread(
    offered: Mapping[str, str], data: st.DataObject
) -> None:
    whole, spread = Negotiation(), Negotiation()
    whole.answers(offered)
    order = data.draw(st.permutations(list(offered)))
    cut = data.draw(st.integers(0, len(order)))
    for part in (order[:cut], order[cut:]):
        spread.answers({key: offered[key] for key in part})
    assert spread.settled() == whole.settled()


def test_the_model_knows_every_key_of_the_table() -> None:
    declared = {"MaxRecvDataSegmentLength", "InitiatorAlias", "X#NodeArchitecture"}
    assert KEYS.keys() == {*NUMBERS, *BOOLEANS, *LISTS, "IFMarkInt", "OFMarkInt", *declared}
    assert {key for key, rule in KEYS.items() if rule.discovery} == IN_DISCOVERY_TOO
    assert {key for key, rule in KEYS.items() if not rule.answered} == declared


@pytest.mark.parametrize("key", ["InitiatorAlias", "X#NodeArchitecture"])
def test_what_is_declared_for_people_gets_no_answer(key: str) -> None:
    assert Negotiation().answers({key: "Linux,6.1"}) == []


def test_an_alias_may_be_declared_again_later() -> None:
    assert Negotiation().renewed("InitiatorAlias", "host 1") is None
    assert Negotiation().renewed("HeaderDigest", "None") == ("HeaderDigest", "Reject")


@pytest.mark.parametrize(
    "key",
    [
        *("AuthMethod", "CHAP_A", "InitiatorName", "TargetName", "SessionType", "SendTargets"),
        *("TargetAlias", "TargetAddress", "TargetPortalGroupTag"),
    ],
)
def test_a_key_out_of_its_place_is_rejected(key: str) -> None:
    assert Negotiation().offered(key, "x") == (key, "Reject")
    assert Negotiation().renewed(key, "x") == (key, "Reject")


@pytest.mark.parametrize("value", ["Reject", "NotUnderstood", "Irrelevant"])
def test_an_answer_is_not_answered(value: str) -> None:
    """Else both would send answers to and fro."""
    offered = dict.fromkeys(("InitialR2T", "X-org.example.a", "AuthMethod"), value)
    negotiation = Negotiation()
    assert negotiation.answers(offered) == []
    assert negotiation.settled() == Parameters()


def test_a_first_burst_longer_than_the_burst_is_cut_in_any_order() -> None:
    offered = {"FirstBurstLength": "262144", "MaxBurstLength": "65536"}
    assert dict(Negotiation().answers(offered))["FirstBurstLength"] == "65536"


@pytest.mark.parametrize(
    ("key", "longest"), [("TargetName", 255), ("CHAP_N", 255), ("CHAP_C", 2050), ("CHAP_R", 2050)]
)
def test_values_are_as_long_as_the_rfc_lets_them(key: str, longest: int) -> None:
    """In bytes of UTF-8 (6.1)."""
    for value in ("x" * longest, "\N{GREEK SMALL LETTER ALPHA}" * (longest // 2)):
        assert parse(encode([(key, value)])) == {key: value}
    for value in ("x" * (longest + 1), "\N{GREEK SMALL LETTER ALPHA}" * (longest // 2 + 1)):
        with pytest.raises(TextError, match=f"the value of {key} is"):
            parse(encode([(key, value)]))


def test_answers_to_the_longest_text_leave_room_in_a_login_response() -> None:
    """8192 bytes (13.12), of which a CHAP challenge, an alias and our own keys take some."""
    offered = {f"X-{number:061d}": "1" for number in range(MAX_PAIRS)}
    assert len(encode(Negotiation().answers(offered))) < 8192 - 1024
