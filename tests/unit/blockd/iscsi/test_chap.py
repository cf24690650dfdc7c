"""CHAP: who passes, who does not, and that secrets show nowhere."""

import base64
import contextlib
import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockd.iscsi import chap
from blockd.iscsi.chap import Chap, ChapFailed
from blockd.iscsi.targets import Access, Credentials

RESPONSE = chap.response
SECRET = b"a secret of host1"
MUTUAL = b"the target's own secret"
ACCESS = Access(chap=(Credentials("host1", SECRET),), mutual=Credentials("target", MUTUAL))


def random(length: int) -> bytes:
    return bytes(range(1, length + 1))


def begun(offer: str = "5", access: Access = ACCESS) -> tuple[Chap, dict[str, str]]:
    machine = Chap(access, random)
    return machine, dict(machine.step({"CHAP_A": offer}))


def answer(
    asked: dict[str, str],
    more: dict[str, str] | None = None,
    *,
    secret: bytes = SECRET,
    user: str = "host1",
) -> dict[str, str]:
    proof = chap.response(
        int(asked["CHAP_A"]),
        int(asked["CHAP_I"]),
        secret,
        chap.decode_binary(asked["CHAP_C"]),
    )
    return {"CHAP_N": user, "CHAP_R": chap.encode_binary(proof), **(more or {})}


@pytest.mark.parametrize(
    ("offer", "chosen"),
    [("5", "5"), ("5,6", "6"), ("5,7,6", "7"), ("7,8", "8"), ("x,99,5", "5"), ("8,7,6,5", "8")],
)
def test_the_strongest_algorithm_that_both_know_is_chosen(offer: str, chosen: str) -> None:
    machine, asked = begun(offer)
    assert asked["CHAP_A"] == chosen
    assert machine.step(answer(asked)) == []
    assert machine.user == "host1"


@pytest.mark.parametrize(
    ("algorithm", "name"), [(5, "md5"), (6, "sha1"), (7, "sha256"), (8, "sha3-256")]
)
def test_a_response_is_computed_as_rfc_1994_has_it(algorithm: int, name: str) -> None:
    expected = hashlib.new(name, b"\x07secretchallenge").digest()
    assert chap.response(algorithm, 7, b"secret", b"challenge") == expected


@pytest.mark.parametrize("offer", ["", "1", "99", "md5", "-5"])
def test_without_a_common_algorithm_it_fails(offer: str) -> None:
    with pytest.raises(ChapFailed):
        begun(offer)


def test_challenges_are_as_long_as_the_longest_hash() -> None:
    _, asked = begun()
    assert len(chap.decode_binary(asked["CHAP_C"])) == 32


@pytest.mark.parametrize(
    "wrong",
    [
        {"secret": b"another secret of it"},
        {"user": "host2"},
        {"user": ""},
    ],
)
def test_a_wrong_name_and_a_wrong_secret_fail_alike(wrong: dict[str, object]) -> None:
    machine, asked = begun()
    with pytest.raises(ChapFailed, match=r"^wrong name or secret$"):
        machine.step(answer(asked, **wrong))  # type: ignore[arg-type]
    assert machine.user is None


def test_a_response_in_base64_is_taken() -> None:
    machine, asked = begun()
    proof = answer(asked)
    raw = chap.decode_binary(proof["CHAP_R"])
    proof["CHAP_R"] = "0b" + base64.b64encode(raw).decode()
    machine.step(proof)
    assert machine.user == "host1"


def test_the_target_proves_itself_when_asked() -> None:
    machine, asked = begun("7")
    proof = dict(machine.step(answer(asked, {"CHAP_I": "9", "CHAP_C": "0xdeadbeef"})))
    assert proof["CHAP_N"] == "target"
    expected = hashlib.sha256(b"\x09" + MUTUAL + bytes.fromhex("deadbeef")).digest()
    assert chap.decode_binary(proof["CHAP_R"]) == expected


def test_our_own_challenge_does_not_come_back() -> None:
    machine, asked = begun()
    with pytest.raises(ChapFailed, match="own challenge"):
        machine.step(answer(asked, {"CHAP_I": "1", "CHAP_C": asked["CHAP_C"]}))
    assert machine.user is None


def test_equal_secrets_in_both_directions_are_refused() -> None:
    access = Access(chap=ACCESS.chap, mutual=Credentials("target", SECRET))
    machine, asked = begun(access=access)
    with pytest.raises(ChapFailed, match="both directions"):
        machine.step(answer(asked, {"CHAP_I": "1", "CHAP_C": "0x01"}))


def test_our_secret_is_not_that_of_another_initiator() -> None:
    """Whoever knows host1's could have host2's challenge answered by us."""
    chaps = (*ACCESS.chap, Credentials("host2", MUTUAL))
    machine, asked = begun(access=Access(chap=chaps, mutual=ACCESS.mutual))
    with pytest.raises(ChapFailed, match="both directions"):
        machine.step(answer(asked, {"CHAP_I": "1", "CHAP_C": "0x01"}))
    assert machine.user is None


def test_a_wrong_initiator_gets_no_proof_of_ours() -> None:
    machine, asked = begun()
    with pytest.raises(ChapFailed, match="wrong name or secret"):
        machine.step(answer(asked, {"CHAP_I": "1", "CHAP_C": "0x01"}, secret=b"some other secret"))


