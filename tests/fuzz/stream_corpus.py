"""The seeds of the stream fuzz target.

Each is one input of tests.fuzz.stream_target, named for what it shows.
"""

from tests.fuzz.stream_target import BASE, RESEAL, reseal
from tests.unit.volume.stream_rig import Site, boundaries
from volume import stream_wire as wire


def _seeds() -> dict[str, tuple[int, int, bytes]]:
    """Name -> switches, piece length, stream."""
    site = Site()
    base = site.commit(BASE)
    target = site.commit({1: 50, 2: 0, 300: 51}, onto=base)
    whole, difference = site.stream(target), site.stream(target, base)
    repeated = site.stream(site.commit(dict.fromkeys((0, 256, 512, 999), 7)))
    empty = site.stream(site.commit({}))
    unknown = site.stream(site.commit({9: 9}, onto=target), target)
    ends = boundaries(whole)
    middle = wire.ResumeToken(target, None, wire.Position(2, 0)).encode()
    flipped = bytearray(whole)
    flipped[ends[1] + 200] ^= 1
    swapped = whole[: ends[0]] + whole[ends[1] : ends[2]] + whole[ends[0] : ends[1]]
    swapped += whole[ends[2] :]
    return {
        "whole": (0, 0, whole),
        "whole-in-pieces": (0, 9, whole),
        "whole-resealed": (RESEAL, 100, whole),
        "difference": (0, 0, difference),
        "difference-resealed": (RESEAL, 0, difference),
        "repeated-nodes": (RESEAL, 0, repeated),
        "empty": (0, 0, empty),
        "empty-resealed": (RESEAL, 3, empty),
        "base-not-here": (0, 0, unknown),
        "rest-of-nothing": (0, 0, site.stream(target, None, middle)),
        "cut": (0, 0, whole[: len(whole) // 2]),
        "cut-in-header": (0, 0, whole[:100]),
        "no-end": (0, 0, whole[: ends[-2]]),
        "bit-flip": (0, 0, bytes(flipped)),
        "wrong-content": (RESEAL, 0, bytes(flipped)),
        "frame-missing": (RESEAL, 0, whole[: ends[1]] + whole[ends[2] :]),
        "frames-swapped": (RESEAL, 0, reseal(swapped)),
        "no-stream": (0, 0, b"#!/bin/sh\n"),
    }


def inputs() -> dict[str, bytes]:
    """Name -> input."""
    return {
        name: bytes((switches, piece)) + sent for name, (switches, piece, sent) in _seeds().items()
    }
