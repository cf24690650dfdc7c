"""Errors that may cross the wire, translated once.

The protocol text allows eight error values. A device reports a positive errno; everything it can
say becomes one of the eight here. Two are bound to a request: ENOTSUP answers only a WRITE_ZEROES
with FAST_ZERO, EOVERFLOW only a READ with DF ("Error values").
"""

import errno
from typing import Final

from blockd.nbd import wire

MAX_MESSAGE_BYTES: Final = 1024
"""Longest text of an error reply; the protocol allows 4096, but replies wait in memory."""

_WIRE_ERRORS: Final = {
    errno.EPERM: wire.EPERM,
    errno.EACCES: wire.EPERM,
    errno.EROFS: wire.EPERM,
    errno.EIO: wire.EIO,
    errno.ENOMEM: wire.ENOMEM,
    errno.EINVAL: wire.EINVAL,
    errno.EDOM: wire.EINVAL,
    errno.ERANGE: wire.EINVAL,
    errno.EFAULT: wire.EINVAL,
    errno.ENOSPC: wire.ENOSPC,
    errno.EFBIG: wire.ENOSPC,
    errno.EDQUOT: wire.ENOSPC,
    errno.EOVERFLOW: wire.EOVERFLOW,
    errno.EOPNOTSUPP: wire.ENOTSUP,
    errno.ESHUTDOWN: wire.ESHUTDOWN,
}


def wire_error(device_error: int, *, fast_zero: bool = False, unfragmented: bool = False) -> int:
    """The error value for errno `device_error` of a finished request; EIO for what is unknown.

    `fast_zero`: the request was a WRITE_ZEROES with FAST_ZERO. `unfragmented`: a READ with DF.
    """
    assert device_error > 0
    error = _WIRE_ERRORS.get(device_error, wire.EIO)
    if error == wire.ENOTSUP and not fast_zero:
        return wire.EINVAL
    if error == wire.EOVERFLOW and not unfragmented:
        return wire.EINVAL
    return error


def message_bytes(message: str | None) -> bytes:
    """`message` as an NBD string: UTF-8, no NUL, at most MAX_MESSAGE_BYTES; b"" for None."""
    if not message:
        return b""
    encoded = message.replace("\0", " ").encode("utf-8", "replace")
    if len(encoded) > MAX_MESSAGE_BYTES:
        # Cut between characters: "ignore" drops the half one at the end.
        encoded = encoded[:MAX_MESSAGE_BYTES].decode("utf-8", "ignore").encode()
    return encoded
