"""Cold packs of a node become stripes, when it is its turn. Part of the round of
`transport.striping`, which says who converts; in which order, `transport.conversion`."""

import logging
import secrets
from collections.abc import Callable
from typing import Final

from transport import stripes
from transport.cold import code_for
from transport.conversion import Conversion, Drop, Encode, Swap, Verify, Written
from transport.devicemap import DeviceMap
from transport.measured import Measured
from transport.packrecords import has_record
from transport.packrow import PackRow
from transport.placement import Placement
from transport.shardfile import Stripe
from transport.shardserver import ShardServer
from transport.stripejoining import MIN_JOIN, Joining
from transport.striperows import KnownRows
from transport.stripestate import ERRORS, RoundNotes, StripePace, Surroundings
from transport.stripetable import bytes_of
from volume.disk import Disk
from volume.errors import CorruptPack
from volume.stripehome import StripeHome

log = logging.getLogger(__name__)

TURN: Final = 0.25
"""Of `cold_s`."""
CONVERSIONS: Final = 16
"""Packs that become stripes in one round at most: then the rest has its turn again."""


class Converting:
    """Of one node; on the thread of the rounds."""

    def __init__(
        self,
        me: str,
        server: ShardServer,
        rows: KnownRows,
        home: StripeHome,
        joining: Joining,
        around: Surroundings,
        notes: RoundNotes,
        pace: StripePace,
        *,
        monotonic: Callable[[], float],
        should_stop: Callable[[], bool],
    ) -> None:
        """`me`: this node's id; `server` has its device."""
        self.work = Measured(monotonic)
        """Of cold packs of this node."""
        self._me = me
        self._device = server.device.hex()
        self._server = server
        self._rows = rows
        self._home = home
        self._joining = joining
        self._around = around
        self._notes = notes
        self._pace = pace
        self._monotonic = monotonic
        self._should_stop = should_stop

    def convert_all(self, devices: DeviceMap, told_at: float) -> None:
        """`told_at`: when another node told of a new stripe last."""
        # Others may have the same.
        self.work.found(self._home.cold_bytes(self._pace.cold_s, self._pace.unread_s))
        placement = Placement(devices, self._pace.level)
        code = code_for(placement.domain_count)
        if code is None:
            self._notes.problems["stripes"] = (
                f"{placement.domain_count} {self._pace.level}s have a device that is in; stripes "
                "begin with 3, packs stay copies"
            )
            return
        turn_s = self._around.rank() * TURN * self._pace.cold_s
        if self._monotonic() - told_at < turn_s:
            return
        cold = self._home.cold(self._pace.cold_s + turn_s, self._pace.unread_s)
        for number in cold[:CONVERSIONS]:
            if self._should_stop():
                return
            with self._notes.counted(b"", f"convert pack {number:08x}"):
                self._convert(number, placement, *code)

    def _convert(self, number: int, placement: Placement, data: int, parity: int) -> None:
        opened = self._home.open(number)
        if opened is None:
            return
        pack, entries = opened
        own = self._home.known(entries)
        if bytes_of(own) < MIN_JOIN * pack.size:
            return  # its chunks are found in other stripes by now
        self._server.check_room(pack.size)
        file = pack.file.file
        pack_id = stripes.pack_id_of(file, pack.size)
        cuts = stripes.cuts_of(
            stripes.boundaries_of(file, number, self._home.uuid), pack.size, data
        )
        row = self._rows.records.read(pack_id)
        if row is None:
            mine = (self._me,)
            row = PackRow(pack_id, pack.size, (self._device,), users=mine, joining=mine)
        elif row.shards:
            return  # `join` finds it
        targets = placement.choose(pack_id, data + parity)
        machine = Conversion(row, targets, data, secrets.token_hex(16))
        made: Stripe | None = None
        while (action := machine.action) is not None:
            try:
                match action:
                    case Swap():
                        if not self._rows.records.swap(action.before, action.after):
                            machine.lost()
                            continue
                        self._rows.remember(
                            pack_id, action.after if has_record(action.after) else None
                        )
                        machine.done()
                    case Encode():
                        disks = self._all(action.targets)
                        made = stripes.encode(file, pack_id, pack.size, cuts, disks, parity)
                        machine.done(Written(made.shard_length, made.digest))
                    case Verify():
                        assert made is not None
                        stripes.verify(made, self._all(action.targets))
                        machine.done()
                    case Drop():
                        # The copy becomes garbage of gc once chunks are found in the stripe.
                        self._joining.look_again(pack_id)
                        self._joining.join(machine.row)
                        machine.row = self._rows.of(pack_id, True) or machine.row
                        machine.done()
            except ERRORS as error:
                machine.failed(str(error))
        if machine.error is not None:
            raise CorruptPack(f"pack {pack_id.hex()}: {machine.error}")
        self._notes.counters.converted += 1
        self._notes.counters.converted_bytes += pack.size
        self.work.did(pack.size)
        log.info("pack is a stripe pack=%s bytes=%d", pack_id.hex(), pack.size)
        self._around.tell(pack_id)

    def _all(self, targets: tuple[str, ...]) -> list[Disk]:
        disks = []
        for target in targets:
            disk = self._around.disk_of(target, True)
            if disk is None:
                raise OSError(f"device {target} cannot be reached")
            disks.append(disk)
        return disks
