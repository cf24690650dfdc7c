"""Mode pages: what MODE SENSE tells, what MODE SELECT changes, and what it leaves alone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockd.scsi import modes, sense
from blockd.scsi.modes import ModePages
from blockd.scsi.task import GOOD
from blockd.scsi.unit import SpaceFacts
from tests.scsi_rig import FakeSurroundings, Rig, codes

CURRENT, CHANGEABLE, DEFAULT, SAVED = range(4)
CONTROLS = [CURRENT, CHANGEABLE, DEFAULT, SAVED]
PAGES = [(0x01, 0), (0x08, 0), (0x0A, 0), (0x1A, 0), (0x1C, 0), (0x1C, 2)]
READY = bytes(6)
D_SENSE = bytes.fromhex("0a0a 0610 0000 0000 0000 0000")
SWP = bytes.fromhex("0a0a 0210 0800 0000 0000 0000")
PLAIN = bytes.fromhex("0a0a 0210 0000 0000 0000 0000")
BOTH = bytes.fromhex("0a0a 0610 0800 0000 0000 0000")


def sense_6(
    page: int, subpage: int = 0, *, control: int = CURRENT, dbd: bool = True, allocation: int = 255
) -> bytes:
    return bytes((0x1A, 0x08 * dbd, control << 6 | page, subpage, allocation, 0))


def sense_10(
    page: int, subpage: int = 0, *, flags: int = 0x08, control: int = CURRENT, allocation: int = 999
) -> bytes:
    fields = bytes((0x5A, flags, control << 6 | page, subpage, 0, 0, 0))
    return fields + allocation.to_bytes(2, "big") + b"\0"


def select(
    rig: Rig, data: bytes, *, six: bool = False, flags: int = 0x10, sent: int | None = None
) -> sense.Sense | None:
    """MODE SELECT of a whole list through the rig's nexus: what is wrong with it."""
    length = len(data)
    cdb = bytes((0x15, flags, 0, 0, length, 0))
    if not six:
        cdb = bytes((0x55, flags)) + bytes(5) + length.to_bytes(2, "big") + b"\0"
    result = rig.run(cdb, data if sent is None else data[:sent])
    return result.sense


def short(*pages: bytes) -> bytes:
    return bytes(4) + b"".join(pages)


def long(*pages: bytes) -> bytes:
    return bytes(8) + b"".join(pages)


def page(rig: Rig, code: int, subpage: int = 0, *, control: int = CURRENT) -> bytes:
    return rig.good(sense_10(code, subpage, control=control))[8:]


# -- MODE SENSE


@pytest.mark.parametrize(("code", "subpage"), PAGES)
@pytest.mark.parametrize("control", CONTROLS)
def test_every_page_has_its_code_and_length(code: int, subpage: int, control: int) -> None:
    data = page(Rig(), code, subpage, control=control)
    assert data[0] & 0x3F == code
    if subpage:
        assert data[0] & 0x40
        assert data[1] == subpage
        assert int.from_bytes(data[2:4], "big") == len(data) - 4
    else:
        assert data[1] == len(data) - 2


@pytest.mark.parametrize("control", CONTROLS)
def test_all_pages_are_the_single_ones_in_order(control: int) -> None:
    rig = Rig()
    single = [page(rig, code, subpage, control=control) for code, subpage in PAGES]
    assert page(rig, 0x3F, 0xFF, control=control) == b"".join(single)
    assert page(rig, 0x3F, 0x00, control=control) == b"".join(single[:-1])
    assert page(rig, 0x1C, 0xFF, control=control) == b"".join(single[-2:])


@pytest.mark.parametrize(
    ("code", "subpage", "field", "bit"),
    [(0x02, 0, 2, 5), (0x00, 0, 2, 5), (0x08, 1, 3, 7), (0x3F, 1, 3, 7), (0x19, 0xFF, 2, 5)],
)
def test_a_page_that_is_not_there_is_pointed_at(
    code: int, subpage: int, field: int, bit: int
) -> None:
    for cdb in (sense_6(code, subpage), sense_10(code, subpage)):
        what = Rig().fault(cdb)
        assert codes(what) == (sense.ILLEGAL_REQUEST, 0x24, 0)
        assert (what.field, what.bit) == (field, bit)


def test_headers_have_the_length_of_what_follows() -> None:
    rig = Rig()
    assert rig.good(sense_6(0x3F, 0xFF))[0] == len(rig.good(sense_6(0x3F, 0xFF))) - 1
    whole = rig.good(sense_10(0x3F, 0xFF))
    assert int.from_bytes(whole[:2], "big") == len(whole) - 2


