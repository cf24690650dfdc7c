"""Every metric: its name, kind, labels, help, and how it follows from `Facts`.

Names are those of Prometheus' conventions: base units, `_total` for what only grows. Labels are
volumes, protocols and ops; clients never are, since there may be any number of them. The page
docs/metrics.md is made from this table.
"""

import itertools
from collections.abc import Callable, Iterator
from typing import Final

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from blockd.metrics import clustered
from blockd.metrics.definition import PREFIX, Definition, Sample, by_volume, gauge
from blockd.metrics.facts import Facts, OpCounts, VolumeCounts
from native import ACCOUNT_BOUNDS_NS, ACCOUNT_OPS

FIRST_BOUND_NS: Final = 1 << 14  # 16 us
LAST_BOUND_NS: Final = 1 << 34  # 17 s
BOUNDS: Final = tuple(
    (index, bound)
    for index, bound in enumerate(ACCOUNT_BOUNDS_NS)
    if FIRST_BOUND_NS <= bound <= LAST_BOUND_NS and bound.bit_count() == 1
)
"""Of the accounts' buckets, those whose bounds are told: powers of two of a nanosecond."""
STATES: Final = ("ok", "full", "sealed")


def _counter(name: str, help_: str, value: Callable[[Facts], float]) -> Definition:
    return Definition(name, "counter", help_, lambda facts: [((), value(facts))])


def _by_account(name: str, help_: str, value: Callable[[VolumeCounts], float]) -> Definition:
    def samples(facts: Facts) -> list[Sample]:
        return [((each.volume, each.protocol), value(each)) for each in facts.counts]

    return Definition(name, "gauge", help_, samples, ("volume", "protocol"))


def _by_op(
    name: str,
    help_: str,
    value: Callable[[OpCounts], float],
    ops: tuple[str, ...] = ACCOUNT_OPS,
) -> Definition:
    def samples(facts: Facts) -> list[Sample]:
        return [
            ((each.volume, each.protocol, op), value(counts))
            for each, op, counts in _ops(facts)
            if op in ops
        ]

    return Definition(name, "counter", help_, samples, ("volume", "protocol", "op"))


def _ops(facts: Facts) -> Iterator[tuple[VolumeCounts, str, OpCounts]]:
    for each in facts.counts:
        for op, counts in zip(ACCOUNT_OPS, each.ops, strict=True):
            yield each, op, counts


def _states(facts: Facts) -> list[Sample]:
    return [((state,), float(facts.store.state == state)) for state in STATES]


def _certificates(facts: Facts) -> list[Sample]:
    return [
        ((listener, each.use, str(each.file)), each.ends.timestamp())
        for listener, found in facts.certificates.items()
        for each in found
    ]


def _seconds(ns: int | None) -> float | None:
    return None if ns is None else ns / 1e9


LATENCY: Final = Definition(
    "request_duration_seconds",
    "histogram",
    "From the complete arrival of a request until its reply was handed to the socket.",
    lambda _: (),
    ("volume", "protocol", "op"),
)

