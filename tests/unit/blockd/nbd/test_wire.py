"""The numbers of the protocol text, written out once more: a typo in wire.py fools both sides."""

from struct import Struct

import pytest

from blockd.nbd import wire


@pytest.mark.parametrize(
    ("value", "literal"),
    [
        (wire.INIT_MAGIC, int.from_bytes(b"NBDMAGIC", "big")),
        (wire.OPTION_MAGIC, int.from_bytes(b"IHAVEOPT", "big")),
        (wire.OPTION_REPLY_MAGIC, 0x3E889045565A9),
        (wire.REQUEST_MAGIC, 0x25609513),
        (wire.EXTENDED_REQUEST_MAGIC, 0x21E41C71),
        (wire.SIMPLE_REPLY_MAGIC, 0x67446698),
        (wire.STRUCTURED_REPLY_MAGIC, 0x668E33EF),
        (wire.EXTENDED_REPLY_MAGIC, 0x6E8A278C),
        (wire.REP_ERR_UNSUP, 0x80000001),
        (wire.REP_ERR_EXT_HEADER_REQD, 0x8000000A),
        (wire.REPLY_TYPE_ERROR, 32769),
        (wire.REPLY_TYPE_ERROR_OFFSET, 32770),
        (wire.FLAG_BLOCK_STATUS_PAYLOAD, 4096),
        (wire.FLAG_SEND_FAST_ZERO, 2048),
        (wire.CMD_FLAG_PAYLOAD_LEN, 32),
    ],
)
def test_constant_is_the_protocol_texts(value: int, literal: int) -> None:
    assert value == literal


@pytest.mark.parametrize(
    ("layout", "size"),
    [
        (wire.GREETING, 18),
        (wire.OPTION_HEADER, 16),
        (wire.OPTION_REPLY, 20),
        (wire.EXPORT_NAME_REPLY, 10),
        (wire.INFO_EXPORT_ITEM, 12),
        (wire.INFO_BLOCK_SIZE_ITEM, 14),
        (wire.REQUEST, 28),
        (wire.EXTENDED_REQUEST, 32),
        (wire.SIMPLE_REPLY, 16),
        (wire.STRUCTURED_REPLY, 20),
        (wire.EXTENDED_REPLY, 32),
        (wire.CHUNK_HOLE, 12),
        (wire.CHUNK_ERROR, 6),
        (wire.STATUS_EXTENT, 8),
        (wire.STATUS_EXTENT_EXT, 16),
    ],
)
def test_struct_has_the_protocol_texts_size(layout: Struct, size: int) -> None:
    assert layout.size == size
