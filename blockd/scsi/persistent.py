"""Persistent reservations of one unit: who is registered, who has it reserved, who may do what.

SPC-4 5.13, as a machine without a unit around it: `Persistent` is changed by the service actions of
PERSISTENT RESERVE OUT, each of which either raises and changes nothing, or changes it at once and
returns whom to tell of it. Keys are those of `Registrant`s (see `pr_codec`); `find` leads from a
single nexus to the registration that it belongs to.

Who may do what (5.13.1, tables 65 to 67), W and E for Write Exclusive and Exclusive Access:

                  holder   registered,          registered,   neither, W   neither, E
                           Registrants Only     not so
                           or All Registrants
    Access.FULL     x            x
    Access.READ                                 W                  x
    Access.NONE                                 E                               x

With the All Registrants types every registrant is a holder.
"""

import enum
from dataclasses import replace
from typing import Final, NamedTuple

from blockd.scsi.pr_codec import (
    ALL_REGISTRANTS,
    MAX_REGISTRATIONS,
    SHARED,
    TYPES,
    WRITE_EXCLUSIVE_TYPES,
    BasicList,
    Kept,
    MoveList,
    Registrant,
    Reservation,
)
from blockd.scsi.sense import (
    ILLEGAL_REQUEST,
    REGISTRATIONS_PREEMPTED,
    RESERVATIONS_PREEMPTED,
    RESERVATIONS_RELEASED,
    CheckCondition,
    ReservationConflict,
    Sense,
    invalid_field,
)

INVALID_RELEASE: Final = Sense(ILLEGAL_REQUEST, 0x26, 0x04)
NO_REGISTRATION_RESOURCES: Final = Sense(ILLEGAL_REQUEST, 0x55, 0x04)

_ACTION_KEY_AT: Final = 8  # in the parameter list
_FLAGS_AT: Final = 20


class Access(enum.IntEnum):
    """What a nexus may do; see the module's text. Commands that are always allowed need NONE."""

    NONE = 0
    READ = 1
    FULL = 2


class Notice(NamedTuple):
    """A unit attention for the nexuses of a registration, which may be gone by now. Those that are
    told REGISTRATIONS_PREEMPTED are the ones whose tasks PREEMPT AND ABORT aborts."""

    who: Registrant
    what: Sense


