"""What a client is told of an export, and on what terms it enters transmission.

INFO and a GO that follows it with the same parameters must say the same, so both come from one
`Enter`, which depends only on the export and on what was negotiated before.
"""

from dataclasses import dataclass

from blockd.device import BlockDevice
from blockd.nbd import wire
from blockd.nbd.contexts import Context
from blockd.nbd.limits import PREFERRED_BLOCK_SIZE
from blockd.sizes import format_size


@dataclass(frozen=True, slots=True)
class Enter:
    """Transmission begins (or, for INFO, would begin) on these terms."""

    device: BlockDevice
    size: int
    """The export's size in bytes as the client was told it."""
    read_only: bool
    minimum_block_size: int
    """What requests must be multiples of; 1 when the client did not ask for block sizes."""
    structured: bool
    extended: bool
    contexts: tuple[Context, ...]
    moving: bool = False
    """The export's name means another version at each moment, as vol@-10m does."""


def information(entered: Enter, items: frozenset[int], max_payload: int) -> list[bytes]:
    """Payloads of the REP_INFO replies: EXPORT and BLOCK_SIZE always, the rest on demand.

    A client that did not ask for BLOCK_SIZE is told the defaults that it may rely on anyway, so
    ERR_BLOCK_SIZE_REQD is never needed.
    """
    device = entered.device
    minimum = entered.minimum_block_size
    preferred = max(PREFERRED_BLOCK_SIZE, device.block_size)
    flags = transmission_flags(entered)
    found = [
        wire.INFO_EXPORT_ITEM.pack(wire.INFO_EXPORT, entered.size, flags),
        wire.INFO_BLOCK_SIZE_ITEM.pack(wire.INFO_BLOCK_SIZE, minimum, preferred, max_payload),
    ]
    if wire.INFO_NAME in items:
        found.append(wire.UINT16.pack(wire.INFO_NAME) + device.name.encode())
    if wire.INFO_DESCRIPTION in items:
        found.append(wire.UINT16.pack(wire.INFO_DESCRIPTION) + _description(entered).encode())
    return found


def transmission_flags(entered: Enter) -> int:
    """What the export can do for this client ("Transmission flags")."""
    flags = wire.FLAG_HAS_FLAGS | wire.FLAG_SEND_FLUSH | wire.FLAG_SEND_FUA | wire.FLAG_SEND_CACHE
    if not entered.moving:  # else a second connection would read other bytes
        flags |= wire.FLAG_CAN_MULTI_CONN
    if entered.read_only:
        flags |= wire.FLAG_READ_ONLY
    else:
        flags |= wire.FLAG_SEND_TRIM | wire.FLAG_SEND_WRITE_ZEROES | wire.FLAG_SEND_FAST_ZERO
    if entered.structured or entered.extended:
        flags |= wire.FLAG_SEND_DF
    if entered.extended and entered.contexts:
        flags |= wire.FLAG_BLOCK_STATUS_PAYLOAD
    return flags


def _description(entered: Enter) -> str:
    access = ", read-only" if entered.read_only else ""
    return f"{format_size(entered.size)}, {entered.device.block_size}-byte blocks{access}"
