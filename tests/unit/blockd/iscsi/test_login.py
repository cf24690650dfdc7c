"""Login: stages, statuses, and what is refused. RFC 7143 6.3, 11.12, 11.13, and rules of 4.2.7."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockd.iscsi import chap, login, pdu
from blockd.iscsi.names import is_name
from blockd.iscsi.targets import Access, Credentials, Target
from blockd.scsi.target import TargetDevice
from tests.iscsi_initiator import NAME, OPERATIONAL, TARGET, Initiator, World, pairs

SECRET = b"a secret of host1"
WITH_CHAP = Access(chap=(Credentials("host1", SECRET),))
TO_FULL = 0x87  # T, CSG 1, NSG 3
TO_OPERATIONAL = 0x81  # T, CSG 0, NSG 1
SECURITY = 0x00


def refused(answer: object) -> tuple[int, int]:
    assert answer is not None
    return answer.status  # type: ignore[attr-defined, no-any-return]


def test_one_request_is_enough_without_security() -> None:
    host = World().initiator()
    answer = host.log_in({"InitialR2T": "No", "MaxBurstLength": "1048576"})
    assert answer.flags == TO_FULL
    assert answer.keys["TargetPortalGroupTag"] == "1"
    assert answer.keys["TargetAlias"] == "a disk"
    assert answer.keys["InitialR2T"] == "No"
    assert answer.keys["MaxBurstLength"] == "1048576"
    assert answer.keys["MaxRecvDataSegmentLength"] == "262144"
    assert answer.bhs[14:16] != b"\0\0"  # TSIH
    assert (answer.exp_cmd_sn, answer.max_cmd_sn) == (host.cmd_sn, host.cmd_sn + 127)
    assert not host.connection.negotiating
    assert host.connection.export_name == TARGET
    assert host.connection.initiator == NAME


def test_security_then_operational_then_full_feature() -> None:
    host = World().initiator()
    first = host.login(host.first(AuthMethod="CHAP,None"), flags=TO_OPERATIONAL)
    assert first is not None
    assert first.keys == {
        "TargetPortalGroupTag": "1",
        "TargetAlias": "a disk",
        "AuthMethod": "None",
    }
    assert first.flags == TO_OPERATIONAL
    host.stat_sn = first.stat_sn + 1
    second = host.login(OPERATIONAL, flags=TO_FULL)
    assert second is not None
    assert second.stat_sn == first.stat_sn + 1
    assert second.flags == TO_FULL


def prove(host: Initiator, secret: bytes = SECRET, **more: str) -> object:
    """CHAP from its first request on; the response to the proof."""
    answer = host.login(host.first(AuthMethod="CHAP,None"), flags=SECURITY)
    assert answer is not None
    assert answer.keys["AuthMethod"] == "CHAP"
    answer = host.login({"CHAP_A": "7,5"}, flags=SECURITY)
    assert answer is not None
    asked = answer.keys
    proof = chap.response(
        int(asked["CHAP_A"]), int(asked["CHAP_I"]), secret, chap.decode_binary(asked["CHAP_C"])
    )
    keys = {"CHAP_N": "host1", "CHAP_R": chap.encode_binary(proof), **more}
    return host.login(keys, flags=TO_OPERATIONAL)


def test_chap_lets_in_who_knows_the_secret() -> None:
    host = World(access=WITH_CHAP).initiator()
    answer = prove(host)
    assert refused(answer) == (0, 0)
    last = host.login(OPERATIONAL, flags=TO_FULL)
    assert refused(last) == (0, 0)
    assert [each.user for each in host.world.node.sessions()] == ["host1"]


def test_a_wrong_secret_is_0201_and_closes() -> None:
    host = World(access=WITH_CHAP).initiator()
    assert refused(prove(host, b"some other secret")) == (2, 1)
    assert host.closed is not None
    assert not host.closed.clean
    assert "secret" in host.closed.reason
    assert "some other" not in host.closed.reason


@pytest.mark.parametrize(
    ("flags", "keys"),
    [
        (TO_OPERATIONAL, {"AuthMethod": "None"}),
        (TO_OPERATIONAL, {"AuthMethod": "KRB5"}),
        (TO_FULL, {}),  # leaves the security stage out
        (0x83, {}),  # straight from security to full feature
    ],
)
def test_where_chap_is_wanted_nothing_else_gets_in(flags: int, keys: dict[str, str]) -> None:
    host = World(access=WITH_CHAP).initiator()
    answer = host.login(host.first(**keys), flags=flags)
    assert answer is not None
    if answer.status == (0, 0):  # the stage is not left
        assert not answer.flags & pdu.TRANSIT
        assert host.connection.negotiating
    else:
        assert answer.status == (2, 1)


def test_chap_with_a_target_that_has_none_is_refused() -> None:
    host = World().initiator()
    assert refused(host.login(host.first(AuthMethod="CHAP"), flags=SECURITY)) == (2, 1)


@pytest.mark.parametrize(
    ("keys", "status"),
    [
        ({"TargetName": TARGET}, (2, 7)),
        ({"InitiatorName": NAME}, (2, 7)),
        ({"InitiatorName": NAME, "TargetName": "iqn.2026-11.io.blockd:none"}, (2, 3)),
        ({"InitiatorName": "x", "TargetName": TARGET}, (2, 0)),
        ({"InitiatorName": "iqn.2026-11.test:" + "x" * 230, "TargetName": TARGET}, (2, 0)),
        ({"InitiatorName": NAME, "TargetName": TARGET, "SessionType": "Odd"}, (2, 9)),
    ],
)
def test_names_that_are_missing_or_wrong(keys: dict[str, str], status: tuple[int, int]) -> None:
    host = World().initiator()
    assert refused(host.login(keys, flags=TO_FULL)) == status
    assert host.closed is not None


@pytest.mark.parametrize(
    "access", [Access(initiators=("iqn.2026-11.test:other",)), Access(addresses=("10.0.0.0/8",))]
)
def test_who_is_on_no_list_is_0202(access: Access) -> None:
    host = World(access=access).initiator()
    assert refused(host.login(host.first(), flags=TO_FULL)) == (2, 2)


def test_a_target_that_moved_says_where() -> None:
    host = World(redirect="192.0.2.1:3260").initiator()
    answer = host.login(host.first(), flags=TO_FULL)
    assert answer is not None
    assert answer.status == (1, 1)
    assert answer.keys == {"TargetAddress": "192.0.2.1:3260"}


@pytest.mark.parametrize(
    "flags",
    [
        0xC7,  # T and C together
        0x85,  # from 1 to 1
        0x86,  # to stage 2, which is none
        0x84,  # back to 0
        0x0C,  # in the full feature phase already
    ],
)
def test_ways_that_stages_do_not_go(flags: int) -> None:
    host = World().initiator()
    assert refused(host.login(host.first(), flags=flags)) == (2, 0)


def test_text_over_several_requests_is_put_together() -> None:
    host = World().initiator()
    data = pairs({**host.first(), **OPERATIONAL})
    for at in range(0, len(data) - 9, 9):
        answer = host.login(data[at : at + 9], flags=0x44)
        assert refused(answer) == (0, 0)
        assert answer is not None
        assert answer.data == b""
        assert not answer.flags & (pdu.TRANSIT | pdu.CONTINUE)
        done = at + 9
    answer = host.login(data[done:], flags=TO_FULL)
    assert refused(answer) == (0, 0)
    assert not host.connection.negotiating


def test_endless_text_is_refused() -> None:
    host = World().initiator()
    answer = None
    for _ in range(9):
        answer = host.login(b"x" * 8000, flags=0x44)
    assert refused(answer) == (2, 0)


def test_endless_requests_are_refused() -> None:
    host = World().initiator()
    answer = host.login(host.first(), flags=0x04)
    for _ in range(login.MAX_REQUESTS):
        answer = host.login({}, flags=0x04)
    assert refused(answer) == (2, 0)


def test_a_version_to_come_is_0205() -> None:
    host = World().initiator()
    assert refused(host.login(host.first(), flags=TO_FULL, version_min=1)) == (2, 5)


def test_a_session_that_does_not_exist_is_0210() -> None:
    host = World().initiator()
    assert refused(host.login(host.first(), flags=TO_FULL, tsih=77)) == (2, 10)


def test_a_second_connection_into_a_session_is_0206() -> None:
    world = World()
    first = world.initiator()
    tsih = int.from_bytes(first.log_in().bhs[14:16], "big")
    second = world.initiator()
    assert refused(second.login(second.first(), flags=TO_FULL, tsih=tsih)) == (2, 6)
    assert first.closed is None


def test_the_same_name_again_takes_the_place_of_its_session() -> None:
    world = World()
    first, other = world.initiator(), world.initiator(isid=b"\x80\0\0\0\0\2")
    first.log_in()
    other.log_in()
    second = world.initiator()
    second.log_in()
    assert first.closed is not None
    assert other.closed is None
    assert len(world.node.sessions()) == 2
    assert len(world.rig.unit.nexuses) == 2


def test_too_many_sessions_are_0302() -> None:
    from blockd.iscsi.limits import Limits

    world = World(limits=Limits(max_sessions=1))
    world.logged_in()
    host = world.initiator(isid=b"\x80\0\0\0\0\2")
    assert refused(host.login(host.first(), flags=TO_FULL)) == (3, 2)


@pytest.mark.parametrize(
    "opcode", [pdu.NOP_OUT, pdu.SCSI_COMMAND, pdu.TEXT, pdu.LOGOUT, pdu.DATA_OUT, 0x3F]
)
def test_nothing_but_login_is_answered_before_it(opcode: int) -> None:
    host = World().initiator()
    host.feed(host.make(opcode, pdu.FINAL))
    assert host.take() == []
    assert host.closed is not None


def test_a_login_after_the_login_is_rejected() -> None:
    host = World().logged_in()
    host.feed(host.make(pdu.LOGIN | pdu.IMMEDIATE, TO_FULL))
    assert host.one().opcode == pdu.REJECT


@pytest.mark.parametrize("mark", ["@", ":at:"])
def test_a_past_version_is_looked_up_and_then_logged_in_to(mark: str) -> None:
    world = World()
    name = f"{TARGET}{mark}monday"
    world.targets.past[name] = Target(name, Access(), TargetDevice({}, name))
    host = world.initiator()
    answer = host.login({**host.first(), "TargetName": name, **OPERATIONAL}, flags=TO_FULL)
    assert refused(answer) == (0, 0)
    assert host.connection.export_name == name


def test_a_past_version_that_is_not_there_is_0203() -> None:
    host = World().initiator()
    keys = {**host.first(), "TargetName": f"{TARGET}@never"}
    assert refused(host.login(keys, flags=TO_FULL)) == (2, 3)


@pytest.mark.parametrize(
    ("name", "good"),
    [
        ("iqn.1993-08.org.debian:01:abcdef", True),
        ("iqn.1991-05.com.microsoft:host.example.org", True),
        ("eui.02004567A425678D", True),
        ("naa.52004567BA64678D", True),
        ("naa.62004567BA64678D0123456789ABCDEF", True),
        ("iqn.93-08.org.debian", False),
        ("iqn.1993-08.", False),
        ("iqn.1993-08.org debian", False),
        ("eui.02004567", False),
        ("", False),
        ("iqn.1993-08.org." + "a" * 208, False),
    ],
)
def test_names(name: str, good: bool) -> None:
    assert is_name(name) is good


@given(st.lists(st.tuples(st.integers(0, 255), st.binary(max_size=60)), max_size=6))
def test_whatever_comes_is_answered_or_refused(requests: list[tuple[int, bytes]]) -> None:
    host = World().initiator()
    for flags, data in requests:
        if host.closed is None and host.connection.negotiating:
            host.login(data, flags=flags)
    assert host.connection.negotiating or host.closed is not None