DEFINITIONS: Final = (
    # -- what clients ask for
    _by_op(
        "requests", "Requests that clients were answered, failed ones included.", lambda c: c[0]
    ),
    _by_op(
        "request_bytes", "Payload bytes of reads and writes.", lambda c: c[1], ("read", "write")
    ),
    _by_op("request_errors", "Requests that failed.", lambda c: c[2]),
    LATENCY,
    _by_account("requests_in_flight", "Requests that are not answered yet.", lambda c: c.in_flight),
    _by_account(
        "request_bytes_in_flight",
        "Payload bytes of requests that are not answered yet.",
        lambda c: c.in_flight_bytes,
    ),
    by_volume("nbd_connections", "Open NBD connections.", lambda f: f.connections.items()),
    gauge("iscsi_sessions", "Open iSCSI sessions.", lambda f: f.node.session_count),
    by_volume(
        "limit_waiting",
        "Requests at the head of a client's line that wait for limits of their volume.",
        lambda f: ((volume, waiting) for volume, waiting, _, _ in f.held),
    ),
    by_volume(
        "limit_held_requests",
        "Requests that waited there, and went on.",
        lambda f: ((volume, count) for volume, _, count, _ in f.held),
        "counter",
    ),
    by_volume(
        "limit_held_seconds",
        "How long these waited, all together.",
        lambda f: ((volume, ns / 1e9) for volume, _, _, ns in f.held),
        "counter",
    ),
    # -- volumes
    by_volume(
        "volume_size_bytes", "Size of a volume.", lambda f: ((v.name, v.size) for v in f.volumes)
    ),
    by_volume(
        "volume_hot_bytes",
        "Bytes of a volume whose newest version is in the journal only.",
        lambda f: ((v.name, v.hot_bytes) for v in f.volumes),
    ),
    by_volume(
        "volume_clients",
        "Connections and sessions that have a volume open.",
        lambda f: ((v.name, len(v.clients)) for v in f.volumes),
    ),
    by_volume(
        "volume_snapshots", "Snapshots.", lambda f: ((v.name, v.snapshot_count) for v in f.volumes)
    ),
    # -- the store
    Definition("store_state", "gauge", "1 for the state that it is in.", _states, ("state",)),
    gauge(
        "destage_held_up",
        "1: damage keeps a volume from being destaged, and the journal from being freed.",
        lambda f: float(f.store.destage_held_up is not None),
    ),
    _counter("journal_records", "Records in the journal, ever.", lambda f: f.store.lsn - 1),
    gauge(
        "journal_bytes",
        "Journal bytes that are not in chunks yet.",
        lambda f: f.store.journal_bytes,
    ),
    gauge(
        "journal_limit_bytes",
        "Journal bytes at which writers wait.",
        lambda f: f.store.journal_limit,
    ),
    gauge(
        "hot_bytes",
        "Client bytes whose newest version is in the journal only.",
        lambda f: f.store.hot_bytes,
    ),
    gauge(
        "destage_lag_seconds",
        "Age of the oldest write that is in the journal only.",
        lambda f: f.store.oldest_hot_age_s,
    ),
    _counter(
        "destage_rounds",
        "Rounds that brought writes into chunks.",
        lambda f: f.counters.destage_rounds,
    ),
    # -- chunks
    _counter(
        "chunk_bytes",
        "Bytes that were to become chunks, before dedup.",
        lambda f: f.counters.chunk_bytes,
    ),
    _counter(
        "chunk_zero_bytes",
        "Of those, zeros, which are not stored.",
        lambda f: f.counters.zero_bytes,
    ),
    _counter(
        "chunk_duplicate_bytes",
        "Of those, bytes that were stored already.",
        lambda f: f.counters.duplicate_bytes,
    ),
    _counter(
        "chunk_new_bytes",
        "Of those, bytes that were stored, before compression.",
        lambda f: f.counters.new_bytes,
    ),
    _counter(
        "chunk_stored_bytes", "The same, after compression.", lambda f: f.counters.stored_bytes
    ),
    gauge("packs", "Pack files.", lambda f: f.store.pack_count),
    gauge("pack_bytes", "Bytes of pack files.", lambda f: f.store.pack_bytes),
    # -- memory
    gauge(
        "cache_bytes", "Memory of chunk places and decoded chunks.", lambda f: f.store.cache_bytes
    ),
    gauge("cache_limit_bytes", "What that memory may be.", lambda f: f.store.cache_limit),
    _counter(
        "place_hits", "Reads of a chunk whose place was in memory.", lambda f: f.counters.place_hits
    ),
    _counter(
        "place_misses",
        "Reads of a chunk whose place had to be looked up.",
        lambda f: f.counters.place_misses,
    ),
    _counter("node_hits", "Manifest nodes that were in memory.", lambda f: f.counters.node_hits),
    _counter(
        "node_misses", "Manifest nodes that had to be read.", lambda f: f.counters.node_misses
    ),
    # -- damage
    _counter(
        "repaired_reads",
        "Reads of damaged chunks that were answered by what another node has.",
        lambda f: f.counters.repaired_reads,
    ),
    _counter(
        "unrepaired_reads",
        "Reads of damaged chunks that waited for other nodes in vain.",
        lambda f: f.counters.unrepaired_reads,
    ),
    # -- space
    gauge(
        "disk_free_bytes",
        "Free on the disk of the data directory.",
        lambda f: f.store.disk_free_bytes,
    ),
    gauge("disk_size_bytes", "Size of that disk.", lambda f: f.store.disk_total_bytes),
    gauge(
        "space_left_bytes",
        "What clients can still write before ENOSPC.",
        lambda f: f.store.space_left_bytes,
    ),
    gauge(
        "space_short_bytes",
        "Below this, versions without a name give way.",
        lambda f: f.store.space_short_bytes,
    ),
    # -- gc and scrub
    gauge("gc_running", "1 while a run of gc goes on.", lambda f: float(f.gc.running)),
    gauge(
        "gc_condemned_bytes",
        "Dead bytes in packs that stay for a while.",
        lambda f: f.gc.condemned_bytes,
    ),
    gauge("gc_last_end_age_seconds", "Since the last run of gc ended.", lambda f: f.gc.ended_s),
    gauge("scrub_running", "1 while a pass goes on.", lambda f: float(f.scrub.running)),
    gauge("scrub_progress_ratio", "How far the pass is.", lambda f: f.scrub.progress),
    gauge("scrub_damage", "Damaged entries that are known.", lambda f: f.scrub.damage_count),
    gauge(
        "scrub_last_end_timestamp_seconds",
        "When the last whole pass ended.",
        lambda f: _seconds(f.scrub.finished_ns),
    ),
    *clustered.DEFINITIONS,
    # -- the daemon
    Definition(
        "tls_certificate_expiry_timestamp_seconds",
        "gauge",
        "When the first certificate of a file that is in use ends.",
        _certificates,
        ("listener", "use", "file"),
    ),
    gauge("uptime_seconds", "Since the daemon was started.", lambda f: f.node.uptime_s),
    Definition(
        "build_info",
        "gauge",
        "1, with the version.",
        lambda f: [((f.node.version,), 1.0)],
        ("version",),
    ),
)


def families(facts: Facts) -> Iterator[Metric]:
    """All metrics with their samples."""
    for each in DEFINITIONS:
        yield _latency(facts) if each is LATENCY else _family(each, facts)


def _family(definition: Definition, facts: Facts) -> Metric:
    made = CounterMetricFamily if definition.kind == "counter" else GaugeMetricFamily
    family = made(PREFIX + definition.name, definition.help, labels=definition.labels)
    for labels, value in definition.samples(facts):
        family.add_metric(labels, value)
    return family


def _latency(facts: Facts) -> Metric:
    name = PREFIX + LATENCY.name
    family = HistogramMetricFamily(name, LATENCY.help, labels=LATENCY.labels)
    for each, op, (_, _, _, sum_ns, buckets) in _ops(facts):
        below = list(itertools.accumulate(buckets))
        told = [(repr(bound / 1e9), float(below[index])) for index, bound in BOUNDS]
        family.add_metric(
            (each.volume, each.protocol, op), [*told, ("+Inf", float(below[-1]))], sum_ns / 1e9
        )
    return family
