"""The parameter list of EXTENDED COPY, and RECEIVE COPY RESULTS (SPC-4 6.4.3, 6.17 to 6.20)."""

from hypothesis import given
from hypothesis import strategies as st

from blockd.scsi import copy, copy_list
from blockd.scsi.sense import CheckCondition
from blockd.scsi.task import GOOD
from tests import scsi_cdbs as cdbs
from tests.scsi_copies import HERE, both, fault, good, pair, start
from tests.scsi_rig import BLOCKS, codes

LIST_LENGTH = (5, 0x1A, 0)
INVALID_FIELD = (5, 0x24, 0)
INVALID_PARAMETER = (5, 0x26, 0)
RESERVED, DISCARD, NO_LIST_ID = 1, 2, 3
STATUS, DATA, PARAMETERS, DETAILS = 0x00, 0x01, 0x03, 0x04


# -- the parameter list


def test_a_list_that_is_cut_off_is_refused() -> None:
    here, _ = pair()
    parameters = cdbs.copy_list(both(), [cdbs.segment(0, 1, 1, 0, 0)])
    for length in range(1, len(parameters)):
        refused = here.fault(cdbs.extended_copy(length), parameters[:length])
        assert codes(refused) == LIST_LENGTH
        refused = here.fault(cdbs.extended_copy(len(parameters)), parameters[:length])
        assert codes(refused) == LIST_LENGTH


def test_too_many_descriptors_are_refused() -> None:
    here, _ = pair()
    segment = cdbs.segment(0, 0, 1, 0, 9)
    many, more = copy_list.MAX_CSCDS + 1, copy_list.MAX_SEGMENTS + 1
    good(here, cdbs.copy_list([cdbs.cscd(HERE)] * (many - 1), [segment] * (more - 1)))
    for cscds, segments, expected in (
        (many, 1, (5, 0x26, 6)),
        (1, more, (5, 0x26, 8)),
        (many, more, LIST_LENGTH),
    ):
        parameters = cdbs.copy_list([cdbs.cscd(HERE)] * cscds, [segment] * segments)
        assert codes(fault(here, parameters)) == expected


def test_other_kinds_of_descriptors_are_refused() -> None:
    here, _ = pair()
    segment, cscd = cdbs.segment(0, 0, 1, 0, 9), cdbs.cscd(HERE)
    for cscds, segments, expected in (
        ([cdbs.cscd(HERE, kind=0xE0)], [segment], (5, 0x26, 7)),
        ([cdbs.cscd(HERE, flags=0x01)], [segment], (5, 0x26, 7)),
        ([cscd], [cdbs.segment(0, 0, 1, 0, 9, kind=0x03)], (5, 0x26, 9)),
        ([cscd], [cdbs.segment(0, 0, 1, 0, 9, kind=0x03)[:4]], (5, 0x26, 9)),
        ([cscd[:7] + b"\x15" + cscd[8:]], [segment], INVALID_PARAMETER),
        ([cscd[:20]], [segment], INVALID_PARAMETER),
        ([cscd], [segment[:20]], INVALID_PARAMETER),
        ([cscd], [segment[:3] + b"\x14" + segment[4:]], INVALID_PARAMETER),
    ):
        assert codes(fault(here, cdbs.copy_list(cscds, segments))) == expected
    assert here.device.seen == []


def test_the_obsolete_type_of_a_designator_is_ignored() -> None:
    here, _ = pair()
    good(here, cdbs.copy_list([cdbs.cscd(HERE, flags=0xC0)], [cdbs.segment(0, 0, 1, 0, 9)]))


def test_inline_data_and_strange_list_identifiers_are_refused() -> None:
    here, _ = pair()
    assert codes(fault(here, cdbs.copy_list([], [], inline=1))) == (5, 0x26, 0x0B)
    assert codes(fault(here, cdbs.copy_list([], [], usage=RESERVED))) == INVALID_PARAMETER
    assert codes(fault(here, cdbs.copy_list([], [], usage=NO_LIST_ID))) == INVALID_PARAMETER
    good(here, cdbs.copy_list([], [], usage=NO_LIST_ID, list_id=0))


@given(st.binary(max_size=150))
def test_any_list_is_decoded_or_refused(parameters: bytes) -> None:
    try:
        decoded = copy_list.decode(parameters)
    except CheckCondition:
        return
    assert len(decoded.cscds) <= copy_list.MAX_CSCDS
    assert len(decoded.segments) <= copy_list.MAX_SEGMENTS


# -- RECEIVE COPY RESULTS


