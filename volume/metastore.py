"""MetaStore: the few rows that the nodes of a cluster must agree on, and how they change.

Two implementations: `volume.metastore_embedded` (LMDB; one node) and `transport.etcd` (more than
one). Both offer rows of key -> bytes with a revision; `ClusterRecords` here gives them meaning.

**Only guarded transactions decide.** A `Change` names the row as it was read: its revision and its
bytes, or its absence. `commit` makes all changes if every row is still so, else none. A revision
is given once: a row that was deleted and made again has another. The bytes are compared as well, so
that a store restored from an old backup cannot pass off another row by an equal revision.

What was read may be old (etcd below 3.4.42 may serve stale reads from a paused member): that
costs a lost race, never a wrong decision. Leases, heartbeats and watches decide nothing.

**Outcomes** of `commit`, exactly one of:

- `Done`: it happened and is durable.
- `Lost`: it did not happen, or was overwritten since; with the rows as they are now.
- `Unknown`: the answer was lost. It may have happened, *or may still happen*. Call `commit` again
  with the same changes until another outcome comes: the row's token makes that idempotent. To read
  a row that has not changed proves nothing; that its revision is another one does.
- `Unavailable`: it did not happen and will not.

The guard "absent" is weaker than the others: a creation that was `Unknown` can still land after the
row was made and deleted again. Rows whose epoch matters are therefore not deleted at once
(`ClusterRecords.delete_volume`), and ids are chosen at random, never again.

A commit that finds its own bytes in place of what it expected is `Done`: since each value has the
token of its transaction, only an earlier try of the same transaction can have put them there.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Generic, Protocol, TypeVar

from volume.errors import VolumeError
from volume.metastore_records import (
    AccessRecord,
    ClusterRecord,
    GroupState,
    Heartbeat,
    JoinRecord,
    NameRecord,
    NodeRecord,
    Record,
    ReservationsRecord,
    SettingsRecord,
    VolumeGroup,
    decode,
    encode,
)

MAX_CHANGES = 16  # rows of one transaction
MAX_KEY_BYTES = 256  # LMDB takes 511
PAGE = 128  # rows of one `list`


class MetaStoreUnavailable(VolumeError):
    """Neither read nor written: no quorum, no network, or a refusal. Nothing is known by it."""

    code = "metastore_unavailable"


class EpochGoesBack(VolumeError):
    """A caller's mistake, caught before it is sent."""

    code = "epoch_goes_back"

    def __init__(self, key: str, old: int, new: int, why: str) -> None:
        super().__init__(f"metastore: {key}: epoch {old} -> {new}: {why}; read the row again")


@dataclass(frozen=True, slots=True)
class Row:
    key: str
    value: bytes
    revision: int
    """Positive; of the transaction that wrote it."""


@dataclass(frozen=True, slots=True)
class Change:
    """`before` -> `value` of one row; None is absence. Not both None."""

    key: str
    before: Row | None
    value: bytes | None


@dataclass(frozen=True, slots=True)
class Done:
    rows: tuple[Row | None, ...]
    """The rows of the changes, in their order, as they were written."""


@dataclass(frozen=True, slots=True)
class Lost:
    rows: tuple[Row | None, ...]
    """The rows of the changes, in their order, as they are now."""


@dataclass(frozen=True, slots=True)
class Unknown:
    reason: str


@dataclass(frozen=True, slots=True)
class Unavailable:
    reason: str


Outcome = Done | Lost | Unknown | Unavailable


TRIES: Final = 8
"""Of a change to a record, while others come first or answers are lost."""
SETTLE_TRIES: Final = 5
"""Of a transaction whose outcome is not known."""


class MetaStore(Protocol):
    """Rows of key -> bytes. Calls may block for as long as the store's timeout; any thread."""

    def read(self, key: str) -> Row | None:
        """The row, perhaps an old one. MetaStoreUnavailable."""

    def list(self, prefix: str, after: str = "", limit: int = PAGE) -> Sequence[Row]:
        """Up to `limit` rows under `prefix` with keys past `after`, in key order; perhaps old
        ones. Fewer than `limit` are the last. MetaStoreUnavailable."""

    def commit(self, changes: Sequence[Change]) -> Outcome:
        """1 to MAX_CHANGES changes of different keys, all or nothing."""

    def hint(self, key: str, value: bytes, ttl_s: int) -> bool:
        """Put a row that may vanish `ttl_s` after it was put last; whether that was heard.

        For heartbeats only: no guard, no promise. The embedded store keeps it for ever."""

    def close(self) -> None: ...