class Persistent:
    """See the module's text."""

    __slots__ = ("generation", "keys", "persist", "reservation")

    def __init__(self, kept: Kept | None = None) -> None:
        self.keys: dict[Registrant, int] = dict(kept.keys) if kept is not None else {}
        self.reservation = kept.reservation if kept is not None else None
        self.persist = kept is not None
        """APTPL: of the last registration."""
        self.generation = 0

    @property
    def kept(self) -> Kept | None:
        """What has to outlast a restart."""
        return Kept(self.keys, self.reservation) if self.persist and self.keys else None

    def find(self, nexus: Registrant) -> Registrant | None:
        """The registration that a single nexus belongs to."""
        keys = self.keys
        if not keys:
            return None
        for isid in (nexus.isid, None):
            for port in (nexus.target_port, None):
                if (found := Registrant(nexus.initiator, isid, port)) in keys:
                    return found
        return None

    def holds(self, who: Registrant | None) -> bool:
        """Whether a registration (None: an unregistered nexus) is a reservation holder."""
        reservation = self.reservation
        return reservation is not None and who is not None and reservation.holder in (None, who)

    def shares(self, who: Registrant | None) -> bool:
        """Whether the reservation is no obstacle to a registration: held, or let in by its type."""
        reservation = self.reservation
        if reservation is None or who is None:
            return False
        return reservation.kind in SHARED or reservation.holder == who

    def access(self, nexus: Registrant) -> Access:
        reservation = self.reservation
        if reservation is None or self.shares(self.find(nexus)):
            return Access.FULL
        return Access.READ if reservation.kind in WRITE_EXCLUSIVE_TYPES else Access.NONE

    def widen(self) -> None:
        """Let registrations be by initiator name only. Where several become one, the reservation
        holder's counts, else the one that came first."""
        reservation = self.reservation
        winners: dict[Registrant, Registrant] = {}
        for who in sorted(self.keys, key=lambda who: not self._is_holder(who)):
            wide = replace(who, isid=None)
            if not any(wide.overlaps(other) for other in winners.values()):
                winners[who] = wide
        self.keys = {winners[who]: key for who, key in self.keys.items() if who in winners}
        if reservation is not None and reservation.holder is not None:
            holder = replace(reservation.holder, isid=None)
            self.reservation = Reservation(reservation.kind, holder)

    def _is_holder(self, who: Registrant) -> bool:
        return self.reservation is not None and self.reservation.holder == who

    # -- service actions; ReservationConflict, CheckCondition

    def register(self, nexus: Registrant, asked: BasicList, *, ignore_key: bool) -> list[Notice]:
        """REGISTER and REGISTER AND IGNORE EXISTING KEY (5.13.7)."""
        found = self.find(nexus)
        key = self.keys[found] if found is not None else 0
        # By name only, each path of an initiator registers what another one did already.
        again = nexus.isid is None and asked.key == 0 and asked.action_key == key
        if not ignore_key and asked.key != key and not again:
            raise ReservationConflict
        if asked.others is not None and (ignore_key or found is not None or not asked.action_key):
            raise invalid_field(_FLAGS_AT, 3, in_cdb=False)
        who = found or nexus
        if asked.all_ports:
            who = replace(who, target_port=None)
        same = [other for other in self.keys if other.overlaps(who)]
        if not ignore_key and any(
            self.keys[other] != asked.key for other in same if other != found
        ):
            raise ReservationConflict  # as if it had come through each target port
        if not asked.action_key:
            return self._register_nobody(same, persist=asked.persist)
        others = self._others(who, asked)
        if len(self.keys) - len(same) + 1 + len(others) > MAX_REGISTRATIONS:
            raise CheckCondition(NO_REGISTRATION_RESOURCES)
        self._replace(same, who, asked.action_key)
        self.keys.update((other, asked.action_key) for other in others)
        self.persist = asked.persist
        self.generation += 1
        return []

    def _register_nobody(self, leaving: list[Registrant], *, persist: bool) -> list[Notice]:
        if not leaving:
            return []
        notices = [notice for who in leaving for notice in self._unregister(who)]
        self.persist = persist
        self.generation += 1
        return notices

    def _others(self, own: Registrant, asked: BasicList) -> list[Registrant]:
        """The registrants that SPEC_I_PT adds."""
        others: list[Registrant] = []
        if asked.others is None:
            return others
        taken: dict[str, list[Registrant]] = {}
        for who in (own, *self.keys):
            taken.setdefault(who.initiator, []).append(who)
        for initiator, isid in asked.others:
            who = Registrant(initiator, None if own.isid is None else isid, own.target_port)
            if who == own:
                continue
            same_name = taken.setdefault(initiator, [])
            if any(who.overlaps(other) for other in same_name):
                raise invalid_field(_FLAGS_AT, 3, in_cdb=False)
            same_name.append(who)
            others.append(who)
        return others

    def _replace(self, old: list[Registrant], new: Registrant, key: int) -> None:
        """One registration instead of some that it covers; a reservation goes with it."""
        held = any(self._is_holder(who) for who in old)
        for who in old:
            if who != new:
                del self.keys[who]
        self.keys[new] = key
        if held and self.reservation is not None:
            self.reservation = Reservation(self.reservation.kind, new)

    def reserve(self, nexus: Registrant, key: int, kind: int) -> list[Notice]:
        """RESERVE (5.13.9)."""
        who = self._registered(nexus, key)
        if self.reservation is None:
            self.reservation = Reservation(kind, None if kind in ALL_REGISTRANTS else who)
        elif not self.holds(who) or self.reservation.kind != kind:
            raise ReservationConflict
        return []

    def release(self, nexus: Registrant, key: int, scope: int, kind: int) -> list[Notice]:
        """RELEASE (5.13.11.2.2): nothing happens when somebody else holds it, or nobody."""
        who = self._registered(nexus, key)
        reservation = self.reservation
        if reservation is None or not self.holds(who):
            return []
        if scope or reservation.kind != kind:
            raise CheckCondition(INVALID_RELEASE)
        self.reservation = None
        if kind not in SHARED:
            return []
        return [Notice(other, RESERVATIONS_RELEASED) for other in self.keys if other != who]

    def clear(self, nexus: Registrant, key: int) -> list[Notice]:
        """CLEAR (5.13.11.2.6)."""
        who = self._registered(nexus, key)
        notices = [Notice(other, RESERVATIONS_PREEMPTED) for other in self.keys if other != who]
        self.keys.clear()
        self.reservation = None
        self.generation += 1
        return notices

    def preempt(
        self, nexus: Registrant, key: int, victims_key: int, scope: int, kind: int
    ) -> list[Notice]:
        """PREEMPT, and PREEMPT AND ABORT but for its aborting (5.13.11.2.3 and .4)."""
        who = self._registered(nexus, key)
        reservation = self.reservation
        for_all = reservation is not None and reservation.holder is None
        if not victims_key and not for_all:
            raise invalid_field(_ACTION_KEY_AT, in_cdb=False)
        victims = [other for other, its in self.keys.items() if its == victims_key]
        if not victims_key:
            victims = [other for other in self.keys if other != who]
        elif not victims:
            raise ReservationConflict
        if reservation is None or (victims_key and reservation.holder not in victims):
            return self._remove(victims, who)
        check_type(scope, kind)
        notices = self._remove([other for other in victims if other != who], who)
        if kind != reservation.kind:
            notices += [Notice(other, RESERVATIONS_RELEASED) for other in self.keys if other != who]
        self.reservation = Reservation(kind, None if kind in ALL_REGISTRANTS else who)
        return notices

    def _remove(self, victims: list[Registrant], by: Registrant) -> list[Notice]:
        """Preempt registrations. The reservation stays while somebody is left who holds it, or the
        caller makes a new one."""
        for victim in victims:
            del self.keys[victim]
        if not self.keys:
            self.reservation = None
        self.generation += 1
        return [Notice(victim, REGISTRATIONS_PREEMPTED) for victim in victims if victim != by]

    def move(self, nexus: Registrant, asked: MoveList) -> list[Notice]:
        """REGISTER AND MOVE (5.13.8): another nexus becomes the holder."""
        who = self._registered(nexus, asked.key)
        reservation = self.reservation
        if reservation is None or reservation.holder != who:
            raise ReservationConflict
        if not asked.action_key:
            raise invalid_field(_ACTION_KEY_AT, in_cdb=False)
        to = asked.to if nexus.isid is not None else replace(asked.to, isid=None)
        if to.overlaps(nexus):
            raise invalid_field(24, in_cdb=False)
        overlapping = [other for other in self.keys if other.overlaps(to)]
        heir = overlapping[0] if overlapping else to
        if len(overlapping) > 1 or heir == who:
            raise invalid_field(24, in_cdb=False)
        if not overlapping and len(self.keys) - asked.unregister >= MAX_REGISTRATIONS:
            raise CheckCondition(NO_REGISTRATION_RESOURCES)
        self.keys[heir] = asked.action_key
        self.reservation = Reservation(reservation.kind, heir)
        if asked.unregister:
            del self.keys[who]
        self.persist = asked.persist
        self.generation += 1
        return []

    def _registered(self, nexus: Registrant, key: int) -> Registrant:
        """The registration of a nexus that named its key."""
        who = self.find(nexus)
        if who is None or self.keys[who] != key:
            raise ReservationConflict
        return who

    def _unregister(self, who: Registrant) -> list[Notice]:
        """5.13.11.2.3: a reservation goes with the last of its holders."""
        del self.keys[who]
        reservation = self.reservation
        if reservation is None or (self.keys and reservation.holder != who):
            return []
        self.reservation = None
        if reservation.kind not in SHARED:
            return []
        return [Notice(other, RESERVATIONS_RELEASED) for other in self.keys]


def check_type(scope: int, kind: int) -> None:
    """SCOPE is LU_SCOPE and TYPE one that is known, in byte 2 of the CDB. CheckCondition."""
    if scope:
        raise invalid_field(2, 7)
    if kind not in TYPES:
        raise invalid_field(2, 3)
