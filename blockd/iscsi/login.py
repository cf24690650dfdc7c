"""Login: from a connection's first byte to its full feature phase. RFC 7143 6.3, 11.12, 11.13.

    security (stage 0)  ->  operational (stage 1)  ->  full feature phase (stage 3)
          AuthMethod, CHAP          the table of keys                 a session

The initiator leads: each of its requests gets one response, and goes on to another stage when it
sets the T bit and we agree. A stage may be left out. What came under the C bit is put together
first. A refusal is a response with a status class other than 0, after which the connection closes.
`receive` never raises, whatever comes.

Nobody learns more than needed: whether a target exists is told before anybody has proved who he is,
as the RFC wants it, but a name that is not on its list gets 0202 whatever secret it has. A volume
whose access list keeps the initiator out has no target of its own: 0203, before CHAP when no user
could be let in, else after it.

Of a volume that several nodes have, one that does not serve it lets initiators in as well: its
units are standby (`blockd.scsi.alua`). One that believes to serve it proves that first, as the last
thing of the login (`blockd.paths`), and is unavailable (0301) when it cannot.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from blockd.access import networks
from blockd.access.book import Everybody, VolumeAccess
from blockd.access.rules import Client
from blockd.device import BlockDevice, MayBeElsewhere
from blockd.iscsi import pdu, text
from blockd.iscsi.chap import Chap, ChapFailed
from blockd.iscsi.limits import COMMAND_WINDOW
from blockd.iscsi.names import MAX_NAME_BYTES, is_name, normalised
from blockd.iscsi.pdu import LoginRequest
from blockd.iscsi.targets import Access, Portal, Target, Targets, past_version
from blockd.iscsi.text import Negotiation, Parameters, TextError

SECURITY: Final = 0
OPERATIONAL: Final = 1
FULL_FEATURE: Final = 3
MAX_REQUESTS: Final = 32  # of one login: CHAP in both directions takes six
VERSION: Final = 0
_MAX_RECV: Final = "MaxRecvDataSegmentLength"

# Status class and detail (11.13.5).
Status = tuple[int, int]
SUCCESS: Final[Status] = (0, 0)
MOVED_TEMPORARILY: Final[Status] = (1, 1)
INITIATOR_ERROR: Final[Status] = (2, 0)
AUTHENTICATION_FAILURE: Final[Status] = (2, 1)
AUTHORIZATION_FAILURE: Final[Status] = (2, 2)
NOT_FOUND: Final[Status] = (2, 3)
UNSUPPORTED_VERSION: Final[Status] = (2, 5)
TOO_MANY_CONNECTIONS: Final[Status] = (2, 6)
MISSING_PARAMETER: Final[Status] = (2, 7)
SESSION_TYPE: Final[Status] = (2, 9)
NO_SESSION: Final[Status] = (2, 10)
INVALID_DURING_LOGIN: Final[Status] = (2, 11)
TARGET_ERROR: Final[Status] = (3, 0)
UNAVAILABLE: Final[Status] = (3, 1)
OUT_OF_RESOURCES: Final[Status] = (3, 2)


class LoginRefused(Exception):
    """A login ends with this status; the text is for the log."""

    def __init__(self, status: Status, reason: str) -> None:
        super().__init__(reason)
        self.status = status


@dataclass(frozen=True, slots=True)
class LoggedIn:
    """A login that came to its end, or to the point where its session is opened."""

    discovery: bool
    target: Target | None
    """None in a discovery session."""
    initiator: str
    """Its name, normalised."""
    isid: bytes
    tsih: int
    """As the initiator asked: 0 for a new session."""
    cid: int
    cmd_sn: int
    """Of the first command to come."""
    stat_sn: int
    """Of the next response."""
    parameters: Parameters
    user: str | None = None
    """Who the initiator proved to be, by CHAP."""
    address: str = ""
    """The initiator's host."""

    @property
    def client(self) -> Client:
        """As access lists look at it."""
        address = networks.address(self.address)
        return Client(address, initiator=self.initiator, chap_user=self.user)


@dataclass(frozen=True, slots=True)
class Refused:
    """The connection is to be closed, after what `receive` returned has been sent."""

    status: Status
    reason: str


OpenSession = Callable[[LoggedIn], int]
"""Opens the session, or puts it in the place of one with the same name; its TSIH. LoginRefused."""


