"""A commit: one version of a volume, sealed into a manifest tree and named by its hash.

It is a chunk like any other, of kind commit; its id is the BLAKE3-256 of `encode`. Everything that
a version needs to be read is in it, so a commit id alone is enough to export it anywhere.
"""

from dataclasses import dataclass

from volume import layout
from volume.chunks import ChunkStore
from volume.errors import CorruptManifest
from volume.layout import CHUNK_ID_LENGTH, KIND_COMMIT, ChunkId

MAX_PARENTS = 16  # a merge of that many heads is nobody's wish
MAX_STRING_BYTES = 512


@dataclass(frozen=True, slots=True)
class Commit:
    """A version of a volume. Sizes are bytes; the seq range is of journal records, both ends in."""

    volume_uuid: bytes
    name: str
    """Of the volume, at that time."""
    size: int
    block_size: int
    chunk_size: int
    height: int
    root: ChunkId
    parents: tuple[ChunkId, ...]
    first_seq: int
    last_seq: int
    time_ns: int
    epoch: int
    site: str
    writer: str


def encode(commit: Commit) -> bytes:
    assert len(commit.parents) <= MAX_PARENTS
    header = layout.COMMIT_HEADER.pack(
        layout.COMMIT_MAGIC,
        layout.COMMIT_VERSION,
        commit.height,
        len(commit.parents),
        commit.volume_uuid,
        commit.size,
        commit.block_size,
        commit.chunk_size,
        commit.root,
        commit.first_seq,
        commit.last_seq,
        commit.time_ns,
        commit.epoch,
    )
    parts = [header, *commit.parents]
    for text in (commit.name, commit.site, commit.writer):
        data = text.encode()
        assert len(data) <= MAX_STRING_BYTES, text
        parts += [layout.STRING_LENGTH.pack(len(data)), data]
    return b"".join(parts)


def decode(data: bytes, what: str = "commit") -> Commit:
    """The commit that `data` is. CorruptManifest, beginning with `what`, when it is none."""
    fixed = layout.COMMIT_HEADER
    if len(data) < fixed.size:
        raise CorruptManifest(f"{what}: {len(data)} bytes are too few")
    magic, version, height, parent_count, uuid, size, block_size, chunk_size, root, *numbers = (
        fixed.unpack_from(data)
    )
    if magic != layout.COMMIT_MAGIC or version != layout.COMMIT_VERSION:
        raise CorruptManifest(f"{what}: magic {magic!r}, version {version} are not known")
    if parent_count > MAX_PARENTS:
        raise CorruptManifest(f"{what}: claims {parent_count} parents, {MAX_PARENTS} are the most")
    offset = fixed.size + parent_count * CHUNK_ID_LENGTH
    parents = tuple(
        data[at : at + CHUNK_ID_LENGTH] for at in range(fixed.size, offset, CHUNK_ID_LENGTH)
    )
    name, offset = _string(data, offset, what)
    site, offset = _string(data, offset, what)
    writer, offset = _string(data, offset, what)
    if offset != len(data):
        raise CorruptManifest(f"{what}: {len(data)} bytes long instead of {offset}")
    first_seq, last_seq, time_ns, epoch = numbers
    return Commit(
        uuid,
        name,
        size,
        block_size,
        chunk_size,
        height,
        root,
        parents,
        first_seq,
        last_seq,
        time_ns,
        epoch,
        site,
        writer,
    )


def _string(data: bytes, offset: int, what: str) -> tuple[str, int]:
    """The string at `offset` and where it ends."""
    start = offset + layout.STRING_LENGTH.size
    if start > len(data):
        raise CorruptManifest(f"{what}: ends at byte {len(data)}, in a string")
    (length,) = layout.STRING_LENGTH.unpack_from(data, offset)
    if length > MAX_STRING_BYTES or start + length > len(data):
        raise CorruptManifest(f"{what}: a string at byte {offset} claims {length} bytes")
    try:
        return data[start : start + length].decode(), start + length
    except UnicodeDecodeError as error:
        raise CorruptManifest(f"{what}: a string at byte {offset} is not UTF-8") from error


def put_commit(store: ChunkStore, commit: Commit) -> ChunkId:
    """Store a commit and return its id; durable after `store.sync`."""
    return store.put(encode(commit), KIND_COMMIT)


def get_commit(store: ChunkStore, commit_id: ChunkId) -> Commit:
    """The commit of that id. CorruptManifest, and the errors of `ChunkStore.get`."""
    return decode(store.get(commit_id), f"commit {commit_id.hex()}")
