"""HEAD records: a second copy, in the journal, of what `meta/` says of a volume.

    commit id (32)   of the head, as in the volume record; zeros before the first
    commit           what the volume is: uuid, name, sizes, epoch, and the head's tree and seq

A destage round appends one for each head that it moves. So does everything else that makes a volume
what it is: making, cloning, restoring, resizing and renaming it; deleting it appends one whose size
is 0. The change itself is durable in `meta/` before; a record that a crash or a full journal has
prevented is made up for by the next round.

A round also appends one for each volume whose last one is in a segment that may go now. So what is
left of the log always has one for every volume, and `volume.rebuild` can tell from it which records
belong to which volume, over which tree, when `meta/` is gone or is an old copy.
"""

from volume.commits import Commit, decode, encode
from volume.errors import CorruptJournal, CorruptManifest
from volume.layout import CHUNK_ID_LENGTH, ZERO_ID, ChunkId
from volume.meta import VolumeRecord

SITE = "local"
WRITER = "blockd"


def described(record: VolumeRecord, time_ns: int, *, gone: bool = False) -> bytes:
    """The payload for a volume as `record` has it; `gone`: it was deleted."""
    head = record.head
    commit = Commit(
        volume_uuid=record.uuid,
        name=record.name,
        size=0 if gone else record.size,
        block_size=record.block_size,
        chunk_size=record.chunk_size,
        height=head.height,
        root=head.root,
        parents=() if head.commit == ZERO_ID else (head.commit,),
        first_seq=head.seq,
        last_seq=head.seq,
        time_ns=time_ns,
        epoch=record.epoch,
        site=SITE,
        writer=WRITER,
    )
    return payload(head.commit, commit)


def payload(commit_id: ChunkId, commit: Commit) -> bytes:
    return commit_id + encode(commit)


def parsed(data: bytes, lsn: int) -> tuple[ChunkId, Commit]:
    """Commit id and description of the record `lsn`. CorruptJournal when it makes no sense."""
    what = f"journal: record {lsn} says what a volume is, but"
    if len(data) < CHUNK_ID_LENGTH:
        raise CorruptJournal(f"{what} has {len(data)} bytes only")
    try:
        return data[:CHUNK_ID_LENGTH], decode(data[CHUNK_ID_LENGTH:], what)
    except CorruptManifest as error:
        raise CorruptJournal(str(error)) from error
