"""What people order about stripes: rows made again, what is lost named, a lost stripe given up.

**Giving up.** A stripe with fewer shards left than it takes holds up whoever needs a chunk of it: a
volume whose partly written chunk is in it is not destaged, and its log is kept, for ever. Only a
person can know that the shards do not come back, so only a person says it, and only of a stripe
that is *lost* as the cluster's status counts it: what is on a node that is away is not.

Rows may be wrong: etcd may have gone back to one that names devices that shards have left since, or
rows were made again without the shards of nodes that were away. So all nodes are asked for what
they have of the stripe, too, and it is given up only if that is too little even with a shard on
each device that nobody could be asked about.

The row then has `given_up`, and reads of what cannot be had say StripeGivenUp, which is damage to
whoever reads: an I/O error, pages that are lost for good in a chunk that is written in part. It
stays in the row, and in the status, until nobody finds chunks in the stripe any more.
"""

from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Final

from blockd.api.cluster_types import LostRange, LostStripe, LostStripes, RebuiltRows
from blockd.api.types import ClusterInfo
from blockd.cluster.stripestatus import StripeStatus
from transport.devicemap import DeviceMap
from transport.errors import TransportError
from transport.packrow import PackRow
from transport.peer import messages as m
from transport.shardfile import ShardName
from transport.striperebuild import FIRST, CannotRebuild, Found, ShardListing, rebuild
from transport.stripetally import State, told_by
from transport.striping import Striper
from volume.damage import Damage
from volume.locate import Location
from volume.stripehome import StripeHome

MAX_NAMED: Final = 64  # packs in an answer, of those that get no row
MAX_RANGES: Final = 10_000  # in an answer
MAX_PAGES: Final = 4096  # SHARD_LISTs of one node: a million packs
FEW: Final = 8  # of more packs than that a node tells all that it has, rather than of each

Ask = Callable[[str, m.ListShards], m.ShardList | str]
Locate = Callable[[Iterable[Damage]], Iterable[Location]]
Answers = Mapping[str, m.StripeStatus | str]


class CannotGiveUp(TransportError):
    """A stripe is not given up."""

    code = "cannot_give_up"


