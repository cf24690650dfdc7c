"""Fuzz target of received streams: any bytes in, and still

- nothing but the errors that a stream may have escapes;
- memory is bounded: what the decoder holds, the batch, the forest;
- nothing is visible unless the stream was whole, and then all of it is there;
- gc can walk whatever came, so no node names what is not in the store.

Input: one byte of switches, one byte of piece length (0: all at once, else in units of 32 bytes),
then the stream. With RESEAL its checksums and ids are made to fit first, so that mutations get
behind them. The store has a version (`BASE`) that streams may be a difference to.

`stream_target` takes bytes and returns nothing, as atheris, AFL++ and the corpus replay want it.
"""

import contextlib

from blake3 import blake3

from native import crc32c
from tests.unit.volume.stream_rig import CHUNK, Site
from volume import stream_wire as wire
from volume.codecs import CODEC_NONE
from volume.errors import VolumeExists
from volume.layout import FAN_OUT
from volume.manifest import MAX_HEIGHT
from volume.model import MAX_CHUNK_SIZE
from volume.receive import Receiver
from volume.stream_errors import InvalidStream, StreamInterrupted, StreamRefused

RESEAL = 1
BASE = {at: at + 1 for at in range(3)}
MAX_HELD = MAX_CHUNK_SIZE + wire.FRAME.size + wire.HEADER.size + wire.MAX_COMMIT_BYTES
_CRC = 4


def sink() -> Site:
    """What streams are received into; its volume `base` has the contents BASE."""
    site = Site()
    site.heads["base"] = site.commit(BASE)
    return site


def stream_target(data: bytes) -> None:
    """Run one input; raises when an invariant is broken."""
    switches, piece = (*data[:2], 0, 0)[:2]
    sent = reseal(data[2:]) if switches & RESEAL else data[2:]
    length = piece * 32 or max(1, len(sent))
    site = sink()
    with (
        contextlib.suppress(InvalidStream, StreamInterrupted, StreamRefused, VolumeExists),
        site.receiver() as receiver,
    ):
        for at in range(0, len(sent), length):
            receiver.feed(sent[at : at + length])
            _check_bounds(receiver, length)
        receiver.end()
    for target in site.heads.values():
        site.contents(target)
    _check_forests(site)
    site.collect()


def _check_bounds(receiver: Receiver, length: int) -> None:
    decoder = receiver._decoder
    assert len(decoder._buffer) - decoder._at <= MAX_HELD
    assert receiver._batch_bytes <= length + MAX_CHUNK_SIZE


def _check_forests(site: Site) -> None:
    for info in site.receives.infos():
        progress = site.receives.get(info.name)
        assert progress is not None
        assert len(progress.forest.roots()) <= FAN_OUT * MAX_HEIGHT + 1


def reseal(data: bytes) -> bytes:
    """`data` with every checksum and id made right that can be found by walking it."""
    if len(data) < wire.HEADER.size:
        return data
    fixed = bytearray(data[: wire.HEADER.size])
    commit_length = int.from_bytes(fixed[92:96], "little")
    commit = data[wire.HEADER.size : wire.HEADER.size + commit_length]
    fixed[16:48] = blake3(commit).digest()
    fixed[-_CRC:] = crc32c(fixed[:-_CRC]).to_bytes(_CRC, "little")
    out = bytes(fixed) + commit
    at = len(out)
    while len(data) - at >= wire.FRAME.size:
        head = bytearray(data[at : at + wire.FRAME.size])
        stored = data[at + wire.FRAME.size :][: int.from_bytes(head[12:16], "little")]
        if head[4] == wire.KIND_END:
            head[24:56] = blake3(out).digest()
        elif head[5] == CODEC_NONE and stored:
            head[24:56] = blake3(stored).digest()
        head[-_CRC:] = crc32c(stored, crc32c(head[:-_CRC])).to_bytes(_CRC, "little")
        out += bytes(head) + stored
        at += len(head) + len(stored)
    return out + data[at:]


assert CHUNK == 4096  # the corpus was written for it
