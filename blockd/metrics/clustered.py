"""Metrics of a node of a cluster: peers, volumes that several nodes have, stripes."""

from collections.abc import Callable, Iterable
from typing import Final

from blockd.api.cluster_types import Lag, LocalStripes, StripeCount
from blockd.api.types import PeerInfo
from blockd.metrics.definition import Definition, Sample, by_volume, gauge
from blockd.metrics.facts import Facts


def _by_peer(name: str, help_: str, value: Callable[[PeerInfo], float]) -> Definition:
    def samples(facts: Facts) -> list[Sample]:
        nodes = () if facts.cluster is None else facts.cluster.nodes
        return [((each.name,), value(each)) for each in nodes if not each.me]

    return Definition(name, "gauge", help_, samples, ("peer",))


def _of_stripes(
    name: str, help_: str, value: Callable[[LocalStripes], float | None], kind: str = "gauge"
) -> Definition:
    def samples(facts: Facts) -> list[Sample]:
        found = None if facts.stripes is None else value(facts.stripes)
        return [] if found is None else [((), float(found))]

    return Definition(name, kind, help_, samples)


def _by_work(
    name: str,
    help_: str,
    value: Callable[[LocalStripes], Iterable[tuple[str, float]]],
    kind: str = "counter",
) -> Definition:
    def samples(facts: Facts) -> list[Sample]:
        if facts.stripes is None:
            return []
        return [((work,), number) for work, number in value(facts.stripes)]

    return Definition(name, kind, help_, samples, ("work",))


def _states(facts: Facts, value: Callable[[StripeCount], int]) -> list[Sample]:
    states = {} if facts.stripes is None else facts.stripes.states
    return [((state,), float(value(each))) for state, each in states.items()]


def _lags(facts: Facts, value: Callable[[Lag], float | None]) -> list[Sample]:
    found = [(v.name, each.name, value(each)) for v in facts.shared for each in v.lags]
    return [((volume, peer), float(n)) for volume, peer, n in found if n is not None]


DEFINITIONS: Final = (
    _by_peer(
        "peer_connected",
        "1 for a node of the cluster that this one can ask things, else 0.",
        lambda each: float(each.connected),
    ),
    _by_peer("peer_slow", "1 while it leaves a request unanswered.", lambda each: float(each.slow)),
    _by_peer(
        "peer_requests",
        "Requests to it that have not ended.",
        lambda each: float(each.unanswered),
    ),
    Definition(
        "peer_refused_connections",
        "counter",
        "Connections to the port for peers that were not let in.",
        lambda f: [] if f.cluster is None else [((), float(f.cluster.refused))],
    ),
    Definition(
        "peer_sent_bytes",
        "counter",
        "Bytes of messages to other nodes, by what they are; before encryption.",
        lambda f: (
            [] if f.cluster is None else [((kind,), float(count)) for kind, count in f.cluster.sent]
        ),
        ("kind",),
    ),
    gauge(
        "cluster_problem",
        "1 while etcd cannot be read, or this node is not in its cluster.",
        lambda f: None if f.cluster is None else float(bool(f.cluster.problem)),
    ),
    by_volume(
        "volume_serving",
        "Of volumes that several nodes have: 1 where clients are let in, 0 at the other members.",
        lambda f: ((v.name, float(v.serving)) for v in f.shared),
    ),
    by_volume(
        "volume_copies",
        "Members that have all of it; told by the primary.",
        lambda f: ((v.name, v.copies) for v in f.shared if v.wanted),
    ),
    by_volume(
        "volume_copies_wanted",
        "Members that it has; told by the primary.",
        lambda f: ((v.name, v.wanted) for v in f.shared if v.wanted),
    ),
    Definition(
        "volume_copy_behind_records",
        "gauge",
        "Records that a member lacks; told by the primary.",
        lambda f: [((v.name, peer), float(n)) for v in f.shared for peer, n in v.behind],
        ("volume", "peer"),
    ),
    Definition(
        "volume_copy_behind_bytes",
        "gauge",
        "Bytes of these; absent where nobody can tell.",
        lambda f: _lags(f, lambda each: each.behind_bytes),
        ("volume", "peer"),
    ),
    Definition(
        "volume_copy_behind_seconds",
        "gauge",
        "Since the first of these was written; absent where nobody can tell.",
        lambda f: _lags(f, lambda each: each.behind_s),
        ("volume", "peer"),
    ),
    Definition(
        "volume_copy_left_seconds",
        "gauge",
        "Until a member has caught up, as it goes now; absent where nobody can tell.",
        lambda f: _lags(f, lambda each: each.left_s),
        ("volume", "peer"),
    ),
    # -- stripes
    Definition(
        "stripes",
        "gauge",
        "Stripes by state, by what nodes said in its last round; absent until it has read all.",
        lambda f: _states(f, lambda each: each.stripes),
        ("state",),
    ),
    Definition(
        "stripes_bytes",
        "gauge",
        "Bytes of the packs that these stripes are.",
        lambda f: _states(f, lambda each: each.bytes),
        ("state",),
    ),
    _of_stripes(
        "stripes_listed_age_seconds", "Since this node has read all rows.", lambda s: s.listed_s
    ),
    _of_stripes(
        "device_shards", "Shards that rows have on this node's device.", lambda s: s.shards
    ),
    _of_stripes("device_shard_bytes", "Bytes of these.", lambda s: s.shard_bytes),
    _of_stripes(
        "device_shards_broken",
        "Of these, shards that are damaged or not there; they are made again.",
        lambda s: s.broken,
    ),
    _of_stripes("stripe_reads", "Reads of stripes.", lambda s: s.reads, "counter"),
    _of_stripes(
        "stripe_degraded_reads",
        "Of these, reads that had to be decoded from other shards.",
        lambda s: s.degraded_reads,
        "counter",
    ),
    _of_stripes(
        "stripe_failed_reads",
        "Reads of stripes that failed: too few shards.",
        lambda s: s.failed_reads,
        "counter",
    ),
    _by_work(
        "stripe_work",
        "Packs that this node has made stripes, shards that have come to its device, and shards "
        "that were made again there.",
        lambda s: [(work, float(count)) for work, (count, _) in s.done.items()],
    ),
    _by_work(
        "stripe_work_bytes",
        "Bytes of these.",
        lambda s: [(work, float(length)) for work, (_, length) in s.done.items()],
    ),
    _by_work(
        "stripe_work_left_bytes",
        "Bytes that are left of each.",
        lambda s: [(work, float(length)) for work, length in s.left.items()],
        "gauge",
    ),
    _of_stripes(
        "stripe_failures",
        "What rounds could not do, one stripe each; the log has why.",
        lambda s: s.failures,
        "counter",
    ),
)
