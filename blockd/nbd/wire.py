"""The NBD wire format: constants and structs in the order of the protocol text. No logic.

All integers are big-endian. "cookie" is what older texts call handle.
"""

from struct import Struct
from typing import Final

# --- Handshake -----------------------------------------------------------------------------------

INIT_MAGIC: Final = 0x4E42444D41474943  # "NBDMAGIC"
OPTION_MAGIC: Final = 0x49484156454F5054  # "IHAVEOPT"
OPTION_REPLY_MAGIC: Final = 0x0003E889045565A9

GREETING: Final = Struct(">QQH")  # INIT_MAGIC, OPTION_MAGIC, handshake flags
CLIENT_FLAGS: Final = Struct(">I")
OPTION_HEADER: Final = Struct(">QII")  # OPTION_MAGIC, option, length
OPTION_REPLY: Final = Struct(">QIII")  # OPTION_REPLY_MAGIC, option, reply type, length
EXPORT_NAME_REPLY: Final = Struct(">QH")  # size, transmission flags
EXPORT_NAME_ZEROES: Final = 124  # bytes after EXPORT_NAME_REPLY, unless C_NO_ZEROES

MAX_STRING: Final = 4096  # bytes; "MUST be no longer"

# Handshake flags (server) and client flags.
FLAG_FIXED_NEWSTYLE: Final = 1 << 0
FLAG_NO_ZEROES: Final = 1 << 1
FLAG_C_FIXED_NEWSTYLE: Final = 1 << 0
FLAG_C_NO_ZEROES: Final = 1 << 1

# Transmission flags.
FLAG_HAS_FLAGS: Final = 1 << 0
FLAG_READ_ONLY: Final = 1 << 1
FLAG_SEND_FLUSH: Final = 1 << 2
FLAG_SEND_FUA: Final = 1 << 3
FLAG_ROTATIONAL: Final = 1 << 4
FLAG_SEND_TRIM: Final = 1 << 5
FLAG_SEND_WRITE_ZEROES: Final = 1 << 6
FLAG_SEND_DF: Final = 1 << 7
FLAG_CAN_MULTI_CONN: Final = 1 << 8
FLAG_SEND_RESIZE: Final = 1 << 9
FLAG_SEND_CACHE: Final = 1 << 10
FLAG_SEND_FAST_ZERO: Final = 1 << 11
FLAG_BLOCK_STATUS_PAYLOAD: Final = 1 << 12

OPT_EXPORT_NAME: Final = 1
OPT_ABORT: Final = 2
OPT_LIST: Final = 3
OPT_PEEK_EXPORT: Final = 4  # withdrawn
OPT_STARTTLS: Final = 5
OPT_INFO: Final = 6
OPT_GO: Final = 7
OPT_STRUCTURED_REPLY: Final = 8
OPT_LIST_META_CONTEXT: Final = 9
OPT_SET_META_CONTEXT: Final = 10
OPT_EXTENDED_HEADERS: Final = 11

REP_ACK: Final = 1
REP_SERVER: Final = 2
REP_INFO: Final = 3
REP_META_CONTEXT: Final = 4
REP_ERR: Final = 1 << 31  # set in every error reply
REP_ERR_UNSUP: Final = REP_ERR + 1
REP_ERR_POLICY: Final = REP_ERR + 2
REP_ERR_INVALID: Final = REP_ERR + 3
REP_ERR_PLATFORM: Final = REP_ERR + 4
REP_ERR_TLS_REQD: Final = REP_ERR + 5
REP_ERR_UNKNOWN: Final = REP_ERR + 6
REP_ERR_SHUTDOWN: Final = REP_ERR + 7
REP_ERR_BLOCK_SIZE_REQD: Final = REP_ERR + 8
REP_ERR_TOO_BIG: Final = REP_ERR + 9
REP_ERR_EXT_HEADER_REQD: Final = REP_ERR + 10

INFO_EXPORT: Final = 0
INFO_NAME: Final = 1
INFO_DESCRIPTION: Final = 2
INFO_BLOCK_SIZE: Final = 3

UINT16: Final = Struct(">H")
UINT32: Final = Struct(">I")
INFO_EXPORT_ITEM: Final = Struct(">HQH")  # INFO_EXPORT, size, transmission flags
INFO_BLOCK_SIZE_ITEM: Final = Struct(">HIII")  # INFO_BLOCK_SIZE, minimum, preferred, maximum

# --- Transmission --------------------------------------------------------------------------------

REQUEST_MAGIC: Final = 0x25609513
EXTENDED_REQUEST_MAGIC: Final = 0x21E41C71
SIMPLE_REPLY_MAGIC: Final = 0x67446698
STRUCTURED_REPLY_MAGIC: Final = 0x668E33EF
EXTENDED_REPLY_MAGIC: Final = 0x6E8A278C

REQUEST: Final = Struct(">IHHQQI")  # magic, flags, command, cookie, offset, length
EXTENDED_REQUEST: Final = Struct(">IHHQQQ")
SIMPLE_REPLY: Final = Struct(">IIQ")  # magic, error, cookie
STRUCTURED_REPLY: Final = Struct(">IHHQI")  # magic, flags, type, cookie, payload length
EXTENDED_REPLY: Final = Struct(">IHHQQQ")  # magic, flags, type, cookie, offset, payload length

CMD_FLAG_FUA: Final = 1 << 0
CMD_FLAG_NO_HOLE: Final = 1 << 1
CMD_FLAG_DF: Final = 1 << 2
CMD_FLAG_REQ_ONE: Final = 1 << 3
CMD_FLAG_FAST_ZERO: Final = 1 << 4
CMD_FLAG_PAYLOAD_LEN: Final = 1 << 5

REPLY_FLAG_DONE: Final = 1 << 0

REPLY_TYPE_NONE: Final = 0
REPLY_TYPE_OFFSET_DATA: Final = 1
REPLY_TYPE_OFFSET_HOLE: Final = 2
REPLY_TYPE_BLOCK_STATUS: Final = 5
REPLY_TYPE_BLOCK_STATUS_EXT: Final = 6
REPLY_TYPE_ERROR: Final = (1 << 15) + 1
REPLY_TYPE_ERROR_OFFSET: Final = (1 << 15) + 2

CHUNK_OFFSET: Final = Struct(">Q")  # in front of the bytes of OFFSET_DATA
CHUNK_HOLE: Final = Struct(">QI")  # offset, hole size
CHUNK_ERROR: Final = Struct(">IH")  # error, message length; message; ERROR_OFFSET: CHUNK_OFFSET
CHUNK_STATUS: Final = Struct(">I")  # context id; then STATUS_EXTENT each
CHUNK_STATUS_EXT: Final = Struct(">II")  # context id, descriptor count; then STATUS_EXTENT_EXT
STATUS_EXTENT: Final = Struct(">II")  # length, status
STATUS_EXTENT_EXT: Final = Struct(">QQ")  # length, status
STATUS_PAYLOAD: Final = Struct(">Q")  # effect length in front of the context ids of the request

CMD_READ: Final = 0
CMD_WRITE: Final = 1
CMD_DISC: Final = 2
CMD_FLUSH: Final = 3
CMD_TRIM: Final = 4
CMD_CACHE: Final = 5
CMD_WRITE_ZEROES: Final = 6
CMD_BLOCK_STATUS: Final = 7
CMD_RESIZE: Final = 8  # extension, unshipped

EPERM: Final = 1
EIO: Final = 5
ENOMEM: Final = 12
EINVAL: Final = 22
ENOSPC: Final = 28
EOVERFLOW: Final = 75
ENOTSUP: Final = 95
ESHUTDOWN: Final = 108
