"""Two scrapes of a daemon's metrics, and what happened between them; for `blockd top`."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

from prometheus_client.parser import text_string_to_metric_families

Buckets = dict[float, float]
"""Upper bound in seconds -> requests that took no longer, as Prometheus counts."""


@dataclass(slots=True)
class VolumeCounts:
    """Of one volume since the daemon's start, over all protocols."""

    requests: Counter[str] = field(default_factory=Counter)
    bytes: Counter[str] = field(default_factory=Counter)
    errors: int = 0
    in_flight: int = 0
    clients: int = 0
    hot_bytes: int = 0
    latency: dict[str, Buckets] = field(default_factory=lambda: defaultdict(dict))


@dataclass(frozen=True, slots=True)
class Scrape:
    """One scrape; `at_s` is the clock of whoever made it."""

    at_s: float
    volumes: dict[str, VolumeCounts]
    store: dict[str, float]
    """Metrics without labels."""
    state: str


@dataclass(frozen=True, slots=True)
class VolumeRates:
    """One line of `blockd top`: per second, bytes, seconds."""

    volume: str
    read_iops: float
    write_iops: float
    read_bandwidth: float
    write_bandwidth: float
    p50_s: float | None
    """Of reads and writes; None when there were none. The upper bound of a bucket."""
    p99_s: float | None
    in_flight: int
    clients: int
    errors: float
    hot_bytes: int

    @property
    def iops(self) -> float:
        return self.read_iops + self.write_iops

    @property
    def bandwidth(self) -> float:
        return self.read_bandwidth + self.write_bandwidth


def parse(text: str, at_s: float) -> Scrape:
    """`text` is a scrape in Prometheus' text format."""
    volumes: dict[str, VolumeCounts] = defaultdict(VolumeCounts)
    store: dict[str, float] = {}
    state = "unknown"
    for name, labels, value in _samples(text):
        if name == "blockd_store_state":
            state = labels["state"] if value else state
        elif "volume" in labels:
            _count(volumes[labels["volume"]], name, labels, value)
        elif not labels:
            store[name.removeprefix("blockd_")] = value
    return Scrape(at_s, dict(volumes), store, state)


def _samples(text: str) -> Iterator[tuple[str, dict[str, str], float]]:
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            yield sample.name, sample.labels, sample.value


def _count(counts: VolumeCounts, name: str, labels: dict[str, str], value: float) -> None:
    match name.removeprefix("blockd_"):
        case "requests_total":
            counts.requests[labels["op"]] += int(value)
        case "request_bytes_total":
            counts.bytes[labels["op"]] += int(value)
        case "request_errors_total":
            counts.errors += int(value)
        case "requests_in_flight":
            counts.in_flight += int(value)
        case "volume_clients":
            counts.clients = int(value)
        case "volume_hot_bytes":
            counts.hot_bytes = int(value)
        case "request_duration_seconds_bucket":
            buckets = counts.latency[labels["op"]]
            bound = float(labels["le"])
            buckets[bound] = buckets.get(bound, 0.0) + value


def between(old: Scrape, new: Scrape) -> list[VolumeRates]:
    """What each volume did. A daemon that was restarted meanwhile counts from its start."""
    return [
        _rates(name, old.volumes.get(name, VolumeCounts()), counts, new.at_s - old.at_s)
        for name, counts in new.volumes.items()
    ]


def _rates(name: str, old: VolumeCounts, new: VolumeCounts, seconds: float) -> VolumeRates:
    def rate(before: int, after: int) -> float:
        return (after - before if after >= before else after) / seconds

    latency: Buckets = {}
    for op in ("read", "write"):
        before = old.latency.get(op, {})
        for bound, count in new.latency.get(op, {}).items():
            grown = count - before.get(bound, 0.0)
            latency[bound] = latency.get(bound, 0.0) + (grown if grown >= 0 else count)
    return VolumeRates(
        volume=name,
        read_iops=rate(old.requests["read"], new.requests["read"]),
        write_iops=rate(old.requests["write"], new.requests["write"]),
        read_bandwidth=rate(old.bytes["read"], new.bytes["read"]),
        write_bandwidth=rate(old.bytes["write"], new.bytes["write"]),
        p50_s=quantile(latency, 0.5),
        p99_s=quantile(latency, 0.99),
        in_flight=new.in_flight,
        clients=new.clients,
        errors=rate(old.errors, new.errors),
        hot_bytes=new.hot_bytes,
    )


def quantile(buckets: Buckets, part: float) -> float | None:
    """The bound below which `part` of the requests are; infinite beyond the last one."""
    total = max(buckets.values(), default=0.0)
    if total <= 0:
        return None
    return next((bound for bound in sorted(buckets) if buckets[bound] >= part * total), math.inf)