@pytest.mark.parametrize("allocation", [0, 1, 4, 15, 255])
def test_pages_are_cut_to_the_allocation_length(allocation: int) -> None:
    rig = Rig()
    for make in (sense_6, sense_10):
        whole = rig.good(make(0x3F, 0xFF))
        assert rig.good(make(0x3F, 0xFF, allocation=allocation)) == whole[:allocation]


def test_block_descriptors_tell_the_size() -> None:
    rig = Rig(blocks=0x1234, block_size=4096)
    descriptor = bytes.fromhex("00001234 00001000")
    data = rig.good(sense_6(0x08, dbd=False))
    assert (data[3], data[4:12]) == (8, descriptor)
    data = rig.good(sense_10(0x08, flags=0))
    assert (data[4], data[6:8], data[8:16]) == (0, b"\0\x08", descriptor)


def test_long_block_descriptors_are_there_when_asked_for() -> None:
    data = Rig(blocks=0x1234).good(sense_10(0x08, flags=0x10))
    assert (data[4], data[6:8]) == (0x01, b"\0\x10")
    assert data[8:24] == bytes.fromhex("0000000000001234 00000000 00000200")


def test_more_blocks_than_a_short_descriptor_holds_are_all_ones() -> None:
    rig = Rig(blocks=(1 << 32) + 1)
    assert rig.good(sense_6(0x08, dbd=False))[4:8] == b"\xff\xff\xff\xff"
    assert rig.good(sense_10(0x08, flags=0x10))[8:16] == ((1 << 32) + 1).to_bytes(8, "big")


def test_block_descriptors_are_left_away_when_asked_for() -> None:
    rig = Rig()
    assert rig.good(sense_6(0x08))[3] == 0
    assert rig.good(sense_10(0x08, flags=0x18))[6:8] == b"\0\0"


def test_there_is_a_cache_and_writes_through_it() -> None:
    rig = Rig()
    assert page(rig, 0x08)[2] == 0x04  # WCE
    assert rig.good(sense_6(0x08))[2] == 0x10  # DPOFUA
    assert rig.good(sense_10(0x08))[3] == 0x10


def test_a_read_only_unit_says_so() -> None:
    rig = Rig(read_only=True)
    assert rig.good(sense_6(0x08))[2] == 0x90
    assert rig.good(sense_10(0x08))[3] == 0x90


def test_only_descriptor_sense_and_write_protection_can_be_changed() -> None:
    data = page(Rig(), 0x3F, 0xFF, control=CHANGEABLE)
    mask = page(Rig(), 0x0A, control=CHANGEABLE)
    assert mask == bytes.fromhex("8a0a 0400 0800 0000 0000 0000")
    assert sum(mask[2:]) == 0x0C
    bodies = [page(Rig(), *which, control=CHANGEABLE) for which in PAGES if which[0] != 0x0A]
    assert not any(any(body[4 if body[0] & 0x40 else 2 :]) for body in bodies)
    assert mask in data


def test_the_soft_threshold_of_the_store_is_told() -> None:
    facts = SpaceFacts(0, 0, short=False, threshold_bytes=(5 << 20) + 1)
    data = page(Rig(surroundings=FakeSurroundings(facts)), 0x1C, 2)
    assert data == bytes.fromhex("5c02 0014") + bytes(12) + bytes.fromhex("81 01 0000 00000005")
    assert page(Rig(), 0x01)[7] & 0x80  # LBPERE: reaching it is told


def test_a_store_without_a_threshold_tells_none() -> None:
    rig = Rig(surroundings=FakeSurroundings(SpaceFacts(0, 0, short=False)))
    assert page(rig, 0x1C, 2) == bytes.fromhex("5c02 000c") + bytes(12)


# -- MODE SELECT


@pytest.mark.parametrize("six", [True, False])
def test_a_page_that_is_changed_is_told_as_it_is_now(six: bool) -> None:
    rig = Rig()
    assert select(rig, (short if six else long)(D_SENSE), six=six) is None
    assert rig.unit.modes.descriptor_sense
    assert page(rig, 0x0A)[1:] == D_SENSE[1:]
    assert page(rig, 0x0A, control=DEFAULT)[1:] == PLAIN[1:]


def test_what_was_read_can_be_sent_back() -> None:
    """PS, the mode data length and the device-specific parameter with it: many initiators do."""
    for flags in (0x00, 0x10):
        rig = Rig()
        assert select(rig, rig.good(sense_10(0x3F, 0xFF, flags=flags))) is None
    rig = Rig()
    assert select(rig, rig.good(sense_6(0x3F, 0xFF, dbd=False)), six=True) is None


def test_software_write_protection_refuses_writes_until_it_is_taken_back() -> None:
    rig = Rig()
    write = bytes.fromhex("2a000000000000000100")
    assert select(rig, long(SWP)) is None
    assert rig.fault(write, bytes(512)) == sense.WRITE_PROTECTED
    assert rig.good(sense_6(0x0A))[2] & 0x80
    assert select(rig, long(PLAIN)) is None
    assert rig.run(write, bytes(512)).status == GOOD