class StripeOrders:
    """Any thread; calls wait. MetaStoreUnavailable, CorruptRecord, TransportError, OSError."""

    def __init__(
        self,
        striper: Striper,
        status: StripeStatus,
        home: StripeHome,
        info: Callable[[], ClusterInfo],
        ask: Ask,
        look: Callable[[ClusterInfo], Answers],
        locate: Locate,
        devices: Callable[[], DeviceMap],
        may_use: Callable[[str, bytes], bool],
    ) -> None:
        """`ask` a node for its shards. `look`: what all nodes say of their devices now. `locate`:
        which volumes and versions need chunks. `devices`: the newest map. `may_use`: whether a node
        finds chunks in a stripe, or may."""
        self._striper = striper
        self._status = status
        self._home = home
        self._info = info
        self._ask = ask
        self._look = look
        self._locate = locate
        self._devices = devices
        self._may_use = may_use
        self._listing = ShardListing(
            striper.server, lambda: [stub.pack_id for stub in home.stubs()]
        )

    # -- rows

    def rebuild_rows(self, *, force: bool, dry_run: bool) -> RebuiltRows:
        """CannotRebuild: a node has not told what it has; `force`: its shards count as gone."""
        info = self._info()
        found, away = Found(), {}
        for node in info.nodes:
            problem = "not connected" if not (node.me or node.connected) else None
            problem = problem or self._told(node.node, node.me, found)
            if problem is not None:
                away[node.node] = f"{node.name} ({problem})"
        if away and not force:
            raise CannotRebuild(
                f"nodes have not told which shards they have: {', '.join(away.values())}; with "
                "--force these count as gone and are computed anew on others, and what cannot be "
                "read without them gets no row yet"
            )
        unsure = {  # whoever may use a pack that nobody has: some of its stubs cannot be read
            node.node for node in info.nodes if node.node in away or self._may_use(node.node, FIRST)
        }
        done = rebuild(found, unsure, self._striper.rows.records, dry_run=dry_run)
        return RebuiltRows(
            dry_run=dry_run,
            made=done.made,
            kept=done.kept,
            unused=done.unused,
            damaged=found.damaged,
            too_few_count=len(done.too_few),
            too_few=tuple(each.hex() for each in done.too_few[:MAX_NAMED]),
            away=tuple(away.values()),
        )

    def list_shards(self, after: bytes) -> m.ShardList:
        """Those of this node, as another one is told."""
        return self._listing.page(after)

    def _told(self, node: str, me: bool, found: Found) -> str | None:
        """Have a node tell all; what is wrong."""
        after, pages = FIRST, Found()
        for _ in range(MAX_PAGES):
            told = self._list(node, me, after)
            if isinstance(told, str):
                return told
            pages.add(node, told)
            if told.next <= after:
                found.merge(pages)
                return None
            after = told.next
        return "it has no end of shards"

    # -- what is lost

    def lost(self) -> LostStripes:
        """Stripes that are lost or given up, and what volumes of this node need of them."""
        answers = self._look(self._info())
        return self._shown(self._lost_rows(answers))

    def give_up(self, packs: Collection[str] | None, *, dry_run: bool = False) -> LostStripes:
        """Give stripes up, by the ids of their packs or the beginnings of these; None: all that are
        lost. Durable on return. With `dry_run` all is looked at, and nothing changed. What is
        given back are those that were named, and no others. CannotGiveUp: one of them is not lost,
        and nothing was given up; or a row changes just then: it says how many were."""
        answers = self._look(self._info())
        rows = self._lost_rows(answers)
        if packs is None:
            chosen = {
                id_: each
                for id_, each in rows.items()
                if each[1] is State.LOST and not each[0].given_up
            }
        else:
            assert packs, "to name nothing is not to name all"
            chosen = {id_: rows[id_] for id_ in map(partial(_named, sorted(rows)), packs)}
        for pack_id, (row, state) in chosen.items():
            if state is not State.LOST and not row.given_up:
                raise CannotGiveUp(
                    f"pack {pack_id.hex()}: is {state}, not lost: its shards may come back. Where "
                    "a device does not, say so first: blockd cluster device fail"
                )
        if checked := {id_: row.data for id_, (row, _) in chosen.items() if not row.given_up}:
            self._check_gone(checked, answers)
        if dry_run:
            return self._shown(chosen)
        for count, (row, _) in enumerate(chosen.values()):
            try:
                self._striper.rows.change(row, partial(_given_up, judged=row))
            except CannotGiveUp as error:
                raise CannotGiveUp(f"{error}; {count} were given up before it") from error
        return self._shown(
            {id_: (replace(row, given_up=True), state) for id_, (row, state) in chosen.items()}
        )

    def _check_gone(self, packs: Mapping[bytes, int], answers: Answers) -> None:
        """CannotGiveUp: nodes have, or may have, shards that one can be read of. `packs`: how many
        that takes, by their rows."""
        devices = self._devices().devices
        found, problems = Found(), {}
        info = self._info()
        for node in info.nodes:
            problem: str | None = "not connected"
            if node.me or node.connected:
                problem = self._told_of(packs, node.node, node.me, found)
            if problem is not None:
                problems[node.node] = f"{node.name} ({problem})"
        names = {each.node: each.name for each in info.nodes}
        unsure = len(problems.keys() - {each.node_id for each in devices.values()})
        for each in devices.values():
            if each.readable and each.device_id not in found.devices:
                unsure += 1
                name = names.get(each.node_id, each.node_id)
                problems.setdefault(each.node_id, f"{name} (device {each.device_id} is not there)")
        told = told_by(answers)
        there: dict[tuple[bytes, int, bytes], set[int]] = {}
        for device_id, facts, number in found.shards:
            device = devices.get(device_id)
            if device is not None and not device.readable:
                continue  # somebody has said that nothing of it counts
            shard = ShardName(facts.pack_id, facts.data, facts.parity, number)
            if facts.pack_id in packs and (
                device is None or shard not in told.get(device.node_id, ())
            ):
                there.setdefault((facts.pack_id, facts.data, facts.digest), set()).add(number)
        away = ", ".join(problems.values())
        for pack_id, data in packs.items():
            _check_too_few(pack_id, data, 0, unsure, away)
        for (pack_id, data, _), numbers in there.items():
            _check_too_few(pack_id, data, len(numbers), unsure, away)

    def _told_of(self, packs: Collection[bytes], node: str, me: bool, found: Found) -> str | None:
        """Have a node tell of some packs; what is wrong."""
        if len(packs) > FEW:
            return self._told(node, me, found)
        for pack_id in packs:
            before = max(0, int.from_bytes(pack_id) - 1).to_bytes(len(pack_id))
            told = self._list(node, me, before)
            if isinstance(told, str):
                return told
            found.add(node, told)
        return None

    def _list(self, node: str, me: bool, after: bytes) -> m.ShardList | str:
        return self.list_shards(after) if me else self._ask(node, m.ListShards(after))

    def _lost_rows(self, answers: Answers) -> dict[bytes, tuple[PackRow, State]]:
        """Rows as they are in the MetaStore now, of what cannot be read."""
        judge = self._status.judge(answers)
        found = {}
        for known in self._striper.rows.records.listing():
            if isinstance(known, bytes) or not known.shards or known.removing:
                continue
            self._striper.rows.remember(known.pack_id, known)
            state = judge.state(known)
            if state in (State.LOST, State.UNREADABLE) or known.given_up:
                found[known.pack_id] = (known, state)
        return found

    def _shown(self, rows: Mapping[bytes, tuple[PackRow, State]]) -> LostStripes:
        stubs = self._home.stubs_by_pack()
        names = {each.node: each.name for each in self._info().nodes}
        stripes, damages = [], []
        for pack_id, (row, state) in rows.items():
            if state is not State.LOST and not row.given_up:
                continue
            stub = stubs.get(pack_id)
            chunks = [] if stub is None else self._home.lost_of(stub)
            damages += [
                Damage(stub.number, 0, chunk_id, pack_id.hex())
                for chunk_id in chunks
                if stub is not None
            ]
            users = tuple(names.get(node, node) for node in row.users)
            stripes.append(
                LostStripe(pack_id.hex(), row.size, str(state), row.given_up, len(chunks), users)
            )
        packs = {each.pack for each in stripes}
        hits = (each for each in self._locate(damages) if each.what in packs)
        ranges, more = _ranges(hits) if damages else ((), False)
        return LostStripes(tuple(stripes), ranges, more)