def test_any_initiator_of_the_list_gets_in_by_its_own_secret() -> None:
    other = Credentials("host2", b"a secret of host2")
    access = Access(chap=(*ACCESS.chap, other))
    machine, asked = begun(access=access)
    machine.step(answer(asked, secret=other.secret, user="host2"))
    assert machine.user == "host2"
    machine, asked = begun(access=access)
    with pytest.raises(ChapFailed, match="wrong name or secret"):
        machine.step(answer(asked, secret=SECRET, user="host2"))


def test_an_unknown_name_does_not_get_in_by_the_stand_in_for_its_secret() -> None:
    machine, asked = begun()
    with pytest.raises(ChapFailed, match="wrong name or secret"):
        machine.step(answer(asked, secret=random(chap.MIN_SECRET_BYTES), user="host2"))
    assert machine.user is None


def test_a_proof_is_not_taken_twice() -> None:
    machine, asked = begun()
    proof = answer(asked)
    machine.step(proof)
    with pytest.raises(ChapFailed, match="after the end"):
        machine.step(proof)


@pytest.mark.parametrize("user", ["host1", "host2"])
def test_an_unknown_name_costs_as_many_hashes_as_a_wrong_secret(
    user: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine, asked = begun()
    proof = answer(asked, secret=b"some other secret", user=user)
    hashed: list[int] = []

    def counting(algorithm: int, identifier: int, secret: bytes, challenge: bytes) -> bytes:
        hashed.append(algorithm)
        return RESPONSE(algorithm, identifier, secret, challenge)

    monkeypatch.setattr(chap, "response", counting)
    with pytest.raises(ChapFailed):
        machine.step(proof)
    assert hashed == [5]


@given(st.integers(0, 255), st.booleans())
def test_an_identifier_is_a_byte_in_either_base(identifier: int, hexadecimal: bool) -> None:
    machine, asked = begun("6")
    written = f"0x{identifier:X}" if hexadecimal else str(identifier)
    proof = dict(machine.step(answer(asked, {"CHAP_I": written, "CHAP_C": "0x00ff"})))
    expected = hashlib.sha1(bytes((identifier,)) + MUTUAL + b"\x00\xff").hexdigest()
    assert proof["CHAP_R"] == "0x" + expected


@given(st.binary(max_size=1024))
def test_binary_values_are_the_same_in_both_encodings(data: bytes) -> None:
    assert chap.decode_binary(chap.encode_binary(data)) == data
    assert chap.decode_binary("0X" + data.hex().upper()) == data
    for prefix in ("0b", "0B"):
        assert chap.decode_binary(prefix + base64.b64encode(data).decode()) == data


@given(st.text(max_size=40) | st.text(max_size=40).map(lambda each: "0b" + each))
def test_any_value_is_binary_or_refused(value: str) -> None:
    with contextlib.suppress(ChapFailed):
        assert isinstance(chap.decode_binary(value), bytes)


@pytest.mark.parametrize("algorithm", chap.ALGORITHMS)
def test_no_hash_is_longer_than_the_challenge(algorithm: int) -> None:
    assert len(chap.response(algorithm, 1, SECRET, b"c")) <= chap.CHALLENGE_BYTES


def test_mutual_authentication_without_a_secret_of_ours_fails() -> None:
    machine, asked = begun(access=Access(chap=ACCESS.chap))
    with pytest.raises(ChapFailed, match="no secret"):
        machine.step(answer(asked, {"CHAP_I": "1", "CHAP_C": "0x01"}))


@pytest.mark.parametrize(
    "more",
    [
        {"CHAP_I": "1"},
        {"CHAP_C": "0x01"},
        {"CHAP_I": "256", "CHAP_C": "0x01"},
        {"CHAP_I": "x", "CHAP_C": "0x01"},
        {"CHAP_I": "1", "CHAP_C": "0x"},
        {"CHAP_I": "1", "CHAP_C": "plain"},
        {"CHAP_I": "1", "CHAP_C": "0x" + "00" * 1025},
    ],
)
def test_half_or_strange_challenges_fail(more: dict[str, str]) -> None:
    machine, asked = begun()
    with pytest.raises(ChapFailed):
        machine.step(answer(asked, more))
    assert machine.user is None


@pytest.mark.parametrize("keys", [{"CHAP_N": "host1", "CHAP_R": "0x00"}, {"CHAP_I": "1"}])
def test_nothing_comes_before_the_algorithm(keys: dict[str, str]) -> None:
    with pytest.raises(ChapFailed, match="out of turn"):
        Chap(ACCESS, random).step(keys)


def test_the_algorithm_is_chosen_once() -> None:
    machine, _ = begun()
    with pytest.raises(ChapFailed, match="out of turn"):
        machine.step({"CHAP_A": "5"})


@pytest.mark.parametrize("text", ["abc", "0xzz", "0b!!", "", "0x1g"])
def test_values_that_are_not_binary_fail(text: str) -> None:
    with pytest.raises(ChapFailed):
        chap.decode_binary(text)


def test_an_odd_number_of_digits_begins_with_a_half_byte() -> None:
    assert chap.decode_binary("0x123") == b"\x01\x23"


@pytest.mark.parametrize("length", [0, 11, 256])
def test_secrets_of_a_length_that_the_rfc_does_not_have_are_refused(length: int) -> None:
    with pytest.raises(ValueError, match=f"target t: the secret is {length} bytes long"):
        chap.check_secret(bytes(length), "target t")
    chap.check_secret(bytes(12), "target t")


def test_secrets_show_in_no_text() -> None:
    assert SECRET.decode() not in repr(ACCESS)
    assert MUTUAL.decode() not in str(ACCESS)