def test_the_status_of_a_copy_while_it_runs_and_afterwards() -> None:
    here, _ = pair(deferred=True)
    assert codes(here.fault(cdbs.copy_results(STATUS, 7))) == INVALID_FIELD
    segments = [cdbs.segment(0, 1, 8, 0, 0)] * 2
    start(here, cdbs.copy_list(both(), segments, list_id=7))
    assert here.good(cdbs.copy_results(STATUS, 7)).hex() == "000000080000000100000000"
    here.device.finish()
    assert here.good(cdbs.copy_results(STATUS, 7)).hex() == "000000080000010100000004"
    for action in (DATA, DETAILS):
        assert codes(here.fault(cdbs.copy_results(action, 7))) == INVALID_FIELD
    here.device.finish()
    assert here.good(cdbs.copy_results(STATUS, 7)).hex() == "000000080100020100000008"
    assert here.good(cdbs.copy_results(STATUS, 7, allocation=5)).hex() == "0000000801"
    assert here.good(cdbs.copy_results(DATA, 7)) == bytes(4)
    assert here.good(cdbs.copy_results(DETAILS, 7)) == bytes(4)


def test_the_details_of_a_failure() -> None:
    here, _ = pair()
    what = fault(here, cdbs.copy_list(both(), [cdbs.segment(0, 1, 1, BLOCKS, 0)], list_id=9))
    assert here.good(cdbs.copy_results(STATUS, 9))[4] == 0x02
    details = here.good(cdbs.copy_results(DETAILS, 9))
    assert int.from_bytes(details[:4], "big") == len(details) - 4
    assert details[56] == 0x02  # CHECK CONDITION
    assert int.from_bytes(details[58:60], "big") == len(what.encode())
    assert details[60:] == what.encode()


def test_results_are_those_of_the_nexus_and_end_with_it() -> None:
    here, _ = pair()
    other = here.join(2)
    good(here, cdbs.copy_list([], [], list_id=3))
    here.good(cdbs.copy_results(STATUS, 3))
    assert codes(here.fault(cdbs.copy_results(STATUS, 3), nexus=other)) == INVALID_FIELD
    here.unit.detach(here.nexus)
    here.unit.attach(here.nexus)
    while here.unit.next_attention(here.nexus):
        pass
    assert codes(here.fault(cdbs.copy_results(STATUS, 3))) == INVALID_FIELD


def test_a_list_identifier_in_use_is_refused_until_its_copy_is_over() -> None:
    here, _ = pair(deferred=True)
    parameters = cdbs.copy_list(both(), [cdbs.segment(0, 1, 1, 0, 0)], list_id=4, usage=DISCARD)
    start(here, parameters)
    assert codes(fault(here, parameters)) == (5, 0x00, 0x16)
    here.device.finish()
    running = start(here, parameters)
    here.device.finish()
    assert running.result is not None
    assert running.result.status == GOOD


def test_an_aborted_copy_is_a_failed_one() -> None:
    here, _ = pair(deferred=True)
    running = start(here, cdbs.copy_list(both(), [cdbs.segment(0, 1, 1, 0, 0)], list_id=4))
    running.task.abort()
    assert here.good(cdbs.copy_results(STATUS, 4))[4] == 0x02
    assert here.unit.copies.running == 0


def test_only_so_many_results_are_kept() -> None:
    here, _ = pair()
    for list_id in range(copy.MAX_RESULTS + 1):
        good(here, cdbs.copy_list([], [], list_id=list_id))
    assert codes(here.fault(cdbs.copy_results(STATUS, 0))) == INVALID_FIELD
    here.good(cdbs.copy_results(STATUS, 1))


def test_operating_parameters_tell_the_limits() -> None:
    here, _ = pair()
    told = here.good(cdbs.copy_results(PARAMETERS))
    assert int.from_bytes(told[:4], "big") == len(told) - 4
    assert told[4] == 0x01
    assert int.from_bytes(told[8:10], "big") == copy_list.MAX_CSCDS
    assert int.from_bytes(told[10:12], "big") == copy_list.MAX_SEGMENTS
    assert int.from_bytes(told[12:16], "big") == copy_list.MAX_DESCRIPTOR_BYTES
    assert int.from_bytes(told[16:20], "big") == copy.MAX_SEGMENT_BYTES
    assert told[20:34] == bytes(14)
    assert int.from_bytes(told[34:36], "big") == told[36] == copy.MAX_COPIES
    assert told[43:] == b"\x02\x02\xe4"
    assert here.good(cdbs.copy_results(PARAMETERS, allocation=4)) == told[:4]


def test_an_action_that_is_not_there_is_refused() -> None:
    here, _ = pair()
    for action in (0x02, 0x05, 0x1F):
        assert codes(here.fault(cdbs.copy_results(action))) == INVALID_FIELD
    assert codes(here.fault(b"\x83\x01" + bytes(14))) == INVALID_FIELD
