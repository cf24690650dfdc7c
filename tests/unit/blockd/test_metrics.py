"""What a scrape tells, in which format, and that its parts agree."""

import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from blockd.api.cluster_types import Lag, LocalVolume
from blockd.api.limit_types import VolumeLimits
from blockd.certificates import Certificate
from blockd.config import MetricsConfig, ServeConfig, TcpAddress, check
from blockd.metrics.catalog import BOUNDS, DEFINITIONS
from blockd.toml_decode import ConfigError
from native import OP_READ, OP_WRITE, Reservation
from tests.fake_cluster import INFO, N2, FakeCluster
from tests.fake_node import FakeNode, raw_client, serving

MS = 1_000_000
LOCAL = LocalVolume("vm1", True, 2, 3, (("n2", 0), ("n3", 17)), (Lag("n3", 9, 1.0, 2.0),))
CERTIFICATE = Certificate("server", Path("/etc/cert.pem"), datetime(2026, 12, 1, tzinfo=UTC))


@pytest.fixture
def node(tmp_path: Path) -> FakeNode:
    return FakeNode(tmp_path / "control.sock")


def scrape(node: FakeNode, accept: str = "") -> httpx.Response:
    with serving(node), raw_client(node) as client:
        return client.get("/metrics", headers={"accept": accept} if accept else {})


def samples(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in parse_text(text)
        for sample in family.samples
    }


def of(volume: str, op: str, **more: str) -> tuple[tuple[str, str], ...]:
    return tuple(sorted({"volume": volume, "protocol": "nbd", "op": op, **more}.items()))


def test_requests_of_an_account_are_told_by_volume_protocol_and_op(node: FakeNode) -> None:
    node.store.create_volume("vm1", 1 << 20)
    device = node.store.get("vm1")
    assert device is not None
    account = node.accounts.of(device, "nbd")
    account.record(OP_READ, 4096, False, 1 * MS)
    account.record(OP_READ, 4096, False, 3 * MS)
    account.record(OP_WRITE, 512, True, 20_000 * MS)
    found = samples(scrape(node).text)
    assert found["blockd_requests_total", of("vm1", "read")] == 2
    assert found["blockd_request_bytes_total", of("vm1", "read")] == 8192
    assert found["blockd_request_errors_total", of("vm1", "write")] == 1
    name = "blockd_request_duration_seconds"
    assert found[name + "_count", of("vm1", "read")] == 2
    assert found[name + "_sum", of("vm1", "read")] == pytest.approx(0.004)
    assert found[name + "_bucket", of("vm1", "read", le="0.001048576")] == 1
    assert found[name + "_bucket", of("vm1", "read", le="0.004194304")] == 2
    last = repr(BOUNDS[-1][1] / 1e9)
    assert found[name + "_bucket", of("vm1", "write", le=last)] == 0
    assert found[name + "_bucket", of("vm1", "write", le="+Inf")] == 1


def test_every_metric_of_the_table_is_scraped(node: FakeNode) -> None:
    node.store.create_volume("vm1", 1 << 20)
    device = node.store.get("vm1")
    assert device is not None
    node.accounts.of(device, "nbd")
    node.rate_limits.set("vm1", VolumeLimits(iops=5))
    node.cluster = cluster = FakeCluster()
    cluster.volumes.local = [LOCAL]
    node.tls = [CERTIFICATE]
    text = scrape(node).text
    never_yet = {"blockd_gc_last_end_age_seconds", "blockd_scrub_last_end_timestamp_seconds"}
    by_connection = {"blockd_nbd_connections"}
    told = {name for name, _ in samples(text)}
    for each in DEFINITIONS:
        assert f"# HELP {each.exposed} " in text
        if each.exposed not in never_yet | by_connection:
            assert {each.exposed, each.exposed + "_count"} & told, each.name


def test_peers_are_told_by_name_and_only_where_there_is_a_cluster(node: FakeNode) -> None:
    assert "blockd_peer_connected{" not in scrape(node).text
    node.cluster = cluster = FakeCluster()
    gone = replace(N2, connected=False, unanswered=3)
    cluster.shown = replace(INFO, nodes=(INFO.nodes[0], gone), problem="etcd: nobody answers")
    found = samples(scrape(node).text)
    n2 = (("peer", "n2"),)
    assert found["blockd_peer_connected", n2] == 0
    assert found["blockd_peer_requests", n2] == 3
    assert found["blockd_peer_refused_connections_total", ()] == 3
    assert found["blockd_cluster_problem", ()] == 1
    assert not any(labels == (("peer", "n1"),) for _, labels in found)


def test_copies_are_told_by_the_primary_and_who_serves_by_all_members(node: FakeNode) -> None:
    node.cluster = cluster = FakeCluster()
    cluster.volumes.local = [
        LOCAL,
        LocalVolume("vm2", False, 0, 0, ()),
    ]
    found = samples(scrape(node).text)
    vm1, vm2 = (("volume", "vm1"),), (("volume", "vm2"),)
    assert found["blockd_volume_serving", vm1] == 1
    assert found["blockd_volume_serving", vm2] == 0
    assert (found["blockd_volume_copies", vm1], found["blockd_volume_copies_wanted", vm1]) == (2, 3)
    assert ("blockd_volume_copies", vm2) not in found
    assert found["blockd_volume_copy_behind_records", (("peer", "n3"), *vm1)] == 17