class Login:
    """One connection's login; see the module's text."""

    def __init__(
        self,
        targets: Targets,
        portal: Portal,
        peer_address: str,
        open_session: OpenSession,
        random: Callable[[int], bytes] = os.urandom,
        access: VolumeAccess | None = None,
    ) -> None:
        """`portal`: where the connection arrived; `peer_address`: the initiator's host; `access`:
        the access lists of volumes, None when there are none."""
        self._targets = targets
        self._portal = portal
        self._peer_address = peer_address
        self._open_session = open_session
        self._random = random
        self._volumes = access or Everybody()
        self._first: LoginRequest | None = None
        self._last: LoginRequest | None = None
        self._text = bytearray()
        self._count = 0
        self._stat_sn = 0
        self._stage = SECURITY
        self._negotiation = Negotiation()
        self._initiator = ""
        self._target: Target | None = None
        self._access: Access | None = None
        self._chap: Chap | None = None
        self._authenticated = False
        self._declared = False
        self._waiting: dict[str, str] | None = None  # keys of the request that waits for a target
        self._ending: tuple[LoginRequest, list[tuple[str, str]]] | None = None
        self.outcome: LoggedIn | Refused | None = None
        self.look_up: str | None = None
        """The name of a target that has to be opened before the login can go on: `resume` then."""
        self.prove: list[BlockDevice] | None = None
        """Volumes that this node has to be allowed to serve before the login can end: `proved`
        then. Only who may log in has this looked at."""

    @property
    def target_name(self) -> str | None:
        return None if self._target is None else self._target.name

    @property
    def initiator(self) -> str:
        """ "" until it is known."""
        return self._initiator

    def receive(self, bhs: bytes, data: bytes) -> list[bytes]:
        """A PDU of the initiator: its header, and its data without padding. What to send."""
        if self.look_up is not None or self.prove is not None:
            return self._refuse(INVALID_DURING_LOGIN, "a request before the last was answered")
        if bhs[0] & pdu.OPCODE_MASK != pdu.LOGIN:
            # 6.3: anything else ends the connection, and is answered when a login has begun.
            reason = (
                f"a PDU with opcode {bhs[0] & pdu.OPCODE_MASK:#04x} before the end of the login"
            )
            if self._first is not None:
                return self._refuse(INVALID_DURING_LOGIN, reason)
            self.outcome = Refused(INVALID_DURING_LOGIN, reason)
            return []
        request = LoginRequest.parse(bhs)
        if self._first is None:
            self._first = request
            self._stat_sn = request.exp_stat_sn
            self._stage = request.stage
        self._last = request
        try:
            self._check(request)
            self._text += data
            if len(self._text) > text.MAX_TEXT:
                raise LoginRefused(INITIATOR_ERROR, f"more than {text.MAX_TEXT} bytes of text")
            if request.more:
                return [self._response(request.stage << 2, SUCCESS, [])]
            keys = text.parse(bytes(self._text))
            self._text.clear()
            return self._go_on(request, keys)
        except LoginRefused as error:
            return self._refuse(error.status, str(error))
        except TextError as error:
            return self._refuse(INITIATOR_ERROR, str(error))
        except ChapFailed as error:
            return self._refuse(AUTHENTICATION_FAILURE, str(error))

    def resume(self, target: Target | None) -> list[bytes]:
        """The target that `look_up` asked for, or None when there is none. What to send."""
        assert self.look_up is not None
        name, self.look_up = self.look_up, None
        keys, self._waiting = self._waiting, None
        assert keys is not None
        assert self._last is not None
        try:
            if target is None:
                raise LoginRefused(NOT_FOUND, f"target {name}: there is none")
            self._found(target)
            return self._negotiate(self._last, keys, first=True)
        except LoginRefused as error:
            return self._refuse(error.status, str(error))
        except TextError as error:
            return self._refuse(INITIATOR_ERROR, str(error))
        except ChapFailed as error:
            return self._refuse(AUTHENTICATION_FAILURE, str(error))

    def proved(self, refusal: str | None) -> list[bytes]:
        """Whether the attach tokens that `prove` asked about hold: None, or why not. What to
        send."""
        assert self.prove is not None
        assert self._ending is not None
        self.prove, (request, answers) = None, self._ending
        try:
            if refusal is not None:
                raise LoginRefused(UNAVAILABLE, refusal)
            return self._open(request, answers)
        except LoginRefused as error:
            return self._refuse(error.status, str(error))

    # -- one request

    def _check(self, request: LoginRequest) -> None:
        first = self._first
        assert first is not None
        self._count += 1
        if self._count > MAX_REQUESTS:
            raise LoginRefused(INITIATOR_ERROR, f"more than {MAX_REQUESTS} login requests")
        if request.version_min > VERSION:
            raise LoginRefused(UNSUPPORTED_VERSION, f"version {request.version_min} at least")
        if request.transit and request.more:
            raise LoginRefused(INITIATOR_ERROR, "T and C bit together")
        same = (request.isid, request.tsih, request.cid) == (first.isid, first.tsih, first.cid)
        if not same:
            raise LoginRefused(INITIATOR_ERROR, "ISID, TSIH or CID changed during the login")
        if request.stage not in (SECURITY, OPERATIONAL) or request.stage != self._stage:
            raise LoginRefused(INITIATOR_ERROR, f"stage {request.stage} out of turn")
        if request.transit and (
            request.next_stage <= request.stage or request.next_stage not in (1, FULL_FEATURE)
        ):
            raise LoginRefused(
                INITIATOR_ERROR, f"no way from stage {request.stage} to {request.next_stage}"
            )

    def _go_on(self, request: LoginRequest, keys: dict[str, str]) -> list[bytes]:
        if self._access is None:
            return self._begin(request, keys)
        for key in ("InitiatorName", "TargetName", "SessionType"):
            if key in keys:
                raise LoginRefused(INITIATOR_ERROR, f"{key} after the first request")
        return self._negotiate(request, keys, first=False)

    def _begin(self, request: LoginRequest, keys: dict[str, str]) -> list[bytes]:
        """The first request that is whole: who, and to where."""
        initiator = keys.pop("InitiatorName", None)
        if initiator is None:
            raise LoginRefused(MISSING_PARAMETER, "no InitiatorName")
        if not is_name(initiator):
            raise LoginRefused(INITIATOR_ERROR, "InitiatorName is no iSCSI name")
        self._initiator = normalised(initiator)
        kind = keys.pop("SessionType", "Normal")
        name = keys.pop("TargetName", None)
        if kind == "Discovery":
            self._negotiation.discovery = True
            self._admit(self._targets.discovery, "discovery")
            return self._negotiate(request, keys, first=True)
        if kind != "Normal":
            raise LoginRefused(SESSION_TYPE, f"SessionType {kind[:32]}")
        if name is None:
            raise LoginRefused(MISSING_PARAMETER, "no TargetName")
        target = self._targets.get(name)
        if target is None:
            if past_version(name) is not None:
                chap = bool(self._targets.discovery.chap)
                self._check_volume(self._targets.volume_of(name), name, chap_to_come=chap)
                self.look_up, self._waiting = name, keys
                return []
            raise LoginRefused(NOT_FOUND, f"target {name[:MAX_NAME_BYTES]}: there is none")
        self._found(target)
        return self._negotiate(request, keys, first=True)

    def _check_volume(self, volume: BlockDevice | None, name: str, *, chap_to_come: bool) -> None:
        """Refuse whom the access list of a target's own volume keeps out, as if there were none."""
        client = Client(
            networks.address(self._peer_address),
            initiator=self._initiator,
            chap_user=None if self._chap is None else self._chap.user,
            chap_to_come=chap_to_come,
        )
        if volume is not None and not self._volumes.grant(volume, client):
            reason = f"the access list of volume {volume.name} keeps {self._initiator} out"
            raise LoginRefused(NOT_FOUND, f"target {name[:MAX_NAME_BYTES]}: {reason}")

    def _found(self, target: Target) -> None:
        self._check_volume(target.volume, target.name, chap_to_come=bool(target.access.chap))
        self._target = target
        self._admit(target.access, target.name)
        if target.redirect is not None:
            raise LoginRefused(MOVED_TEMPORARILY, target.redirect)

    def _admit(self, access: Access, what: str) -> None:
        if not access.admits(self._initiator, self._peer_address):
            raise LoginRefused(
                AUTHORIZATION_FAILURE, f"{what}: {self._initiator} is not on its list of initiators"
            )
        self._access = access

    def _negotiate(
        self, request: LoginRequest, keys: dict[str, str], *, first: bool
    ) -> list[bytes]:
        """Answer the keys, and change the stage if both want to."""
        answers: list[tuple[str, str]] = []
        if first and self._target is not None:
            answers.append(("TargetPortalGroupTag", str(self._portal.group)))
            if self._target.alias:
                answers.append(("TargetAlias", self._target.alias))
        if request.stage == SECURITY:
            answers += self._secure(keys)
        self._require_proof(request)
        answers += self._negotiation.answers(keys)
        # A key is told once in a response: not beside the refusal of the initiator's.
        declare = (_MAX_RECV, text.REJECT) not in answers
        if request.stage == OPERATIONAL and declare and not self._declared:
            self._declared = True
            answers.append((_MAX_RECV, str(text.OUR_MAX_RECV)))
        if not request.transit or not self._may_leave(request):
            return [self._response(request.stage << 2, SUCCESS, answers)]
        if request.next_stage == FULL_FEATURE:
            return self._finish(request, answers)
        self._stage = request.next_stage
        return [self._response(request.flags & 0x8F, SUCCESS, answers)]

    def _secure(self, keys: dict[str, str]) -> list[tuple[str, str]]:
        """The keys of the security stage, which are taken out of `keys`."""
        access = self._access
        assert access is not None
        answers: list[tuple[str, str]] = []
        methods = keys.pop("AuthMethod", None)
        chap = {key: keys.pop(key) for key in list(keys) if key.startswith("CHAP_")}
        if methods is not None:
            if self._chap is not None or self._authenticated:
                raise ChapFailed("AuthMethod was settled already")
            wanted = "CHAP" if access.chap else "None"
            if wanted not in methods.split(","):
                raise ChapFailed(f"the initiator offers {methods[:64]}, and {wanted} is wanted")
            answers.append(("AuthMethod", wanted))
            if access.chap:
                self._chap = Chap(access, self._random)
            else:
                self._authenticated = True
        if chap:
            if self._chap is None:
                raise ChapFailed("CHAP keys without AuthMethod=CHAP")
            answers += self._chap.step(chap)
            self._authenticated = self._chap.user is not None
        return answers

    def _require_proof(self, request: LoginRequest) -> None:
        """Who has to prove himself is told so when he passes that by, rather than kept waiting."""
        assert self._access is not None
        passes_by = request.stage == OPERATIONAL or (request.transit and self._chap is None)
        if self._access.chap and not self._authenticated and passes_by:
            raise ChapFailed("the initiator left authentication out, and CHAP is wanted")

    def _may_leave(self, request: LoginRequest) -> bool:
        """Whether the stage is over for us as well."""
        assert self._access is not None
        return request.stage == OPERATIONAL or not self._access.chap or self._authenticated

    def _finish(self, request: LoginRequest, answers: list[tuple[str, str]]) -> list[bytes]:
        """Nothing is left to negotiate."""
        units = () if self._target is None else self._target.device.units.values()
        if any(unit.port_groups is not None and not unit.port_groups.own for unit in units):
            raise LoginRefused(UNAVAILABLE, "this node is not known to the cluster's others yet")
        served: list[BlockDevice] = [
            unit.device
            for unit in units
            if isinstance(unit.device, MayBeElsewhere) and unit.device.mirrored
            if unit.device.opened
        ]
        if served:
            self.prove, self._ending = served, (request, answers)
            return []
        return self._open(request, answers)

    def _open(self, request: LoginRequest, answers: list[tuple[str, str]]) -> list[bytes]:
        candidate = LoggedIn(
            discovery=self._negotiation.discovery,
            target=self._target,
            initiator=self._initiator,
            isid=request.isid,
            tsih=request.tsih,
            cid=request.cid,
            cmd_sn=request.cmd_sn,
            stat_sn=self._stat_sn + 1 & 0xFFFFFFFF,
            parameters=self._negotiation.settled(),
            user=None if self._chap is None else self._chap.user,
            address=self._peer_address,
        )
        if self._target is not None:
            self._check_volume(self._target.volume, self._target.name, chap_to_come=False)
        tsih = self._open_session(candidate)
        response = self._response(request.flags & 0x8F, SUCCESS, answers, tsih)
        self.outcome = replace(candidate, tsih=tsih)
        return [response]

    # -- responses

    def _refuse(self, status: Status, reason: str) -> list[bytes]:
        self.outcome = Refused(status, reason)
        answers = [("TargetAddress", reason)] if status == MOVED_TEMPORARILY else []
        stage = 0 if self._last is None else self._last.stage << 2
        return [self._response(stage, status, answers)]

    def _response(
        self,
        flags: int,
        status: Status,
        answers: list[tuple[str, str]],
        tsih: int | None = None,
    ) -> bytes:
        request = self._last
        assert request is not None
        data = text.encode(answers)
        stat_sn = self._stat_sn
        self._stat_sn = stat_sn + 1 & 0xFFFFFFFF
        window = 1 if tsih is None else COMMAND_WINDOW  # open with the last response
        numbers = (stat_sn, request.cmd_sn, request.cmd_sn + window - 1 & 0xFFFFFFFF)
        bhs = pdu.login_response(
            *(flags, request.isid, request.tsih if tsih is None else tsih, request.itt),
            *(numbers, status, len(data)),
        )
        return bhs + data.ljust(pdu.padded(len(data)), b"\0")