def test_others_are_told_that_pages_changed() -> None:
    rig = Rig()
    other = rig.join(2)
    select(rig, long(D_SENSE))
    assert rig.fault(READY, nexus=other) == sense.MODE_CHANGED
    assert rig.good(READY) == b""


def test_nobody_is_told_when_nothing_changed() -> None:
    rig = Rig()
    other = rig.join(2)
    assert select(rig, long(PLAIN)) is None
    assert select(rig, long()) is None
    assert rig.good(READY, nexus=other) == b""


def test_the_last_of_two_values_for_a_page_counts() -> None:
    rig = Rig()
    assert select(rig, long(D_SENSE, SWP)) is None
    assert page(rig, 0x0A)[1:] == SWP[1:]


def test_an_empty_list_changes_nothing_and_takes_no_data() -> None:
    rig = Rig()
    assert rig.run(bytes.fromhex("150000000000")).status == GOOD
    assert rig.run(bytes.fromhex("55000000000000000000")).status == GOOD


@pytest.mark.parametrize(
    ("data", "field", "bit"),
    [
        (bytes.fromhex("0a0a 0212 0000 0000 0000 0000"), 11, 1),  # QERR
        (bytes.fromhex("0a0a 8210 0000 0000 0000 0000"), 10, 7),  # TST
        (bytes.fromhex("0a0a 0210 0000 0000 0000 0001"), 19, 0),
        (bytes.fromhex("0a09 0210 0000 0000 0000 00"), 9, None),
        (bytes.fromhex("0812") + bytes(18), 10, 2),  # WCE to 0
        (bytes.fromhex("0b02 0000"), 8, 5),
        (bytes.fromhex("4a01 0000"), 8, 5),  # a subpage that there is not
        (bytes.fromhex("3f02 0000"), 8, 5),
        (bytes.fromhex("5c02 0001 00"), 10, None),
        (PLAIN + bytes.fromhex("0b00"), 20, 5),
    ],
)
def test_what_cannot_be_had_is_pointed_at_and_nothing_changes(
    data: bytes, field: int, bit: int | None
) -> None:
    rig = Rig()
    other = rig.join(2)
    before = page(rig, 0x3F, 0xFF)
    what = select(rig, long(SWP, data)[:8] + data)
    assert what == sense.Sense(sense.ILLEGAL_REQUEST, 0x26, 0, field=field, bit=bit, in_cdb=False)
    what = select(rig, long(SWP, data))
    assert what is not None
    assert what.field == field + len(SWP)
    assert page(rig, 0x3F, 0xFF) == before
    assert rig.good(READY, nexus=other) == b""


@pytest.mark.parametrize("length", [1, 7, 9, 12, 19])
def test_a_list_that_is_cut_off_is_refused(length: int) -> None:
    rig = Rig()
    assert select(rig, long(D_SENSE)[:length]) == sense.PARAMETER_LIST_LENGTH
    assert not rig.unit.modes.descriptor_sense


def test_a_list_that_does_not_come_whole_is_refused() -> None:
    rig = Rig()
    assert select(rig, long(D_SENSE), sent=8) == sense.PARAMETER_LIST_LENGTH
    assert not rig.unit.modes.descriptor_sense


def test_pages_in_a_format_of_our_own_there_are_none() -> None:
    what = select(Rig(), long(PLAIN), flags=0)
    assert what is not None
    assert (codes(what), what.field, what.bit) == ((sense.ILLEGAL_REQUEST, 0x24, 0), 1, 4)


def test_another_medium_type_is_refused() -> None:
    for data, six, field in ((b"\0\x01\0\0", True, 1), (b"\0\0\x01" + bytes(5), False, 2)):
        what = select(Rig(), data, six=six)
        assert what is not None
        assert (codes(what), what.field) == ((sense.ILLEGAL_REQUEST, 0x26, 0), field)


@pytest.mark.parametrize(
    "descriptor", ["00000800 00000200", "00000000 00000200", "ffffffff 00000200"]
)
def test_a_block_descriptor_may_say_what_is_so(descriptor: str) -> None:
    rig = Rig()
    header = bytes((0, 0, 0, 8))
    assert select(rig, header + bytes.fromhex(descriptor) + D_SENSE, six=True) is None
    assert rig.unit.modes.descriptor_sense


@pytest.mark.parametrize(
    ("descriptor", "field"), [("00000801 00000200", 4), ("00000800 00001000", 9)]
)
def test_a_block_descriptor_cannot_change_the_size(descriptor: str, field: int) -> None:
    rig = Rig()
    what = select(rig, bytes((0, 0, 0, 8)) + bytes.fromhex(descriptor) + D_SENSE, six=True)
    assert what is not None
    assert (codes(what), what.field) == ((sense.ILLEGAL_REQUEST, 0x26, 0), field)
    assert not rig.unit.modes.descriptor_sense


