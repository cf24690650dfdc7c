"""The alerts of packaging/prometheus ask for metrics that a daemon tells, and each is tried."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from blockd.metrics.catalog import DEFINITIONS

FOLDER = Path(__file__).parents[3] / "packaging" / "prometheus"
TRIED = ("alerts_test.yml", "alerts_scrub_test.yml")


def rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"]
    found: list[dict[str, Any]] = group["rules"]
    return found


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule["alert"])
def test_an_alert_asks_for_what_is_told(rule: dict[str, Any]) -> None:
    told = {each.exposed for each in DEFINITIONS}
    told |= {f"{each.exposed}_bucket" for each in DEFINITIONS if each.kind == "histogram"}
    asked = set(re.findall(r"\bblockd_[a-z_]+", rule["expr"]))
    assert asked <= told
    assert asked or "up{" in rule["expr"]


def test_each_alert_is_tried() -> None:
    tried = "".join((FOLDER / name).read_text() for name in TRIED)
    assert set(re.findall(r'alertname="(\w+)"', tried)) == {rule["alert"] for rule in rules()}
