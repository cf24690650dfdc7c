"""C kernels and the hot path of blockd, typed.

The extension is required: when it is missing the daemon stops and says how to build it. Nothing in
here decides policy; `native.reference` holds one slow, obvious Python twin of each kernel.
"""

try:
    from native._native import (
        CHUNK_DECODED,
        CHUNK_HOLE,
        CHUNK_PACKED,
        CHUNK_RAW,
        FLAG_FAST_ZERO,
        FLAG_FUA,
        FLAG_IF_SEQ,
        FLAG_NO_HOLE,
        OP_BLOCK_STATUS,
        OP_CACHE,
        OP_FLUSH,
        OP_READ,
        OP_UNMAP,
        OP_WRITE,
        OP_WRITE_ZEROES,
        PLACE_DATA,
        PLACE_REFER,
        PLACE_ZERO,
        REFERRED,
        Journal,
        PackFile,
        PlaceTable,
        ReadFault,
        Request,
        VolumeCore,
        crc32c,
        crc32c_pages,
        decode,
        decode_segment_header,
        encode,
        is_zero,
    )
except ImportError as error:  # no quiet fallback: the store is not safe without its kernels
    raise ImportError(
        f"blockd's native extension does not load ({error}); build it with: pip install -e ."
    ) from error

__all__ = [
    "CHUNK_DECODED",
    "CHUNK_HOLE",
    "CHUNK_PACKED",
    "CHUNK_RAW",
    "FLAG_FAST_ZERO",
    "FLAG_FUA",
    "FLAG_IF_SEQ",
    "FLAG_NO_HOLE",
    "OP_BLOCK_STATUS",
    "OP_CACHE",
    "OP_FLUSH",
    "OP_READ",
    "OP_UNMAP",
    "OP_WRITE",
    "OP_WRITE_ZEROES",
    "PLACE_DATA",
    "PLACE_REFER",
    "PLACE_ZERO",
    "REFERRED",
    "Journal",
    "PackFile",
    "PlaceTable",
    "ReadFault",
    "Request",
    "VolumeCore",
    "crc32c",
    "crc32c_pages",
    "decode",
    "decode_segment_header",
    "encode",
    "is_zero",
]
