"""Rows of meta/ that are opaque to the store: what `Store.keep` was given, state of long work."""

from collections.abc import Callable, Iterator

from volume import layout
from volume.errors import CorruptData, UnknownFormat, VolumeError
from volume.framing import text, unframed
from volume.kv import KeyValue

Damaged = Callable[[str, VolumeError], None]


def states(
    kv: KeyValue, prefix: str, damaged: Damaged | None = None
) -> Iterator[tuple[str, bytes]]:
    """All whose name starts with `prefix`. Rows that fail their checksum, or are of another
    version, are told to `damaged`; without it they are CorruptData, UnknownFormat."""
    start = len(layout.META_PREFIX_STATE)
    for key, value in kv.items(layout.META_PREFIX_STATE + prefix.encode()):
        try:
            row = text(key, key[start:]), unframed(key, value)
        except (CorruptData, UnknownFormat) as error:
            if damaged is None:
                raise
            damaged(key[start:].decode(errors="replace"), error)
        else:
            yield row
