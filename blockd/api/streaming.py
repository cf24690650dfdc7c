"""Long answers: one JSON document, encoded in slices in a thread while it is being sent.

A volume may have 100,000 snapshots. As one answer their encoding would keep the event loop, and
with it every client's reads and writes, waiting for seconds; a slice takes about a millisecond, and
the next is made only when the one before it has gone out.
"""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from typing import Any, cast, get_args, get_type_hints

from fastapi.responses import StreamingResponse
from pydantic import TypeAdapter

SLICE_COUNT = 500  # items, of some 200 bytes


def streamed_list(items: Sequence[object], item_type: Any) -> StreamingResponse:
    """`items`, all of `item_type`, as a JSON array."""

    def pieces() -> Iterator[bytes]:
        yield b"["
        yield from _encoded(items, item_type)
        yield b"]"

    return StreamingResponse(pieces(), media_type="application/json")


def streamed_object(value: object, long_field: str) -> StreamingResponse:
    """Dataclass `value` as a JSON object whose `long_field`, a tuple of many, comes last."""
    cls = type(value)
    item_type = get_args(get_type_hints(cls)[long_field])[0]
    items = getattr(value, long_field)
    rest = TypeAdapter(cls).dump_python(
        dataclasses.replace(cast(Any, value), **{long_field: ()}), mode="json"
    )
    del rest[long_field]

    def pieces() -> Iterator[bytes]:
        yield json.dumps(rest)[:-1].encode() + f', "{long_field}": ['.encode()
        yield from _encoded(items, item_type)
        yield b"]}"

    return StreamingResponse(pieces(), media_type="application/json")


def _encoded(items: Sequence[object], item_type: Any) -> Iterator[bytes]:
    """The items with commas between them, without brackets."""
    adapter = TypeAdapter(list[item_type])
    for start in range(0, len(items), SLICE_COUNT):
        comma = b"," if start else b""
        yield comma + adapter.dump_json(list(items[start : start + SLICE_COUNT]))[1:-1]
