"""Device maps for tests: many devices, with ids that are always the same."""

from collections.abc import Iterator

from blake3 import blake3

from transport.devicemap import Device, DeviceMap

TIB = 1 << 40


def device_id(number: int) -> str:
    return blake3(b"device %d" % number).hexdigest(16)


def pack_ids(count: int, seed: int = 0) -> list[bytes]:
    return [blake3(b"pack %d of %d" % (number, seed)).digest() for number in range(count)]


def device(number: int, host: int, weight: int = TIB, *, rack: int = 0, site: int = 0) -> Device:
    return Device(
        device_id(number), device_id(10**6 + host), f"s{site}", f"r{rack}", f"h{host}", weight
    )


def map_of(devices: Iterator[Device] | list[Device]) -> DeviceMap:
    return DeviceMap(1, {each.device_id: each for each in devices})


def even_map(hosts: int, per_host: int = 1, weight: int = TIB) -> DeviceMap:
    """`hosts` hosts of equal devices, four hosts in a rack, four racks in a site."""
    return map_of(
        device(host * per_host + n, host, weight, rack=host // 4, site=host // 16)
        for host in range(hosts)
        for n in range(per_host)
    )