def test_how_far_members_are_behind_is_told_where_somebody_knows(node: FakeNode) -> None:
    node.cluster = cluster = FakeCluster()
    lags = (Lag("n2", 0, 0.0, 0.0), Lag("n3", 4096, 12.5, None), Lag("n4", None, None, None))
    cluster.volumes.local = [replace(LOCAL, lags=lags)]
    found = samples(scrape(node).text)
    n3, n4 = ((("peer", name), ("volume", "vm1")) for name in ("n3", "n4"))
    assert found["blockd_volume_copy_behind_bytes", n3] == 4096
    assert found["blockd_volume_copy_behind_seconds", n3] == 12.5
    assert ("blockd_volume_copy_left_seconds", n3) not in found
    assert ("blockd_volume_copy_behind_bytes", n4) not in found


def test_stripes_are_told_by_state_and_work(node: FakeNode) -> None:
    assert "blockd_stripes{" not in scrape(node).text
    node.cluster = FakeCluster()
    found = samples(scrape(node).text)
    assert found["blockd_stripes", (("state", "lost"),)] == 1
    assert found["blockd_stripes_bytes", (("state", "whole"),)] == 5 << 20
    assert found["blockd_stripe_work_total", (("work", "convert"),)] == 4
    assert found["blockd_stripe_work_bytes_total", (("work", "repair"),)] == 1 << 19
    assert found["blockd_stripe_work_left_bytes", (("work", "convert"),)] == 3 << 20
    assert found["blockd_stripe_degraded_reads_total", ()] == 3
    assert found["blockd_device_shards_broken", ()] == 2


def test_what_limits_have_held_back_is_told(node: FakeNode) -> None:
    node.store.create_volume("vm1", 1 << 20)
    node.store.create_volume("vm2", 1 << 20)
    node.rate_limits.set("vm1", VolumeLimits(iops=1, burst_s=0.01))
    device = node.store.get("vm1")
    assert device is not None
    limit = node.rate_limits.of(device)
    now_ns = time.monotonic_ns()
    mine, other = Reservation(limit), Reservation(limit)
    assert mine.ask(OP_READ, 1, now_ns) == 0
    assert mine.ask(OP_READ, 1, now_ns) != 0
    assert other.ask(OP_READ, 1, now_ns) != 0
    assert mine.ask(OP_READ, 1, now_ns + 1000 * MS) == 0
    found = samples(scrape(node).text)
    vm1 = (("volume", "vm1"),)
    assert found["blockd_limit_waiting", vm1] == 1
    assert found["blockd_limit_held_requests_total", vm1] == 1
    assert found["blockd_limit_held_seconds_total", vm1] == pytest.approx(1.0)
    assert ("blockd_limit_waiting", (("volume", "vm2"),)) not in found


def test_the_end_of_each_certificate_is_told_by_listener_and_file(node: FakeNode) -> None:
    authority = Certificate("client_ca", Path("/etc/clients.pem"), datetime(2036, 1, 1, tzinfo=UTC))
    node.tls = [CERTIFICATE, authority]
    name, text = "blockd_tls_certificate_expiry_timestamp_seconds", scrape(node).text
    found = {labels: value for (of, labels), value in samples(text).items() if of == name}
    assert found == {
        (("file", "/etc/cert.pem"), ("listener", "nbd"), ("use", "server")): 1796083200.0,
        (("file", "/etc/clients.pem"), ("listener", "nbd"), ("use", "client_ca")): 2082758400.0,
    }


def test_openmetrics_is_served_to_who_asks_for_it(node: FakeNode) -> None:
    answer = scrape(node, "application/openmetrics-text; version=1.0.0")
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    names = {family.name for family in parse_openmetrics(answer.text)}  # type: ignore[no-untyped-call]
    assert "blockd_store_state" in names


def test_the_state_of_the_store_is_one_of_three(node: FakeNode) -> None:
    node.store.state = "sealed"
    found = samples(scrape(node).text)
    states = {state: found["blockd_store_state", (("state", state),)] for state in ("ok", "sealed")}
    assert states == {"ok": 0.0, "sealed": 1.0}


def test_metrics_are_not_for_other_machines_unless_that_is_said() -> None:
    listen = (TcpAddress("0.0.0.0", 9810),)
    with pytest.raises(ConfigError, match=r"metrics: .*:9810 can be reached"):
        check(ServeConfig(metrics=MetricsConfig(listen=listen)))
    check(ServeConfig(metrics=MetricsConfig(listen=listen, insecure=True)))
    check(ServeConfig(metrics=MetricsConfig(listen=(TcpAddress("127.0.0.1", 9810),))))
