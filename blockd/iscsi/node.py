"""What the connections of one server share: which sessions there are.

A session is named by initiator, ISID, target and portal group (RFC 7143 4.4.3.1). A login with the
name of one that is there takes its place (6.3.5, reinstatement): the old one's tasks end, its
connection is closed, and what belongs to the initiator port, as persistent reservations do, stays.
Commands of the new one wait until nothing of the old one's is in a device any more, also when that
has ended before: no write of the past may come upon one that the initiator has sent since.
Every session has one connection; a second one into it is refused (MaxConnections=1).

Tasks are aborted here when somebody in another session asks for it: CLEAR TASK SET, the resets,
PREEMPT AND ABORT. All calls come from the event loop's thread.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol

from blockd.access.book import Everybody, VolumeAccess
from blockd.accounts import Accounts
from blockd.api.iscsi_types import SessionInfo
from blockd.iscsi import login
from blockd.iscsi.limits import Limits
from blockd.iscsi.login import LoggedIn, LoginRefused
from blockd.iscsi.targets import Target, Targets
from blockd.limits import RateLimits
from blockd.scsi.nexus import Nexus
from blockd.scsi.task import Countdown

if TYPE_CHECKING:
    from blockd.iscsi.command import Command
    from blockd.scsi.unit import LogicalUnit

MAX_TSIH = 0xFFFF  # 0 means a new session


@dataclass(frozen=True, slots=True)
class SessionName:
    initiator: str
    isid: bytes
    target: str | None
    """None: discovery."""
    group: int


class OpenSession(Protocol):
    """What the node needs of a session (`blockd.iscsi.connection.Connection`)."""

    @property
    def target(self) -> Target | None: ...
    @property
    def nexus(self) -> Nexus | None: ...
    def info(self, tsih: int) -> SessionInfo: ...
    def abort_tasks(self, concerns: Callable[["Command"], bool], gone: Callable[[], None]) -> int:
        """Abort the commands that `concerns` is true of, silently. How many there were that still
        have something in a device; `gone` is called when each of those has nothing left there."""

    def has_tasks(self, unit: "LogicalUnit") -> bool:
        """Whether any command of it is under way on that unit."""

    def end(self, reason: str) -> None:
        """Abort everything and close the connection."""

    def hold(self) -> None:
        """Take no command, until `go_on`."""

    def go_on(self) -> None: ...

    def units_changed(self) -> None:
        """Its target device has other units than before."""

    def access_changed(self) -> bool:
        """Access lists of volumes are others. False: it may not keep what it has."""


class Node:
    """See the module's text."""

    def __init__(
        self,
        targets: Targets,
        limits: Limits | None = None,
        accounts: Accounts | None = None,
        rate_limits: RateLimits | None = None,
        access: VolumeAccess | None = None,
    ) -> None:
        """`access`: the access lists of volumes, None when there are none."""
        self.access = access or Everybody()
        self.targets = targets
        self.limits = limits or Limits()
        self.accounts = accounts or Accounts()
        self.rate_limits = rate_limits or RateLimits()
        self._sessions: dict[SessionName, tuple[int, OpenSession]] = {}
        self._leaving: dict[SessionName, int] = {}  # how many have commands in a device
        self._held: dict[SessionName, OpenSession] = {}  # wait for these
        self._watched: set[LogicalUnit] = set()
        self._last_tsih = 0

    def sessions(self) -> list[SessionInfo]:
        """All sessions, in order of login."""
        return [session.info(tsih) for tsih, session in self.open_sessions()]

    def open_sessions(self) -> list[tuple[int, OpenSession]]:
        """TSIH and session of each, in order of login."""
        return list(self._sessions.values())

    def open(self, candidate: LoggedIn, group: int, session: OpenSession) -> int:
        """Enter a session that has logged in; its TSIH. LoginRefused."""
        name = _name(candidate, group)
        present = self._sessions.get(name)
        if candidate.tsih:
            if present is not None and present[0] == candidate.tsih:
                raise LoginRefused(
                    login.TOO_MANY_CONNECTIONS, "a second connection into a session of one"
                )
            raise LoginRefused(login.NO_SESSION, f"session {candidate.tsih}: there is none")
        if present is not None:
            del self._sessions[name]
            present[1].end("the initiator logged in again")
        elif len(self._sessions) >= self.limits.max_sessions:
            raise LoginRefused(
                login.OUT_OF_RESOURCES, f"{self.limits.max_sessions} sessions are open already"
            )
        tsih = self._free_tsih()
        self._sessions[name] = (tsih, session)
        if name in self._leaving:
            self._held[name] = session
            session.hold()
        return tsih

    def left(self, candidate: LoggedIn, group: int, session: OpenSession) -> Countdown:
        """A session has ended. One that was put in its place stays. What it has in devices is to be
        counted on what this returns."""
        name = _name(candidate, group)
        present = self._sessions.get(name)
        if present is not None and present[1] is session:
            del self._sessions[name]
        self._leaving[name] = self._leaving.get(name, 0) + 1
        return Countdown(partial(self._gone, name))

    def _gone(self, name: SessionName) -> None:
        """One that left has nothing in a device any more."""
        self._leaving[name] -= 1
        if not self._leaving[name]:
            del self._leaving[name]
            held = self._held.pop(name, None)
            if held is not None:
                held.go_on()

    def of_target(self, target: Target) -> list[OpenSession]:
        """The sessions that are logged in to `target`."""
        return [each for _, each in self._sessions.values() if each.target is target]

    def end_sessions(self, target: Target, reason: str) -> int:
        """Close all sessions of `target`; how many."""
        found = self.of_target(target)
        for session in found:
            session.end(reason)
        return len(found)

    def end_sessions_of(self, unit: "LogicalUnit", reason: str) -> None:
        """Close all sessions that have the unit."""
        for _, session in list(self._sessions.values()):
            if session.nexus is not None and unit in session.nexus.units.values():
                session.end(reason)

    def bar(self, reason: str) -> list[int]:
        """Access lists of volumes have changed: close the sessions that may not keep what they
        have, show the others what they may have now. The TSIHs of the first."""
        barred = []
        for tsih, session in list(self._sessions.values()):
            if not session.access_changed():
                session.end(reason)
                barred.append(tsih)
        return barred

    def units_changed(self, target: Target) -> None:
        """Tell the sessions of `target` that its units are others."""
        for session in self.of_target(target):
            session.units_changed()

    def watch(self, units: "Iterable[LogicalUnit]") -> None:
        """Abort tasks when these units ask for it (PREEMPT AND ABORT, SANITIZE)."""
        for unit in units:
            if unit not in self._watched:
                self._watched.add(unit)
                unit.aborting.append(partial(self._abort_nexus, unit))

    def forget(self, unit: "LogicalUnit") -> None:
        """A unit is gone."""
        self._watched.discard(unit)

    def abort_unit(
        self, unit: "LogicalUnit", but: OpenSession | None, gone: Callable[[], None]
    ) -> tuple[int, list[Nexus]]:
        """Abort the tasks of every session, or of all but one, on a unit. How many of them have
        something in a device that `gone` will be called for, and the nexuses that had tasks."""
        waiting = 0
        hit: list[Nexus] = []
        for _, session in list(self._sessions.values()):
            if session is but:
                continue
            if session.nexus is not None and session.has_tasks(unit):
                hit.append(session.nexus)
            waiting += session.abort_tasks(lambda command: command.unit is unit, gone)
        return waiting, hit

    def _abort_nexus(self, unit: "LogicalUnit", nexus: Nexus, countdown: Countdown) -> bool:
        aborted = False
        for _, session in list(self._sessions.values()):
            if session.nexus is nexus:
                aborted = aborted or session.has_tasks(unit)
                countdown.count += session.abort_tasks(
                    lambda command: command.unit is unit, countdown.gone
                )
        return aborted

    def _free_tsih(self) -> int:
        taken = {tsih for tsih, _ in self._sessions.values()}
        while True:  # there are fewer sessions than numbers
            self._last_tsih = self._last_tsih % MAX_TSIH + 1
            if self._last_tsih not in taken:
                return self._last_tsih


def _name(candidate: LoggedIn, group: int) -> SessionName:
    target = None if candidate.target is None else candidate.target.name
    return SessionName(candidate.initiator, candidate.isid, target, group)
