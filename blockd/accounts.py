"""Accounts: what clients of each volume asked for over each protocol, and how long it took.

One `native.Account` for each volume and protocol, whoever serves its clients: the request loop
counts where it answers, the engines' connections where a device gives requests back
(`blockd.client_protocol`). A past version of a volume counts for the volume. What an account
belongs to is told by the volume's uuid, so it stays with a volume that is renamed or restored, and
a new volume of an old name begins with none.

Accounts of volumes that are gone are forgotten when somebody asks for all of them, and whenever
there are twice as many as there were then. Clients that still count into one do so for nobody.
"""

import threading
from typing import Final, Protocol, runtime_checkable

from blockd.device import BlockDevice, Exports
from native import Account

LEAST_PRUNED: Final = 256  # accounts that are not worth a look at all volumes


@runtime_checkable
class OfVolume(Protocol):
    """A device that knows which volume it is, or a past version of."""

    @property
    def volume_uuid(self) -> bytes: ...


def identity(device: BlockDevice) -> bytes:
    """What the volume behind a device is known by, for as long as it is there. Devices without a
    uuid are known by their names."""
    return device.volume_uuid if isinstance(device, OfVolume) else device.name.encode()


class Accounts:
    """See the module's text. Any thread."""

    def __init__(self, exports: Exports | None = None) -> None:
        """`exports`: the volumes that there are; None: nothing is ever forgotten, for tests."""
        self._exports = exports
        self._accounts: dict[tuple[bytes, str], tuple[str, Account]] = {}
        self._lock = threading.Lock()
        self._prune_at = LEAST_PRUNED

    def of(self, device: BlockDevice, protocol: str) -> Account:
        """The account of the volume behind `device`, for "nbd" or "iscsi". Quick."""
        key = (identity(device), protocol)
        found = self._accounts.get(key)
        if found is not None:
            return found[1]
        with self._lock:
            if len(self._accounts) >= self._prune_at:
                self._prune()
            volume = device.name.partition("@")[0]
            return self._accounts.setdefault(key, (volume, Account()))[1]

    def all(self) -> list[tuple[str, str, Account]]:
        """(name of the volume at present, protocol, account), of volumes that are there and that
        clients have opened since the start; in order of names."""
        with self._lock:
            self._prune()
            found = [
                (name, protocol, account)
                for (_, protocol), (name, account) in self._accounts.items()
            ]
        return sorted(found, key=lambda each: each[:2])

    def _prune(self) -> None:
        """Forget volumes that are gone, and learn new names."""
        if self._exports is None:
            return
        names = volume_names(self._exports)
        self._accounts = {
            key: (names[key[0]], account)
            for key, (_, account) in self._accounts.items()
            if key[0] in names
        }
        self._prune_at = max(LEAST_PRUNED, 2 * len(self._accounts))


def volume_names(exports: Exports) -> dict[bytes, str]:
    """The names of all volumes, by what they are known by."""
    found = map(exports.get, exports.names())
    return {identity(device): device.name for device in found if device is not None}
