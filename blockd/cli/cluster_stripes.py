"""Stripes as `blockd cluster status` shows them."""

from collections.abc import Iterator

from blockd.api.cluster_types import StripeCount, StripeNodeInfo, StripesInfo
from blockd.cli.output import counted, print_fields, print_table
from blockd.cli.times import duration
from blockd.sizes import format_size

UNKNOWN = "unknown"
NODE_COLUMNS = ("NODE", "DOING", "COLD", "LEFT", "SHARDS TO COME", "LEFT", "BROKEN", "LEFT", "WHY")
MAX_NAMED = 4


def left(seconds: float | None) -> str:
    """Of work; None: nobody could tell."""
    return UNKNOWN if seconds is None else duration(seconds)


def show(found: StripesInfo) -> None:
    """Nothing where there are no stripes and nothing is to become one."""
    if found.all == StripeCount(0, 0) and not any(_counts(found)) and not found.cold_bytes:
        return
    print()
    print_fields(list(_fields(found)))
    print()
    print_table(NODE_COLUMNS, map(_row, found.nodes), right=NODE_COLUMNS[2:8])


def _counts(found: StripesInfo) -> Iterator[bool]:
    for each in (found.making, found.removing, found.moves, found.rebuilds):
        yield each is not None and each.stripes > 0


def _fields(found: StripesInfo) -> Iterator[tuple[str, str]]:
    if found.listed_s is None or found.all is None or found.shard_bytes is None:
        yield "stripes", f"{UNKNOWN}: this node has not read their rows yet"
    else:
        stored = f"{_count(found.all, 'stripe')} in {format_size(found.shard_bytes)} of shards"
        yield "stripes", f"{stored}, {duration(found.listed_s)} ago"
        for name, each in (
            ("degraded", found.degraded),
            ("unreadable", found.unreadable),
            ("lost", found.lost),
            ("given up", found.given_up),
            ("converting", found.making),
            ("removing", found.removing),
        ):
            if each is not None and each.stripes:
                yield name, _count(each, "stripe")
        for name, each in (("to move", found.moves), ("to rebuild", found.rebuilds)):
            if each is not None and each.stripes:
                yield name, f"{_count(each, 'shard')}, all {left(found.shards_left_s)} left"
    if found.cold_bytes:
        cold = f"{format_size(found.cold_bytes)} cold"
        yield "to convert", f"{cold}, {left(found.cold_left_s)} left"
    for pack in found.lost_packs[:MAX_NAMED]:
        yield "lost", f"pack {pack}"
    if len(found.lost_packs) > MAX_NAMED:
        yield "lost", f"... {len(found.lost_packs) - MAX_NAMED} more; --json has them"
    yield from (("in the way", text) for text in found.problems)


def _count(each: StripeCount, noun: str) -> str:
    return f"{counted(each.stripes, noun)}, {format_size(each.bytes)}"


def _row(each: StripeNodeInfo) -> tuple[str, ...]:
    if not each.answered:
        return each.name, UNKNOWN, *(UNKNOWN,) * 6, f"not known: {each.why}"
    broken = UNKNOWN if each.broken is None else str(each.broken)
    return (
        *(each.name, each.doing or "-"),
        *(_bytes(each.cold_bytes), left(each.cold_left_s)),
        *(_bytes(each.coming_bytes), left(each.coming_left_s)),
        *(broken, left(each.broken_left_s), "-"),
    )


def _bytes(value: int | None) -> str:
    return UNKNOWN if value is None else format_size(value)
