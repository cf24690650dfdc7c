"""Where PDUs begin and end in what was received: lengths, padding and digests (RFC 7143 11.2).

A PDU is looked at when all of it is there. It is bounded: by MaxRecvDataSegmentLength, which we
declare, and by 255 words of additional header. A header that fails its digest, or announces more
than that, is a ProtocolError, since nobody knows where the next PDU begins (7.7, 7.8).
"""

import struct
from typing import Final

from blockd.iscsi import pdu
from blockd.iscsi.limits import MAX_LOGIN_DATA
from blockd.iscsi.login import LoggedIn
from blockd.iscsi.sending import ProtocolError
from blockd.iscsi.text import OUR_MAX_RECV
from blockd.receive import ReceiveBuffer
from native import crc32c

_LENGTHS: Final = struct.Struct(">4xI")
_NO_DATA: Final = memoryview(b"")

Found = tuple[int, int, memoryview, bool]
"""A PDU: where it is in the buffer's view, bytes of additional header, its data, and whether they
match their digest, if there is one."""


class Framing:
    """Takes PDUs from a receive buffer, one after the other."""

    def __init__(self, rx: ReceiveBuffer) -> None:
        self._rx = rx
        self._longest = MAX_LOGIN_DATA  # bytes of a data segment
        self._header_digest = 0
        self._data_digest = 0

    def enter(self, logged_in: LoggedIn) -> None:
        """From the next PDU on it is as the login has agreed."""
        self._longest = OUR_MAX_RECV
        self._header_digest = pdu.DIGEST_BYTES * logged_in.parameters.header_digest
        self._data_digest = pdu.DIGEST_BYTES * logged_in.parameters.data_digest

    def next(self) -> Found | None:
        """The next PDU, if it is there as a whole; the buffer is behind it then, and its view stays
        as it is until more is received. ProtocolError."""
        rx = self._rx
        at = rx.start
        available = rx.end - at
        if available < pdu.HEADER_BYTES:
            rx.need = pdu.HEADER_BYTES
            return None
        (lengths,) = _LENGTHS.unpack_from(rx.view, at)
        length = lengths & pdu.MAX_DATA_SEGMENT
        ahs = lengths >> 24 << 2
        if length > self._longest:
            raise ProtocolError(f"a data segment of {length} bytes; {self._longest} was agreed")
        data_at = pdu.HEADER_BYTES + ahs + self._header_digest
        whole = data_at + (pdu.padded(length) + self._data_digest if length else 0)
        if available < whole:
            rx.need = whole
            return None
        view = rx.view
        rx.start = at + whole
        rx.need = 0
        if self._header_digest and not _matches(view[at : at + data_at]):
            raise ProtocolError("a header failed its digest")
        if not length:
            return at, ahs, _NO_DATA, True
        data = view[at + data_at : at + data_at + length]
        sound = not self._data_digest or _matches(view[at + data_at : at + whole])
        return at, ahs, data, sound


def _matches(view: memoryview) -> bool:
    """Whether the last four bytes are the CRC32C of those before (RFC 7143 13.1)."""
    return crc32c(view[:-4]) == int.from_bytes(view[-4:], "little")