def _named(packs: Sequence[bytes], text: str) -> bytes:
    """The one of `packs`, in order, whose id begins so. CannotGiveUp."""
    first = bisect_left(packs, text, key=bytes.hex)
    stop = bisect_left(packs, text + "g", key=bytes.hex)
    if not text or stop - first != 1:
        count = stop - first if text else len(packs)
        raise CannotGiveUp(
            f"pack {text!r}: {f'{count} stripes are' if count else 'none is'} called so of those "
            "that cannot be read; `blockd cluster stripes lost` shows their ids"
        )
    return packs[first]


def _check_too_few(pack_id: bytes, needed: int, there: int, unsure: int, away: str) -> None:
    """CannotGiveUp."""
    if there >= needed:
        raise CannotGiveUp(
            f"pack {pack_id.hex()}: nodes have {there} shards of it, and it takes {needed}, but "
            f"its row names other devices: has etcd gone back? Remove the row pack/{pack_id.hex()} "
            "from etcd, and have it made again of these shards: blockd cluster stripes rebuild-rows"
        )
    if there + unsure >= needed:
        raise CannotGiveUp(
            f"pack {pack_id.hex()}: nodes have {there} shards of it, it takes {needed}, and others "
            f"may be where nobody could ask: {away}. Where a device does not come back, say so "
            "first: blockd cluster device fail"
        )


def _given_up(now: PackRow, judged: PackRow) -> PackRow:
    """CannotGiveUp: its shards are elsewhere by now than when it was judged."""
    if (now.shards, now.digest, now.removing) != (judged.shards, judged.digest, judged.removing):
        raise CannotGiveUp(f"pack {now.pack_id.hex()}: its row changes just now; look again")
    return replace(now, given_up=True)


def _ranges(found: Iterable[Location]) -> tuple[tuple[LostRange, ...], bool]:
    """Those that follow each other in one volume put together; whether there are more."""
    made: list[LostRange] = []
    for each in found:
        offset = 0 if each.offset is None else each.offset
        last = made[-1] if made else None
        if last is not None and (last.name, last.offset + last.length) == (each.name, offset):
            made[-1] = replace(last, length=last.length + each.length)
        elif len(made) >= MAX_RANGES:
            return tuple(made), True
        else:
            made.append(LostRange(each.name, offset, each.length, each.what))
    return tuple(made), False
