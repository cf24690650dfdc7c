"""What can go wrong in a volume or its data directory, as facts.

    VolumeError
      NoSuchVolume  VolumeExists  VolumeBusy  InvalidSize  ShrinkRefused
      InvalidName
        InvalidSnapshotName
      NoSuchVersion
        NeedsAll
      VersionsBusy  SnapshotExists  SnapshotPinned  VolumeHasSnapshots
      InvalidPolicy
        InvalidDuration
      OutOfSpace
        JournalFull
      StoreSealed   StoreClosing  DirectoryLocked  UnknownFormat
      MetaLost  OldMeta
      VolumeReplicated
      CannotRestore
      ReplicaError
        StaleEpoch  MissingRecords  OtherRecords  BadRecords
      CorruptData
        CorruptChunk  CorruptJournal  CorruptPack  CorruptManifest  ChunkAwaited

`WouldWait` beside them is no failure.

Each message names the object, the value and the way out. Front ends translate once: one table in
`blockd/nbd` makes NBD errors, `blockd/api` makes HTTP statuses by `code`.
"""


class VolumeError(Exception):
    """Base of all errors that volume raises on purpose. `code` is stable and machine-readable."""

    code = "volume_error"


class WouldWait(Exception):
    """Asked not to wait, a call that would have to: call it again on a thread that may."""


class NoSuchVolume(VolumeError):
    code = "no_such_volume"

    def __init__(self, name: str) -> None:
        super().__init__(f"volume {name}: there is none; `blockd volume list` shows what there is")
        self.name = name


class VolumeExists(VolumeError):
    code = "volume_exists"

    def __init__(self, name: str) -> None:
        super().__init__(f"volume {name}: exists already; choose another name or delete it first")
        self.name = name


class VolumeBusy(VolumeError):
    code = "volume_busy"

    def __init__(self, name: str, clients: list[str]) -> None:
        shown = ", ".join(clients[:3]) + (", ..." if len(clients) > 3 else "")
        super().__init__(
            f"volume {name}: attached by {len(clients)} client(s) ({shown}); "
            "detach them first or use --force"
        )
        self.name = name


class InvalidName(VolumeError):
    code = "invalid_name"
    what = "volume"
    marks = "'.', '_', '-' or ':'"

    def __init__(self, name: str, why: str) -> None:
        super().__init__(
            f"{self.what} name {name!r}: {why}; use 1 to 128 letters, digits, {self.marks}, "
            "starting with a letter or digit"
        )


class InvalidSnapshotName(InvalidName):
    what = "snapshot"
    marks = "'.', '_' or '-'"


class InvalidSize(VolumeError):
    code = "invalid_size"

    def __init__(self, what: str, value: int, why: str) -> None:
        super().__init__(f"{what} {value}: {why}")


class ShrinkRefused(VolumeError):
    code = "shrink_refused"

    def __init__(self, name: str, size: int, wanted: int) -> None:
        super().__init__(
            f"volume {name}: resize from {size} to {wanted} bytes would cut off data; "
            "use --force if that is meant"
        )


class NoSuchVersion(VolumeError):
    """A snapshot, commit, seq or time that is not (or no longer) there."""

    code = "no_such_version"

    def __init__(self, volume: str, ref: str, why: str = "there is none") -> None:
        super().__init__(
            f"version {volume}@{ref}: {why}; `blockd volume log {volume}` shows what there is"
        )


class NeedsAll(NoSuchVersion):
    """A part of a volume that several nodes have goes on only with all of the volume, and what is
    here of it does not count: every state that has a name has to come as well."""


class VersionsBusy(VolumeError):
    code = "versions_busy"

    def __init__(self, name: str, limit: int) -> None:
        super().__init__(
            f"version {name}: {limit} past versions are open, which is the limit; detach one first"
        )


class SnapshotExists(VolumeError):
    code = "snapshot_exists"

    def __init__(self, volume: str, name: str) -> None:
        super().__init__(
            f"snapshot {volume}@{name}: exists already; choose another name or delete it first"
        )


class SnapshotPinned(VolumeError):
    code = "snapshot_pinned"

    def __init__(self, volume: str, name: str) -> None:
        super().__init__(f"snapshot {volume}@{name}: is pinned; unpin it first or use --force")


class VolumeHasSnapshots(VolumeError):
    code = "volume_has_snapshots"

    def __init__(self, name: str, count: int) -> None:
        super().__init__(
            f"volume {name}: has {count} snapshot(s), which go with it; delete them first or use "
            "--force"
        )


class InvalidPolicy(VolumeError):
    code = "invalid_policy"
    what = "policy"
    form = "24h,7d,4w: a count and one of s, m, h, d, w each"

    def __init__(self, text: str, why: str) -> None:
        super().__init__(f"{self.what} {text!r}: {why}; write it as {self.form}")


class InvalidDuration(InvalidPolicy):
    what = "duration"
    form = "15m or 1h30m: a count and one of s, m, h, d, w"


class OutOfSpace(VolumeError):
    code = "out_of_space"


class JournalFull(OutOfSpace):
    """For now: destaging frees journal space."""


class StoreSealed(VolumeError):
    """A sync failed: what the disk holds is no longer known, so nothing is written any more."""

    code = "store_sealed"

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"the data directory is sealed: {reason}; no more writes are taken. Check the disk, "
            "then restart with `blockd doctor --unseal`"
        )
        self.reason = reason