def check_changes(changes: Sequence[Change]) -> None:
    """Assert what every implementation may rely on."""
    assert 1 <= len(changes) <= MAX_CHANGES
    assert len({change.key for change in changes}) == len(changes)
    for change in changes:
        assert 0 < len(change.key.encode()) <= MAX_KEY_BYTES
        assert change.before is not None or change.value is not None
        assert change.before is None or change.before.key == change.key


def settle(changes: Sequence[Change], rows: Sequence[Row | None]) -> Done | Lost:
    """The outcome of a transaction whose guards failed on `rows`: ours already, or lost."""
    wanted = [change.value for change in changes]
    if wanted == [None if row is None else row.value for row in rows]:
        return Done(tuple(rows))
    return Lost(tuple(rows))


R = TypeVar("R", bound=Record)


@dataclass(frozen=True, slots=True)
class Stored(Generic[R]):
    """A record with the row that it came from."""

    record: R
    row: Row


@dataclass(frozen=True, slots=True)
class Transaction:
    """Encoded changes with their token. Commit it again after `Unknown`, as it is."""

    changes: tuple[Change, ...]


class ClusterRecords:
    """The records of a cluster in a MetaStore, and the rules for changing them.

    Methods that change give a `Transaction`, which `commit` sends: the same one again after
    `Unknown`. `new_token` gives 32 random hex digits. Records read are checked: CorruptRecord."""

    def __init__(self, store: MetaStore, new_token: Callable[[], str]) -> None:
        self.store = store
        self._new_token = new_token

    def commit(self, transaction: Transaction) -> Outcome:
        return self.store.commit(transaction.changes)

    def settle(self, transaction: Transaction, tries: int = SETTLE_TRIES) -> Outcome:
        """Commit, so many times while the answer is lost; `Unknown` when it still is then, also
        where the last tries did not get as far as being sent."""
        lost: Unknown | None = None
        outcome: Outcome = Unknown("not tried")
        for _ in range(tries):
            outcome = self.commit(transaction)
            if isinstance(outcome, Unknown):
                lost = outcome
            elif lost is None or not isinstance(outcome, Unavailable):
                return outcome
        return lost or outcome

    # -- reading

    def cluster(self) -> Stored[ClusterRecord] | None:
        return self._read(ClusterRecord, ClusterRecord.prefix)

    def node(self, node_id: str) -> Stored[NodeRecord] | None:
        return self._read(NodeRecord, NodeRecord.prefix + node_id)

    def volume(self, volume_id: str) -> Stored[VolumeGroup] | None:
        return self._read(VolumeGroup, VolumeGroup.prefix + volume_id)

    def volume_named(self, name: str) -> Stored[VolumeGroup] | None:
        """The volume of that name; None as well when it is being renamed right now."""
        found = self._read(NameRecord, NameRecord.prefix + name)
        group = None if found is None else self.volume(found.record.volume_id)
        return group if group is not None and group.record.name == name else None

    def nodes(self) -> Iterator[Stored[NodeRecord]]:
        return self._all(NodeRecord)

    def access(self, volume_id: str) -> Stored[AccessRecord] | None:
        return self._read(AccessRecord, AccessRecord.prefix + volume_id)

    def settings(self, volume_id: str) -> Stored[SettingsRecord] | None:
        return self._read(SettingsRecord, SettingsRecord.prefix + volume_id)

    def reservations(self, volume_id: str) -> Stored[ReservationsRecord] | None:
        return self._read(ReservationsRecord, ReservationsRecord.prefix + volume_id)

    def join_token(self, public_key: str) -> Stored[JoinRecord] | None:
        return self._read(JoinRecord, JoinRecord.prefix + public_key)

    def join_tokens(self) -> Iterator[Stored[JoinRecord]]:
        return self._all(JoinRecord)

    def volumes(self) -> Iterator[Stored[VolumeGroup]]:
        """All volumes, with tombstones."""
        return self._all(VolumeGroup)

    def heartbeats(self) -> Iterator[Stored[Heartbeat]]:
        return self._all(Heartbeat)

    def stored(self, kind: type[R], row: Row | None) -> Stored[R] | None:
        """A row of an outcome, decoded."""
        return None if row is None else Stored(decode(kind, row.key, row.value), row)

    # -- changing

    def found(self, cluster: ClusterRecord, *first: NodeRecord) -> Transaction:
        """Make the cluster with its first node, if there is none."""
        return self._transaction([(None, cluster), *((None, node) for node in first)])

    def raise_map(
        self, old: Stored[ClusterRecord], *rows: tuple[Stored[Any] | None, Record]
    ) -> Transaction:
        """Begin the next epoch of the device map, with `rows` as they are in it."""
        new = replace(old.record, map_epoch=old.record.map_epoch + 1)
        return self._transaction([(old, new), *rows])

    def add_node(self, node: NodeRecord) -> Transaction:
        return self._transaction([(None, node)])

    def invite(self, token: JoinRecord) -> Transaction:
        return self._transaction([(None, token)])

    def uninvite(self, token: Stored[JoinRecord]) -> Transaction:
        return self._transaction([(token, None)])

    def put_access(self, old: Stored[AccessRecord] | None, new: AccessRecord) -> Transaction:
        return self._transaction([(old, new)])

    def put(self, old: Stored[R] | None, new: R | None) -> Transaction:
        """Replace one record by another one, make it, or forget it."""
        return self._transaction([(old, new)])

    def join_node(self, token: Stored[JoinRecord], node: NodeRecord) -> Transaction:
        """Use the token up and add the node: both or nothing."""
        return self._transaction([(token, None), (None, node)])

    def change_node(self, old: Stored[NodeRecord], new: NodeRecord) -> Transaction:
        return self._transaction([(old, new)])

    def remove_node(self, old: Stored[NodeRecord]) -> Transaction:
        return self._transaction([(old, None)])

    def create_volume(self, group: VolumeGroup) -> Transaction:
        """Make the volume and take its name, if neither is there."""
        name = NameRecord(group.name, group.volume_id)
        return self._transaction([(None, group), (None, name)])

    def change_volume(self, old: Stored[VolumeGroup], new: VolumeGroup) -> Transaction:
        """Replace a volume's record; its name stays. EpochGoesBack, CorruptRecord (bounds)."""
        before = old.record
        assert (new.volume_id, new.name) == (before.volume_id, before.name)
        if new.epoch < before.epoch:
            raise EpochGoesBack(new.key, before.epoch, new.epoch, "an epoch only grows")
        moved = (new.primary, new.members) != (before.primary, before.members)
        if moved and new.epoch == before.epoch:
            why = "another primary or other members need a new epoch"
            raise EpochGoesBack(new.key, before.epoch, new.epoch, why)
        return self._transaction([(old, new)])

    def call_member(self, old: Stored[VolumeGroup], coming: str, replaces: str) -> Transaction:
        """Note that a node is to become a member in the place of another one. Who was to come
        before leaves. CorruptRecord (bounds): too many have not let go yet."""
        record = old.record
        return self._transaction(
            [(old, replace(self._uncalled(record), coming=coming, replaces=replaces))]
        )

    def uncall_member(self, old: Stored[VolumeGroup]) -> Transaction:
        """Nobody is to come any more."""
        return self._transaction([(old, self._uncalled(old.record))])

    def change_members(self, old: Stored[VolumeGroup]) -> Transaction:
        """Who was to come is a member, in the place of the other one, which leaves. For the
        primary only, which serves in this epoch and has seen to what
        transport/group/changing.py says: a quorum of the new members has all."""
        record = old.record
        assert record.state is GroupState.OPEN
        assert record.coming is not None
        assert record.replaces is not None
        assert record.primary != record.replaces
        members = tuple(
            record.coming if node == record.replaces else node for node in record.members
        )
        changed = replace(
            record,
            members=members,
            coming=None,
            replaces=None,
            leaving=(*record.leaving, record.replaces),
        )
        return self._transaction([(old, changed)])

    def confirm_volume(self, old: Stored[VolumeGroup]) -> Transaction:
        """The same again: `Done` says that it was so at that moment, which a read cannot."""
        return self._transaction([(old, old.record)])

    def left_volume(self, old: Stored[VolumeGroup], *nodes: str) -> Transaction:
        """These have let their parts go, or are no nodes any more."""
        record = old.record
        leaving = tuple(node for node in record.leaving if node not in nodes)
        return self._transaction([(old, replace(record, leaving=leaving))])

    @staticmethod
    def _uncalled(record: VolumeGroup) -> VolumeGroup:
        if record.coming is None:
            return record
        leaving = (*record.leaving, record.coming)
        return replace(record, coming=None, replaces=None, leaving=leaving)

    def rename_volume(
        self, old: Stored[VolumeGroup], name: str, *rows: tuple[Stored[Any] | None, Record]
    ) -> Transaction:
        """Give a volume another name that is free, with `rows`; the new name's row is the third.
        MetaStoreUnavailable."""
        taken = self._name_of(old)
        new = replace(old.record, name=name)
        return self._transaction(
            [(old, new), (taken, None), (None, NameRecord(name, new.volume_id)), *rows]
        )

    def delete_volume(self, old: Stored[VolumeGroup]) -> Transaction:
        """Free the volume's name and leave a tombstone in its place, which names all that have a
        part to let go. MetaStoreUnavailable.

        A creation whose answer was lost is guarded by absence only, and may still be on its way:
        without a tombstone it could bring the volume back, in its first epoch."""
        record = self._uncalled(old.record)
        gone = replace(
            record,
            state=GroupState.DELETED,
            primary=None,
            epoch=record.epoch + 1,
            leaving=(*record.members, *record.leaving),
        )
        return self._transaction([(old, gone), (self._name_of(old), None)])

    def purge_volume(self, old: Stored[VolumeGroup]) -> Transaction:
        """Forget a deleted volume, with its access list, settings and reservations, whatever is in
        them; hours later, when nothing of its time can be on its way. MetaStoreUnavailable."""
        assert old.record.state is GroupState.DELETED
        prefixes = (AccessRecord.prefix, SettingsRecord.prefix, ReservationsRecord.prefix)
        rows = [self.store.read(prefix + old.record.volume_id) for prefix in prefixes]
        changes = [Change(row.key, row, None) for row in (old.row, *rows) if row is not None]
        check_changes(changes)
        return Transaction(tuple(changes))

    def beat(self, node_id: str, time_ns: int, ttl_s: int) -> bool:
        """Say that a node lives; whether that was heard. Decides nothing."""
        beat = Heartbeat(node_id, time_ns, self._new_token())
        return self.store.hint(beat.key, encode(beat), ttl_s)

    # -- inner

    def _name_of(self, group: Stored[VolumeGroup]) -> Stored[NameRecord]:
        key = NameRecord.prefix + group.record.name
        found = self._read(NameRecord, key)
        if found is None or found.record.volume_id != group.record.volume_id:
            # Only a changed volume row can explain that, and then the transaction would be lost.
            raise MetaStoreUnavailable(f"metastore: {key} is another volume's; read it again")
        return found

    def _transaction(self, pairs: Sequence[tuple[Stored[Any] | None, Any]]) -> Transaction:
        token = self._new_token()
        changes = []
        for old, new in pairs:
            row = None if old is None else old.row
            if new is None:
                assert row is not None
                changes.append(Change(row.key, row, None))
            else:
                record = replace(new, token=token)
                changes.append(Change(record.key, row, encode(record)))
        check_changes(changes)
        return Transaction(tuple(changes))

    def _read(self, kind: type[R], key: str) -> Stored[R] | None:
        return self.stored(kind, self.store.read(key))

    def rows(self, kind: type[Record], page: int = PAGE) -> Iterator[Row]:
        """All rows of a kind as they are, by key, read `page` of them at a time.
        MetaStoreUnavailable."""
        after = ""
        while True:
            rows = self.store.list(kind.prefix, after, page)
            yield from rows
            if len(rows) < page:
                return
            after = rows[-1].key

    def _all(self, kind: type[R]) -> Iterator[Stored[R]]:
        for row in self.rows(kind):
            yield Stored(decode(kind, row.key, row.value), row)
