"""The store's bytes on disk: magics, versions and structs of packs, manifests, commits and LMDB.

No logic lives here: `docs/disk-format.md` shows the same tables for people, the modules named in
each section read and write them. All integers are little-endian, except in LMDB keys, where they
are big-endian so that they sort by value. Reserved bytes are written as zeros. Everything carries
a magic and a version; what is unknown is refused, never guessed.
"""

import struct
from typing import TypeAlias

ChunkId: TypeAlias = bytes
"""BLAKE3-256 of a chunk's plaintext, 32 bytes. Of a damaged one (KIND_DAMAGED): of DAMAGED_MAGIC,
the u32 count and the u32 numbers of its lost pages, and its bytes."""

DAMAGED_MAGIC = b"BLKDLOST"
CHUNK_ID_LENGTH = 32
ZERO_ID: ChunkId = bytes(CHUNK_ID_LENGTH)
"""Stands for a chunk, or a whole subtree of a manifest, that is all zeros. Nothing is stored."""

# -- packs (volume.packfile) ----------------------------------------------------------------------

PACK_VERSION = 1
PACK_HEADER_MAGIC = b"BLKDPACK"
PACK_HEADER = struct.Struct("<8s I I 16s 28x I")
"""magic, version, pack number, store uuid, reserved, crc32c of the 60 bytes before it."""

ENTRY_MAGIC = b"BENT"
ENTRY_HEADER = struct.Struct("<4s B B H I I I I 32s I I")
"""magic, kind, codec, flags, pack number, offset in the pack, raw length, stored length, chunk id,
crc32c of the page table, crc32c of the 60 bytes before it."""

ENTRY_ALIGNMENT = 64
PAGE_SIZE = 4096  # stored bytes that one crc32c of an entry's page table covers

FOOTER_ROW = struct.Struct("<32s I I I B B 2x")
"""chunk id, offset, stored length, raw length, kind, codec, reserved: one for each entry."""

TRAILER_MAGIC = b"BLKDFOOT"
TRAILER = struct.Struct("<8s I I 16s I I I 16x I")
"""magic, version, pack number, store uuid, entry count, offset of the footer rows, crc32c of the
rows, reserved, crc32c of the 60 bytes before it. The last 64 bytes of a sealed pack."""

KIND_DATA = 1
KIND_NODE = 2
KIND_COMMIT = 3
KIND_DAMAGED = 4
"""A data chunk that was put together when some of its pages could not be read any more. Where the
page table has the inverse of a page's crc32c, the page is lost: it reads as an error for ever."""
KIND_NAMES = {
    KIND_DATA: "data",
    KIND_NODE: "node",
    KIND_COMMIT: "commit",
    KIND_DAMAGED: "damaged data",
}

# -- manifest nodes (volume.manifest) -------------------------------------------------------------

NODE_MAGIC = b"BMAN"
NODE_VERSION = 1
NODE_HEADER = struct.Struct("<4s H B x H 6x")
"""magic, version, level (0 = leaf), reserved, count of ids that follow the bitmap, reserved."""

FAN_OUT = 256  # ids in a node, at every level
NODE_BITMAP_LENGTH = FAN_OUT // 8
NODE_IDS_LENGTH = FAN_OUT * CHUNK_ID_LENGTH

# -- commits (volume.commits) ---------------------------------------------------------------------

COMMIT_MAGIC = b"BCMT"
COMMIT_VERSION = 1
COMMIT_HEADER = struct.Struct("<4s H B B 16s Q I I 32s Q Q Q Q")
"""magic, version, height, parent count, volume uuid, size, block size, chunk size, root, first
seq, last seq, time in ns, epoch. Then the parents, and name, site and writer as strings."""

STRING_LENGTH = struct.Struct("<H")  # bytes of UTF-8 that follow

# -- meta/ (volume.meta) --------------------------------------------------------------------------

META_MAGIC = b"BLKDMETA"
META_VERSION = 1
META_VALUE_VERSION = 1  # first byte of every value in meta/; a crc32c of the rest is its tail
META_CRC = struct.Struct("<I")

