"""One initiator's side of `blockd.iscsi.login.Login`, header by header and without a connection."""

from dataclasses import dataclass, field

from blockd.iscsi import pdu
from blockd.iscsi.login import LoggedIn, Login, LoginRefused, Refused
from blockd.iscsi.targets import Access, Credentials, Target
from blockd.scsi.target import TargetDevice
from tests.iscsi_initiator import (
    ADDRESS,
    ISID,
    NAME,
    PORTAL,
    TARGET,
    FakeTargets,
    Pdu,
    pairs,
    parse,
)

SECRET = b"a secret of host1"
MUTUAL = b"the target's own secret"
WITH_CHAP = Access(chap=(Credentials("host1", SECRET),), mutual=Credentials("target", MUTUAL))
NAMES = {"InitiatorName": NAME, "TargetName": TARGET}
DISCOVERY = {"InitiatorName": NAME, "SessionType": "Discovery"}
STAY_SECURITY, STAY_OPERATIONAL = 0x00, 0x04
TO_OPERATIONAL, TO_FULL, SECURITY_TO_FULL = 0x81, 0x87, 0x83
TSIH = 0x1234


@dataclass
class Host:
    """Sends login requests; keeps the sessions that were opened."""

    access: Access = field(default_factory=Access)
    discovery: Access = field(default_factory=Access)
    redirect: str | None = None
    refusal: LoginRefused | None = None
    """What opening a session leads to."""
    opened: list[LoggedIn] = field(default_factory=list)

    def __post_init__(self) -> None:
        target = Target(TARGET, self.access, TargetDevice(), alias="a disk", redirect=self.redirect)
        self.targets = FakeTargets(target)
        self.targets.discovery = self.discovery
        self.login = Login(self.targets, PORTAL, ADDRESS, self._open, random=self._random)

    def _open(self, candidate: LoggedIn) -> int:
        self.opened.append(candidate)
        if self.refusal is not None:
            raise self.refusal
        return TSIH

    def _random(self, length: int) -> bytes:
        return bytes(range(1, length + 1))

    def send(
        self,
        keys: dict[str, str] | bytes,
        flags: int,
        *,
        opcode: int = pdu.LOGIN | pdu.IMMEDIATE,
        isid: bytes = ISID,
        tsih: int = 0,
        cid: int = 1,
        cmd_sn: int = 5,
        exp_stat_sn: int = 9,
    ) -> Pdu | None:
        data = keys if isinstance(keys, bytes) else pairs(keys)
        bhs = pdu.LOGIN_BHS.pack(
            *(opcode, flags, 0, 0, len(data), isid, tsih, 0x77, cid, cmd_sn, exp_stat_sn)
        )
        return self.only(self.login.receive(bhs, data))

    def only(self, sent: list[bytes]) -> Pdu | None:
        found = parse(b"".join(sent))
        assert len(found) <= 1
        return found[0] if found else None

    def ask(self, keys: dict[str, str] | bytes, flags: int, **fields: int) -> Pdu:
        """A request that is answered."""
        answer = self.send(keys, flags, **fields)  # type: ignore[arg-type]
        assert answer is not None
        assert answer.opcode == pdu.LOGIN_RESPONSE
        return answer

    def status(self, keys: dict[str, str] | bytes, flags: int) -> tuple[int, int]:
        return self.ask(keys, flags).status

    @property
    def refused(self) -> Refused:
        assert isinstance(self.login.outcome, Refused)
        return self.login.outcome

    @property
    def logged_in(self) -> LoggedIn:
        assert isinstance(self.login.outcome, LoggedIn)
        return self.login.outcome
