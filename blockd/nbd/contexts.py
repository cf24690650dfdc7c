"""Metadata contexts: what a client can ask BLOCK_STATUS about.

| context                | descriptor status                                        |
| base:allocation        | STATE_HOLE (1), STATE_ZERO (2), as the device reports    |
| qemu:allocation-depth  | 1 where something is allocated, 0 where nothing is       |
| blockd:changed-since:REF | STATE_CHANGED (1) where the export differs from the    |
| qemu:dirty-bitmap:REF    | version REF of its volume; two names for the same      |

A query names one context, or a namespace with an empty leaf ("base:"), which lists all contexts of
it but selects none; "qemu:dirty-bitmap:" and "blockd:changed-since:" do the same for the newest
snapshots. Everything else, unknown namespaces, leaves and versions above all, is ignored without an
error ("Metadata querying").

A descriptor list obeys, for each context: at least one descriptor, none empty, none beyond the
request (we never use the licence to exceed it with the last one), neighbours differ, and with
REQ_ONE exactly one.
"""

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from blockd.device import STATE_CHANGED, STATE_HOLE, STATE_ZERO, Changes
from blockd.nbd import wire
from blockd.nbd.access import may_be_ref

Extent = tuple[int, int]  # length, flags (device) or status (wire)

MAX_DESCRIPTORS: Final = 1 << 14
"""Most that a chunk holds: a device's limit, far below the protocol's 2^20."""
MAX_SELECTED: Final = 16
"""Contexts of one connection: each may need a request of its own for every BLOCK_STATUS."""
MAX_LISTED_SNAPSHOTS: Final = 100
"""Of each kind of context that names a snapshot; the newest. All of them can be selected."""

CHANGED_SINCE: Final = "blockd:changed-since:"
DIRTY_BITMAP: Final = "qemu:dirty-bitmap:"
_CHANGE_KINDS: Final = (CHANGED_SINCE, DIRTY_BITMAP)


@dataclass(frozen=True, slots=True)
class Context:
    """A context; `number` is the id that SET_META_CONTEXT hands out and status chunks carry."""

    number: int
    name: str
    changes: Changes | None = None
    """What BLOCK_STATUS asks the device about; None asks what is allocated."""

    def status(self, flags: int) -> int:
        """The status of an extent with device flags `flags`."""
        if self.changes is not None:
            return flags & STATE_CHANGED
        if self is ALLOCATION:
            return flags & (STATE_HOLE | STATE_ZERO)
        return 0 if flags & STATE_HOLE else 1


ALLOCATION: Final = Context(1, "base:allocation")
ALLOCATION_DEPTH: Final = Context(2, "qemu:allocation-depth")
ALL: Final = (ALLOCATION, ALLOCATION_DEPTH)


def listed(queries: Iterable[str]) -> list[Context]:
    """What LIST_META_CONTEXT answers; no queries at all ask for everything."""
    wanted = set(queries)
    if not wanted:
        return list(ALL)
    return [
        context
        for context in ALL
        if context.name in wanted or context.name.partition(":")[0] + ":" in wanted
    ]


def selected(queries: Iterable[str]) -> tuple[Context, ...]:
    """What SET_META_CONTEXT selects without a look at versions: exact names only, each once."""
    wanted = set(queries)
    return tuple(context for context in ALL if context.name in wanted)


def change_kinds(queries: Sequence[str]) -> list[str]:
    """The kinds of which LIST_META_CONTEXT lists every snapshot: no queries at all ask for all."""
    wanted = set(queries)
    return [
        kind
        for kind in _CHANGE_KINDS
        if not wanted or kind in wanted or kind.partition(":")[0] + ":" in wanted
    ]


def refs_asked(queries: Iterable[str]) -> dict[str, str]:
    """The queries that name a version exactly, each once and in order -> its ref."""
    found: dict[str, str] = {}
    for query in queries:
        for kind in _CHANGE_KINDS:
            if query.startswith(kind) and may_be_ref(query[len(kind) :]):
                found[query] = query[len(kind) :]
    return found


def change_contexts(
    asked: Mapping[str, str], found: Mapping[str, Changes | None]
) -> tuple[Context, ...]:
    """Contexts for what `refs_asked` gave, by what `found` has for each ref; numbered behind ALL,
    so that no two contexts of a connection share a number."""
    known = [(name, changes) for name, ref in asked.items() if (changes := found[ref]) is not None]
    first = len(ALL) + 1
    return tuple(
        Context(number, name, changes) for number, (name, changes) in enumerate(known, start=first)
    )


def descriptors(
    context: Context, extents: Iterable[Extent], length: int, *, only_first: bool
) -> list[Extent]:
    """`extents` of a device as descriptors of `context` for a request of `length` > 0 bytes."""
    merged: list[Extent] = []
    left = length
    for extent_length, flags in extents:
        extent_length = min(extent_length, left)
        if extent_length <= 0:
            continue
        left -= extent_length
        status = context.status(flags)
        if merged and merged[-1][1] == status:
            merged[-1] = (merged[-1][0] + extent_length, status)
        elif (only_first and merged) or len(merged) == MAX_DESCRIPTORS:
            break
        else:
            merged.append((extent_length, status))
    # A device that knows nothing: "allocated, contents unknown" is always a safe answer.
    return merged or [(length, context.status(0))]


def status_chunk(context: Context, extents: list[Extent]) -> bytes:
    """Payload of a BLOCK_STATUS chunk; every length fits 32 bits as the request's did."""
    fields = [value for extent in extents for value in extent]
    return struct.pack(f">I{len(fields)}I", context.number, *fields)


def status_chunk_ext(context: Context, extents: list[Extent]) -> bytes:
    """Payload of a BLOCK_STATUS_EXT chunk."""
    fields = [value for extent in extents for value in extent]
    return struct.pack(f">II{len(fields)}Q", context.number, len(extents), *fields)


def filter_payload(
    payload: bytes, contexts: tuple[Context, ...]
) -> tuple[int, tuple[Context, ...]] | None:
    """Effect length and contexts of a BLOCK_STATUS with payload; None when it is not valid.

    Not valid: an id that was not negotiated, one given twice, or none at all.
    """
    assert len(payload) >= wire.STATUS_PAYLOAD.size
    (length,) = wire.STATUS_PAYLOAD.unpack_from(payload)
    numbers = [number for (number,) in wire.UINT32.iter_unpack(payload[wire.STATUS_PAYLOAD.size :])]
    by_number = {context.number: context for context in contexts}
    if not numbers or len(set(numbers)) != len(numbers) or not by_number.keys() >= set(numbers):
        return None
    return length, tuple(by_number[number] for number in numbers)