META_KEY_STORE = b"store"
META_KEY_NODE_EPOCH = b"node-epoch"
META_KEY_NEXT_VOLUME = b"next-volume"
META_KEY_CHECKPOINT = b"checkpoint"
META_KEY_SEALED = b"sealed"
META_KEY_INDEX_TRUST = b"index-trust"
META_KEY_POINTS_LSN = b"points-lsn"
META_KEY_BACKUP = b"backup"
META_PREFIX_VOLUME = b"v/"  # + number, u32 big-endian -> volume record
META_PREFIX_NAME = b"n/"  # + name, UTF-8 -> number

META_STORE = struct.Struct("<8s I 16s Q")
"""magic, format version of the data directory, store uuid, creation time in ns."""
META_BACKUP = struct.Struct("<Q Q")
"""time of the copy in ns, lsn of the last record of the journal then. In copies only."""
META_U64 = struct.Struct("<Q")
META_U32 = struct.Struct("<I")
META_NUMBER_KEY = struct.Struct(">I")
META_INDEX_TRUST = struct.Struct("<B")
"""1 = closed cleanly. The boot id (UTF-8) follows."""
META_VOLUME = struct.Struct("<I 16s Q I I Q Q 32s 32s B Q H")
"""number, uuid, size, block size, chunk size, creation time in ns, epoch, head commit, head root,
head height, head seq, length of the name. The name (UTF-8) follows."""

META_PREFIX_VERSION = b"c/"  # + number and seq, big-endian -> version row in chunks
META_PREFIX_POINT = b"q/"  # + number and seq, big-endian -> version row that is not in chunks yet
META_PREFIX_SNAPSHOT = b"s/"  # + number, big-endian, + name, UTF-8 -> snapshot row
META_PREFIX_DROPPED = b"d/"  # + number, seq of the NOTE, big-endian, + name -> its snapshot row
META_PREFIX_ROUND = b"r/"  # + next lsn, big-endian -> round row
META_PREFIX_SETTINGS = b"h/"  # + number, big-endian -> settings row
META_PREFIX_STATE = b"x/"  # + a name: state of long work (scrub, receives), opaque here
META_PREFIX_TREE = b"t/"  # + root and height, u8, of a tree that the log refers to -> tree row

META_TREE_ROW = struct.Struct("<I")
"""chunk size."""
META_VERSION_KEY = struct.Struct(">I Q")
META_VERSION_ROW = struct.Struct("<Q Q Q 32s 32s B Q Q")
"""epoch, lsn of the last record in it, time in ns, commit, root, height, size, changed bytes."""
META_SNAPSHOT_ROW = struct.Struct("<Q Q B")
"""seq of its version row, creation time in ns, flags."""
SNAPSHOT_PINNED = 1
SNAPSHOT_SCHEDULED = 2
META_ROUND_KEY = struct.Struct(">Q")
META_ROUND_ROW = struct.Struct("<Q Q I Q")
"""segment sequence, position in the segment, chain, time in ns: where the log goes on after it."""
META_SETTINGS_ROW = struct.Struct("<I I Q B B B")
"""window in s, snapshot interval in s (0: none), time of the next one in ns, codec, lengths of the
two strings that follow: what versions, and what scheduled snapshots, are kept."""

# -- POINT records of the journal (volume.points) --------------------------------------------------

POINT_COUNT = struct.Struct("<I")  # volumes that follow
POINT_VOLUME = struct.Struct("<I Q")
"""number and seq; the native journal writes count and volumes."""
POINT_VERSION = 1
POINT_HEADER = struct.Struct("<B B Q H")
"""version, flags (SNAPSHOT_*), time in ns, length of the name. The name (UTF-8, may be empty)
follows, then of each volume:"""
POINT_STATE = struct.Struct("<Q Q")
"""epoch and size."""

# -- index/ (volume.index) ------------------------------------------------------------------------

INDEX_KEY_FORMAT = b"format"
INDEX_VERSION = 1
INDEX_FORMAT = struct.Struct("<8s I 16s")
"""magic, version, store uuid."""
INDEX_MAGIC = b"BLKDINDX"
INDEX_KEY_NEWEST = b"newest"  # -> u32, the highest pack that a place was ever in
INDEX_PREFIX_CHUNK = b"c"  # + chunk id -> place
INDEX_PLACE = struct.Struct("<I I I I I B B 2x")
"""pack number, offset, stored length, raw length, ordinal in the pack, codec, kind, reserved."""
