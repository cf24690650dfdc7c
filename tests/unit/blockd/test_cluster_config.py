"""[cluster]: what may be said, and what is refused with the way out."""

from dataclasses import replace
from pathlib import Path

import pytest

from blockd.config import ClusterConfig, ServeConfig, TcpAddress, check, load_config
from blockd.config.addresses import PortalAddress
from blockd.config.iscsi import IscsiConfig
from blockd.toml_decode import ConfigError
from tests.command import Blockd

GOOD = "http://10.0.0.1:2379"
HERE = TcpAddress("10.0.0.1", 10811)


def test_every_setting_can_be_written(tmp_path: Path) -> None:
    file = tmp_path / "blockd.toml"
    file.write_text(
        f"""
[cluster]
etcd = ["{GOOD}", "https://[::1]:2379"]
prefix = "b1/"
ca = "ca.pem"
user = "blockd"
password_file = "secret"
listen = [":10811", "[fd00::1]:10811"]
advertise = ["192.0.2.1:10811"]
"""
    )
    config = load_config(file, None)
    assert config.cluster == ClusterConfig(
        (GOOD, "https://[::1]:2379"),
        "b1/",
        tmp_path / "ca.pem",
        "blockd",
        tmp_path / "secret",
        (TcpAddress("", 10811), TcpAddress("fd00::1", 10811)),
        (TcpAddress("192.0.2.1", 10811),),
    )
    check(config)
    assert config.cluster.addresses == ("192.0.2.1:10811",)


def test_others_are_told_where_it_listens() -> None:
    cluster = ClusterConfig((GOOD,), listen=(HERE, TcpAddress("fd00::1", 10811)))
    check(ServeConfig(cluster=cluster))
    assert cluster.addresses == ("10.0.0.1:10811", "[fd00::1]:10811")


@pytest.mark.parametrize(
    ("cluster", "why"),
    [
        (ClusterConfig(listen=(HERE,)), "of no use"),
        (ClusterConfig(("10.0.0.1:2379",), listen=(HERE,)), "is not http"),
        (ClusterConfig((GOOD + "/",), listen=(HERE,)), "is not http"),
        (ClusterConfig(("http://u:p@h:1",), listen=(HERE,)), "is not http"),
        (ClusterConfig((GOOD,), "", listen=(HERE,)), "has to end with"),
        (ClusterConfig((GOOD,), user="u", listen=(HERE,)), "go together"),
        (ClusterConfig((GOOD,)), r"have to reach this one: listen = \["),
        (ClusterConfig((GOOD,), listen=(TcpAddress("node1", 1),)), "numeric address"),
        (
            ClusterConfig((GOOD,), listen=(HERE,), advertise=(TcpAddress("node1", 1),)),
            "numeric address",
        ),
        (ClusterConfig((GOOD,), listen=(TcpAddress("", 7),)), r"advertise = \[\"192.0.2.1:7\"\]"),
        (ClusterConfig((GOOD,), listen=(TcpAddress("0.0.0.0", 7),)), "say where others reach it"),
        (ClusterConfig((GOOD,), listen=(TcpAddress("10.0.0.1", 0),)), "port 0"),
        (ClusterConfig((GOOD,), listen=(HERE,), advertise=(TcpAddress("::", 1),)), "nobody can"),
        (ClusterConfig((GOOD,), listen=(HERE,), advertise=(HERE,) * 9), "9 addresses, above 8"),
    ],
)
def test_what_cannot_work_is_refused(cluster: ClusterConfig, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        check(ServeConfig(cluster=cluster))


def test_serve_does_not_begin_alone_what_is_to_be_a_node(tmp_path: Path, blockd: Blockd) -> None:
    file = tmp_path / "blockd.toml"
    file.write_text(f'data = "data"\n[cluster]\netcd = ["{GOOD}"]\nlisten = ["127.0.0.1:10811"]\n')
    result = blockd("serve", "--config", str(file))
    assert result.code == 2
    assert "blockd cluster init" in result.err
    assert not (tmp_path / "data" / "journal").exists()
    assert blockd("serve", "--config", str(file), "--check-config").code == 0


def test_portal_group_tags_leave_room_for_the_nodes_number() -> None:
    cluster = ClusterConfig((GOOD,), listen=(HERE,))
    wide = IscsiConfig(listen=(PortalAddress(TcpAddress("127.0.0.1", 3260), 256),))
    check(ServeConfig(iscsi=wide))
    with pytest.raises(ConfigError, match=r"127\.0\.0\.1:3260,256.*1 to 255"):
        check(ServeConfig(iscsi=wide, cluster=cluster))
    with pytest.raises(ConfigError, match="1 to 255"):
        check(ServeConfig(cluster=replace(cluster, iscsi=wide.listen)))


def test_clients_are_told_addresses_that_they_can_connect_to() -> None:
    cluster = ClusterConfig((GOOD,), listen=(HERE,), nbd=(TcpAddress("0.0.0.0", 10809),))
    with pytest.raises(ConfigError, match="nobody can connect"):
        check(ServeConfig(cluster=cluster))