class StoreClosing(VolumeError):
    """What takes long was given up, since the store closes. Nothing is lost by it."""

    code = "store_closing"

    def __init__(self) -> None:
        super().__init__("the store is being closed; try again when it is open")


class DirectoryLocked(VolumeError):
    code = "directory_locked"

    def __init__(self, path: str, holder: str) -> None:
        super().__init__(f"data directory {path}: in use by {holder}; stop it first")


class UnknownFormat(VolumeError):
    code = "unknown_format"

    def __init__(self, path: str, what: str) -> None:
        super().__init__(f"{path}: {what}; it was written by another version, or is not blockd's")


class MetaLost(VolumeError):
    """There is data, but no `meta/` that says whose it is. Making a new one would hide it."""

    code = "meta_lost"

    def __init__(self, path: str) -> None:
        super().__init__(
            f"data directory {path}: meta/ is gone or empty, but journal/ or packs/ hold data; "
            f"make it anew: blockd doctor --rebuild-meta --data {path} "
            "(with --from COPY, if there is one of backup-meta)"
        )


class OldMeta(VolumeError):
    """`meta/` is a copy of an earlier time: what happened since would be forgotten with it."""

    code = "old_meta"

    def __init__(self, why: str) -> None:
        super().__init__(
            f"meta/ is an old copy: {why}. Opening the store with it would lose what was written "
            "since. Move meta/ away and let it be brought up to date: blockd doctor "
            "--rebuild-meta --from COPY/data.mdb --data DIR"
        )


_WAYS_OUT = {
    "delete": "; ask its primary, which `blockd cluster status` names",
    "rename": "; ask its primary, which `blockd cluster status` names",
}


class VolumeReplicated(VolumeError):
    """What may not be done to one node's part of a volume that several nodes have."""

    code = "volume_replicated"

    def __init__(self, name: str, what: str) -> None:
        way = _WAYS_OUT.get(what, "")
        super().__init__(
            f"volume {name}: is mirrored to other nodes, so this node alone cannot {what} it{way}"
        )


class NotPrimary(VolumeError):
    """What only the primary of a volume does."""

    code = "not_primary"

    def __init__(self, name: str) -> None:
        super().__init__(
            f"volume {name}: this node is not its primary now; ask that one: `blockd cluster "
            "status` says which it is"
        )


class CannotRestore(VolumeError):
    """A volume that several nodes have stays as it is."""

    code = "cannot_restore"

    def __init__(self, name: str, why: str) -> None:
        super().__init__(f"volume {name}: stays as it is: {why}")


class MixedGroup(VolumeError):
    """Volumes that cannot get one name at one moment."""

    code = "mixed_group"

    def __init__(self, name: str, mirrored: list[str], most: int) -> None:
        names = ", ".join(mirrored[:8])
        super().__init__(
            f"snapshot {name}: a group is either of volumes that one node has, or of up to {most} "
            f"that several nodes have; mirrored are {names}. Make two groups of them"
        )


class NotConfirmed(VolumeError):
    """What was done here may be undone by a takeover, or not."""

    code = "not_confirmed"

    def __init__(self, name: str, what: str) -> None:
        super().__init__(
            f"volume {name}: {what} is in this node's journal, but not enough other nodes have "
            "said that they have it: whether it holds is not known. See `blockd cluster status`, "
            "and look again once the volume has its copies"
        )


class ReplicaError(VolumeError):
    """What another node asks of this one's part of a volume cannot be done. Nothing was."""

    code = "replica_error"


class StaleEpoch(ReplicaError):
    """Asked in the name of an epoch that has been followed by another one."""

    code = "stale_epoch"

    def __init__(self, name: str, epoch: int, promised: int) -> None:
        super().__init__(
            f"volume {name}: epoch {epoch} is over here: epoch {promised} was promised; whoever "
            "writes in it has to stop"
        )
        self.promised = promised


class MissingRecords(ReplicaError):
    """Records before these are not here."""

    code = "missing_records"

    def __init__(self, name: str, have: int, first: int) -> None:
        super().__init__(f"volume {name}: has records up to {have}, so not {first} next")
        self.have = have


class OtherRecords(ReplicaError):
    """The records here are not those that are gone on from: they have to be undone first."""

    code = "other_records"

    def __init__(self, name: str, what: str) -> None:
        super().__init__(f"volume {name}: {what}; seal it again and compare what it has")


class BadRecords(ReplicaError):
    """Bytes that are not records, or not such as a member takes."""

    code = "bad_records"

    def __init__(self, name: str, why: str) -> None:
        super().__init__(f"volume {name}: records of another node: {why}")


class CorruptData(VolumeError):
    """Stored bytes are not what was written. Never answered with zeros or old data."""

    code = "corrupt_data"
    chunk_id: bytes | None = None
    """The chunk that another store may have whole; None when that would be no help."""


class CorruptChunk(CorruptData):
    code = "corrupt_chunk"


class CorruptJournal(CorruptData):
    code = "corrupt_journal"


class CorruptPack(CorruptData):
    code = "corrupt_pack"


class CorruptManifest(CorruptData):
    code = "corrupt_manifest"


class ChunkAwaited(CorruptData):
    """It is damaged here, and other nodes are asked for it."""
