"""promtool takes the alert rules and a scrape; rules and dashboard name metrics that there are."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from blockd.metrics.catalog import DEFINITIONS
from tests.clients import FindTool, run_tool
from tests.fake_node import FakeNode, raw_client, serving

PACKAGING = Path(__file__).parents[3] / "packaging"
PROMETHEUS = PACKAGING / "prometheus"
DASHBOARD = PACKAGING / "grafana" / "blockd.json"
PROCESS = {"blockd_process_resident_memory_bytes", "blockd_process_cpu_seconds_total"}


def told() -> set[str]:
    """The names of all series of a scrape."""
    names = set(PROCESS)
    for each in DEFINITIONS:
        suffixes = ("_bucket", "_sum", "_count") if each.kind == "histogram" else ("",)
        names |= {each.exposed + suffix for suffix in suffixes}
    return names


def named(text: str) -> set[str]:
    return set(re.findall(r"\bblockd_[a-z_]+", text))


def rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())["groups"]
    found: list[dict[str, Any]] = group["rules"]
    return found


def test_promtool_takes_the_rules_and_the_configuration(client_tool: FindTool) -> None:
    promtool = client_tool("promtool")
    run_tool(promtool, "check", "rules", PROMETHEUS / "alerts.yml")
    run_tool(promtool, "check", "config", PROMETHEUS / "prometheus.yml")


@pytest.mark.parametrize("tests", sorted(PROMETHEUS.glob("*_test.yml")), ids=lambda path: path.name)
def test_the_alerts_fire_when_they_should(client_tool: FindTool, tests: Path) -> None:
    run_tool(client_tool("promtool"), "test", "rules", tests)


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule["alert"])
def test_an_alert_asks_for_what_is_told(rule: dict[str, Any]) -> None:
    asked = named(rule["expr"])
    assert asked <= told()
    assert asked or "up{" in rule["expr"]


def test_each_alert_is_tried() -> None:
    tried = "".join(path.read_text() for path in PROMETHEUS.glob("*_test.yml"))
    assert set(re.findall(r'alertname="(\w+)"', tried)) == {rule["alert"] for rule in rules()}


def test_promtool_has_nothing_to_say_of_a_scrape(client_tool: FindTool, tmp_path: Path) -> None:
    node = FakeNode(tmp_path / "control.sock")
    node.store.create_volume("vm1", 1 << 20)
    device = node.store.get("vm1")
    assert device is not None
    node.accounts.of(device, "nbd").record(0, 4096, False, 1000)
    with serving(node), raw_client(node) as client:
        text = client.get("/metrics").text
    assert run_tool(client_tool("promtool"), "check", "metrics", stdin=text) == ""


def test_every_metric_that_the_dashboard_asks_for_is_told() -> None:
    assert named(DASHBOARD.read_text()) - told() == set()


def test_panels_of_the_dashboard_have_queries_and_their_own_place() -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    assert all(panel["targets"] and panel["title"] for panel in panels)
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels]
    assert len(set(places)) == len(panels) == len({panel["id"] for panel in panels})
