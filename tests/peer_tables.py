"""The tables of docs/peer-protocol.md, as the code has them: `python -m tests.peer_tables`."""

import re

from transport.peer.fields import Int, Kind, Many, Text
from transport.peer.messages import ALL, Code, Request
from transport.peer.wire import Message, layout


def title(kind: type[Message]) -> str:
    """As the protocol writes it: NodeList -> NODE_LIST."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", kind.__name__).upper()


def heading(kind: type[Message]) -> str:
    answer = f", answered by {title(kind.ANSWER)}" if issubclass(kind, Request) else ""
    return f"### {kind.TYPE} {title(kind)}{answer}"


def table(kind: type[Message]) -> list[str]:
    """Its fields, offsets from the end of the header; none where there are none."""
    rows = []
    offset: int | None = 0
    for name, field in layout(kind):
        size = "" if field.size is None else str(field.size)
        at = "" if offset is None else str(offset)
        rows.append(f"| {at} | {size} | {field.shape} | {name} | {_bounds(field)} |")
        offset = None if offset is None or field.size is None else offset + field.size
    low, high = kind.FRAMES
    if high:
        frames = f"{low} to {high} frames" if low != high else f"{low} frame"
        rows.append(f"| | | frames | payload | {frames} |")
    if not rows:
        return []
    return ["| offset | size | type | field | bounds |", "| --- | --- | --- | --- | --- |", *rows]


def _bounds(field: Kind) -> str:
    match field:
        case Int(size, low, high) if low or high is not None:
            most = (1 << 8 * size) - 1 if high is None else high
            return f"{_number(low)} to {_number(most)}"
        case Text(longest):
            return f"at most {longest} bytes"
        case Many(_, count):
            return f"at most {count}"
    return ""


def _number(value: int) -> str:
    for more, text in ((0, "2^{}"), (1, "2^{} - 1")):
        power = value + more
        if value > 1 << 20 and power & (power - 1) == 0:
            return text.format(power.bit_length() - 1)
    return str(value)


def codes() -> list[str]:
    return [f"| {code.value} | {code.name} |" for code in Code]


if __name__ == "__main__":
    for each in ALL:
        print("\n".join(["", heading(each), "", (each.__doc__ or "").strip(), "", *table(each)]))
