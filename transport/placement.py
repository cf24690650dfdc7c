"""Which devices have the copies or shards of a pack: computed, the same on every node.

Rendezvous over all devices that are in, one device in each failure domain (native/src/rendezvous.h
says how it is drawn). For a pack it gives a *set* of devices. Which of them has which shard is
rank order at first, and after a change of the map whatever moves least: who stays keeps its number
(`keeping`). So where the shards of a pack are is noted with the pack; the map says where they
should be.
"""

from collections.abc import Iterator, Sequence
from typing import Final

from blake3 import blake3

from native import Rendezvous
from transport.devicemap import DeviceMap, Level
from transport.errors import TransportError

PACK_ID_LENGTH: Final = 32
BATCH: Final = 1024
"""Packs of one call into C: with 4,096 devices some 10 ms."""

Held = tuple[str | None, ...]
"""Device ids by shard number; None where nobody has it, or should."""


class TooFewDomains(TransportError):
    """There are fewer failure domains than shards of a pack."""

    code = "too_few_domains"


def key_of(place: str) -> int:
    """What stands for a device in rendezvous: 64 bits of the BLAKE3 of its 16 bytes."""
    return int.from_bytes(blake3(bytes.fromhex(place)).digest(length=8), "little")


class Placement:
    """Placement by one map at one level. Immutable; any thread."""

    def __init__(self, devices: DeviceMap, level: Level = Level.HOST) -> None:
        self.map = devices
        self.level = level
        usable = devices.usable()
        paths = sorted({device.domain(level) for device in usable})
        numbers = {path: number for number, path in enumerate(paths)}
        self._ids = [device.device_id for device in usable]
        self._rendezvous = Rendezvous(
            [
                (key_of(device.place), device.weight, numbers[device.domain(level)])
                for device in usable
            ]
        )
        self.domain_count = len(paths)

    def check(self, count: int) -> None:
        """TooFewDomains unless `count` shards can each be in a domain of its own."""
        if self.domain_count < count:
            raise TooFewDomains(
                f"device map {self.map.epoch}: {self.domain_count} {self.level}s have a device "
                f"that is in, and {count} are needed; add some, or use a smaller stripe"
            )

    def choose(self, pack_id: bytes, count: int) -> tuple[str, ...]:
        """The devices for `count` shards, best first. TooFewDomains."""
        return next(self.choose_all([pack_id], count))

    def choose_all(self, pack_ids: Sequence[bytes], count: int) -> Iterator[tuple[str, ...]]:
        """The same for each of many packs. TooFewDomains before the first."""
        self.check(count)
        ids = self._ids
        for start in range(0, len(pack_ids), BATCH):
            batch = pack_ids[start : start + BATCH]
            assert all(len(pack_id) == PACK_ID_LENGTH for pack_id in batch)
            for chosen in self._rendezvous.choose(b"".join(batch), count):
                yield tuple([ids[index] for index in chosen])

    def keeping(self, previous: Held, chosen: Sequence[str]) -> tuple[str, ...]:
        """`chosen` by shard number, so that as little moves as can be: devices that have a shard
        keep it. Who comes takes the number of one that goes from the same domain, if there is such,
        so that meanwhile, too, no domain has two numbers; then the lowest number that is free."""
        assert len(previous) == len(chosen) == len(set(chosen))
        kept = set(previous) & set(chosen)
        slots: list[str | None] = [device if device in kept else None for device in previous]
        for device in (device for device in chosen if device not in kept):
            slots[self._slot_for(device, previous, slots)] = device
        return tuple([device for device in slots if device is not None])

    def _slot_for(self, device: str, previous: Held, slots: Sequence[str | None]) -> int:
        free = [number for number, taken in enumerate(slots) if taken is None]
        domain = self._domain(device)
        for number in free:
            leaving = previous[number]
            if leaving is not None and self._domain(leaving) == domain:
                return number
        return free[0]

    def _domain(self, device_id: str) -> tuple[str, ...] | None:
        device = self.map.devices.get(device_id)
        return None if device is None else device.domain(self.level)
