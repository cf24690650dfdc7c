"""Fuzz target of iSCSI text and login: any keys, in any pieces, and still

- no exception escapes but TextError, and none at all from a login;
- what is negotiated lies within the bounds of RFC 7143 and of what was offered;
- pieces put together by the C bit are answered as the whole;
- a login ends after a bounded number of requests, and keeps a bounded amount of text;
- nobody is logged in to a target with CHAP who does not know the secret, and no secret leaves.

Input: one byte of switches (see Setup), then login requests:

    flags (1)     T and C bits, stages, as in a login request
    length (2)    of the text that follows, big-endian
    the text      CHAP_R=! in it stands for the right response, as the initiator knows it

`iscsi_text_target` takes bytes and returns nothing, as atheris, AFL++ and the corpus replay want
it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from blockd.device import BlockDevice
from blockd.iscsi import chap, pdu, text
from blockd.iscsi.login import MAX_REQUESTS, LoggedIn, Login, LoginRefused, Refused
from blockd.iscsi.targets import IQN_PREFIX, Access, Credentials, Portal, Target
from blockd.iscsi.text import Negotiation, Parameters, TextError
from blockd.scsi.target import TargetDevice

OPEN: Final = IQN_PREFIX + "open"
CLOSED: Final = IQN_PREFIX + "closed"
MOVED: Final = IQN_PREFIX + "moved"
PAST: Final = IQN_PREFIX + "open@snap"
SECRET: Final = b"a secret of the initiator"
MUTUAL_SECRET: Final = b"another one of the target"
USER: Final = "alice"
PORTAL: Final = Portal("192.0.2.1", 3260, 1)
ISID: Final = bytes.fromhex("00023d000001")
TSIH: Final = 7
RIGHT_RESPONSE: Final = b"CHAP_R=!"
MAX_INPUT_REQUESTS: Final = 64
_NUMBERS: Final = {
    "max_recv_data_segment_length": (512, (1 << 24) - 1),
    "max_burst_length": (512, text.OUR_MAX_BURST),
    "first_burst_length": (512, text.OUR_FIRST_BURST),
    "default_time2wait": (0, 3600),
    "default_time2retain": (0, 3600),
    "max_outstanding_r2t": (1, text.OUR_MAX_R2T),
}


@dataclass(frozen=True)
class Setup:
    """The switches in the first byte."""

    full: bool = False  # no session can be opened
    gone: bool = False  # versions that are looked up are not there
    closed_discovery: bool = False  # discovery wants CHAP
    pieces: bool = False  # send each text in pieces under the C bit


class Targets:
    """Satisfies blockd.iscsi.targets.Targets."""

    def __init__(self, setup: Setup) -> None:
        closed = Access(
            chap=(Credentials(USER, SECRET), Credentials("bob", b"b" * 16)),
            mutual=Credentials("target", MUTUAL_SECRET),
        )
        self._found = {
            OPEN: Target(OPEN, Access(), TargetDevice(), alias="open to all"),
            CLOSED: Target(CLOSED, closed, TargetDevice()),
            MOVED: Target(MOVED, Access(), TargetDevice(), redirect="192.0.2.9:3260"),
        }
        self._discovery = closed if setup.closed_discovery else Access()

    @property
    def discovery(self) -> Access:
        return self._discovery

    def get(self, name: str) -> Target | None:
        return self._found.get(name)

    def all(self) -> list[Target]:
        return list(self._found.values())

    def volume_of(self, name: str) -> BlockDevice | None:
        return None

    def portals(self, arrived_at: Portal, target: Target) -> list[Portal]:
        return [arrived_at]


@dataclass(frozen=True)
class _Request:
    flags: int
    text: bytes


def _requests(data: bytes) -> Iterator[_Request]:
    at = 0
    for _ in range(MAX_INPUT_REQUESTS):
        if at + 3 > len(data):
            return
        length = int.from_bytes(data[at + 1 : at + 3], "big")
        yield _Request(data[at], data[at + 3 : at + 3 + length])
        at += 3 + length


def iscsi_text_target(data: bytes) -> None:
    """Run one input; raises when an invariant is broken."""
    switches = data[0] if data else 0
    setup = Setup(*(bool(switches & 1 << bit) for bit in range(4)))
    requests = list(_requests(data[1:]))
    for request in requests:
        _check_text(request.text)
        _check_negotiation(request.text)
    whole = _Initiator(setup, pieces=False)
    whole.log_in(requests)
    if setup.pieces:
        split = _Initiator(setup, pieces=True)
        split.log_in(requests)
        # Until there were more requests than a login may have, which pieces are.
        same = min(len(whole.answers), len(split.answers))
        if split.count <= MAX_REQUESTS:
            assert split.answers == whole.answers
        assert split.answers[: max(same - 1, 0)] == whole.answers[: max(same - 1, 0)]


def _check_text(data: bytes) -> None:
    """What was parsed comes back from its own encoding."""
    try:
        pairs = text.parse(data)
    except TextError:
        return
    assert len(pairs) <= text.MAX_PAIRS
    assert text.parse(text.encode(list(pairs.items()))) == pairs


def _check_negotiation(data: bytes) -> None:
    """All keys of a text, offered outside of a login."""
    try:
        pairs = text.parse(data)
    except TextError:
        return
    for discovery in (False, True):
        negotiation = Negotiation(discovery=discovery)
        for key, value in pairs.items():
            answer = negotiation.offered(key, value)
            _check_answer(key, value, answer)
            _check_answer(key, value, negotiation.renewed(key, value))
        _check_parameters(negotiation.settled())


def _check_answer(key: str, value: str, answer: tuple[str, str] | None) -> None:
    if answer is None:
        assert value in text.ANSWERS or not text.KEYS[key].answered
        return
    assert answer[0] == key
    assert 0 < len(answer[1]) <= text.MAX_VALUE
    if key in ("HeaderDigest", "DataDigest") and answer[1] not in text.ANSWERS:
        assert answer[1] in value.split(",")  # one that was offered


def _check_parameters(found: Parameters) -> None:
    for name, (low, high) in _NUMBERS.items():
        value = getattr(found, name)
        assert low <= value <= high or value == getattr(Parameters(), name), (name, value)
    assert found.first_burst_length <= found.max_burst_length


def _answered(told: bytes) -> dict[str, str]:
    """What the target says of its own; refusals of the initiator's keys aside, which may stand
    beside what we declare by the same name."""
    pairs: dict[str, str] = {}
    for part in told.split(b"\0")[:-1]:
        key, equals, value = part.decode().partition("=")
        assert equals
        if value not in text.ANSWERS:
            assert key not in pairs
            pairs[key] = value
    return pairs


class _Initiator:
    """Sends the requests of an input, until the login has ended."""

    def __init__(self, setup: Setup, *, pieces: bool) -> None:
        self.setup = setup
        self.pieces = pieces
        self.targets = Targets(setup)
        self.login = Login(
            self.targets, PORTAL, "192.0.2.77", self._open_session, random=self._random
        )
        self.count = 0
        """Requests sent."""
        self.answers: list[tuple[int, bytes, bytes]] = []
        """Flags, status and text of the responses to whole texts, and of a refusal."""
        self.proved = False
        self.opened: LoggedIn | None = None
        self._challenge = b""

    def _random(self, length: int) -> bytes:
        return bytes(range(1, length + 1))

    def _open_session(self, candidate: LoggedIn) -> int:
        if self.setup.full:
            raise LoginRefused((3, 2), "no room for sessions")
        self.opened = candidate
        return TSIH

    def log_in(self, requests: list[_Request]) -> None:
        for request in requests:
            if self.login.outcome is not None:
                break
            self._send(request)
        assert self.count <= MAX_REQUESTS or self.login.outcome is not None
        self._check_outcome()

    def _send(self, request: _Request) -> None:
        sent = request.text
        if RIGHT_RESPONSE in sent and self._challenge:
            proof = chap.response(*self._asked(), SECRET, self._challenge)
            sent = sent.replace(RIGHT_RESPONSE, b"CHAP_R=0x" + proof.hex().encode())
            self.proved = True
        if self.pieces and not request.flags & pdu.CONTINUE:
            middle = len(sent) // 2
            for piece in (sent[: middle // 2], sent[middle // 2 : middle]):
                self._exchange(request.flags & ~pdu.TRANSIT | pdu.CONTINUE, piece)
                if self.login.outcome is not None:
                    return
            sent = sent[middle:]
        self._exchange(request.flags, sent)

    def _exchange(self, flags: int, data: bytes) -> None:
        bhs = pdu.LOGIN_BHS.pack(
            *(pdu.LOGIN | pdu.IMMEDIATE, flags, 0, 0, len(data), ISID, 0, 0x11, 1, 5, 9)
        )
        self.count += 1
        responses = self.login.receive(bhs, data)
        if self.login.look_up is not None:
            assert not responses
            found = None if self.setup.gone else self.targets.get(OPEN)
            responses = self.login.resume(found)
        assert len(self.login._text) <= text.MAX_TEXT + len(data)
        assert len(responses) <= 1
        for response in responses:
            self._check_response(response, partial=bool(flags & pdu.CONTINUE))

    def _check_response(self, response: bytes, *, partial: bool) -> None:
        opcode, flags = response[:2]
        assert opcode == pdu.LOGIN_RESPONSE
        length = int.from_bytes(response[5:8], "big")
        assert len(response) == pdu.HEADER_BYTES + pdu.padded(length)
        assert response[8:14] == ISID
        told = response[pdu.HEADER_BYTES :][:length]
        pairs = _answered(told)
        for secret in (SECRET, MUTUAL_SECRET):
            assert secret not in told
            assert secret.hex().encode() not in told
        if "CHAP_C" in pairs:
            self._challenge = chap.decode_binary(pairs["CHAP_C"])
            self._algorithm, self._identifier = int(pairs["CHAP_A"]), int(pairs["CHAP_I"])
        status = response[36:38]
        if not partial or status != b"\0\0":
            self.answers.append((flags, status, told))

    def _asked(self) -> tuple[int, int]:
        return self._algorithm, self._identifier

    def _check_outcome(self) -> None:
        outcome = self.login.outcome
        if isinstance(outcome, Refused):
            assert outcome.reason
            assert outcome.status[0] in (1, 2, 3)
            return
        if outcome is None:
            assert self.opened is None
            return
        assert outcome.tsih == TSIH
        assert self.opened is not None
        assert outcome.discovery == (outcome.target is None)
        _check_parameters(outcome.parameters)
        closed = outcome.target is self.targets.get(CLOSED)
        if closed or (outcome.discovery and self.setup.closed_discovery):
            assert self.proved
            assert outcome.user == USER
