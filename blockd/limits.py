"""Limits: how much the clients of each volume may ask for; set while they are there, kept in meta/.

One `native.Limit` for each volume, whatever protocol, connection, thread or past version its
clients come by. The request loop asks it before it carries out a request (native/src/limit.h); for
what the engines do, each connection has a `Throttle`. As accounts do, limits belong to the volume's
uuid: they go along when it is renamed or restored, and a clone has none.

They are kept under `limits/<uuid of the volume>` (`blockd.api.limit_types.encode`), durable before
they are in force. Rows of volumes that are gone are forgotten at the start, and when a volume is
deleted. A row that cannot be read limits nothing: a volume that is too fast is served, one that is
not served is an outage. It is told at the start, by `get` and by the doctor, and stays until the
limits are set again.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from typing import Final, Protocol

from blockd.accounts import LEAST_PRUNED, identity, volume_names
from blockd.api.limit_types import PREFIX, LimitsStatus, VolumeLimits, decode, encode
from blockd.device import BlockDevice, Exports
from native import Limit
from volume.errors import NoSuchVolume, VolumeError
from volume.states import Damaged

logger = logging.getLogger(__name__)

SECOND_NS: Final = 10**9


class Keeper(Protocol):
    """Where limits outlive the daemon (`volume.store.Store`); both wait for disks."""

    def kept(self, prefix: str, damaged: Damaged | None = None) -> dict[str, bytes]: ...
    def keep(self, name: str, value: bytes | None) -> None: ...


class KeepingExports(Exports, Keeper, Protocol):
    """What limits need of a store."""


class RateLimits:
    """See the module's text. Any thread."""

    def __init__(
        self,
        store: KeepingExports | None = None,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        """Reads what is kept: waits for disks. None: nothing is limited or kept."""
        self._store = store
        self._clock = clock
        self._lock = threading.Lock()
        self._given: dict[bytes, VolumeLimits] = {}
        self._problems: dict[bytes, str] = {}
        self._limits: dict[bytes, Limit] = {}
        self._prune_at = LEAST_PRUNED
        if store is not None:
            self._load(store)

    def of(self, device: BlockDevice) -> Limit:
        """The limit of the volume behind `device`: the same one for as long as the volume is there,
        whether or not anything is limited. Quick."""
        key = identity(device)
        found = self._limits.get(key)
        if found is None:
            with self._lock:
                self._prune()
                found = self._limits.setdefault(key, Limit())
        return found

    def get(self, volume: str) -> LimitsStatus:
        """NoSuchVolume."""
        device = self._named(volume)
        key = identity(device)
        waiting, count, held_ns = self.of(device).held()
        return LimitsStatus(
            limits=self._given.get(key, VolumeLimits()),
            waiting=waiting,
            held_requests=count,
            held_s=held_ns / SECOND_NS,
            problem=self._problems.get(key),
        )

    def set(self, volume: str, limits: VolumeLimits) -> None:
        """Durable and in force on return. NoSuchVolume, VolumeError, OSError: nothing changed."""
        device = self._named(volume)
        key, limit = identity(device), self.of(device)
        assert self._store is not None
        with self._lock:
            self._store.keep(_row(key), encode(limits) if limits.any else None)
            self._problems.pop(key, None)
            self._apply(key, limit, limits)

    def forget(self, device: BlockDevice) -> None:
        """The volume is deleted. VolumeError, OSError: its row stays until the next start."""
        key = identity(device)
        with self._lock:
            self._limits.pop(key, None)
            given, problem = self._given.pop(key, None), self._problems.pop(key, None)
            if self._store is not None and (given or problem) is not None:
                self._store.keep(_row(key), None)

    def held(self) -> list[tuple[str, int, int, int]]:
        """(name of the volume at present, what `native.Limit.held` tells) of volumes that are, or
        were, limited."""
        if self._store is None:
            return []
        found = []
        for key, name in volume_names(self._store).items():
            limit = self._limits.get(key)
            if limit is not None and (limit.is_set or limit.held()[1]):
                found.append((name, *limit.held()))
        return sorted(found)

    def _named(self, volume: str) -> BlockDevice:
        device = self._store.get(volume) if volume and self._store is not None else None
        if device is None:
            raise NoSuchVolume(volume)
        return device

    def _apply(self, key: bytes, limit: Limit, limits: VolumeLimits) -> None:
        rates = limits.rates()
        limit.set(
            (
                *(rates["iops"], rates["read_iops"], rates["write_iops"]),
                *(rates["bandwidth"], rates["read_bandwidth"], rates["write_bandwidth"]),
            ),
            round(limits.burst_s * SECOND_NS),
            self._clock(),
        )
        if limits.any:
            self._given[key] = limits
        else:
            self._given.pop(key, None)

    def _load(self, store: KeepingExports) -> None:
        known = {_row(key): key for key in volume_names(store)}
        unreadable: dict[str, str] = {}
        rows = store.kept(PREFIX, lambda name, error: unreadable.update({name: str(error)}))
        for name, value in rows.items():
            if name not in known:
                with contextlib.suppress(VolumeError, OSError):  # the next start tries again
                    store.keep(name, None)
                continue
            try:
                limits = decode(value)
            except ValueError as error:
                unreadable[name] = str(error)
            else:
                self._apply(known[name], self._limits.setdefault(known[name], Limit()), limits)
        names = volume_names(store)
        for name, reason in unreadable.items():
            if name in known:
                self._problems[known[name]] = reason
                facts = {"volume": names[known[name]], "reason": reason}
                logger.error("limits unreadable: not limited until they are set", extra=facts)

    def _prune(self) -> None:
        """A volume is opened for the first time: forget those that are gone."""
        if self._store is not None and len(self._limits) >= self._prune_at:
            known = volume_names(self._store)
            for key in self._limits.keys() - known.keys():
                del self._limits[key]
            self._prune_at = max(LEAST_PRUNED, 2 * len(self._limits))


def _row(key: bytes) -> str:
    return PREFIX + key.hex()
