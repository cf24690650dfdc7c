"""What is in packaging/ and the Dockerfile: systemd's own judgement, and what has to agree."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from blockd.config import ServeConfig, TcpAddress, check
from blockd.config.serve import load_config
from tests.clients import FindTool, run_tool
from transport.etcd.releases import known_faults

ROOT = Path(__file__).parents[3]
UNITS = ROOT / "packaging" / "systemd"
PROGRAM = "/opt/blockd/bin/blockd"
MAX_EXPOSURE = "15"  # 1.5 of 10, as systemd-analyze counts; "OK" begins below 5


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The units, with a program that is there instead of ours."""
    for unit in UNITS.iterdir():
        (tmp_path / unit.name).write_text(unit.read_text().replace(PROGRAM, "/bin/true"))
    return tmp_path


def test_systemd_finds_nothing_wrong_with_the_units(client_tool: FindTool, installed: Path) -> None:
    analyze = client_tool("systemd-analyze")
    done = subprocess.run(
        [analyze, "verify", "--man=no", *map(str, sorted(installed.iterdir()))],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("unit", ["blockd.service", "blockd-backup-meta.service"])
def test_services_are_exposed_to_little(client_tool: FindTool, installed: Path, unit: str) -> None:
    judge = ("security", "--offline=true", f"--threshold={MAX_EXPOSURE}", "--no-pager")
    run_tool(client_tool("systemd-analyze"), *judge, installed / unit)


def test_every_socket_is_the_services() -> None:
    """And it says so of each: who is not in Sockets= is not passed on when the service starts."""
    service = (UNITS / "blockd.service").read_text()
    (sockets,) = re.findall(r"^Sockets=(.*)$", service, re.MULTILINE)
    assert sorted(sockets.split()) == sorted(unit.name for unit in UNITS.glob("*.socket"))


def test_the_compose_file_runs_what_the_image_has() -> None:
    compose = yaml.safe_load((ROOT / "packaging" / "compose.yaml").read_text())
    service = compose["services"]["blockd"]
    dockerfile = (ROOT / "Dockerfile").read_text()
    (uid,) = re.findall(r"--uid (\d+)", dockerfile)
    assert (ROOT / "packaging" / service["build"]["context"] / "Dockerfile").is_file()
    assert f"uid={uid},gid={uid}" in service["tmpfs"][0]
    for port in re.findall(r"\d+", re.findall(r"^EXPOSE (.*)$", dockerfile, re.MULTILINE)[0]):
        assert f"127.0.0.1:{port}:{port}" in service["ports"]
    (command,) = re.findall(r"^CMD \[(\"serve\".*?)\]$", dockerfile, re.MULTILINE | re.DOTALL)
    assert " ".join(service["command"]).replace("=", " ") == " ".join(
        re.findall(r'"(.*?)"', command)
    )
    assert 'CMD ["blockd", "status"]' in dockerfile


# -- the cluster's Compose file


@pytest.fixture(scope="module")
def cluster() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / "packaging/compose-cluster.yaml").read_text())
    return found


def of_kind(cluster: dict[str, Any], kind: str) -> dict[str, dict[str, Any]]:
    return {name: each for name, each in cluster["services"].items() if name.startswith(kind)}


def settings(service: dict[str, Any]) -> ServeConfig:
    """What the node of a service is told, as it is mounted."""
    (mounted,) = (
        each for each in service["volumes"] if each.endswith(":/etc/blockd/blockd.toml:ro")
    )
    return load_config(ROOT / "packaging" / mounted.split(":")[0], None)


def test_every_node_is_as_closed_as_a_single_one(cluster: dict[str, Any]) -> None:
    single = yaml.safe_load((ROOT / "packaging" / "compose.yaml").read_text())["services"]["blockd"]
    own = {"ports", "volumes", "command"}
    for service in of_kind(cluster, "node").values():
        assert {key: service[key] for key in single.keys() - own} == {
            key: single[key] for key in single.keys() - own
        }
        assert service["command"] == ["serve", "--config=/etc/blockd/blockd.toml"]
    for service in of_kind(cluster, "etcd").values():
        assert "ports" not in service
        assert (service["cap_drop"], service["networks"]) == (["ALL"], ["store"])


def test_nodes_differ_in_their_addresses_only(cluster: dict[str, Any]) -> None:
    nodes = of_kind(cluster, "node")
    assert len(nodes) == 3
    published, advertised = set(), set()
    for name, service in nodes.items():
        config = settings(service)
        check(config)
        address = service["networks"]["peers"]["ipv4_address"]
        assert config.cluster.advertise == (TcpAddress(address, config.cluster.listen[0].port),)
        assert str(config.control_socket) == service["environment"]["BLOCKD_CONTROL"]
        assert config.control_socket.parent == Path(service["tmpfs"][0].split(":")[0])
        assert f"{name}:{config.data}" in service["volumes"]
        assert name in cluster["volumes"]
        inside = {f"{config.nbd.listen[0].port}", f"{config.iscsi.listen[0].address.port}"}
        assert {port.split(":")[2] for port in service["ports"]} == inside
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
        published |= {port.split(":")[1] for port in service["ports"]}
        advertised.add(address)
        first = (ROOT / "packaging/cluster/node1.toml").read_text()
        text = (ROOT / f"packaging/cluster/{name}.toml").read_text()
        assert text == first.replace("172.30.77.11", address).replace("# node1", f"# {name}")
    assert (len(published), len(advertised)) == (6, 3)


def test_nodes_ask_all_members_of_etcd_and_these_know_each_other(cluster: dict[str, Any]) -> None:
    members = of_kind(cluster, "etcd")
    given = {
        name: dict(each.removeprefix("--").split("=", 1) for each in service["command"][1:])
        for name, service in members.items()
    }
    peers = {name: each["initial-advertise-peer-urls"] for name, each in given.items()}
    for name, options in given.items():
        assert options["name"] == name
        assert f"{name}:{options['data-dir']}" in members[name]["volumes"]
        known = dict(each.split("=", 1) for each in options["initial-cluster"].split(","))
        assert known == peers
    endpoints = tuple(each["advertise-client-urls"] for each in given.values())
    assert len(endpoints) == 3
    for service in of_kind(cluster, "node").values():
        assert settings(service).cluster.etcd == endpoints
        assert "store" in service["networks"]


def test_etcd_is_of_a_release_without_known_faults(cluster: dict[str, Any]) -> None:
    for service in of_kind(cluster, "etcd").values():
        version = service["image"].rpartition(":v")[2]
        assert known_faults(version) is None, version
