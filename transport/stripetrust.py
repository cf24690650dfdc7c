"""Which stripes writes may find their chunks in: those that can be read, as far as can be seen.

A write that finds its chunk in a stripe is not stored anew, and its log goes. So whatever was
acknowledged after a stripe became unreadable must not be taken for stored by it. It is looked at
twice, each time at where shards are and what every node says of those on its device; a node that
does not say counts as away.

**In each round**, at all stripes (`look`). Between two rounds trust only shrinks:

    a node's session ends              in all stripes, until they are looked at again
    a read lacks shards                in that stripe, until the next round

also when either comes while it is being looked: `volume.stripedpack` keeps what came since.

**When a stripe is about to be hung on** (`begin`), at those that the last round has trusted: what
other nodes have noticed, given up, moved or taken for failed since then is not known here
otherwise. A destage round begins a batch once it has frozen what it stores, and the first chunk of
it that is found in a stripe begins a look: nodes are asked, the device map and the rows of these
stripes read from etcd. So for each write there was a look that began after the write was
acknowledged, and by it the stripe could be read. What is lost later is lost as any stored chunk is
that more devices have failed for than it has shards to spare. A watch would not do: nobody knows
whether it is late. What still goes unseen is what no node has noticed: files that vanish on a
device are missed in its node's next round, and bits that rot when they are read, or by its repair.

Where that cannot be asked (etcd or nodes do not answer) chunks are stored anew: that costs space.
"""

import itertools
import logging
from collections.abc import Callable, Collection, Iterable
from typing import Final

from transport.devicemap import DeviceMap
from transport.packrow import PackRow
from transport.shardfile import ShardName
from transport.stripestate import ERRORS
from transport.stripetally import READABLE, Judge, Told
from volume.stripedpack import Look, StripedPack, StripedPacks

log = logging.getLogger(__name__)

MAX_ROWS: Final = 256
"""Read for one batch: beyond that what is found in stripes is stored anew. A batch that is a copy
of what was there finds a stripe for each pack or so that it fills."""
BLIND_S: Final = 5.0
"""Between two looks when one of them failed."""


class StripeTrust:
    """`look` on the thread of the rounds; the rest on any."""

    def __init__(
        self,
        me: str,
        striped: Callable[[], StripedPacks],
        told: Callable[[], Told],
        reachable: Callable[[str], bool],
        devices: Callable[[], DeviceMap],
        row_of: Callable[[bytes], PackRow | None],
        own: Callable[[], Collection[ShardName] | None],
        *,
        monotonic: Callable[[], float],
    ) -> None:
        """`told` asks other nodes, `devices` and `row_of` etcd, and they wait. `reachable`: a
        device, just now. `own`: what is damaged or not there on this node's one; None: it is not
        known."""
        self._me = me
        self._striped = striped
        self._ask = told
        self._reachable = reachable
        self._devices = devices
        self._row_of = row_of
        self._own = own
        self._monotonic = monotonic
        self._blind_until = float("-inf")
        self.told: Told = {}
        """By the last round."""
        self.stale = False
        """Nothing is trusted, since a node has gone: it is to be looked at again."""

    def node_gone(self) -> None:
        """Some session has ended."""
        self._striped().suspect(None)
        self.stale = True

    def ask(self) -> None:
        """Have nodes say how their shards are; it counts for what follows."""
        self.told = self._ask()

    def begin(self) -> Look:
        """Look how stripes are now: what nodes say and the device map are asked for at once, and
        the row of a stripe when it is its turn. Where one of them cannot be had, no stripe can be
        read; that is not tried again for BLIND_S. Waits; any thread."""
        if self._monotonic() < self._blind_until:
            return _cannot_be_read
        try:
            judge = self._judge(self._ask(), self._devices(), self._own())
        except ERRORS as error:
            self._is_blind(error)
            return _cannot_be_read
        left = itertools.count(MAX_ROWS, -1)

        def can_be_read(stub: StripedPack) -> bool:
            if next(left) <= 0 or self._monotonic() < self._blind_until:
                return False
            try:
                return self._is_readable(self._row_of(stub.pack_id), judge)
            except ERRORS as error:
                self._is_blind(error)
                return False

        return can_be_read

    def look(self, rows: Iterable[PackRow], devices: DeviceMap) -> None:
        """By what nodes have said last."""
        striped = self._striped()
        self.stale = False  # first: who comes after it has all looked at once more
        striped.begin_look()
        judge = self._judge(self.told, devices, self._own())
        known = {row.pack_id: row for row in rows}
        trusted = set()
        for stub in striped.all():
            if self._is_readable(known.get(stub.pack_id), judge):
                trusted.add(stub.number)
        striped.trust(trusted)

    def _judge(self, told: Told, devices: DeviceMap, own: Collection[ShardName] | None) -> Judge:
        known = told if own is None else {**told, self._me: own}
        return Judge(devices, known, lambda device: self._reachable(device.device_id))

    def _is_readable(self, row: PackRow | None, judge: Judge) -> bool:
        """Also by what its row says: whose stripe is given up, is being removed, or does not name
        this node as its user, may be gone soon."""
        if row is None or not row.shards or row.removing or row.given_up:
            return False
        return self._me in row.users and judge.state(row) in READABLE

    def _is_blind(self, error: Exception) -> None:
        self._blind_until = self._monotonic() + BLIND_S
        log.info("stripes cannot be looked at; what is written is stored anew error=%s", error)


def _cannot_be_read(stub: StripedPack) -> bool:
    return False