def test_a_long_block_descriptor_is_looked_at_in_the_long_command() -> None:
    rig = Rig()
    header = bytes((0, 0, 0, 0, 1, 0, 0, 16))
    right = (2048).to_bytes(8, "big") + bytes(4) + (512).to_bytes(4, "big")
    wrong = (2048).to_bytes(8, "big") + bytes(4) + (513).to_bytes(4, "big")
    assert select(rig, header + right + D_SENSE) is None
    what = select(rig, header + wrong + PLAIN)
    assert what is not None
    assert what.field == 20


@pytest.mark.parametrize("length", [1, 7, 9, 16])
def test_block_descriptors_have_one_length(length: int) -> None:
    what = select(Rig(), bytes((0, 0, 0, length)) + bytes(16), six=True)
    assert what is not None
    assert (codes(what), what.field) == ((sense.ILLEGAL_REQUEST, 0x26, 0), 3)


def test_a_block_descriptor_that_is_cut_off_is_refused() -> None:
    assert select(Rig(), bytes((0, 0, 0, 8)) + bytes(4), six=True) == sense.PARAMETER_LIST_LENGTH


@given(data=st.binary(max_size=64), six=st.booleans(), flags=st.sampled_from([0x10, 0x11]))
def test_garbage_changes_nothing_that_cannot_be_changed(data: bytes, six: bool, flags: int) -> None:
    rig = Rig()
    unchangeable = [page(rig, *which) for which in PAGES if which[0] != 0x0A]
    what = select(rig, data, six=six, flags=flags)
    assert what is None or what.key == sense.ILLEGAL_REQUEST
    assert [page(rig, *which) for which in PAGES if which[0] != 0x0A] == unchangeable
    assert page(rig, 0x0A)[1:] in {value[1:] for value in (PLAIN, D_SENSE, SWP, BOTH)}


# -- saved values


def test_saved_values_outlive_a_restart() -> None:
    rig = Rig()
    assert select(rig, long(D_SENSE), flags=0x11) is None
    again = Rig(surroundings=rig.surroundings)
    assert again.unit.modes.descriptor_sense
    assert page(again, 0x0A, control=SAVED)[1:] == D_SENSE[1:]
    assert page(again, 0x0A, control=DEFAULT)[1:] == PLAIN[1:]


def test_values_that_were_not_saved_do_not() -> None:
    rig = Rig()
    assert select(rig, long(D_SENSE)) is None
    assert rig.surroundings.kept == {}
    assert page(rig, 0x0A, control=SAVED)[1:] == PLAIN[1:]
    assert not Rig(surroundings=rig.surroundings).unit.modes.descriptor_sense


def test_saving_waits_for_the_disk_outside_of_the_event_loop() -> None:
    rig = Rig()
    data = long(D_SENSE)
    running = rig.start(bytes((0x55, 0x11, *bytes(5), 0, len(data), 0)), data)
    assert running.works == 1


def test_what_cannot_be_saved_is_an_error_and_not_called_saved() -> None:
    rig = Rig()
    rig.surroundings.fails_to_save = True
    assert select(rig, long(D_SENSE), flags=0x11) == sense.INTERNAL_FAILURE
    assert page(rig, 0x0A, control=SAVED)[1:] == PLAIN[1:]


def test_a_reset_brings_back_the_saved_values() -> None:
    rig = Rig()
    select(rig, long(D_SENSE), flags=0x11)
    select(rig, long(SWP))
    rig.unit.reset()
    assert rig.unit.modes.descriptor_sense
    assert not rig.unit.modes.software_write_protect


@given(st.binary(max_size=40))
def test_whatever_was_kept_a_unit_comes_up(kept: bytes) -> None:
    pages = ModePages(kept)
    assert pages.current[0x0A, 0][1:] in {value[1:] for value in (PLAIN, D_SENSE, SWP, BOTH)}


def test_only_what_can_be_changed_is_taken_from_what_was_kept() -> None:
    pages = ModePages(bytes.fromhex("0a0a ffff ffff ffff ffff ffff"))
    assert pages.current[0x0A, 0] == BOTH


def test_the_last_of_two_saves_is_kept() -> None:
    pages = ModePages()
    surroundings = FakeSurroundings()
    pages.change({(0x0A, 0): D_SENSE})
    pages.save(surroundings)
    pages.change({(0x0A, 0): SWP})
    pages.save(surroundings)
    assert ModePages(surroundings.kept[modes.KEY]).current[0x0A, 0] == SWP
